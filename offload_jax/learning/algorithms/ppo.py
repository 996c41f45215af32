"""Proximal policy optimisation: its equations, one per function, on one stream; callers `vmap`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from offload_jax.problem.types import Scalar


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
