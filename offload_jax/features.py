"""What the policy sees, without units: scaling all times and alphas by one factor changes nothing.

`describe` is computed once per instance and feeds the encoder; `observe` once per decision and
feeds the light decoder. Both only read: splits and prices are the state's, nothing is solved again.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from offload_jax import model
from offload_jax.env import EnvConfig, State, action_mask, is_current, open_pairs
from offload_jax.gains import move_gains, reply_gains
from offload_jax.instance import Instance
from offload_jax.segments import one_hot, pick
from offload_jax.types import Scalar

# Loads at which a user's gain in a batch is shown to the encoder, as shares of what can fill it.
LEVELS = (0.0, 0.25, 0.5, 0.75, 1.0)


@struct.dataclass
class Description:
    """An instance in dimensionless numbers."""

    users: Float[Array, "users user_features *batch"]
    batches: Float[Array, "batches batch_features *batch"]
    pairs: Float[Array, "users batches pair_features *batch"]
    links: Float[Array, "batches batches link_features *batch"]  # what a batch does to another
    mask: Bool[Array, "users *batch"]  # True for real users


@struct.dataclass
class Observation:
    """One state without units; ``candidates`` is 1 (arrival, sorted) or users (adaptive)."""

    current: Float[Array, "users *batch"]  # 1 for the user to decide, all 0 in adaptive order
    undecided: Float[Array, "users *batch"]  # 1 for real users still to be decided
    granted: Float[Array, "users *batch"]  # 1 for granted users
    pairs: Float[Array, "candidates batches step_features *batch"]
    reduced: Float[Array, "candidates batches *batch"]  # reduced gain as a share of T l
    overall: Float[Array, "state_features *batch"]
    mask: Bool[Array, "actions *batch"]  # legal actions
    adaptive: bool = struct.field(pytree_node=False)  # layout of the actions: env.num_actions


def local_time(instance: Instance) -> Scalar:
    """Mean over real users of T l, the seconds of an all-local run: the unit of time here."""
    total = jnp.sum(jnp.where(instance.mask, instance.local_step, 0), axis=0)
    return instance.steps * total / model.num_real_users(instance)


def describe(instance: Instance) -> Description:
    """Everything about an instance that no decision changes."""
    unit = local_time(instance)
    steps, local = instance.steps, instance.steps * instance.local_step
    demand = jnp.where(instance.mask, instance.demand, 0)
    total_demand = jnp.sum(demand, axis=0)
    mean_demand = total_demand / model.num_real_users(instance)
    airtime = model.airtime(instance)
    users = [
        jnp.log(local / unit),
        instance.alpha / local,
        instance.wait / unit,
        jnp.log(instance.demand / mean_demand),
        model.num_real_users(instance) * airtime / unit,
        instance.split_min / steps,
        instance.accuracy_local,
    ]
    own = model.own_slope(instance)
    room = jnp.minimum(instance.capacity, total_demand)
    all_work = steps * own * total_demand  # GPU-seconds if everybody ran every step here
    budget = pick(
        instance.server, jnp.where(jnp.isfinite(instance.budget), instance.budget, jnp.inf)
    )
    batches = [
        jnp.log(own * mean_demand * steps / unit),
        instance.intercept * steps / unit,
        instance.capacity / jnp.maximum(total_demand, 1),
        jnp.minimum(budget / all_work, 1),
        jnp.broadcast_to(jnp.log(model.num_real_users(instance)), own.shape),
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
    own = model.own_slope(instance)
    times = instance.intercept + own * load
    count = level * model.num_real_users(instance)
    return reply_gains(instance, times, jnp.zeros_like(times), count)


def observe(
    instance: Instance,
    state: State,
    env: EnvConfig = EnvConfig(),  # noqa: B008 (frozen)
) -> Observation:
    """Everything about a state that the next decision needs, reduced gains included."""
    unit, local = local_time(instance), instance.steps * instance.local_step
    placed = model.place(instance, state.assignment)
    # Padded users show zeros, whatever their numbers are.
    demand, local = (jnp.where(instance.mask, x, 0) for x in (instance.demand, local))
    gains = move_gains(instance, placed, state.split, state.price)
    gains = jnp.where(instance.mask[:, None], gains, 0)  # (users, batches)
    one = jnp.ones((), gains.dtype)  # not `astype`: see `ActorCritic.encode`
    undecided = jnp.where(state.decided | state.stopped, 0, one)
    granted = jnp.where(placed.granted, one, 0)
    adaptive = env.order == "adaptive"
    current = is_current(instance, state).astype(gains.dtype) * (0.0 if adaptive else 1.0)

    def candidates(x: Array) -> Array:
        return x if adaptive else _only(current, x)

    real = model.num_real_users(instance)
    left = jnp.maximum(instance.capacity - state.load, 0)  # (batches,)
    waiting = undecided * demand
    gain, seconds, images = map(candidates, (gains, local[:, None], demand[:, None]))
    one_run = jnp.maximum(seconds, jnp.finfo(seconds.dtype).tiny)
    users = gains.shape[0]
    itself = candidates(jnp.eye(users).reshape(users, users, *(1,) * (gains.ndim - 2)))
    ahead = _ahead(gain, gains, itself, waiting) / (left + 1)
    wanting = jnp.sum(jnp.where(gains > 0, waiting[:, None], 0), axis=0) / (left + 1)
    hope = jnp.sum(jnp.maximum(gains, 0) * undecided[:, None], axis=0) / (unit * real)
    # What deciding otherwise is worth: the user elsewhere (or denied), the batch with someone else.
    options = jnp.where(open_pairs(instance, state), jnp.maximum(gains, 0), 0)
    regret = gain - candidates(_best_other(options, axis=1))
    lead = gain - candidates(_best_other(options, axis=0))
    step_share = placed.step_time * instance.steps / one_run
    prices = jnp.log1p(pick(instance.server, state.price))
    reduced = gain / one_run
    shape = gain.shape
    pairs = [
        reduced,
        gain / unit,
        jnp.minimum(ahead, 4),
        jnp.broadcast_to(jnp.minimum(wanting, 4), shape),
        jnp.broadcast_to(hope, shape),
        jnp.broadcast_to(state.load / jnp.maximum(instance.capacity, 1), shape),
        jnp.broadcast_to(images / (left + 1), shape),
        jnp.minimum(step_share, 4),
        jnp.broadcast_to(prices, shape),
        regret / one_run,
        lead / unit,
    ]
    crowding = jnp.sum(waiting, axis=0) / (jnp.sum(left, axis=0) + 1)
    shares = [jnp.sum(undecided, axis=0), placed.num_granted, state.gain / unit]
    overall = [*(x / real for x in shares), crowding, jnp.log(real)]
    return Observation(
        current=current,
        undecided=undecided,
        granted=granted,
        pairs=jnp.stack(pairs, axis=2),
        reduced=reduced,
        overall=jnp.stack(overall),
        mask=action_mask(instance, state, env),
        adaptive=adaptive,
    )


def _only(current: Float[Array, "users *batch"], x: Array) -> Array:
    """The current user's row of x (users, ..., *batch), as the only one of its first axis."""
    chosen = current.reshape(current.shape[0], *(1,) * (x.ndim - current.ndim), *current.shape[1:])
    return jnp.sum(x * chosen, axis=0, keepdims=True)


def _best_other(x: Array, axis: int) -> Array:
    """The largest of the other entries along an axis, for every entry."""
    largest = jnp.moveaxis(one_hot(jnp.argmax(x, axis), x.shape[axis]), 0, axis)
    second = jnp.max(jnp.where(largest, -jnp.inf, x), axis, keepdims=True)
    return jnp.where(largest, jnp.maximum(second, 0), jnp.max(x, axis, keepdims=True))


def _ahead(gain: Array, gains: Array, itself: Array, waiting: Array) -> Array:
    """Images that wait for the same batch and would gain more there: (candidates, batches, *batch).

    Nobody is ahead of himself (`itself`: (candidates, users), 1 where they are the same): a fused
    kernel may compute the two sides of the comparison with different rounding.
    """
    better = (gains[None] > gain[:, None]) & (gains[None] > 0) & (itself[:, :, None] == 0)
    return jnp.sum(jnp.where(better, waiting[:, None], 0), axis=1)
