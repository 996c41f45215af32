"""The state of an episode: what has been decided, and what may be decided next."""

from __future__ import annotations

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from offload_jax.env.config import EnvConfig
from offload_jax.plans.outcome import fits
from offload_jax.problem.arrays import one_hot
from offload_jax.problem.instance import Instance
from offload_jax.problem.types import DENY


@struct.dataclass
class State:
    """A partial assignment with its optimal splits; undecided users count as denied."""

    assignment: Int[Array, "users *batch"]  # 0..M
    decided: Bool[Array, "users *batch"]
    turn: Int[Array, "users *batch"]  # step at which the user is decided (arrival, sorted)
    time: Int[Array, "*batch"]  # decisions made
    stopped: Bool[Array, "*batch"]  # adaptive: everybody left is denied
    load: Float[Array, "batches *batch"]  # images in each batch
    split: Float[Array, "users *batch"]  # steps
    price: Float[Array, "servers *batch"]  # s per GPU-second
    gain: Float[Array, "*batch"]  # U_t - U_deny, s


def empty_plan(instance: Instance) -> State:
    """The plan that everything starts from; whose turn it is when is left open."""
    number = jnp.zeros_like(instance.steps)
    return State(
        assignment=jnp.zeros_like(instance.alpha, jnp.int32),
        decided=~instance.mask,
        turn=jnp.zeros_like(instance.alpha, jnp.int32),
        time=number.astype(jnp.int32),
        stopped=number.astype(bool),
        load=jnp.zeros_like(instance.intercept),
        split=jnp.broadcast_to(instance.steps, instance.alpha.shape),
        price=jnp.zeros_like(instance.budget),
        gain=number,
    )


def num_actions(num_users: int, num_batches: int, env: EnvConfig) -> int:
    """Size of the action mask: M + 1, or N M + 1 in adaptive order."""
    return (num_users if env.order == "adaptive" else 1) * num_batches + 1


def action_mask(
    instance: Instance, state: State, env: EnvConfig = EnvConfig()
) -> Bool[Array, "actions *batch"]:
    """Legal actions. Deny and stop always are, and alone are when nothing is left to decide."""
    if env.order == "adaptive":
        grants = open_pairs(instance, state)
        grants = grants.reshape(-1, *grants.shape[2:])
        return jnp.concatenate([grants, jnp.ones_like(grants[:1])])
    grants = room_for_current(instance, state)
    return jnp.concatenate([jnp.ones_like(grants[:1]), grants])


def leading_to(
    instance: Instance,
    state: State,
    plan: Int[Array, "users *batch"],
    env: EnvConfig = EnvConfig(),
) -> Bool[Array, "actions *batch"]:
    """Legal actions after which a plan, feasible and so far followed, can still be reached."""
    if env.order == "adaptive":
        wanted = one_hot(plan - 1, instance.num_batches)  # (batches, users, *batch)
        grants = open_pairs(instance, state) & jnp.moveaxis(wanted, 0, 1)
        grants = grants.reshape(-1, *grants.shape[2:])
        return jnp.concatenate([grants, ~jnp.any(grants, axis=0, keepdims=True)])
    wanted = jnp.sum(jnp.where(is_current(instance, state), plan, DENY), axis=0)
    return one_hot(wanted, instance.num_batches + 1)


def is_current(instance: Instance, state: State) -> Bool[Array, "users *batch"]:
    """The user the next decision is about (arrival, sorted); nobody on padded steps."""
    return (state.turn == state.time) & instance.mask


def room_for_current(instance: Instance, state: State) -> Bool[Array, "batches *batch"]:
    """Whether the current user fits in each batch; False for all on padded steps."""
    # A float sum: XLA's CPU backend vectorises those, and neither boolean nor integer ones.
    demand = jnp.sum(jnp.where(is_current(instance, state), instance.demand, 0), axis=0)
    return (demand > 0) & fits(instance, state.load + demand)


def open_pairs(instance: Instance, state: State) -> Bool[Array, "users batches *batch"]:
    """Undecided users and the batches that have room for them."""
    free = (~state.decided & ~state.stopped)[:, None]
    return free & fits(instance, state.load + instance.demand[:, None])
