"""Of a policy at one state: log-probability and entropy; callers `vmap`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from offload_jax.problem.types import Scalar


def entropy(logits: Float[Array, "actions"]) -> Scalar:
    """Entropy (nats) of the policy at one state; illegal actions have logit minus infinity."""
    legal = jnp.isfinite(logits)
    log_probs = jnp.where(legal, jax.nn.log_softmax(logits), 0)
    return -jnp.sum(jnp.where(legal, jnp.exp(log_probs) * log_probs, 0))


def log_prob(logits: Float[Array, "actions"], action: Int[Array, ""]) -> Scalar:
    """Log-probability of one action."""
    taken: Bool[Array, "actions"] = jnp.arange(logits.shape[0]) == action
    return jnp.sum(jnp.where(taken, jax.nn.log_softmax(logits), 0))
