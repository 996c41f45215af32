"""What granting one more user would gain, to first order, from the prices of the convex layer."""

from __future__ import annotations

from dataclasses import fields, replace

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from offload_jax.plans.outcome import fits, split_rows
from offload_jax.problem import equations
from offload_jax.problem.arrays import pick
from offload_jax.problem.equations import Placement
from offload_jax.problem.instance import Instance
from offload_jax.splits import SplitProblem, best_reply


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
        move_gains(instance, placed, split, price),
        -jnp.inf,
    )


def move_gains(
    instance: Instance,
    placed: Placement,
    split: Float[Array, "users *batch"],
    price: Float[Array, "servers *batch"],
) -> Float[Array, "users batches *batch"]:
    """What each user gains in each batch over being denied, to first order; finite for every pair.

    All else unchanged: the gain of moving user i from batch k to l is r_il - r_ik. Denied users
    have their `reduced_gains`, capacities aside. A granted user is compared with being denied, so
    its own load, transfer and edge steps count for nothing here.
    """
    edge_steps = jnp.where(placed.granted, instance.steps - split, 0)
    # X_kl of the own batch k of every user, for all l: what it costs them, and what they cost.
    theirs = _pick_rows(placed.batch, instance.interference)
    caused = _pick_rows(placed.batch, jnp.swapaxes(instance.interference, 0, 1))
    # Congestion: sum over granted j of (T - n_j) X_{A_j k}, s per image in batch k.
    weighed = edge_steps[:, None] * theirs
    congestion = jnp.sum(weighed, axis=0) - weighed
    airtime = equations.airtime(instance)
    on_air = jnp.where(placed.granted, airtime, 0)
    radio = jnp.sum(on_air, axis=0) - on_air
    own = reply_gains(
        instance,
        placed.step_time - caused * instance.demand[:, None],
        pick(instance.server, price),
        placed.num_granted - placed.granted,
    )
    return own - instance.demand[:, None] * congestion - radio[:, None]


def _pick_rows(
    batch: Int[Array, "users *batch"], table: Float[Array, "batches batches *batch"]
) -> Float[Array, "users batches *batch"]:
    """table[batch[i]] of each user, 0 where it is in none."""
    numbers = range(table.shape[0])
    return sum(
        (jnp.where((batch == k)[:, None], table[k], 0) for k in numbers), start=jnp.zeros(())
    )


def reply_gains(
    instance: Instance,
    step_time: Float[Array, "..."],
    batch_price: Float[Array, "batches *batch"],
    num_granted: Float[Array, "..."],
) -> Float[Array, "users batches *batch"]:
    """Each user's own gain (s) from joining each batch with its best split, all else unchanged.

    `step_time`, (batches, *batch), and `num_granted`, (*batch), are those before the user joins;
    with a first axis of users each meets its own. Budgets are paid at their price.
    """
    rate = instance.demand[:, None] * equations.own_slope(instance)  # (users, batches)
    saving = instance.local_step[:, None] - step_time - rate
    problem = pair_problem(instance, saving, jnp.ones_like(saving))
    price = jnp.broadcast_to(batch_price, saving.shape).reshape(problem.saving.shape)
    split = best_reply(problem, price).reshape(saving.shape)
    air = equations.transfer_time(
        instance.payload, instance.spectral_efficiency, instance.bandwidth, num_granted + 1
    )
    paid = saving - batch_price * rate
    return equations.user_gain(equations.pair_curve(instance), split, paid, air[:, None])


def pair_problem(
    instance: Instance,
    saving: Float[Array, "users batches *batch"],
    weight: Float[Array, "users batches *batch"],
) -> SplitProblem:
    """The split problem of every user in every batch: users * batches rows, a user's together.

    `saving` is s/step that the user saves there; padded users are not granted.
    """
    users, batches = instance.num_users, instance.num_batches
    problem = split_rows(
        equations.pair_curve(instance),
        instance.split_min[:, None],
        saving=saving,
        rate=instance.demand[:, None] * equations.own_slope(instance),
        weight=weight,
        granted=instance.mask[:, None],
        server=instance.server,
        budget=instance.budget,
    )

    def flat(x: Array) -> Array:
        x = jnp.broadcast_to(x, (users, batches, *saving.shape[2:]))
        return x.reshape(users * batches, *x.shape[2:])

    of_rows = [field.name for field in fields(problem) if field.name not in ("steps", "budget")]
    return replace(problem, **{name: flat(getattr(problem, name)) for name in of_rows})
