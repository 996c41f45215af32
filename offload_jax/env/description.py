"""An instance without units, computed once: what the encoder of a policy sees."""

from __future__ import annotations

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from offload_jax.plans.reduced_gains import reply_gains
from offload_jax.problem import equations
from offload_jax.problem.arrays import pick
from offload_jax.problem.instance import Instance
from offload_jax.problem.types import Scalar

# Loads at which a user's gain in a batch is shown to the encoder, as shares of what can fill it.
LEVELS = (0.0, 0.25, 0.5, 0.75, 1.0)
ROOM = 5.0  # capacities beyond so many times what all users want are shown as that


@struct.dataclass
class Description:
    """An instance in dimensionless numbers."""

    users: Float[Array, "users user_features *batch"]
    batches: Float[Array, "batches batch_features *batch"]
    pairs: Float[Array, "users batches pair_features *batch"]
    links: Float[Array, "batches batches link_features *batch"]  # what a batch does to another
    mask: Bool[Array, "users *batch"]  # True for real users


def local_time(instance: Instance) -> Scalar:
    """Mean over real users of T l, the seconds of an all-local run: the unit of time here."""
    total = jnp.sum(jnp.where(instance.mask, instance.local_step, 0), axis=0)
    return instance.steps * total / equations.num_real_users(instance)


def describe(instance: Instance) -> Description:
    """Everything about an instance that no decision changes."""
    unit = local_time(instance)
    steps, local = instance.steps, instance.steps * instance.local_step
    demand = jnp.where(instance.mask, instance.demand, 0)
    total_demand = jnp.sum(demand, axis=0)
    mean_demand = total_demand / equations.num_real_users(instance)
    airtime = equations.airtime(instance)
    users = [
        jnp.log(local / unit),
        instance.alpha / local,
        instance.wait / unit,
        jnp.log(instance.demand / mean_demand),
        equations.num_real_users(instance) * airtime / unit,
        instance.split_min / steps,
        instance.accuracy_local,
    ]
    own = equations.own_slope(instance)
    room = jnp.minimum(instance.capacity, total_demand)
    all_work = steps * own * total_demand  # GPU-seconds if everybody ran every step here
    budget = pick(
        instance.server, jnp.where(jnp.isfinite(instance.budget), instance.budget, jnp.inf)
    )
    batches = [
        jnp.log(own * mean_demand * steps / unit),
        instance.intercept * steps / unit,
        jnp.minimum(instance.capacity / jnp.maximum(total_demand, 1), ROOM),
        jnp.minimum(budget / all_work, 1),
        jnp.broadcast_to(jnp.log(equations.num_real_users(instance)), own.shape),
    ]
    levels = [_gain_at_level(instance, level * room, level) / local[:, None] for level in LEVELS]
    floor, slope, centre = (
        instance.accuracy_floor,
        instance.accuracy_slope,
        instance.accuracy_centre,
    )
    pairs = [*levels, floor, slope * steps / 10, centre / steps]
    slowed = instance.interference * mean_demand * steps / unit
    shared = (instance.server[:, None] == instance.server[None]).astype(slowed.dtype)
    links = [jnp.log1p(slowed), shared]
    real = instance.mask
    return Description(
        users=jnp.where(real[:, None], jnp.stack(users, axis=1), 0),
        batches=jnp.stack(batches, axis=1),
        pairs=jnp.where(real[:, None, None], jnp.stack(pairs, axis=2), 0),
        links=jnp.stack(links, axis=2),
        mask=real,
    )


def _gain_at_level(
    instance: Instance, load: Float[Array, "batches *batch"], level: float
) -> Float[Array, "users batches *batch"]:
    """A user's own gain (s) in each batch if batches carried `load` images, budgets left out."""
    own = equations.own_slope(instance)
    times = instance.intercept + own * load
    count = level * equations.num_real_users(instance)
    return reply_gains(instance, times, jnp.zeros_like(times), count)
