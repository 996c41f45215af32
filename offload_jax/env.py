"""The environment: users are decided one at a time; pure functions over an instance.

An episode is one instance and has exactly N steps (padded steps are no-ops). Rewards telescope:
their sum is score(final) - score(everybody denied). Deterministic given the instance.

Orders:

- ``arrival``   step t decides the t-th user to arrive; actions 0 (deny) and 1..M (grant in a batch)
- ``sorted``    the same, users by falling best reduced gain of the empty assignment
- ``adaptive``  each step picks a user and a batch, action user * M + batch (both from 0), or stops
                (action N * M); after a stop everybody left is denied
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from offload_jax import model
from offload_jax.checks import Checks
from offload_jax.gains import reduced_gains
from offload_jax.instance import Instance
from offload_jax.segments import one_hot, pick, ranks
from offload_jax.splits import SOLVERS, splits_config
from offload_jax.types import DENY, Status
from offload_jax.value import Solver, fits, gain, solve_placed

Order = Literal["arrival", "sorted", "adaptive"]
Reward = Literal["dense", "terminal"]


@dataclass(frozen=True)
class EpisodeConfig:
    """How an episode goes."""

    order: Order = "arrival"  # who is decided next
    reward: Reward = (
        "dense"  # dense: change of the score at each step; terminal: all of it at the end
    )
    candidates: int = 0  # adaptive: pairs of largest reduced gain that a policy sees; 0: all
    one_shot: bool = False  # a policy sees the empty plan only: it decides everybody in one pass

    def validate(self) -> None:
        """Raises ValueError naming the field and the allowed values."""
        check = Checks(self, "env")
        check.one_of("order", get_args(Order))
        check.one_of("reward", get_args(Reward))
        check.not_negative("candidates")
        adaptive = self.order == "adaptive"
        check.require(adaptive or not self.candidates, "candidates", f"0 with order {self.order}")
        check.require(not (adaptive and self.one_shot), "one_shot", "false with order adaptive")


@dataclass(frozen=True)
class EnvConfig(EpisodeConfig):
    """Static choices of the environment (hashable: a jit argument by value)."""

    solver: Solver = "native"  # of the split layer; a SplitsConfig brings rules of your own

    def validate(self) -> None:
        """Raises ValueError naming the field and the allowed values."""
        super().validate()
        if isinstance(self.solver, str):
            Checks(self, "env").one_of("solver", SOLVERS)
        splits_config(self.solver).validate()


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


def reset(instance: Instance, env: EnvConfig = EnvConfig()) -> State:
    """Nobody decided, everybody denied. Raises ValueError for impossible settings of `env`."""
    env.validate()
    state = empty_plan(instance)
    return replace(state, turn=_turns(instance, state, env))


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


def step(
    instance: Instance, state: State, action: Int[Array, "*batch"], env: EnvConfig = EnvConfig()
) -> tuple[State, Float[Array, "*batch"]]:
    """One decision, one solve.

    An illegal action denies (arrival, sorted) or does nothing (adaptive), and so does a grant for
    which the solver's own constraints leave no splits. Raises ValueError for impossible settings.
    """
    env.validate()
    decided = _decided(instance, state, action, env)
    granted, possible = _assigned(instance, state, decided.assignment, env)
    if splits_config(env.solver).rules:
        granted = jax.tree.map(lambda new, old: jnp.where(possible, new, old), granted, state)
    following = replace(
        granted, decided=decided.decided, time=decided.time, stopped=decided.stopped
    )
    if env.reward == "dense":
        return following, model.score(instance, following.gain - state.gain)
    last = following.time == instance.num_users
    return following, jnp.where(last, model.score(instance, following.gain), 0)


def step_unsolved(
    instance: Instance, state: State, action: Int[Array, "*batch"], env: EnvConfig
) -> State:
    """The same decision, but splits, prices and gain stay as they were, until `settle`.

    For who needs only the masks on the way. Not for solvers with constraints, which may refuse.
    """
    decided = _decided(instance, state, action, env)
    return replace(decided, load=model.place(instance, decided.assignment).load)


def settle(instance: Instance, state: State, env: EnvConfig) -> State:
    """The state with the optimal splits, prices and gain of its assignment."""
    return _assigned(instance, state, state.assignment, env)[0]


def _decided(
    instance: Instance, state: State, action: Int[Array, "*batch"], env: EnvConfig
) -> State:
    """Who has been decided after an action, and how; load and splits are still those of before."""
    if env.order == "adaptive":
        chosen, batch, stops = _adaptive_choice(instance, state, action)
    else:
        chosen = is_current(instance, state)
        room = _room_for_current(instance, state)
        batch = jnp.where(pick(action - 1, room.astype(jnp.float32)) > 0, action, DENY)
        stops = jnp.zeros_like(state.stopped)
    return replace(
        state,
        assignment=jnp.where(chosen, batch, state.assignment).astype(jnp.int32),
        decided=state.decided | chosen,
        time=state.time + 1,
        stopped=state.stopped | stops,
    )


def release(
    instance: Instance,
    assignment: Int[Array, "users *batch"],
    released: Bool[Array, "users *batch"],
    env: EnvConfig = EnvConfig(),
) -> State:
    """A plan in which the `released` users are undecided again and all others stay as they are.

    As many decisions follow as users were released; in arrival and sorted order they come in that
    order. Raises ValueError for impossible settings.
    """
    start = reset(instance, env)
    released = released & instance.mask
    kept = jnp.where(released, DENY, assignment).astype(jnp.int32)
    state, _ = _assigned(instance, start, kept, env)
    turn = ranks(jnp.where(released, start.turn, jnp.inf))
    return replace(state, decided=~released, turn=jnp.where(released, turn, instance.num_users))


def _assigned(
    instance: Instance, state: State, assignment: Int[Array, "users *batch"], env: EnvConfig
) -> tuple[State, Bool[Array, "*batch"]]:
    """The state with another assignment, and whether the solver's constraints leave it splits."""
    placed = model.place(instance, assignment)
    solution = solve_placed(instance, placed, env.solver)
    state = replace(
        state,
        assignment=assignment,
        load=placed.load,
        split=solution.split,
        price=solution.price,
        gain=gain(instance, placed, solution.split, env.solver),
    )
    return state, solution.status != Status.INFEASIBLE


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
    grants = _room_for_current(instance, state)
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


