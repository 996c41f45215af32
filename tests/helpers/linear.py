"""The smallest network that learns, for programs that compile fast."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp


@dataclass(frozen=True)
class Linear:
    """Logits that are linear in the features of a user's pairs; in arrival order."""

    def validate(self) -> None:
        pass

    def init(self, key, description, observation):
        return {"weight": jnp.zeros(observation.pairs.shape[2])}

    def encode(self, params, description):
        return jnp.zeros(())

    def decode(self, params, encoding, observation):
        grants = observation.pairs[0] @ params["weight"]
        logits = jnp.concatenate([jnp.zeros(1), grants])
        return jnp.where(observation.mask, logits, -jnp.inf), jnp.zeros(())
