"""The learner's equations, one per function, on one stream each; callers `vmap`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from offload_jax.types import Scalar


def leave_one_out(returns: Float[Array, "samples"]) -> Float[Array, "samples"]:
    """Advantage of each trajectory over the mean of the others of the same instance.

    R_p - mean_{q != p} R_q (Kool et al. 2019, "Buy 4 REINFORCE samples, get a baseline for free";
    the shared baseline of POMO, Kwon et al. 2020, up to the factor P / (P - 1)).
    """
    samples = returns.shape[0]
    return (returns - jnp.mean(returns)) * samples / (samples - 1)


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


def imitation(logits: Float[Array, "actions"], wanted: Bool[Array, "actions"]) -> Scalar:
    """-log of the probability that the policy takes one of the wanted actions."""
    among = jnp.where(wanted, logits, -jnp.inf)
    return jax.nn.logsumexp(logits) - jax.nn.logsumexp(among)


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


def entropy(logits: Float[Array, "actions"]) -> Scalar:
    """Entropy (nats) of the policy at one state; illegal actions have logit minus infinity."""
    legal = jnp.isfinite(logits)
    log_probs = jnp.where(legal, jax.nn.log_softmax(logits), 0)
    return -jnp.sum(jnp.where(legal, jnp.exp(log_probs) * log_probs, 0))


def log_prob(logits: Float[Array, "actions"], action: Int[Array, ""]) -> Scalar:
    """Log-probability of one action."""
    taken: Bool[Array, "actions"] = jnp.arange(logits.shape[0]) == action
    return jnp.sum(jnp.where(taken, jax.nn.log_softmax(logits), 0))
