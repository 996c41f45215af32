"""Self-labelling: the policy imitates the best plan found."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from offload_jax.problem.types import Scalar


def imitation(logits: Float[Array, "actions"], wanted: Bool[Array, "actions"]) -> Scalar:
    """-log of the probability that the policy takes one of the wanted actions."""
    among = jnp.where(wanted, logits, -jnp.inf)
    return jax.nn.logsumexp(logits) - jax.nn.logsumexp(among)
