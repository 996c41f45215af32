"""Our side of PER-DQN's comparison: `train.py` as it comes, one network for all cells."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import suite
from benchmarks.per_dqn_cells import Cell, optimum
from offload_jax import learner as learning
from offload_jax import model, runs
from offload_jax.config import load_config
from offload_jax.instance import Instance
from offload_jax.policies import Policy, greedy_plan

CHECKED = (0, 1, 2, 4, 7, 12, 20, 35, 60, 100, 160, 250, 400)  # updates before plans are judged
REPEATS = 5


def trained(cells: Sequence[Cell], updates: int | None = None) -> dict[str, Any]:
    """Trains the configuration `paper`: gaps in every cell on the way, and ms of a greedy plan.

    Core-seconds are those of updates: compiling and judging are left out, as for PER-DQN.
    """
    config = load_config("paper")
    learner, state = config.to_learner(), runs.initial_state(config)
    policy = Policy(state.params, learner.network, learner.env)
    step = jax.jit(partial(learning.update, learner)).lower(state).compile()
    best = {cell: (optimum(cell.fixed), optimum(cell.fresh)) for cell in cells}
    rows, seconds = [], 0.0
    last = config.learner.updates if updates is None else updates
    for done in range(last + 1):
        if done in CHECKED or done == last:
            policy = policy.replace(params=state.params)
            gaps = [_gaps(policy, cell, best[cell]) for cell in cells]
            rows.append({"updates": done, "train_s": seconds, "gaps": gaps})
            worst = max(fresh for *_, fresh in gaps)
            print(
                f"ours, update {done}: {seconds:.1f} core-s, worst cell {100 * worst:.3f} %",
                flush=True,
            )
        begun = time.process_time()
        state, _ = jax.block_until_ready(step(state))
        seconds += time.process_time() - begun
    largest = max(cells, key=lambda cell: cell.users)
    plan_s = seconds_of(lambda: greedy_plan(policy, largest.fresh))
    return {
        "curve": rows,
        "plan_ms": 1e3 * plan_s / largest.fresh.alpha.shape[-1],
        "provenance": suite.provenance(),
    }


def _gaps(policy: Policy, cell: Cell, best: tuple[Any, Any]) -> tuple[int, int, float, float]:
    """The cell, and mean gaps on its fixed instance and on its fresh ones."""

    def gap(instances: Instance, optimal: Any) -> float:
        return float(jnp.mean(model.gap(optimal, greedy_plan(policy, instances)[1])))

    return cell.users, cell.gpus, gap(cell.fixed, best[0]), gap(cell.fresh, best[1])


def seconds_of(call: Callable[[], Any]) -> float:
    """Median seconds of a call, compiled before."""
    found = []
    for _ in range(REPEATS + 1):
        begun = time.perf_counter()
        jax.block_until_ready(call())
        found.append(time.perf_counter() - begun)
    return median(found[1:])
