"""What granting one more user would gain: exactly, and to first order from the layer's prices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from offload_jax import model
from offload_jax.instance import Instance
from offload_jax.model import Placement
from offload_jax.segments import one_hot, pick
from offload_jax.splits import SplitProblem, best_reply
from offload_jax.types import Assignment
from offload_jax.value import Solver, fits, gain, solve_placed


def reduced_gains(
    instance: Instance,
    placed: Placement,
    split: Float[Array, "users *batch"],
    price: Float[Array, "servers *batch"],
) -> Float[Array, "users batches *batch"]:
    """First-order gain (s) of also granting user i in batch k, for all pairs at once, no solve.

    The user's best reply to the current step times and prices, less what it costs the others:
    lambda_k seconds per image it adds to batch k, and kappa seconds of their time on the air.
    Meant for denied users; minus infinity where the batch lacks capacity.
    """
    return jnp.where(
        fits(instance, placed.load + instance.demand[:, None]),
        pair_gains(instance, placed, split, price),
        -jnp.inf,
    )


def pair_gains(
    instance: Instance,
    placed: Placement,
    split: Float[Array, "users *batch"],
    price: Float[Array, "servers *batch"],
) -> Float[Array, "users batches *batch"]:
    """`reduced_gains` without the capacities: finite for every pair."""
    edge_steps = jnp.where(placed.granted, instance.steps - split, 0)
    # Congestion: sum over granted j of (T - n_j) X_{A_j k}, s per image in batch k.
    in_batch = jnp.stack(
        [
            jnp.sum(jnp.where(placed.batch == k, edge_steps, 0), axis=0)
            for k in range(instance.num_batches)
        ]
    )
    congestion = jnp.sum(in_batch[:, None] * instance.interference, axis=0)
    airtime = instance.payload / (instance.bandwidth * instance.spectral_efficiency)
    radio = jnp.sum(jnp.where(placed.granted, airtime, 0), axis=0)
    own = reply_gains(instance, placed.step_time, pick(instance.server, price), placed.num_granted)
    return own - instance.demand[:, None] * congestion - radio


def reply_gains(
    instance: Instance,
    step_time: Float[Array, "batches *batch"],
    batch_price: Float[Array, "batches *batch"],
    num_granted: Float[Array, "*batch"],
) -> Float[Array, "users batches *batch"]:
    """Each user's own gain (s) from joining each batch with its best split, all else unchanged.

    `step_time` and `num_granted` are those before the user joins; budgets are paid at their price.
    """
    rate = instance.demand[:, None] * model.own_slope(instance)  # (users, batches)
    saving = instance.local_step[:, None] - step_time - rate
    problem = pair_problem(instance, saving, jnp.ones_like(saving))
    price = jnp.broadcast_to(batch_price, saving.shape).reshape(problem.saving.shape)
    split = best_reply(problem, price).reshape(saving.shape)
    local, floor = instance.accuracy_local[:, None], instance.accuracy_floor
    slope, centre = instance.accuracy_slope, instance.accuracy_centre
    loss = model.accuracy_loss(instance.steps, split, local, floor, slope, centre)
    saved = (instance.steps - split) * (saving - batch_price * rate)
    air = model.transfer_time(
        instance.payload, instance.spectral_efficiency, instance.bandwidth, num_granted + 1
    )
    return saved - instance.alpha[:, None] * loss - air[:, None]


def pair_problem(
    instance: Instance,
    saving: Float[Array, "users batches *batch"],
    weight: Float[Array, "users batches *batch"],
) -> SplitProblem:
    """The split problem of every user in every batch: users * batches rows, a user's together.

    `saving` is s/step that the user saves there; padded users are not granted.
    """
    users, batches = instance.num_users, instance.num_batches
    local, floor = instance.accuracy_local[:, None], instance.accuracy_floor
    slope, centre = instance.accuracy_slope, instance.accuracy_centre
    amplitude = instance.alpha[:, None] * (local - floor)
    amplitude = amplitude / jax.nn.sigmoid(slope * (instance.steps - centre))

    def flat(x: Array) -> Array:
        x = jnp.broadcast_to(x, (users, batches, *saving.shape[2:]))
        return x.reshape(users * batches, *x.shape[2:])

    return SplitProblem(
        saving=flat(saving),
        rate=flat(instance.demand[:, None] * model.own_slope(instance)),
        amplitude=flat(amplitude),
        slope=flat(slope),
        centre=flat(centre),
        lower=flat(jnp.maximum(instance.split_min[:, None], centre)),
        weight=flat(weight),
        granted=flat(instance.mask[:, None]),
        server=flat(instance.server),
        steps=instance.steps,
        budget=instance.budget,
    )


def exact_gains(
    instance: Instance, assignment: Assignment, solver: Solver = "native"
) -> Float[Array, "users batches *batch"]:
    """Exact gain (s) of also granting user i in batch k, every other user kept, splits re-solved.

    N M solves. Minus infinity where the batch lacks capacity or the user is granted or padded.
    """
    users, batches = instance.num_users, instance.num_batches
    placed = model.place(instance, assignment)
    now = gain_of(instance, assignment, solver)

    def with_pair(pair: Int[Array, ""]) -> Float[Array, "*batch"]:
        chosen = one_hot(pair // batches, users).reshape(users, *(1,) * now.ndim)
        return gain_of(instance, jnp.where(chosen, pair % batches + 1, assignment), solver)

    gains = (
        jax.lax.map(with_pair, jnp.arange(users * batches)).reshape(users, batches, *now.shape)
        - now
    )
    open_ = (instance.mask & ~placed.granted)[:, None] & fits(
        instance, placed.load + instance.demand[:, None]
    )
    return jnp.where(open_, gains, -jnp.inf)


def gain_of(
    instance: Instance, assignment: Assignment, solver: Solver = "native"
) -> Float[Array, "*batch"]:
    """U - U_deny (s) of an assignment with its optimal splits; see `value.gain`."""
    placed = model.place(instance, assignment)
    solution = solve_placed(instance, placed, solver)
    return gain(instance, placed, solution.split, solver)
