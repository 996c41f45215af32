"""From an assignment to its value: the split problem it poses, solved, and what comes out."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from offload_jax.problem import equations
from offload_jax.problem.arrays import pick
from offload_jax.problem.equations import Curve, Placement
from offload_jax.problem.instance import Instance
from offload_jax.problem.types import Assignment, Scalar, Status
from offload_jax.splits import Facts, Rules, Solution, Solver, SplitProblem, solve_by, solver_named


@struct.dataclass
class Outcome:
    """What an assignment with its optimal splits is worth."""

    objective: Float[Array, "*batch"]  # U, s
    gain: Float[Array, "*batch"]  # U - U_deny, s, without the cancellation in U
    score: Float[Array, "*batch"]  # 0.1 U / N
    split: Float[Array, "users *batch"]  # n, steps that run on the user's device
    price: Float[Array, "servers *batch"]  # s per GPU-second of each server's budget
    latency: Float[Array, "users *batch"]  # s; 0 for padded users
    accuracy: Float[Array, "users *batch"]  # 0 for padded users
    feasible: Bool[Array, "*batch"]  # capacities (1) and budgets (6) hold, splits were solved
    status: Int[Array, "*batch"]  # problem.types.Status of the split problem
    residual: Float[Array, "*batch"]  # its KKT residual


def split_problem(instance: Instance, assignment: ArrayLike) -> SplitProblem:
    """The convex program that an assignment (ints 0..M per user) poses, one row per user.

    Refuses an assignment as `evaluate` does.
    """
    return problem_of(instance, equations.place(instance, _checked(instance, assignment)))


def problem_of(instance: Instance, placed: Placement) -> SplitProblem:
    """The same of a placement: Delta = l - s, rho = X_kk d, c = alpha (P - f) / sig(a (T - b))."""
    problem = split_rows(
        equations.user_curve(instance, placed),
        instance.split_min,
        saving=instance.local_step - placed.edge_step,
        rate=placed.rate,
        weight=jnp.ones_like(instance.alpha),
        granted=placed.granted,
        server=jnp.where(placed.granted, pick(placed.batch, instance.server), -1),
        budget=instance.budget,
    )
    return replace(
        problem,
        amplitude=jnp.where(placed.granted, problem.amplitude, 0),
        lower=jnp.where(placed.granted, problem.lower, instance.steps),
    )


def split_rows(curve: Curve, split_min: Array, **others: Array) -> SplitProblem:
    """Rows of a split problem: what follows from users' curves, beside what `others` say."""
    return SplitProblem(
        amplitude=equations.amplitude(curve),
        slope=curve.slope,
        centre=curve.centre,
        lower=jnp.maximum(split_min, curve.centre),
        steps=curve.steps,
        **others,
    )


def fits(instance: Instance, load: Float[Array, "..."]) -> Bool[Array, "..."]:
    """(1) Whether each batch holds the load, up to rounding; shapes (..., batches, *batch)."""
    return load <= room(instance)


def room(instance: Instance) -> Float[Array, "batches *batch"]:
    """What each batch may carry, images: its capacity, and what rounding adds to a sum."""
    slack = 8 * jnp.finfo(instance.capacity.dtype).eps * jnp.maximum(instance.capacity, 1)
    return instance.capacity + slack


def budget_slack(instance: Instance) -> Float[Array, "servers *batch"]:
    """What rounding may add to the use of each budget, GPU-seconds."""
    return 1e-5 * jnp.maximum(instance.budget, 1)


def facts_of(instance: Instance, placed: Placement) -> Facts:
    """What users' own rules speak of (`splits.rules.FACTS`): numbers of users, 0 where padded."""
    per_user = {
        "granted": placed.granted.astype(instance.alpha.dtype),
        "wait": instance.wait,
        "transfer": placed.transfer,
        "local_step": instance.local_step,
        "edge_step": placed.edge_step,
        "rate": placed.rate,
        "demand": instance.demand,
        "alpha": instance.alpha,
        "payload": instance.payload,
        "spectral_efficiency": instance.spectral_efficiency,
    }
    return {
        "mask": instance.mask,
        "steps": instance.steps,
        "users": equations.num_real_users(instance),
        "num_granted": placed.num_granted,
        **{name: jnp.where(instance.mask, x, 0) for name, x in per_user.items()},
    }


@struct.dataclass
class Solved:
    """An assignment, placed and with its optimal splits."""

    placed: Placement
    splits: Solution
    gain: Float[Array, "*batch"]  # U - U_deny, s; minus infinity where rules leave no splits


def solve_assignment(instance: Instance, assignment: Assignment, solver: Solver) -> Solved:
    """The way of every assignment: what users meet (1)-(3), their splits, what that is worth.

    Nothing is checked; `evaluate` checks and reports more.
    """
    placed = equations.place(instance, assignment)
    facts = facts_of(instance, placed) if solver.rules else None
    splits = solve_by(solver, problem_of(instance, placed), facts)
    return Solved(placed, splits, gain(instance, placed, splits.split, solver))


