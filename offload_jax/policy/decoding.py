"""Plans of a trained policy: greedily, by sampling, or the best of several samples."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from offload_jax.files.records import Plan
from offload_jax.plans.plan import Decision, timed, to_plans
from offload_jax.policy.policy import Policy
from offload_jax.policy.rollout import Episodes, begin, play
from offload_jax.policy.sampling import greedy_action, sample_action
from offload_jax.problem.arrays import one_hot
from offload_jax.problem.instance import Instance, stack
from offload_jax.problem.types import Assignment, Key


@jax.jit
def greedy_plan(policy: Policy, instances: Instance) -> tuple[Assignment, Float[Array, "*batch"]]:
    """The most likely decision at every step: (assignment, gain in s), batch last."""
    final = play(policy, begin(policy, instances, 1), greedy_action, None)
    return final.assignment, final.gain


@partial(jax.jit, static_argnames="samples")
def best_of(
    policy: Policy, instances: Instance, samples: int, key: Key
) -> tuple[Assignment, Float[Array, "*batch"]]:
    """The best of the greedy plan and `samples - 1` sampled ones, by exact value, batch last."""
    if samples < 1:
        raise ValueError(f"samples is {samples}; must be at least 1")
    if samples == 1:
        return greedy_plan(policy, instances)
    return best_plan(*draw_plans(policy, begin(policy, instances, samples), key))


def draw_plans(
    policy: Policy, episodes: Episodes, chance: Array, steps: int | None = None
) -> tuple[Int[Array, "users instances samples"], Float[Array, "instances samples"]]:
    """A plan of each sample of the episodes, and their gains (s); of each instance one is greedy.

    The others are drawn at the policy's temperature. `chance` is a key or uniform draws
    (steps, instances, samples); `steps` as for `play`.
    """
    samples = episodes.samples
    first = jnp.arange(samples) == 0

    def first_greedy(logits: Array, chance: Array) -> Array:
        sampled = sample_action(logits / policy.temperature, chance)
        return jnp.where(first, jnp.argmax(logits, axis=-1), sampled)

    final = play(policy, episodes, first_greedy, chance, steps)
    plans = final.assignment.reshape(final.assignment.shape[0], -1, samples)
    return plans, final.gain.reshape(-1, samples)


def best_plan(
    plans: Int[Array, "users instances samples"], gains: Float[Array, "instances samples"]
) -> tuple[Assignment, Float[Array, "instances"]]:
    """Of each instance the plan that gains most, and its gain (s)."""
    best = one_hot(jnp.argmax(gains, axis=-1), gains.shape[-1]).T
    return jnp.sum(jnp.where(best, plans, 0), axis=-1), jnp.max(gains, axis=-1)


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
