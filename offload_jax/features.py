"""What the policy sees, without units: scaling all times and alphas by one factor changes nothing.

`describe` is computed once per instance and feeds the encoder; `observe` once per decision and
feeds the light decoder. Both only read: splits and prices are the state's, nothing is solved again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from offload_jax import model
from offload_jax.env import EnvConfig, State, action_mask, empty_plan, is_current, open_pairs
from offload_jax.gains import move_gains, reply_gains
from offload_jax.instance import Instance
from offload_jax.model import Placement
from offload_jax.segments import one_hot, pick
from offload_jax.types import Scalar

# Loads at which a user's gain in a batch is shown to the encoder, as shares of what can fill it.
LEVELS = (0.0, 0.25, 0.5, 0.75, 1.0)

ROOM = 5.0  # capacities beyond so many times what all users want are shown as that

# Columns of `Observation.pairs`; those up to "hope" and the last two are made of reduced gains.
STEP_FEATURES = (
    "reduced",  # gain as a share of the user's all-local time
    "gain",  # in units of `local_time`
    "ahead",  # images that would gain more in the batch, per image of room
    "wanting",  # images that would gain anything there, per image of room
    "hope",  # what all who are undecided would gain there together
    "load",  # share of the capacity that is taken
    "size",  # the user's images, per image of room
    "slowness",  # a step there against one on the user's device
    "price",  # of the server's GPU-seconds
    "regret",  # gain over the user's best other batch, or over being denied
    "lead",  # gain over the best other user's of the batch
)


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
    """One state without units, for the pairs of user and batch that may be granted next.

    Those are rows x columns: of the current user alone 1 x batches (arrival, sorted), of all users
    x batches (adaptive), or, with `EnvConfig.candidates`, of so many single pairs x 1, the best
    first (and the last pair of all again and again, where there are fewer).
    """

    current: Float[Array, "users *batch"]  # 1 for the user to decide, all 0 in adaptive order
    undecided: Float[Array, "users *batch"]  # 1 for real users still to be decided
    granted: Float[Array, "users *batch"]  # 1 for granted users
    pairs: Float[Array, "rows columns step_features *batch"]
    reduced: Float[Array, "rows columns *batch"]  # reduced gain as a share of T l
    overall: Float[Array, "state_features *batch"]
    mask: Bool[Array, "actions *batch"]  # legal actions
    chosen: Int[Array, "rows *batch"] | None  # of single pairs: user * M + batch, both from 0
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
        jnp.minimum(instance.capacity / jnp.maximum(total_demand, 1), ROOM),
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
    """Everything about a state that the next decision needs, reduced gains included.

    A one-shot policy sees the empty plan instead, and which actions are legal.
    """
    legal = action_mask(instance, state, env)
    if env.one_shot:
        state = replace(empty_plan(instance), time=state.time, turn=state.turn)
    placed = model.place(instance, state.assignment)
    gains = move_gains(instance, placed, state.split, state.price)
    gains = jnp.where(instance.mask[:, None], gains, 0)  # padded users show zeros
    one = jnp.ones((), gains.dtype)  # not `astype`: see `ActorCritic.encode`
    undecided = jnp.where(state.decided | state.stopped, 0, one)
    view = _view(instance, state, env, gains)
    pairs, reduced = _pair_features(instance, state, placed, gains, undecided, view)
    return Observation(
        current=view.current,
        undecided=undecided,
        granted=jnp.where(placed.granted, one, 0),
        pairs=pairs,
        reduced=reduced,
        overall=_state_features(instance, state, placed, undecided),
        mask=legal,
        chosen=view.chosen,
        adaptive=env.order == "adaptive",
    )


def in_sight(observation: Observation) -> Bool[Array, "*batch actions"]:
    """Legal actions that a policy looks at, of observations with the batch first.

    All, or with candidates the chosen pairs and stopping.
    """
    if observation.chosen is None:
        return observation.mask
    pairs = jnp.arange(observation.mask.shape[-1] - 1)
    chosen = jnp.any(observation.chosen[..., None] == pairs, axis=-2)
    stop = jnp.ones_like(chosen[..., :1])
    return observation.mask & jnp.concatenate([chosen, stop], axis=-1)


def _state_features(
    instance: Instance, state: State, placed: Placement, undecided: Float[Array, "users *batch"]
) -> Float[Array, "state_features *batch"]:
    """How far the plan is, and how scarce what is left."""
    real = model.num_real_users(instance)
    waiting = jnp.sum(undecided * jnp.where(instance.mask, instance.demand, 0), axis=0)
    room = jnp.sum(jnp.maximum(instance.capacity - state.load, 0), axis=0)
    shares = [jnp.sum(undecided, axis=0), placed.num_granted, state.gain / local_time(instance)]
    return jnp.stack([*(x / real for x in shares), waiting / (room + 1), jnp.log(real)])


def _pair_features(
    instance: Instance,
    state: State,
    placed: Placement,
    gains: Float[Array, "users batches *batch"],
    undecided: Float[Array, "users *batch"],
    view: _View,
) -> tuple[Float[Array, "rows columns step_features *batch"], Float[Array, "rows columns *batch"]]:
    """STEP_FEATURES of each pair, and its reduced gain."""
    unit, real = local_time(instance), model.num_real_users(instance)
    demand, local = (
        jnp.where(instance.mask, x, 0)
        for x in (instance.demand, instance.steps * instance.local_step)
    )
    left = jnp.maximum(instance.capacity - state.load, 0)  # (batches,)
    waiting = undecided * demand
    gain = view.of(gains)
    one_run = jnp.maximum(view.of(local[:, None]), jnp.finfo(local.dtype).tiny)
    wanting = jnp.sum(jnp.where(gains > 0, waiting[:, None], 0), axis=0) / (left + 1)
    hope = jnp.sum(jnp.maximum(gains, 0) * undecided[:, None], axis=0) / (unit * real)
    # What deciding otherwise is worth: the user elsewhere (or denied), the batch with someone else.
    options = jnp.where(open_pairs(instance, state), jnp.maximum(gains, 0), 0)
    regret = gain - view.of(_best_other(options, axis=1))
    lead = gain - view.of(_best_other(options, axis=0))
    reduced = gain / one_run
    left = view.of(left[None]) + 1
    features = [
        reduced,
        gain / unit,
        jnp.minimum(_ahead(gains, waiting, view) / left, 4),
        view.of(jnp.minimum(wanting, 4)[None]),
        view.of(hope[None]),
        view.of((state.load / jnp.maximum(instance.capacity, 1))[None]),
        view.of(demand[:, None]) / left,
        jnp.minimum(view.of(placed.step_time[None]) * instance.steps / one_run, 4),
        view.of(jnp.log1p(pick(instance.server, state.price))[None]),
        regret / one_run,
        lead / unit,
    ]
    return jnp.stack([jnp.broadcast_to(x, gain.shape) for x in features], axis=2), reduced


@dataclass(frozen=True)
class _View:
    """Which pairs are looked at: chosen ones, those of the current user, or all there are."""

    current: Float[Array, "users *batch"]  # 1 for the current user; all 0 in adaptive order
    chosen: Int[Array, "rows *batch"] | None  # user * M + batch
    adaptive: bool
    batches: int  # M

    def of(self, x: Float[Array, "users_or_1 batches_or_1 *batch"]) -> Array:
        """These pairs' numbers, (rows, columns, *batch), of those of all pairs.

        x has 1 for an axis that it does not depend on.
        """
        if self.chosen is None:
            return x if self.adaptive or x.shape[0] == 1 else _only(self.current, x)
        rows, columns, *batch = x.shape
        row, column = self.chosen // self.batches, self.chosen % self.batches
        place = row * (rows > 1) * columns + column * (columns > 1)
        return jnp.take_along_axis(x.reshape(-1, *batch), place, axis=0)[:, None]

    def of_everybody(self, x: Float[Array, "users batches *batch"]) -> Array:
        """What all users have where a row's pairs are: (rows or 1, users, columns, *batch)."""
        if self.chosen is None:
            return x[None]
        batch = jnp.broadcast_to(self.chosen % self.batches, (x.shape[0], *self.chosen.shape))
        return jnp.moveaxis(jnp.take_along_axis(x, batch, axis=1), 1, 0)[:, :, None]

    def themselves(self) -> Array:
        """Whether a row is about a user: (rows, users, *batch)."""
        users = self.current.shape[0]
        if self.chosen is not None:
            return jnp.moveaxis(one_hot(self.chosen // self.batches, users), 0, 1)
        if self.adaptive:
            return jnp.eye(users, dtype=bool).reshape(users, users, *(1,) * (self.current.ndim - 1))
        return self.current[None] > 0


def _view(
    instance: Instance, state: State, env: EnvConfig, gains: Float[Array, "users batches *batch"]
) -> _View:
    adaptive, chosen = env.order == "adaptive", None
    current = is_current(instance, state).astype(gains.dtype) * (0.0 if adaptive else 1.0)
    users, batches = gains.shape[:2]
    if env.candidates:
        local = jnp.maximum(instance.local_step, jnp.finfo(gains.dtype).tiny)
        rated = jnp.where(open_pairs(instance, state), gains / local[:, None], -jnp.inf)
        rated = jnp.moveaxis(rated.reshape(users * batches, *gains.shape[2:]), 0, -1)
        # Never fewer than asked for, whatever N: the last pair again stands for what is missing.
        none = jnp.full((*rated.shape[:-1], env.candidates), -jnp.inf, rated.dtype)
        _, chosen = jax.lax.top_k(jnp.concatenate([rated, none], axis=-1), env.candidates)
        chosen = jnp.moveaxis(jnp.minimum(chosen, users * batches - 1), -1, 0)
    return _View(current, chosen, adaptive, batches)


def _only(current: Float[Array, "users *batch"], x: Array) -> Array:
    """The current user's row of x (users, ..., *batch), as the only one of its first axis."""
    chosen = current.reshape(current.shape[0], *(1,) * (x.ndim - current.ndim), *current.shape[1:])
    return jnp.sum(x * chosen, axis=0, keepdims=True)


def _best_other(x: Array, axis: int) -> Array:
    """The largest of the other entries along an axis, for every entry."""
    largest = jnp.moveaxis(one_hot(jnp.argmax(x, axis), x.shape[axis]), 0, axis)
    second = jnp.max(jnp.where(largest, -jnp.inf, x), axis, keepdims=True)
    return jnp.where(largest, jnp.maximum(second, 0), jnp.max(x, axis, keepdims=True))


def _ahead(
    gains: Float[Array, "users batches *batch"], waiting: Float[Array, "users *batch"], view: _View
) -> Float[Array, "rows columns *batch"]:
    """Images that wait for the same batch and would gain more there.

    Nobody is ahead of himself: a fused kernel may compute the two sides of the comparison with
    different rounding.
    """
    mine, theirs = view.of(gains)[:, None], view.of_everybody(gains)
    better = (theirs > mine) & (theirs > 0) & ~view.themselves()[:, :, None]
    return jnp.sum(jnp.where(better, waiting[:, None], 0), axis=1)
