"""What the policy sees, without units: scaling all times and alphas by one factor changes nothing.

`describe` (description.py) is computed once per instance and feeds the encoder; `observe` once per
decision and feeds the light decoder. Both only read: splits and prices are the state's, nothing is
solved again.
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from offload_jax.env.config import EnvConfig
from offload_jax.env.description import local_time
from offload_jax.env.state import State, action_mask, open_pairs
from offload_jax.env.view import View, view_of
from offload_jax.plans.reduced_gains import move_gains
from offload_jax.problem import equations
from offload_jax.problem.arrays import one_hot, pick
from offload_jax.problem.equations import Placement
from offload_jax.problem.instance import Instance

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
    adaptive: bool = struct.field(pytree_node=False)  # layout of the actions: env.state.num_actions


def observe(
    instance: Instance,
    state: State,
    env: EnvConfig = EnvConfig(),
) -> Observation:
    """Everything about a state that the next decision needs, reduced gains included."""
    placed = equations.place(instance, state.assignment)
    gains = move_gains(instance, placed, state.split, state.price)
    gains = jnp.where(instance.mask[:, None], gains, 0)  # padded users show zeros
    one = jnp.ones((), gains.dtype)  # not `astype`: see `ActorCritic.encode`
    undecided = jnp.where(state.decided | state.stopped, 0, one)
    view = view_of(instance, state, env, gains)
    pairs, reduced = _pair_features(instance, state, placed, gains, undecided, view)
    return Observation(
        current=view.current,
        undecided=undecided,
        granted=jnp.where(placed.granted, one, 0),
        pairs=pairs,
        reduced=reduced,
        overall=_state_features(instance, state, placed, undecided),
        mask=action_mask(instance, state, env),
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
    real = equations.num_real_users(instance)
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
    view: View,
) -> tuple[Float[Array, "rows columns step_features *batch"], Float[Array, "rows columns *batch"]]:
    """STEP_FEATURES of each pair, and its reduced gain."""
    unit, real = local_time(instance), equations.num_real_users(instance)
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


def _best_other(x: Array, axis: int) -> Array:
    """The largest of the other entries along an axis, for every entry."""
    largest = jnp.moveaxis(one_hot(jnp.argmax(x, axis), x.shape[axis]), 0, axis)
    second = jnp.max(jnp.where(largest, -jnp.inf, x), axis, keepdims=True)
    return jnp.where(largest, jnp.maximum(second, 0), jnp.max(x, axis, keepdims=True))


def _ahead(
    gains: Float[Array, "users batches *batch"], waiting: Float[Array, "users *batch"], view: View
) -> Float[Array, "rows columns *batch"]:
    """Images that wait for the same batch and would gain more there.

    Nobody is ahead of himself: a fused kernel may compute the two sides of the comparison with
    different rounding.
    """
    mine, theirs = view.of(gains)[:, None], view.of_everybody(gains)
    better = (theirs > mine) & (theirs > 0) & ~view.themselves()[:, :, None]
    return jnp.sum(jnp.where(better, waiting[:, None], 0), axis=1)
