"""Soft assignments: what probabilities over batches are worth, and the gradient of that in them.

Users are drawn independently: user i is denied with probability p_i0 and granted in batch k with
p_ik. Expectations of loads and counts are linear in p, and what a user sees in a batch leaves its
own chance out, so for fixed split points V(p) is the expected objective exactly (budgets hold in
expectation). Its split points are those of a split problem with one row per user and batch,
weighted by p. At a 0/1 assignment V is U; in between it is no upper bound.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import struct
from jax.lax import stop_gradient
from jaxtyping import Array, Float, Int

from offload_jax.plans.outcome import objective_denied
from offload_jax.plans.reduced_gains import pair_problem
from offload_jax.problem import equations
from offload_jax.problem.instance import Instance
from offload_jax.problem.types import Scalar
from offload_jax.splits import NATIVE, Solver, SplitProblem, solve_by
from offload_jax.splits.problem import server_use


@struct.dataclass
class SoftOutcome:
    """What probabilities are worth with optimal splits."""

    objective: Float[Array, "*batch"]  # V, s; differentiable in reverse mode (native: and forward)
    gain: Float[Array, "*batch"]  # V - U_deny, s
    split: Float[Array, "users batches *batch"]  # n of each user in each batch, steps
    price: Float[Array, "servers *batch"]  # s per GPU-second
    load: Float[Array, "batches *batch"]  # expected images
    overload: Float[Array, "batches *batch"]  # expected images above the capacity: penalise these
    status: Int[Array, "*batch"]  # problem.types.Status of the split problem
    residual: Float[Array, "*batch"]  # its KKT residual


def soft_evaluate(
    instance: Instance,
    probabilities: Float[Array, "users choices *batch"],
    solver: Solver = NATIVE,
) -> SoftOutcome:
    """V(p) for probabilities over {deny, 1..M}; rows of padded users count as denied.

    The gradient needs no derivative of the solver: by the envelope theorem it is that of the
    Lagrangian with splits and prices held. Raises ValueError for a wrong shape, and for a solver
    with rules of its own, which speak of one split per user.
    """
    if solver.rules:
        raise ValueError("solver has constraints or terms; must have none for soft assignments")
    users, batches = instance.num_users, instance.num_batches
    wanted = (users, batches + 1, *instance.alpha.shape[1:])
    if probabilities.shape != wanted:
        raise ValueError(f"probabilities has shape {probabilities.shape}; must be {wanted}")
    granted = jnp.where(instance.mask[:, None], probabilities[:, 1:], 0)
    # A row per user and batch, weighted by the probability of that grant.
    problem = pair_problem(instance, _saving(instance, granted), granted)
    solution = solve_by(solver, problem)
    shape = granted.shape
    rows = _at_bounds(problem, stop_gradient(solution.split))
    split = rows.reshape(shape)
    price = stop_gradient(jnp.where(jnp.isfinite(instance.budget), solution.price, 0))
    gain = _soft_gain(instance, granted, split)
    # Worth nothing, as prices of slack budgets are 0, but for its derivative.
    budget = jnp.where(jnp.isfinite(instance.budget), instance.budget, 0)
    slack = budget - server_use(problem, rows)
    lagrangian = gain + jnp.sum(price * (slack - stop_gradient(slack)), axis=0)
    load = jnp.sum(granted * instance.demand[:, None], axis=0)
    return SoftOutcome(
        objective=objective_denied(instance, solver) + lagrangian,
        gain=lagrangian,
        split=split,
        price=solution.price,
        load=load,
        overload=jnp.maximum(load - instance.capacity, 0),
        status=solution.status,
        residual=solution.residual,
    )


def _others(granted: Float[Array, "users ..."]) -> Float[Array, "users ..."]:
    """Sums over all other users."""
    return jnp.sum(granted, axis=0) - granted


def _saving(
    instance: Instance, granted: Float[Array, "users batches *batch"]
) -> Float[Array, "users batches *batch"]:
    """Delta_ik = l_i - s_ik: seconds per step that user i expects to save in batch k."""
    demand = instance.demand[:, None]
    others = _others(granted * demand)  # images the user expects beside its own
    times = jnp.sum(instance.interference * others[:, None], axis=2)
    own = equations.own_slope(instance) * demand
    return instance.local_step[:, None] - (instance.intercept + times + own)


def _soft_gain(
    instance: Instance,
    granted: Float[Array, "users batches *batch"],
    split: Float[Array, "users batches *batch"],
) -> Scalar:
    """E[U] - U_deny for fixed splits: each pair's gain if it comes about, times its chance."""
    count = _others(jnp.sum(granted, axis=1)) + 1
    air = equations.transfer_time(
        instance.payload, instance.spectral_efficiency, instance.bandwidth, count
    )
    saving = _saving(instance, granted)
    gains = equations.user_gain(equations.pair_curve(instance), split, saving, air[:, None])
    return jnp.sum(granted * jnp.where(instance.mask[:, None], gains, 0), axis=(0, 1))


def _at_bounds(problem: SplitProblem, split: Array) -> Float[Array, "rows *batch"]:
    """The held splits, those at a bound moving with it: else a bound's price would be missing."""
    upper = jnp.broadcast_to(problem.steps, split.shape)
    return jnp.where(split <= problem.lower, problem.lower, jnp.where(split >= upper, upper, split))
