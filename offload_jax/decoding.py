"""Better plans from the same policy for more time: other orders, local search, deciding again.

Everything works on many instances side by side (batch last), values plans exactly, and never ends
with a worse plan than best-of-P decoding, which it starts from (`policies.best_of`).
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from offload_jax.baselines.local_search import descend
from offload_jax.baselines.search import Found, Search, Trace, found_at, run
from offload_jax.env import EnvConfig, release, reset
from offload_jax.instance import Instance
from offload_jax.networks import ActorCritic, NetworkConfig
from offload_jax.plans import Decision, timed
from offload_jax.policies import Policy, best_sample, draw_samples
from offload_jax.rollout import encode, repeat
from offload_jax.segments import one_hot
from offload_jax.types import Assignment, Key
from offload_jax.value import Solver

Refinement = Literal["orders", "local-search", "re-deciding"]
ABOUT: dict[Refinement, str] = {
    "orders": "in random orders of the users",
    "local-search": "+ local search",
    "re-deciding": "+ re-deciding",
}
STARTS = 8  # different plans of each instance that local search starts from
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

    `budget_s` is the time (s) for each instance that re-deciding takes instead of its own rounds.
    Raises ValueError where the refinement does not apply to the policy (`refuse_refinement`).
    """
    if reason := refuse_refinement(policy, refinement):
        raise ValueError(f"refinement is {refinement!r}, which does not apply: {reason}")
    if refinement == "re-deciding":
        trace = Trace()
        total = None if budget_s is None else budget_s * instances.mask.shape[-1]
        found = run(redeciding(policy, samples), instances, key, policy.env.solver, total, trace)
        return Decision(found.best, trace.seconds[-1])
    decode = {"orders": best_of_orders, "local-search": polished}[refinement]
    label = (refinement, policy.network, policy.env, samples)
    return timed(label, instances, lambda: decode(policy, instances, samples, key)[0])


def refuse_refinement(policy: Policy, refinement: Refinement) -> str | None:
    """Why a refinement does not apply to a policy; None where it does."""
    if refinement == "orders" and policy.env.order != "arrival":
        return f"the policy's order is {policy.env.order}, which the instance alone decides"
    return None


# ---- other orders


def best_of_orders(
    policy: Policy, instances: Instance, samples: int, key: Key
) -> tuple[Assignment, Float[Array, "*batch"]]:
    """Best of `samples`, each deciding the users in an own random order, the first as they arrived.

    The symmetry that is left to exploit: storing users or batches in another order changes nothing,
    as the network is equivariant.
    """
    sampler = policy.params, policy.temperature
    return _best_of_orders(policy.network, policy.env, samples, *sampler, instances, key)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _best_of_orders(
    network: NetworkConfig,
    env: EnvConfig,
    samples: int,
    params: Any,
    temperature: Float[Array, ""] | float,
    instances: Instance,
    key: Key,
) -> tuple[Assignment, Float[Array, "*batch"]]:
    module = ActorCritic(network)
    draw, key = jax.random.split(key)
    repeated = repeat(instances, samples)
    start = reset(repeated, env)
    first = jnp.arange(start.turn.shape[-1]) % samples == 0
    turn = jnp.where(first, start.turn, _ranks(_draws(repeated.mask, draw)))
    encoding = encode(module, params, instances)
    start = replace(start, turn=turn)
    return best_sample(module, params, temperature, instances, samples, key, env, encoding, start)


def _draws(mask: Bool[Array, "users *batch"], key: Key) -> Float[Array, "users *batch"]:
    """A random number for every real user, infinity for padded ones."""
    return jnp.where(mask, jax.random.uniform(key, mask.shape), jnp.inf)


def _ranks(x: Float[Array, "users *batch"]) -> Int[Array, "users *batch"]:
    """The place of each user by rising x."""
    return jnp.argsort(jnp.argsort(x, axis=0), axis=0).astype(jnp.int32)


# ---- local search


def polished(
    policy: Policy, instances: Instance, samples: int, key: Key
) -> tuple[Assignment, Float[Array, "*batch"]]:
    """Local search from the best of `samples` plans, `STARTS` different ones of each instance."""
    sampler = policy.params, policy.temperature
    return _polished(policy.network, policy.env, samples, *sampler, instances, key)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _polished(
    network: NetworkConfig,
    env: EnvConfig,
    samples: int,
    params: Any,
    temperature: Float[Array, ""] | float,
    instances: Instance,
    key: Key,
) -> tuple[Assignment, Float[Array, "*batch"]]:
    module = ActorCritic(network)
    encoding = encode(module, params, instances)
    drawn = draw_samples(module, params, temperature, instances, samples, key, env, encoding)
    starts = min(STARTS, samples)
    plans = _best_different(*drawn, starts).reshape(instances.num_users, -1)
    plans, gains = descend(repeat(instances, starts), plans, env.solver)
    plans, gains = plans.reshape(instances.num_users, -1, starts), gains.reshape(-1, starts)
    best = one_hot(jnp.argmax(gains, axis=-1), starts).T
    return jnp.sum(jnp.where(best, plans, 0), axis=-1), jnp.max(gains, axis=-1)


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


# ---- deciding again


def redeciding(policy: Policy, samples: int, released: int = RELEASED) -> Search:
    """Best of `samples`, then again and again: a few users are released and decided once more.

    Every round draws `samples` sets of `released` users of each instance, lets the policy decide
    those while all others stay, and keeps the best plan. It has had its say after `ROUNDS`.
    """
    module, env = ActorCritic(policy.network), policy.env
    sampler = policy.params, policy.temperature

    def start(instance: Instance, key: Key, solver: Solver) -> Found:
        first, key = jax.random.split(key)
        encoding = encode(module, policy.params, instance)
        own = replace(env, solver=solver)
        plan, gain = best_sample(module, *sampler, instance, samples, first, own, encoding)
        return found_at(plan, gain, key, memory=encoding)

    def advance(instance: Instance, found: Found, solver: Solver) -> Found:
        key, which, draw = jax.random.split(found.key, 3)
        own = replace(env, solver=solver)
        repeated = repeat(instance, samples)
        free = _ranks(_draws(repeated.mask, which)) < released
        begun = release(repeated, jnp.repeat(found.best, samples, axis=-1), free, own)
        steps = min(released, instance.num_users)
        plan, gain = best_sample(
            module, *sampler, instance, samples, draw, own, found.memory, begun, steps
        )
        found = found.offered(plan, gain)
        return replace(found, key=key, done=found.done | (found.round + 1 >= ROUNDS))

    return Search(start, advance)
