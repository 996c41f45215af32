"""From assignments to plans that can be executed: optimal splits, whole splits, their worth."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from offload_jax import model
from offload_jax.instance import Instance
from offload_jax.schema import Plan
from offload_jax.splits import round_splits, splits_config
from offload_jax.types import Assignment, Status
from offload_jax.value import Outcome, Solver, evaluate, objective, problem_of
from offload_jax.whole import mend


@struct.dataclass
class Rounded:
    """An outcome with its executable twin."""

    outcome: Outcome
    integer_split: Int[Array, "users *batch"]
    integer_objective: Float[Array, "*batch"]  # U with the whole splits, s
    kept: Bool[Array, "*batch"]  # the whole splits keep the solver's own constraints, too


@partial(jax.jit, static_argnames="solver")
def execute(instance: Instance, assignment: Assignment, solver: Solver = "native") -> Rounded:
    """Solves the splits of an assignment and rounds them to whole steps, every budget kept."""
    outcome = evaluate(instance, assignment, solver)
    placed = model.place(instance, assignment)
    problem = problem_of(instance, placed)
    whole, kept = round_splits(problem, outcome.split), jnp.ones_like(outcome.feasible)
    if splits_config(solver).constraints:
        whole, kept = mend(instance, placed, problem, whole, solver)
    value = objective(instance, placed, whole.astype(outcome.split.dtype), solver)
    return Rounded(outcome=outcome, integer_split=whole, integer_objective=value, kept=kept)


def to_plans(
    instances: Instance,
    assignment: Assignment,
    method: str,
    seconds: float,
    optimal: bool = False,
    solver: Solver = "native",
) -> list[Plan]:
    """One plan per instance of a batch (batch last), padded users left out.

    `seconds` is the time all of them took; each plan gets its share. `optimal` says that the method
    proves its plans, so that the objective is also the bound.
    """
    rounded = jax.device_get(execute(instances, assignment, solver))
    mask, granted = np.asarray(instances.mask), np.asarray(assignment)
    count = mask.shape[-1]
    plans = []
    for i in range(count):
        real, outcome = mask[:, i], rounded.outcome
        objective = float(outcome.objective[i])
        solved = bool(outcome.feasible[i])
        status = "optimal" if solved and optimal else "feasible" if solved else "infeasible"
        if solved and not rounded.kept[i]:
            status = "feasible, but not in whole steps"
        if outcome.status[i] != Status.SOLVED:
            status = Status(int(outcome.status[i])).name.lower()
        plans.append(
            Plan(
                assignment=granted[real, i].astype(np.int64),
                split=outcome.split[real, i].astype(np.float64),
                integer_split=rounded.integer_split[real, i].astype(np.int64),
                objective=objective,
                integer_objective=float(rounded.integer_objective[i]),
                bound=objective if optimal else None,
                status=status,
                seconds=seconds / count,
                method=method,
            )
        )
    return plans


def add_batch(instance: Instance) -> Instance:
    """One instance as a batch of one."""
    return jax.tree.map(lambda x: jnp.asarray(x)[..., None], instance)
