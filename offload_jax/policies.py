"""A trained policy as something that decides: greedily, by sampling, or best of several samples."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from offload_jax.env import EnvConfig, State
from offload_jax.instance import Instance, stack
from offload_jax.networks import ActorCritic, Encoding, NetworkConfig
from offload_jax.plans import Decision, timed, to_plans
from offload_jax.rollout import encode, greedy_action, sample_action, unroll
from offload_jax.schema import Plan
from offload_jax.segments import one_hot
from offload_jax.types import Assignment, Key


@dataclass(frozen=True)
class Policy:
    """Parameters with what is needed to use them. Works for any N, M and G."""

    params: Any  # of ActorCritic(network)
    network: NetworkConfig
    env: EnvConfig
    source: str = "memory"  # where the parameters came from
    temperature: float = 1.0  # of sampled plans: above 1 they differ more from the greedy one


def greedy_plan(policy: Policy, instances: Instance) -> tuple[Assignment, Float[Array, "*batch"]]:
    """The most likely decision at every step: (assignment, gain in s), batch last."""
    return _greedy(policy.network, policy.env, policy.params, instances)


def best_of(
    policy: Policy, instances: Instance, samples: int, key: Key
) -> tuple[Assignment, Float[Array, "*batch"]]:
    """The best of the greedy plan and `samples - 1` sampled ones, by exact value, batch last."""
    if samples < 1:
        raise ValueError(f"samples is {samples}; must be at least 1")
    if samples == 1:
        return greedy_plan(policy, instances)
    sampler = policy.params, policy.temperature
    return _best_of(policy.network, policy.env, samples, *sampler, instances, key)


@partial(jax.jit, static_argnums=(0, 1))
def _greedy(
    network: NetworkConfig, env: EnvConfig, params: Any, instances: Instance
) -> tuple[Assignment, Float[Array, "*batch"]]:
    module, key = ActorCritic(network), jax.random.key(0)
    final, _ = unroll(module, params, instances, 1, key, greedy_action, env, record=False)
    return final.assignment, final.gain


@partial(jax.jit, static_argnums=(0, 1, 2))
def _best_of(
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
    return best_sample(module, params, temperature, instances, samples, key, env, encoding)


def best_sample(*sampling: Any) -> tuple[Assignment, Float[Array, "*batch"]]:
    """Of each instance the best of the trajectories of `draw_samples`: assignment, gain (s)."""
    assignment, gains = draw_samples(*sampling)
    best = one_hot(jnp.argmax(gains, axis=-1), gains.shape[-1])  # (samples, instances)
    return jnp.sum(jnp.where(best.T, assignment, 0), axis=-1), jnp.max(gains, axis=-1)


def draw_samples(
    module: ActorCritic,
    params: Any,
    temperature: Float[Array, ""] | float,
    instances: Instance,
    samples: int,
    key: Key,
    env: EnvConfig,
    encoding: Encoding,
    start: State | None = None,
    steps: int | None = None,
) -> tuple[Int[Array, "users instances samples"], Float[Array, "instances samples"]]:
    """`samples` trajectories of each instance (see `unroll`), the first one greedy: plans, gains.

    Logits are divided by `temperature` before the others are drawn.
    """

    def first_greedy(logits: Array, key: Key) -> Array:
        sampled = sample_action(logits / temperature, key)
        return sampled.at[:, 0].set(jnp.argmax(logits[:, 0], axis=-1))

    final, _ = unroll(
        module, params, instances, samples, key, first_greedy, env, False, encoding, start, steps
    )
    gains = final.gain.reshape(-1, samples)
    return final.assignment.reshape(final.assignment.shape[0], -1, samples), gains


def decide(
    policy: Policy, instances: list[Instance], samples: int = 1, key: Key | None = None
) -> list[Plan]:
    """One plan per instance (of the same M and G; users may differ in number).

    samples = 1 decodes greedily; more also samples and keeps each instance's best plan. Compiled
    once per (number of instances, largest N); `seconds` of the plans excludes compiling.
    """
    batch = stack(instances)
    key = jax.random.key(0) if key is None else key
    name = "policy" if samples == 1 else f"policy best of {samples}"
    return to_plans(batch, timed_best_of(policy, batch, samples, key), name, policy.env.solver)


def timed_best_of(policy: Policy, instances: Instance, samples: int, key: Key) -> Decision:
    """`best_of` with the time it took."""
    label = ("policy", policy.network, policy.env, samples)
    return timed(label, instances, lambda: best_of(policy, instances, samples, key)[0])