def gain(
    instance: Instance, placed: Placement, split: Float[Array, "users *batch"], solver: Solver
) -> Scalar:
    """U - U_deny (s) of a placement with its splits, the solver's own terms included.

    Minus infinity where the rules leave no splits (then they are NaN).
    """
    rules = solver.rules
    if not rules:
        return equations.gain(instance, placed, split)
    none = jnp.any(jnp.isnan(split), axis=0)
    split = jnp.where(none, instance.steps, split)  # NaN would spoil the gradient of a batch
    added = rules.worth(facts_of(instance, placed), split) - _worth_denied(instance, rules)
    return jnp.where(none, -jnp.inf, equations.gain(instance, placed, split) + added)


def objective(
    instance: Instance, placed: Placement, split: Float[Array, "users *batch"], solver: Solver
) -> Scalar:
    """U of a placement with its splits, the solver's own terms included."""
    plain, rules = equations.objective(instance, placed, split), solver.rules
    return plain + rules.worth(facts_of(instance, placed), split) if rules else plain


def objective_denied(instance: Instance, solver: Solver) -> Scalar:
    """U when everybody is denied, the solver's own terms included."""
    rules = solver.rules
    worth = instance.alpha * instance.accuracy_local
    local = worth - instance.wait - instance.steps * instance.local_step
    plain = jnp.sum(jnp.where(instance.mask, local, 0), axis=0)
    return plain + _worth_denied(instance, rules) if rules else plain


def _worth_denied(instance: Instance, rules: Rules) -> Scalar:
    return rules.worth(*_all_local(instance))


def _all_local(instance: Instance) -> tuple[Facts, Float[Array, "users *batch"]]:
    denied = equations.place(instance, jnp.zeros_like(instance.alpha, jnp.int32))
    return facts_of(instance, denied), jnp.broadcast_to(instance.steps, instance.alpha.shape)


def check_all_local(instances: Instance, solver: Solver) -> None:
    """Refuses constraints that the all-local plan breaks, on concrete instances (batch last).

    Everything is measured against that plan, and an episode starts from it. Raises ValueError
    naming the constraint and an instance.
    """
    missed = solver.rules.violations(*_all_local(instances))
    for text, shares in zip(solver.rules.constraints, missed, strict=True):
        worst = np.max(np.asarray(shares), axis=0).reshape(-1)  # of each instance's users
        broken = np.flatnonzero(~(worst <= 1e-6))  # what is no number is broken, too
        if len(broken):
            by = 100 * worst[broken[0]]
            how = f"by {by:.2g} %" if np.isfinite(by) else "where it is no number"
            raise ValueError(
                f"splits.constraints has {text!r}, which the all-local plan breaks (instance "
                f"{broken[0]} of {len(worst)}, {how}); "
                "must hold when everybody is denied: multiply by granted what only granted users "
                "must keep, or write a term with a price for missing it"
            )


def evaluate(instance: Instance, assignment: ArrayLike, solver: str | Solver = "native") -> Outcome:
    """Solves the splits of one assignment (ints 0..M per user) and reports everything about it.

    Differentiable in the instance's floats. Raises ValueError for a wrong shape or type, and for
    integers outside 0..M where their values are known (not under `jit`).
    """
    solver, assignment = solver_named(solver), _checked(instance, assignment)
    solved = solve_assignment(instance, assignment, solver)
    placed, solution = solved.placed, solved.splits
    # NaN splits would spoil the gradient of a whole batch, even where they are not looked at.
    none = jnp.isin(solution.status, jnp.array([Status.INVALID, Status.INFEASIBLE]))
    split = jnp.where(none, instance.steps, solution.split)
    use = equations.server_use(instance, placed, split)
    slack = budget_slack(instance)
    within = jnp.all(
        jnp.where(jnp.isfinite(instance.budget), use <= instance.budget + slack, True), axis=0
    )
    value = objective(instance, placed, split, solver)

    def shown(x: Array) -> Array:
        return jnp.where(none, jnp.nan, x)

    return Outcome(
        objective=shown(value),
        gain=shown(gain(instance, placed, split, solver)),
        score=shown(equations.score(instance, value)),
        split=solution.split,
        price=solution.price,
        latency=shown(equations.user_latency(instance, placed, split)),
        accuracy=shown(equations.user_accuracy(instance, placed, split)),
        feasible=jnp.all(fits(instance, placed.load), axis=0)
        & within
        & (solution.status == Status.SOLVED),
        status=solution.status,
        residual=solution.residual,
    )


def _checked(instance: Instance, assignment: ArrayLike) -> Assignment:
    shape, wanted = jnp.shape(assignment), jnp.shape(instance.alpha)
    if shape != wanted:
        raise ValueError(f"assignment has shape {shape}; must be {wanted}, one integer per user")
    if not jnp.issubdtype(jnp.result_type(assignment), jnp.integer):
        raise ValueError(
            f"assignment has type {jnp.result_type(assignment)}; must be integers 0..M"
        )
    if not isinstance(assignment, jax.core.Tracer):
        known = np.asarray(assignment)  # NumPy's: JAX's minimum would be traced under `jit`
        low, high = int(known.min()), int(known.max())
        if low < 0 or high > instance.num_batches:
            raise ValueError(
                f"assignment ranges over {low}..{high}; must be 0 (deny) to {instance.num_batches}"
            )
    return jnp.asarray(assignment)
