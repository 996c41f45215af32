"""Better plans from the same policy for more time: other orders, local search, deciding again.

Everything works on many instances side by side (batch last), values plans exactly, and never ends
with a worse plan than greedy decoding, which is always among the samples.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from offload_jax.env.config import EnvConfig
from offload_jax.env.step import release
from offload_jax.methods.local_search import descend
from offload_jax.methods.search import Found, Search, Trace, found_at, one_round, run
from offload_jax.methods.tabu import Memory, tabu, tabu_from
from offload_jax.plans.plan import Decision, timed
from offload_jax.policy.decoding import best_plan, draw_plans
from offload_jax.policy.policy import Policy
from offload_jax.policy.rollout import begin, repeat
from offload_jax.problem.arrays import ranks
from offload_jax.problem.instance import Instance
from offload_jax.problem.types import Assignment, Key
from offload_jax.splits import Solver

Refinement = Literal["orders", "local-search", "tabu", "re-deciding"]
STARTS = 8  # different plans of each instance that local search starts from
TABU_STARTS, TABU_ROUNDS = 4, 50  # and tabu search, where no time is given
RELEASED = 8  # users that are decided again at once
ROUNDS = 16  # of re-deciding, where no time is given


def refine(
    policy: Policy,
    instances: Instance,
    samples: int,
    refinement: Refinement,
    key: Key,
    budget_s: float | None = None,
) -> Decision:
    """Best of `samples`, refined, with the time it took (compiling excluded).

    `budget_s` is the time (s) for each instance that re-deciding and tabu search take instead of
    their own rounds. Raises ValueError where the refinement does not apply to the policy
    (`refuse_refinement`).
    """
    if reason := refuse_refinement(policy, refinement):
        raise ValueError(f"refinement is {refinement!r}, which does not apply: {reason}")
    if refinement in _SEARCHES:
        trace, search = Trace(), _SEARCHES[refinement](policy, samples)
        total = None if budget_s is None else budget_s * instances.mask.shape[-1]
        found = run(search, instances, key, policy.env.solver, total, trace)
        return Decision(found.best, trace.seconds[-1])
    decode = {"orders": best_of_orders, "local-search": polished}[refinement]
    label = (refinement, policy.network, policy.env, samples)
    return timed(label, instances, lambda: decode(policy, instances, samples, key)[0])


def refuse_refinement(policy: Policy, refinement: Refinement) -> str | None:
    """Why a refinement does not apply to a policy; None where it does."""
    env = policy.env
    if not isinstance(env, EnvConfig):
        return f"it is for snapshots, and the policy's environment is {type(env).__name__}"
    if refinement == "orders" and env.order != "arrival":
        return f"the policy's order is {env.order}, which the instance alone decides"
    return None


# ---- other orders


@partial(jax.jit, static_argnames="samples")
def best_of_orders(
    policy: Policy, instances: Instance, samples: int, key: Key
) -> tuple[Assignment, Float[Array, "*batch"]]:
    """Best of `samples`, each deciding the users in an own random order, the first as they arrived.

    The symmetry that is left to exploit: storing users or batches in another order changes nothing,
    as the network is equivariant.
    """
    draw, key = jax.random.split(key)
    episodes = begin(policy, instances, samples)
    start = episodes.state
    first = jnp.arange(start.turn.shape[-1]) % samples == 0
    turn = jnp.where(first, start.turn, _random_turns(episodes.instances, draw))
    return best_plan(*draw_plans(policy, replace(episodes, state=replace(start, turn=turn)), key))


def _random_turns(instances: Instance, key: Key) -> Int[Array, "users *batch"]:
    """The real users in a random order, padded ones after them."""
    draws = jax.random.uniform(key, instances.mask.shape)
    return ranks(jnp.where(instances.mask, draws, jnp.inf))


# ---- local search


@partial(jax.jit, static_argnames="samples")
def polished(
    policy: Policy, instances: Instance, samples: int, key: Key
) -> tuple[Assignment, Float[Array, "*batch"]]:
    """A round of local search from the best `STARTS` different ones of `samples` plans."""
    drawn = draw_plans(policy, begin(policy, instances, samples), key)
    starts, users = min(STARTS, samples), instances.num_users
    plans = _best_different(*drawn, starts).reshape(users, -1)
    plans, gains = descend(repeat(instances, starts), plans, policy.env.solver)
    return best_plan(plans.reshape(users, -1, starts), gains.reshape(-1, starts))


def _best_different(
    plans: Int[Array, "users instances samples"],
    gains: Float[Array, "instances samples"],
    count: int,
) -> Int[Array, "users instances count"]:
    """The `count` best plans, one of each gain before others: equal gains are mostly one plan."""
    order = jnp.argsort(gains, axis=-1, descending=True)
    ranked = jnp.take_along_axis(gains, order, axis=-1)
    same = 1e-6 * jnp.abs(ranked[:, 1:])
    repeats = jnp.concatenate(
        [jnp.zeros_like(ranked[:, :1], bool), ranked[:, :-1] - ranked[:, 1:] <= same], axis=-1
    )
    first = jnp.argsort(repeats, axis=-1, stable=True)[:, :count]
    return jnp.take_along_axis(plans, jnp.take_along_axis(order, first, axis=-1)[None], axis=-1)


# ---- tabu search


def tabu_search(policy: Policy, samples: int) -> Search:
    """Tabu search from the best `TABU_STARTS` different ones of `samples` plans, side by side."""
    search, starts = tabu(Memory(rounds=TABU_ROUNDS)), min(TABU_STARTS, samples)

    def best(inner: Found, instance: Instance) -> tuple[Assignment, Float[Array, "*batch"]]:
        users = instance.num_users
        return best_plan(inner.best.reshape(users, -1, starts), inner.best_gain.reshape(-1, starts))

    def start(instance: Instance, key: Key, solver: Solver) -> Found:
        first, key = jax.random.split(key)
        drawn = draw_plans(policy, begin(policy, instance, samples), first)
        plans = _best_different(*drawn, starts).reshape(instance.num_users, -1)
        inner = tabu_from(repeat(instance, starts), plans, key, solver)
        return found_at(*best(inner, instance), key, memory=inner)

    def advance(instance: Instance, found: Found, solver: Solver) -> Found:
        inner = one_round(search, repeat(instance, starts), found.memory, solver)
        ended = jnp.all(inner.done.reshape(-1, starts), axis=1)
        found = found.offered(*best(inner, instance))
        return replace(found, done=found.done | ended, memory=inner)

    return Search(start, advance)


# ---- deciding again


def redeciding(policy: Policy, samples: int) -> Search:
    """Best of `samples`, then again and again: a few users are released and decided once more.

    Every round draws `samples` sets of `RELEASED` users of each instance, lets the policy decide
    those while all others stay, and keeps the best plan. It has had its say after `ROUNDS`.
    """

    def start(instance: Instance, key: Key, solver: Solver) -> Found:
        first, key = jax.random.split(key)
        episodes = begin(policy.with_solver(solver), instance, samples)
        plan, gain = best_plan(*draw_plans(policy.with_solver(solver), episodes, first))
        return found_at(plan, gain, key, memory=episodes.encoding)

    def advance(instance: Instance, found: Found, solver: Solver) -> Found:
        key, which, draw = jax.random.split(found.key, 3)
        episodes = begin(policy.with_solver(solver), instance, samples, found.memory)
        plans = jnp.repeat(found.best, samples, axis=-1)
        free = _random_turns(episodes.instances, which) < RELEASED
        env = policy.with_solver(solver).env
        assert isinstance(env, EnvConfig)  # `refuse_refinement`
        begun = release(episodes.instances, plans, free, env)
        steps = min(RELEASED, instance.num_users)
        drawn = draw_plans(policy.with_solver(solver), replace(episodes, state=begun), draw, steps)
        plan, gain = best_plan(*drawn)
        found = found.offered(plan, gain)
        return replace(found, key=key, done=found.done | (found.round + 1 >= ROUNDS))

    return Search(start, advance)


_SEARCHES = {"tabu": tabu_search, "re-deciding": redeciding}
