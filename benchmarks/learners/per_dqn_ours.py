"""Our side of PER-DQN's comparison, twice.

`train.py` as it comes makes one network for all cells; and, as for PER-DQN, a network for each cell
is trained on what the agent of that cell is trained on, where small batches do. Both are
self-labelling.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from benchmarks.common import Row, provenance
from benchmarks.learners.per_dqn_cells import Cell, Data, optimum
from offload_jax.learning import updates
from offload_jax.policy.decoding import greedy_plan
from offload_jax.policy.policy import Policy
from offload_jax.problem import equations
from offload_jax.problem.instance import Instance
from offload_jax.problem.scenario import PaperScenario
from offload_jax.problem.types import Key
from offload_jax.runs.config import TrainConfig
from offload_jax.runs.config_file import load_config
from offload_jax.runs.train import initial_state

# Updates after which plans are judged.
CHECKED = (0, 1, 2, 4, 7, 12, 20, 35, 60, 100, 160, 250, 400)
TOGETHER = load_config("paper").learner
# Labels come from 16 samples, as ever: with 8 a cell stayed at a local optimum.
ALONE = replace(TOGETHER, instances=8, updates=200)
ALONE_EVERY = 5  # updates between judgements
REPEATS = 5


@dataclass(frozen=True, kw_only=True)
class Pool(PaperScenario):
    """The paper's scenario where only given instances are drawn."""

    instances: Instance

    @property
    def max_users(self) -> int:
        return self.instances.num_users

    def sample(self, key: Key) -> Instance:
        number = jax.random.randint(key, (), 0, self.instances.alpha.shape[-1])
        return jax.tree.map(lambda x: x[..., number], self.instances)


def trained(cells: Sequence[Cell], seeds: Sequence[int]) -> dict[str, Any]:
    """Trains the configuration `paper`: gaps in every cell on the way, and ms of a greedy plan.

    Core-seconds are those of updates: compiling and judging are left out, as for PER-DQN.
    """
    best = {cell: (optimum(cell.fixed), optimum(cell.fresh)) for cell in cells}
    found = []
    for seed in seeds:
        policy, curve = _train_for_all(best, seed)
        found.append({"seed": seed, "curve": curve})
    largest = max(cells, key=lambda cell: cell.users)
    plan_s = seconds_of(lambda: greedy_plan(policy, largest.fresh))
    return {
        "cells": [[cell.users, cell.gpus] for cell in cells],
        "runs": found,
        "plan_ms": 1e3 * plan_s / largest.fresh.alpha.shape[-1],
        "provenance": provenance(),
    }


def _train_for_all(best: Mapping[Cell, tuple[Array, Array]], seed: int) -> tuple[Policy, list[Row]]:
    """The policy at the end, and its gaps by cell: on the fixed instance, and on fresh ones."""
    config = replace(load_config("paper"), learner=TOGETHER, seed=seed)
    learner, state = config.to_learner(), initial_state(config)
    step = jax.jit(partial(updates.update, learner)).lower(state).compile()
    curve = []
    for done, seconds, policy in _policies(config, step, {*CHECKED, TOGETHER.updates}):
        gaps = [_gaps(policy, cell, *optima) for cell, optima in best.items()]
        curve.append({"updates": done, "train_s": seconds, "gaps": gaps})
        worst = max(fresh for _, fresh in gaps)
        told = f"ours, seed {seed}, update {done}: {seconds:.1f} core-s"
        print(f"{told}, worst cell {100 * worst:.3f} %", flush=True)
    return policy, curve


def trained_alone(agents: Sequence[tuple[Cell, int]], data: Data) -> Iterator[Row]:
    """Trains a network for each (cell, seed), all of one number of users, on the agents' data."""
    step = None
    for cell, seed in agents:
        scenario = PaperScenario(num_users=(cell.users,))  # to begin: instances are of the pool
        config = replace(load_config("paper"), scenario=scenario, learner=ALONE, seed=seed)
        pool, best = cell.pool(data, seed), (optimum(cell.fixed), optimum(cell.fresh))
        if step is None:  # one program for all cells
            step = _on_pool(config).lower(pool, initial_state(config)).compile()
        checked = range(0, ALONE.updates + 1, ALONE_EVERY)
        curve = [
            [done, seconds, *_gaps(policy, cell, *best)]
            for done, seconds, policy in _policies(config, partial(step, pool), checked)
        ]
        done, seconds, *gaps = curve[-1]
        told = f"ours, N {cell.users}, E {cell.gpus}, {data}, seed {seed}, update {done}"
        print(f"{told}: {seconds:.1f} core-s, gap {100 * gaps[data == 'fresh']:.3f} %", flush=True)
        yield {"users": cell.users, "gpus": cell.gpus, "seed": seed, "data": data, "curve": curve}


def _on_pool(config: TrainConfig) -> Any:
    learner = config.to_learner()

    @jax.jit
    def step(pool: Instance, state: updates.LearnerState) -> Any:
        return updates.update(replace(learner, scenario=Pool(instances=pool)), state)

    return step


def _policies(
    config: TrainConfig, step: Callable[..., Any], checked: Collection[int]
) -> Iterator[tuple[int, float, Policy]]:
    """(updates, core-seconds, policy) at these numbers of updates."""
    learner, state, seconds = config.to_learner(), initial_state(config), 0.0
    for done in range(config.learner.updates + 1):
        if done in checked:
            yield done, seconds, learner.policy(state.params)
        if done == config.learner.updates:
            return
        begun = time.process_time()
        state, _ = jax.block_until_ready(step(state))
        seconds += time.process_time() - begun


def _gaps(policy: Policy, cell: Cell, fixed: Array, fresh: Array) -> tuple[float, float]:
    def gap(instances: Instance, optimal: Array) -> float:
        return float(jnp.mean(equations.gap(optimal, greedy_plan(policy, instances)[1])))

    return gap(cell.fixed, fixed), gap(cell.fresh, fresh)


def seconds_of(call: Callable[[], Any]) -> float:
    """Median seconds of a call, compiled before."""
    found = []
    for _ in range(REPEATS + 1):
        begun = time.perf_counter()
        jax.block_until_ready(call())
        found.append(time.perf_counter() - begun)
    return median(found[1:])
