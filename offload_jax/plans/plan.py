"""From assignments to plans that can be executed: optimal splits, whole splits, their worth."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from offload_jax.files.records import Plan
from offload_jax.plans.outcome import Outcome, evaluate, objective, objective_denied, problem_of
from offload_jax.plans.rounding import mend, round_splits
from offload_jax.problem import equations
from offload_jax.problem.instance import Instance
from offload_jax.problem.types import Assignment, Status
from offload_jax.splits import NATIVE, Solver

# A bound this near to a plan's gain proves it, as a share of the gain: what rounding leaves.
PROVEN = 1e-5


def sound(bounds: ArrayLike, gains: ArrayLike, whose: str) -> np.ndarray:
    """Upper bounds (s), inf where a feasible plan gains more: that is none, and a warning says so.

    `whose` tells the user whose they are.
    """
    bounds, gains = np.asarray(bounds, float), np.asarray(gains, float)
    wrong = gains > bounds + 10 * PROVEN * np.maximum(np.abs(gains), 1e-6)
    if np.any(wrong):
        i = int(np.argmax(wrong))
        warnings.warn(
            f"{np.sum(wrong)} of {wrong.size} upper bounds {whose} are wrong and left out, that of "
            f"instance {i}, {bounds[i]:.9g} s, before all: a feasible plan gains {gains[i]:.9g} s",
            stacklevel=2,
        )
    return np.where(wrong, np.inf, bounds)


@dataclass(frozen=True)
class Decision:
    """What a method decided about some instances (batch last)."""

    assignment: Assignment
    seconds: float  # for all of them, compiling excluded
    bound: np.ndarray | None = None  # proven upper bounds of U - U_deny, s; inf where none


_warm: set[Hashable] = set()


def warm_up(label: Hashable, instances: Instance, call: Callable[[], object]) -> None:
    """Runs `call` once per label and shape of the instances, so that it is compiled afterwards."""
    shapes = tuple((x.shape, x.dtype.name) for x in jax.tree.leaves(instances))
    if (label, shapes) not in _warm:
        jax.block_until_ready(call())
        _warm.add((label, shapes))


def forget_programs() -> None:
    """Drops all compiled programs, so that the next call of each compiles, and is warmed up, again.

    Each takes dozens of memory maps, of which Linux grants a process 65,530: a study of many
    methods at many sizes would run out of them, and XLA then dies of "Cannot allocate memory".
    """
    jax.clear_caches()
    _warm.clear()


def timed(label: Hashable, instances: Instance, assign: Callable[[], Assignment]) -> Decision:
    """The assignments with the time they took; `label` names what is compiled."""
    warm_up(label, instances, assign)
    start = time.perf_counter()
    assignment = jax.block_until_ready(assign())
    return Decision(assignment, time.perf_counter() - start)


@struct.dataclass
class Rounded:
    """An outcome with its executable twin."""

    outcome: Outcome
    integer_split: Int[Array, "users *batch"]
    integer_objective: Float[Array, "*batch"]  # U with the whole splits, s
    kept: Bool[Array, "*batch"]  # the whole splits keep the solver's own constraints, too


@partial(jax.jit, static_argnames="solver")
def execute(instance: Instance, assignment: Assignment, solver: Solver = NATIVE) -> Rounded:
    """Solves the splits of an assignment and rounds them to whole steps, every budget kept."""
    outcome = evaluate(instance, assignment, solver)
    placed = equations.place(instance, assignment)
    problem = problem_of(instance, placed)
    whole, kept = round_splits(problem, outcome.split), jnp.ones_like(outcome.feasible)
    if solver.rules.constraints:
        whole, kept = mend(instance, placed, problem, whole, solver)
    value = objective(instance, placed, whole.astype(outcome.split.dtype), solver)
    return Rounded(outcome=outcome, integer_split=whole, integer_objective=value, kept=kept)


def to_plans(
    instances: Instance,
    decision: Decision,
    method: str,
    solver: Solver = NATIVE,
) -> list[Plan]:
    """One plan per instance of a batch (batch last), padded users left out.

    Each plan gets its share of the decision's seconds. One that reaches its bound is optimal.
    """
    rounded = jax.device_get(execute(instances, decision.assignment, solver))
    denied = np.asarray(objective_denied(instances, solver))
    mask, granted = np.asarray(instances.mask), np.asarray(decision.assignment)
    outcome, count = rounded.outcome, mask.shape[-1]
    bounds = np.full(count, np.inf) if decision.bound is None else decision.bound
    bounds = sound(bounds, np.where(outcome.feasible, outcome.gain, -np.inf), f"by {method}")
    plans = []
    for i in range(count):
        real, gain = mask[:, i], float(outcome.gain[i])
        optimal = bool(bounds[i] - gain <= PROVEN * max(abs(gain), 1e-9))
        objective = float(outcome.objective[i])
        bound = max(objective, float(denied[i] + bounds[i])) if np.isfinite(bounds[i]) else None
        plans.append(
            Plan(
                assignment=granted[real, i].astype(np.int64),
                split=outcome.split[real, i].astype(np.float64),
                integer_split=rounded.integer_split[real, i].astype(np.int64),
                objective=objective,
                integer_objective=float(rounded.integer_objective[i]),
                bound=objective if optimal else bound,
                status=_status(rounded, i, optimal),
                seconds=decision.seconds / count,
                method=method,
            )
        )
    return plans


def _status(rounded: Rounded, i: int, optimal: bool) -> str:
    """How the plan of one instance came out, in words."""
    if rounded.outcome.status[i] != Status.SOLVED:
        return Status(int(rounded.outcome.status[i])).name.lower()
    if not rounded.outcome.feasible[i]:
        return "infeasible"
    if not rounded.kept[i]:
        return "feasible, but not in whole steps"
    return "optimal" if optimal else "feasible"


def add_batch(instance: Instance) -> Instance:
    """One instance as a batch of one."""
    return jax.tree.map(lambda x: jnp.asarray(x)[..., None], instance)
