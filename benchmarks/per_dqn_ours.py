"""Our side of PER-DQN's comparison: `train.py` as it comes, one network for all cells."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from benchmarks import suite
from benchmarks.per_dqn_cells import Cell, optimum
from offload_jax import learner as learning
from offload_jax import model, runs
from offload_jax.config import load_config
from offload_jax.instance import Instance
from offload_jax.policies import Policy, greedy_plan

CHECKED = (0, 1, 2, 4, 7, 12, 20, 35, 60, 100, 160, 250)  # updates after which plans are judged
UPDATES = load_config("paper").learner.updates
REPEATS = 5


def trained(cells: Sequence[Cell], seeds: Sequence[int]) -> dict[str, Any]:
    """Trains the configuration `paper`: gaps in every cell on the way, and ms of a greedy plan.

    Core-seconds are those of updates: compiling and judging are left out, as for PER-DQN.
    """
    best = {cell: (optimum(cell.fixed), optimum(cell.fresh)) for cell in cells}
    found = []
    for seed in seeds:
        policy, curve = _train(best, seed)
        found.append({"seed": seed, "curve": curve})
    largest = max(cells, key=lambda cell: cell.users)
    plan_s = seconds_of(lambda: greedy_plan(policy, largest.fresh))
    return {
        "cells": [[cell.users, cell.gpus] for cell in cells],
        "runs": found,
        "plan_ms": 1e3 * plan_s / largest.fresh.alpha.shape[-1],
        "provenance": suite.provenance(),
    }


def _train(best: Mapping[Cell, tuple[Array, Array]], seed: int) -> tuple[Policy, list[suite.Row]]:
    """The policy at the end, and its gaps by cell: on the fixed instance, and on fresh ones."""
    config = replace(load_config("paper"), seed=seed)
    learner, state = config.to_learner(), runs.initial_state(config)
    policy = Policy(state.params, learner.network, learner.env)
    step = jax.jit(partial(learning.update, learner)).lower(state).compile()
    curve, seconds = [], 0.0
    for done in range(UPDATES + 1):
        if done in CHECKED or done == UPDATES:
            policy = policy.replace(params=state.params)
            gaps = [_gaps(policy, cell, *optima) for cell, optima in best.items()]
            curve.append({"updates": done, "train_s": seconds, "gaps": gaps})
            worst = max(fresh for _, fresh in gaps)
            told = f"ours, seed {seed}, update {done}: {seconds:.1f} core-s"
            print(f"{told}, worst cell {100 * worst:.3f} %", flush=True)
        begun = time.process_time()
        state, _ = jax.block_until_ready(step(state))
        seconds += time.process_time() - begun
    return policy, curve


def _gaps(policy: Policy, cell: Cell, fixed: Array, fresh: Array) -> tuple[float, float]:
    def gap(instances: Instance, optimal: Array) -> float:
        return float(jnp.mean(model.gap(optimal, greedy_plan(policy, instances)[1])))

    return gap(cell.fixed, fixed), gap(cell.fresh, fresh)


def seconds_of(call: Callable[[], Any]) -> float:
    """Median seconds of a call, compiled before."""
    found = []
    for _ in range(REPEATS + 1):
        begun = time.perf_counter()
        jax.block_until_ready(call())
        found.append(time.perf_counter() - begun)
    return median(found[1:])
