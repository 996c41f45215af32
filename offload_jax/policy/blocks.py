"""Parts that networks are made of."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float


class Block(nn.Module):
    """Pre-norm transformer block over the users and batches of one instance.

    With `relations` every head also sees what two tokens are to each other: a user's gains in a
    batch, and how batches slow each other down.
    """

    width: int
    heads: int
    relations: bool
    dtype: Any = None

    @nn.compact
    def __call__(
        self,
        tokens: Float[Array, "tokens width"],
        visible: Bool[Array, "tokens"],
        pairs: Float[Array, "users batches pair_features"],
        links: Float[Array, "batches batches link_features"],
    ) -> Float[Array, "tokens width"]:
        size, dtype = self.width // self.heads, self.dtype
        x = nn.LayerNorm(dtype=dtype)(tokens)
        query, key, value = (nn.DenseGeneral((self.heads, size), dtype=dtype)(x) for _ in range(3))
        weights = wide(jnp.einsum("qhd,khd->hqk", query, key)) / size**0.5
        if self.relations:
            weights = weights + wide(self._relation(pairs, links))
        weights = jax.nn.softmax(jnp.where(visible, weights, -jnp.inf), axis=-1)
        mixed = jnp.einsum("hqk,khd->qhd", weights.astype(value.dtype), value)
        mixed = mixed.reshape(tokens.shape[0], self.width)
        tokens = tokens + nn.Dense(self.width, dtype=dtype)(mixed)
        x = nn.Dense(2 * self.width, dtype=dtype)(nn.LayerNorm(dtype=dtype)(tokens))
        return tokens + nn.Dense(self.width, dtype=dtype)(jax.nn.gelu(x))

    def _relation(
        self,
        pairs: Float[Array, "users batches pair_features"],
        links: Float[Array, "batches batches link_features"],
    ) -> Float[Array, "heads tokens tokens"]:
        """Added to the attention's logits; two users are nothing to each other."""

        def per_head(name: str, x: Array) -> Array:
            return nn.Dense(self.heads, use_bias=False, dtype=self.dtype, name=name)(x)

        to_batches = per_head("user_to_batch", pairs)
        to_users = jnp.swapaxes(per_head("batch_to_user", pairs), 0, 1)
        users = jnp.zeros((pairs.shape[0], *to_users.shape[1:]), to_users.dtype)
        rows = [
            jnp.concatenate([users, to_batches], axis=1),
            jnp.concatenate([to_users, per_head("batch_to_batch", links)], axis=1),
        ]
        return jnp.moveaxis(jnp.concatenate(rows), -1, 0)


class Head(nn.Module):
    """A scalar from a joint embedding: one residual feed-forward layer, then a linear one."""

    width: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "*shape width"]) -> Float[Array, "*shape"]:
        x = jax.nn.relu(x)
        x = x + jax.nn.relu(nn.Dense(self.width, dtype=self.dtype)(x))
        return nn.Dense(1, kernel_init=nn.initializers.normal(0.01))(wide(x))[..., 0]


def wide(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """At least float32: what logits, values and softmaxes are computed in."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
