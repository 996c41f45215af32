"""What single changes around a plan are worth: solved again, and at the margin.

Every other user keeps its batch, all split points are solved again.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from offload_jax.plans.candidates import candidate_gains, gain_of, moved, repeated
from offload_jax.plans.outcome import Outcome, evaluate, fits
from offload_jax.plans.reduced_gains import move_gains
from offload_jax.problem import equations
from offload_jax.problem.arrays import pick
from offload_jax.problem.instance import Instance
from offload_jax.problem.types import Assignment
from offload_jax.splits import Solver


@struct.dataclass
class Margins:
    """The numbers behind advice on one plan; worths in seconds of U."""

    outcome: Outcome
    load: Float[Array, "batches"]
    use: Float[Array, "servers"]
    rate: Float[Array, "users"]  # GPU-seconds per edge step
    faster: Float[Array, "servers"]
    wider: Float[Array, ""]
    # What is gained over the plan, s, with one user denied (0) or in batch 1..M, whatever fits:
    changes: Float[Array, "users choices"]
    richer: Float[Array, "users choices servers"]  # the same with a GPU-second more for a server
    unlimited: Float[Array, "users choices"]  # over the plan, both without budgets
    second: Float[Array, "servers"]  # gained by the GPU-second alone, s
    allowed: Bool[Array, "users choices"]  # real users, where there is room; their own choice, too
    estimate: Float[Array, "users batches"]  # reduced gains without capacities
    within: Bool[Array, "batches"]  # the plan fits
    room: Bool[Array, "users batches"]  # for a user who is not in the batch
    more: Bool[Array, "users batches"]  # the same with room for one more image


@partial(jax.jit, static_argnames="solver")
def margins(instance: Instance, assignment: Assignment, solver: Solver) -> Margins:
    """One unbatched instance: (G + 2) N (M + 1) solves side by side, and one derivative."""
    outcome = evaluate(instance, assignment, solver)
    placed = equations.place(instance, assignment)
    joined = placed.load + instance.demand[:, None]
    room = fits(instance, joined)
    gains = _choices(instance, assignment, solver)
    own = assignment[:, None] == jnp.arange(instance.num_batches + 1)
    same = jnp.sum(jnp.where(own[0, :, None], gains[0], 0), axis=0)  # the first user where it is
    faster, wider = _derivatives(instance, assignment, solver)
    return Margins(
        outcome=outcome,
        load=placed.load,
        use=equations.server_use(instance, placed, outcome.split),
        rate=placed.rate,
        faster=faster,
        wider=wider,
        changes=gains[..., 0] - same[0],
        richer=gains[..., 1:-1] - same[0],
        unlimited=gains[..., -1] - same[-1],
        second=same[1:-1] - same[0],
        allowed=instance.mask[:, None] & (own | jnp.pad(room, ((0, 0), (1, 0)), constant_values=1)),
        estimate=move_gains(instance, placed, outcome.split, outcome.price),
        within=fits(instance, placed.load),
        room=room,
        more=fits(replace(instance, capacity=instance.capacity + 1), joined),
    )


def _choices(
    instance: Instance, assignment: Assignment, solver: Solver
) -> Float[Array, "users choices variants"]:
    """U - U_deny (s) with one user denied or in another batch, whatever fits.

    Variants: these budgets, one GPU-second more for each server in turn, and no budgets.
    """
    users, choices, servers = instance.num_users, instance.num_batches + 1, instance.num_servers
    more = jnp.pad(jnp.eye(servers), [(0, 0), (1, 0)])
    more = jnp.pad(more, [(0, 0), (0, 1)], constant_values=jnp.inf)
    many = repeated(instance, servers + 2)
    many = replace(
        many,
        budget=many.budget + more.astype(many.budget.dtype),
        capacity=jnp.full_like(many.capacity, jnp.inf),
    )
    plans = jnp.repeat(assignment[:, None], servers + 2, axis=1)
    gains = candidate_gains(
        many,
        lambda number: moved(plans, number // choices, number % choices),
        users * choices,
        solver,
    )
    return gains.reshape(users, choices, servers + 2)


def _derivatives(
    instance: Instance, assignment: Assignment, solver: Solver
) -> tuple[Float[Array, "servers"], Float[Array, ""]]:
    """What 1 % less time of each server's steps (2), and 1 % more bandwidth, are worth, in s.

    Derivatives through the layer: faster steps draw less on the budget (6), too.
    """

    def value(time: Array, band: Array) -> Array:
        of_batch = pick(instance.server, time)
        changed = replace(
            instance,
            intercept=of_batch * instance.intercept,
            interference=of_batch[:, None] * instance.interference,
            bandwidth=band * instance.bandwidth,
        )
        return gain_of(changed, assignment, solver)

    ones = jnp.ones_like(instance.budget)
    by_time, by_band = jax.grad(value, argnums=(0, 1))(ones, jnp.ones_like(instance.bandwidth))
    return -0.01 * by_time, 0.01 * by_band
