"""Proximal policy optimisation, with the samples of an instance as each other's baseline.

The equations work on one stream; the algorithms `vmap` them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float

from offload_jax.files.checks import Checks
from offload_jax.learning import likelihood
from offload_jax.learning.algorithm import Collected, Learner, Parts, Replay
from offload_jax.learning.loss import per_decision
from offload_jax.learning.trajectories import best_gain, sampled
from offload_jax.policy.policy import Policy
from offload_jax.problem.instance import Instance
from offload_jax.problem.types import Key, Scalar


@dataclass(frozen=True)
class PPO:
    """The advantage of a trajectory is how much more it gains than the others of its instance."""

    clip: float = 0.2  # of the probability ratio

    def validate(self, learner: Learner) -> None:
        Checks(self, "algorithm").positive("clip")
        needed = "at least 2 with algorithm ppo, which compares samples"
        Checks(learner.config, "learner").require(learner.config.samples > 1, "samples", needed)

    def collect(self, learner: Learner, policy: Policy, instances: Instance, key: Key) -> Collected:
        collected = sampled(learner, policy, instances, key)
        scale = best_gain(learner, instances, collected.gain)[:, None]
        advantage = jax.vmap(leave_one_out)(collected.gain / scale)
        advantage = jnp.broadcast_to(advantage, collected.decisions.reward.shape)
        return replace(collected, targets=advantage)

    def loss(self, learner: Learner, replay: Replay, collected: Collected) -> tuple[Scalar, Parts]:
        return surrogate(self.clip, replay, collected, collected.targets), {}


@dataclass(frozen=True)
class PPOCritic:
    """PPO with a learned baseline: the network's value, by generalised advantage estimation."""

    clip: float = 0.2  # of the probability ratio
    value: float = 0.5  # weight of the critic's error
    gae_decay: float = 1.0  # lambda of GAE

    def validate(self, learner: Learner) -> None:
        check = Checks(self, "algorithm")
        check.positive("clip")
        check.not_negative("value")
        check.shares("gae_decay")

    def collect(self, learner: Learner, policy: Policy, instances: Instance, key: Key) -> Collected:
        collected = sampled(learner, policy, instances, key)
        local, decisions = learner.env.all_local(instances), collected.decisions
        unit = (local.time * local.users)[:, None]  # the critic predicts returns in it

        def one_stream(rewards: Array, values: Array, free: Array) -> tuple[Array, Array]:
            values = forced_values(values, rewards, free)
            advantage = generalized_advantage(rewards, values, self.gae_decay)
            return advantage, advantage + values

        over_streams = jax.vmap(jax.vmap(one_stream, in_axes=1, out_axes=1), in_axes=1, out_axes=1)
        raw, target = over_streams(decisions.reward / unit, decisions.value, decisions.real)
        scale = best_gain(learner, instances, collected.gain)[:, None]
        return replace(collected, targets=Targets(advantage=raw * unit / scale, value=target))

    def loss(self, learner: Learner, replay: Replay, collected: Collected) -> tuple[Scalar, Parts]:
        targets = collected.targets
        error = jnp.sum(value_error(replay.values, targets.value) * replay.weight)
        own = surrogate(self.clip, replay, collected, targets.advantage)
        return own + self.value * error, {"value_error": error}


@struct.dataclass
class Targets:
    """What policy and critic are pulled towards."""

    advantage: Float[Array, "steps instances samples"]
    value: Float[Array, "steps instances samples"]


def surrogate(
    clip: Float[Array, ""] | float,
    replay: Replay,
    collected: Collected,
    advantage: Float[Array, "steps instances samples"],
) -> Scalar:
    """The mean of `clipped_surrogate` over all decisions."""
    decisions = collected.decisions
    log_ratio = per_decision(likelihood.log_prob)(replay.logits, decisions.action)
    log_ratio = log_ratio - decisions.log_prob
    return jnp.sum(clipped_surrogate(log_ratio, advantage, clip) * replay.weight)


def leave_one_out(returns: Float[Array, "samples"]) -> Float[Array, "samples"]:
    """Advantage of each trajectory over the mean of the others of the same instance.

    R_p - mean_{q != p} R_q (Kool et al. 2019, "Buy 4 REINFORCE samples, get a baseline for free";
    the shared baseline of POMO, Kwon et al. 2020, up to the factor P / (P - 1)).
    """
    samples = returns.shape[0]
    return (returns - jnp.mean(returns)) * samples / (samples - 1)


def generalized_advantage(
    rewards: Float[Array, "steps"], values: Float[Array, "steps"], decay: Float[Array, ""] | float
) -> Float[Array, "steps"]:
    """GAE(1, decay) of a whole episode that ends after the last step (Schulman et al. 2016).

    `values` are the critic's at the states before each step. decay = 1 gives return minus value.
    """
    following = jnp.append(values[1:], 0.0)
    errors = rewards + following - values

    def accumulate(
        advantage: Float[Array, ""], error: Float[Array, ""]
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        advantage = error + decay * advantage
        return advantage, advantage

    _, advantages = jax.lax.scan(accumulate, jnp.zeros((), errors.dtype), errors, reverse=True)
    return advantages


def forced_values(
    values: Float[Array, "steps"], rewards: Float[Array, "steps"], free: Bool[Array, "steps"]
) -> Float[Array, "steps"]:
    """The critic's values, at steps without a choice replaced by what must follow: r_t + V_{t+1}.

    The critic is not trained there (padded users, after a stop), so its own values mean nothing.
    """

    def back(
        following: Float[Array, ""], step: tuple[Array, Array, Array]
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        value, reward, choice = step
        value = jnp.where(choice, value, reward + following)
        return value, value

    start = jnp.zeros((), values.dtype)
    return jax.lax.scan(back, start, (values, rewards, free), reverse=True)[1]


def clipped_surrogate(
    log_ratio: Scalar, advantage: Scalar, clip: Float[Array, ""] | float
) -> Scalar:
    """PPO's loss of one decision, -min(r A, clip(r, 1 - eps, 1 + eps) A) (Schulman et al. 2017)."""
    ratio = jnp.exp(log_ratio)
    return -jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - clip, 1 + clip) * advantage)


def value_error(value: Scalar, target: Scalar) -> Scalar:
    """Squared error of the critic, half of it."""
    return 0.5 * (value - target) ** 2
