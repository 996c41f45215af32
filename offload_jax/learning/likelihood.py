"""Of a policy at one state: entropy and log-probability; callers `vmap`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from offload_jax.policy.sampling import log_prob as log_prob
from offload_jax.problem.types import Scalar


def entropy(logits: Float[Array, "actions"]) -> Scalar:
    """Entropy (nats) of the policy at one state; illegal actions have logit minus infinity."""
    legal = jnp.isfinite(logits)
    log_probs = jnp.where(legal, jax.nn.log_softmax(logits), 0)
    return -jnp.sum(jnp.where(legal, jnp.exp(log_probs) * log_probs, 0))
