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
from offload_jax.model import Placement
from offload_jax.schema import Plan
from offload_jax.segments import one_hot
from offload_jax.splits import SplitProblem, round_splits, splits_config
from offload_jax.splits.problem import server_use
from offload_jax.types import Assignment, Status
from offload_jax.value import Outcome, Solver, evaluate, facts_of, gain, objective, problem_of


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
        whole, kept = _round_within(instance, placed, problem, outcome.split, whole, solver)
    value = objective(instance, placed, whole.astype(outcome.split.dtype), solver)
    return Rounded(outcome=outcome, integer_split=whole, integer_objective=value, kept=kept)


def _round_within(
    instance: Instance,
    placed: Placement,
    problem: SplitProblem,
    split: Float[Array, "users *batch"],
    whole: Int[Array, "users *batch"],
    solver: Solver,
) -> tuple[Int[Array, "users *batch"], Bool[Array, "*batch"]]:
    """(whole splits, whether they keep the solver's own constraints).

    The best that keeps everything of `whole`, all rounded down, and all to the nearest.
    """
    facts, rules = facts_of(instance, placed), splits_config(solver).rules
    lower = jnp.where(placed.granted, jnp.ceil(problem.lower - 1e-6), problem.steps)
    tried = [whole.astype(split.dtype)]
    tried += [jnp.clip(r, lower, problem.steps) for r in (jnp.floor(split), jnp.round(split))]
    slack = 1e-5 * jnp.maximum(problem.budget, 1)
    worth = []
    for n in tried:
        use = server_use(problem, n)
        within = jnp.all(jnp.isinf(problem.budget) | (use <= problem.budget + slack), axis=0)
        kept = within & (rules.violation(facts, n) <= 1e-5)
        worth.append(jnp.where(kept, gain(instance, placed, n, solver), -jnp.inf))
    best = one_hot(jnp.argmax(jnp.stack(worth), axis=0), len(tried))
    chosen = jnp.sum(jnp.where(best[:, None], jnp.stack(tried), 0), axis=0)
    return chosen.astype(whole.dtype), jnp.max(jnp.stack(worth), axis=0) > -jnp.inf


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
