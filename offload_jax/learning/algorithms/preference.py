"""Preference optimisation: the best sample of an instance against the others."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from offload_jax.files.checks import Checks
from offload_jax.learning import likelihood
from offload_jax.learning.algorithm import Collected, Learner, Parts, Replay
from offload_jax.learning.loss import mean_of_all, per_decision
from offload_jax.learning.trajectories import sampled
from offload_jax.policy.policy import Policy
from offload_jax.problem.instance import Instance
from offload_jax.problem.types import Key, Scalar


@dataclass(frozen=True)
class Preference:
    """An instance's best trajectory is made likelier than each worse one."""

    sharpness: float = 0.1  # per nat of log-probability

    def validate(self, learner: Learner) -> None:
        Checks(self, "algorithm").positive("sharpness")
        needed = "at least 2 with algorithm preference, which compares samples"
        Checks(learner.config, "learner").require(learner.config.samples > 1, "samples", needed)

    def collect(self, learner: Learner, policy: Policy, instances: Instance, key: Key) -> Collected:
        return sampled(learner, policy, instances, key)

    def loss(self, learner: Learner, replay: Replay, collected: Collected) -> tuple[Scalar, Parts]:
        decisions = collected.decisions
        log_prob = per_decision(likelihood.log_prob)(replay.logits, decisions.action)
        total = jnp.sum(log_prob * decisions.real, axis=0)
        gained = jnp.sum(decisions.reward, axis=0)
        each = jax.vmap(preference, in_axes=(0, 0, None))(total, gained, self.sharpness)
        return mean_of_all(learner, each), {}


def preference(
    log_probs: Float[Array, "samples"],
    returns: Float[Array, "samples"],
    sharpness: Float[Array, ""] | float,
) -> Scalar:
    """Loss of preferring an instance's best sample to each of its worse ones.

    Mean of -log sigmoid(sharpness * (log p_best - log p_worse)), the Bradley-Terry likelihood of
    the pairs that hold the best one (preference optimisation: Pan et al. 2025, anchored at the best
    as in BOPO, Liao et al. 2025). `log_probs` are of whole trajectories; 0 where all are as good.
    """
    best = jnp.argmax(returns)
    same = 1e-5 * jnp.abs(returns[best])  # one plan by another order of decisions, and rounding
    worse = (returns < returns[best] - same).astype(log_probs.dtype)
    pairs = -jax.nn.log_sigmoid(sharpness * (log_probs[best] - log_probs))
    return jnp.sum(pairs * worse) / jnp.maximum(jnp.sum(worse), 1)
