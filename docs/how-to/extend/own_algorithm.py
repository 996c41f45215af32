"""REINFORCE, with the other samples of an instance as the baseline."""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from offload_jax.files.checks import Checks
from offload_jax.learning.algorithm import Collected, Learner, Parts, Replay
from offload_jax.learning.likelihood import log_prob
from offload_jax.learning.loss import per_decision
from offload_jax.learning.trajectories import best_gain, sampled
from offload_jax.policy.policy import Policy
from offload_jax.problem.instance import Instance


@dataclass(frozen=True)
class Reinforce:
    """A trajectory that gains more than the others of its instance is made likelier."""

    step: float = 1.0  # factor of the loss

    def validate(self, learner: Learner) -> None:
        Checks(self, "algorithm").positive("step")
        Checks(learner.config, "learner").require(learner.config.samples > 1, "samples", ">= 2")

    def collect(
        self, learner: Learner, policy: Policy, instances: Instance, key: jax.Array
    ) -> Collected:
        collected = sampled(learner, policy, instances, key)
        gain = collected.gain / best_gain(learner, instances, collected.gain)[:, None]
        others = (jnp.sum(gain, axis=1, keepdims=True) - gain) / (gain.shape[1] - 1)
        every_step = collected.decisions.reward.shape  # (steps, instances, samples)
        return replace(collected, targets=jnp.broadcast_to(gain - others, every_step))

    def loss(
        self, learner: Learner, replay: Replay, collected: Collected
    ) -> tuple[jax.Array, Parts]:
        likely = per_decision(log_prob)(replay.logits, collected.decisions.action)
        return -self.step * jnp.sum(likely * collected.targets * replay.weight), {}