def _room_for_current(instance: Instance, state: State) -> Bool[Array, "batches *batch"]:
    """Whether the current user fits in each batch; False for all on padded steps."""
    # A float sum: XLA's CPU backend vectorises those, and neither boolean nor integer ones.
    demand = jnp.sum(jnp.where(is_current(instance, state), instance.demand, 0), axis=0)
    return (demand > 0) & fits(instance, state.load + demand)


def open_pairs(instance: Instance, state: State) -> Bool[Array, "users batches *batch"]:
    """Undecided users and the batches that have room for them."""
    free = (~state.decided & ~state.stopped)[:, None]
    return free & fits(instance, state.load + instance.demand[:, None])


def _adaptive_choice(
    instance: Instance, state: State, action: Int[Array, "*batch"]
) -> tuple[Bool[Array, "users *batch"], Int[Array, "*batch"], Bool[Array, "*batch"]]:
    """(which user is granted, in which batch, whether the episode stops) of an adaptive action."""
    users, batches = instance.num_users, instance.num_batches
    chosen = one_hot(action // batches, users)
    wanted = one_hot(action % batches, batches)
    legal = open_pairs(instance, state) & chosen[:, None] & wanted
    return jnp.any(legal, axis=1), action % batches + 1, action == users * batches


def _turns(instance: Instance, state: State, env: EnvConfig) -> Int[Array, "users *batch"]:
    if env.order == "arrival":
        worth = instance.wait  # who waited longest came first
    elif env.order == "sorted":
        placed = model.place(instance, state.assignment)
        worth = jnp.max(reduced_gains(instance, placed, state.split, state.price), axis=1)
    else:
        return state.turn
    return ranks(jnp.where(instance.mask, -worth, jnp.inf))
