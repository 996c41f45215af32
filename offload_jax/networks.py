"""The actor-critic: a transformer encodes an instance once, a light decoder makes each decision.

Permutation-equivariant in users, for any number of users and batches; padded users change nothing.
Unlike the environment, a network works on one instance (callers `vmap`): the batch is not last.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Bool, Float

from offload_jax.checks import Checks
from offload_jax.features import Description, Observation


@dataclass(frozen=True)
class NetworkConfig:
    """Sizes of the actor-critic (static)."""

    width: int = 64  # of every embedding
    layers: int = 2  # of the encoder
    heads: int = 4
    residual: bool = True  # logits start from the reduced gains

    def validate(self) -> None:
        """Raises ValueError naming the field and the allowed values."""
        Checks(self, "network").counts("width", "layers", "heads")
        if self.width % self.heads:
            raise ValueError(
                f"network.heads is {self.heads}; must divide network.width ({self.width})"
            )


@struct.dataclass
class Encoding:
    """What the decoder needs of an instance, the decoder's first layer already applied to it."""

    users: Float[Array, "users width"]
    batches: Float[Array, "batches width"]
    pairs: Float[Array, "users batches width"]
    overall: Float[Array, "width"]
    count: Float[Array, ""]  # real users


class ActorCritic(nn.Module):
    """`init` with a Description and an Observation; `apply` with method ``encode``, ``decode``."""

    config: NetworkConfig

    def setup(self) -> None:
        width = self.config.width
        self.embed_users, self.embed_batches = nn.Dense(width), nn.Dense(width)
        self.embed_pairs = nn.Dense(width)
        self.blocks = [Block(width, self.config.heads) for _ in range(self.config.layers)]
        self.norm = nn.LayerNorm()
        self.keys = {name: nn.Dense(width, use_bias=False, name=f"key_{name}") for name in _KEYS}
        self.step_pairs, self.step_overall = nn.Dense(width), nn.Dense(width)
        self.score, self.reject, self.critic = Head(width), Head(width), Head(width)
        self.temperature = self.param("temperature", nn.initializers.constant(4.0), ())

    def __call__(
        self, description: Description, observation: Observation
    ) -> tuple[Float[Array, "actions"], Float[Array, ""]]:
        """Logits and value at once, to initialise; rollouts encode once and then decode."""
        return self.decode(self.encode(description), observation)

    def encode(self, description: Description) -> Encoding:
        """Once per instance, O((N + M)^2)."""
        real = description.mask.astype(description.users.dtype)
        count = jnp.maximum(jnp.sum(real), 1)
        pairs = self.embed_pairs(description.pairs)
        users = self.embed_users(description.users) + jnp.mean(pairs, axis=1)
        shared = jnp.einsum("n,nkw->kw", real, pairs) / count
        batches = self.embed_batches(description.batches) + shared
        tokens = jnp.concatenate([users, batches])
        visible = jnp.concatenate([description.mask, jnp.ones(batches.shape[0], bool)])
        for block in self.blocks:
            tokens = block(tokens, visible)
        tokens = self.norm(tokens)
        users, batches = tokens[: users.shape[0]], tokens[users.shape[0] :]
        overall = jnp.einsum("n,nw->w", real, users) / count
        return Encoding(
            users=users,
            batches=self.keys["batch"](batches),
            pairs=self.keys["pair"](pairs),
            overall=self.keys["overall"](overall),
            count=count,
        )

    def decode(
        self, encoding: Encoding, observation: Observation
    ) -> tuple[Float[Array, "actions"], Float[Array, ""]]:
        """Logits of all actions, illegal ones minus infinity, and the value of the state."""
        # Sums over users are shares of the real ones, so that padding changes nothing.
        undecided = observation.undecided @ encoding.users / encoding.count
        granted = observation.granted @ encoding.users / encoding.count
        context = encoding.overall + self.step_overall(observation.overall)
        context = context + self.keys["undecided"](undecided) + self.keys["granted"](granted)
        adaptive = observation.adaptive
        if adaptive:
            candidate, users, pairs = observation.undecided, encoding.users, encoding.pairs
        else:
            candidate = jnp.ones(1)
            users = (observation.current @ encoding.users)[None]
            pairs = jnp.einsum("n,nkw->kw", observation.current, encoding.pairs)[None]
        users = self.keys["user"](users)
        joint = (
            context + users[:, None] + encoding.batches + pairs + self.step_pairs(observation.pairs)
        )
        grants = self.score(joint)
        if self.config.residual:
            grants = grants + self.temperature * observation.reduced
        # Denying is about the one user and its best batch, stopping about all who are undecided.
        share = candidate / jnp.maximum(jnp.sum(candidate), 1)
        refused = context + share @ (users + jnp.max(joint, axis=1))
        reject = self.reject(refused)[None]
        flat = grants.reshape(-1)
        logits = jnp.concatenate([flat, reject] if adaptive else [reject, flat])
        return jnp.where(observation.mask, logits, -jnp.inf), self.critic(refused)


_KEYS = ("user", "batch", "pair", "overall", "undecided", "granted")


class Block(nn.Module):
    """Pre-norm transformer block over the tokens of one instance."""

    width: int
    heads: int

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "tokens width"], visible: Bool[Array, "tokens"]
    ) -> Float[Array, "tokens width"]:
        size = self.width // self.heads
        x = nn.LayerNorm()(tokens)
        query, key, value = (nn.DenseGeneral((self.heads, size))(x) for _ in range(3))
        weights = jnp.einsum("qhd,khd->hqk", query, key) / size**0.5
        weights = jax.nn.softmax(jnp.where(visible, weights, -jnp.inf), axis=-1)
        mixed = jnp.einsum("hqk,khd->qhd", weights, value).reshape(tokens.shape[0], self.width)
        tokens = tokens + nn.Dense(self.width)(mixed)
        x = nn.Dense(2 * self.width)(nn.LayerNorm()(tokens))
        return tokens + nn.Dense(self.width)(jax.nn.gelu(x))


class Head(nn.Module):
    """A scalar from a joint embedding: one residual feed-forward layer, then a linear one."""

    width: int

    @nn.compact
    def __call__(self, x: Float[Array, "*shape width"]) -> Float[Array, "*shape"]:
        x = jax.nn.relu(x)
        x = x + jax.nn.relu(nn.Dense(self.width)(x))
        return nn.Dense(1, kernel_init=nn.initializers.normal(0.01))(x)[..., 0]
