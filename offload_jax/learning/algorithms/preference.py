"""Preference optimisation: the best sample of an instance against the others."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from offload_jax.problem.types import Scalar


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
