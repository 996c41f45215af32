"""Trajectories of a policy in training, and the unit in which it learns from them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from offload_jax.learning.algorithm import Collected, Learner
from offload_jax.learning.devices import ONE_DEVICE, Devices
from offload_jax.policy.policy import Policy
from offload_jax.policy.rollout import Chooser, begin, record
from offload_jax.policy.sampling import inverse_cdf
from offload_jax.problem.instance import Instance
from offload_jax.problem.scenario import Scenario, sample_many
from offload_jax.problem.types import Key


def sample_instances(
    scenario: Scenario, key: Key, count: int, devices: Devices = ONE_DEVICE
) -> Instance:
    """This device's share of `count` fresh instances, the batch last."""
    return sample_many(scenario, devices.mine(jax.random.split(key, count)))


def drawn(learner: Learner, temperature: Any = 1.0) -> Chooser:
    """Actions by draws for the whole batch, of which a device uses its share."""

    def choose(logits: Array, key: Key) -> Array:
        samples = logits.shape[1]
        draws = jax.random.uniform(key, (learner.config.instances, samples, 1))
        return inverse_cdf(logits / temperature, learner.devices.mine(draws))

    return choose


def sampled(learner: Learner, policy: Policy, instances: Instance, key: Key) -> Collected:
    """The policy's own trajectories, every decision of them."""
    episodes = begin(policy, instances, learner.config.samples)
    final, decisions = record(policy, episodes, drawn(learner), key)
    return Collected(final.gain.reshape(-1, learner.config.samples), decisions)


def best_gain(
    learner: Learner, instances: Instance, gains: Float[Array, "instances samples"]
) -> Float[Array, "instances"]:
    """The unit of what is learned (s): differences in it are differences of the gap.

    An instance's best sample estimates its optimum; where nothing is gained it is no less than a
    hundredth of an all-local run.
    """
    return jnp.maximum(jnp.max(gains, axis=1), 0.01 * learner.env.all_local(instances).time)
