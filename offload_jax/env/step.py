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

from dataclasses import replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from offload_jax.env.config import EnvConfig
from offload_jax.env.state import State, empty_plan, is_current, open_pairs, room_for_current
from offload_jax.plans.outcome import solve_assignment
from offload_jax.plans.reduced_gains import reduced_gains
from offload_jax.problem import equations
from offload_jax.problem.arrays import one_hot, pick, ranks
from offload_jax.problem.instance import Instance
from offload_jax.problem.types import DENY, Status


def reset(instance: Instance, env: EnvConfig = EnvConfig()) -> State:
    """Nobody decided, everybody denied. Raises ValueError for impossible settings of `env`."""
    env.validate()
    state = empty_plan(instance)
    return replace(state, turn=_turns(instance, state, env))


def step(
    instance: Instance, state: State, action: Int[Array, "*batch"], env: EnvConfig = EnvConfig()
) -> tuple[State, Float[Array, "*batch"]]:
    """One decision, one solve: the next state, and the change of the score 0.1 U / N.

    An illegal action denies (arrival, sorted) or does nothing (adaptive), and so does a grant for
    which the solver's own constraints leave no splits. Raises ValueError for impossible settings.
    """
    following = advance(instance, state, action, env)
    return following, equations.score(instance, reward(instance, state, following, env))


def advance(
    instance: Instance, state: State, action: Int[Array, "*batch"], env: EnvConfig
) -> State:
    """The state after `step`."""
    env.validate()
    after = decided(instance, state, action, env)
    granted, possible = _assigned(instance, state, after.assignment, env)
    if env.solver.rules:
        granted = jax.tree.map(lambda new, old: jnp.where(possible, new, old), granted, state)
    return replace(granted, decided=after.decided, time=after.time, stopped=after.stopped)


def reward(
    instance: Instance, before: State, after: State, env: EnvConfig
) -> Float[Array, "*batch"]:
    """What a step was worth, s: over an episode the sum is the plan's gain U - U_deny."""
    if env.reward == "dense":
        return after.gain - before.gain
    return jnp.where(after.time == instance.num_users, after.gain, 0)


def decided(
    instance: Instance, state: State, action: Int[Array, "*batch"], env: EnvConfig
) -> State:
    """Who has been decided after an action, and how; load and splits are still those of before."""
    if env.order == "adaptive":
        chosen, batch, stops = _adaptive_choice(instance, state, action)
    else:
        chosen = is_current(instance, state)
        room = room_for_current(instance, state)
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
    solved = solve_assignment(instance, assignment, env.solver)
    state = replace(
        state,
        assignment=assignment,
        load=solved.placed.load,
        split=solved.splits.split,
        price=solved.splits.price,
        gain=solved.gain,
    )
    return state, solved.splits.status != Status.INFEASIBLE


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
        placed = equations.place(instance, state.assignment)
        worth = jnp.max(reduced_gains(instance, placed, state.split, state.price), axis=1)
    else:
        return state.turn
    return ranks(jnp.where(instance.mask, -worth, jnp.inf))
