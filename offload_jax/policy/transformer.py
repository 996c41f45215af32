"""The actor-critic: a transformer encodes an instance once, a light decoder makes each decision.

Permutation-equivariant in users, for any number of users and batches; padded users change nothing.
Unlike the environment, a network works on one instance (callers `vmap`): the batch is not last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct
from jaxtyping import Array, Float

from offload_jax.env.description import LEVELS, Description
from offload_jax.env.observation import STEP_FEATURES, Observation
from offload_jax.files.checks import Checks
from offload_jax.policy.blocks import Block, Head
from offload_jax.policy.network import FlaxNetwork, all_logits

# What can be hidden of every step: columns of `observation.STEP_FEATURES`.
_OF_STEPS: Mapping[str, Sequence[str]] = {
    "reduced-gains": ("reduced", "gain", "ahead", "wanting", "hope", "regret", "lead"),
    "prices": ("price",),
}
# And of what the encoder sees: columns of `Description.pairs`, where gains at `LEVELS` are first.
_OF_PAIRS = {"pairs": slice(None), "level-gains": slice(len(LEVELS))}
Dtype = Literal["float32", "bfloat16"]
Sight = Literal["reduced-gains", "prices", "pairs", "level-gains"]


@dataclass(frozen=True)
class Transformer(FlaxNetwork):
    """The network of the shipped policies: a transformer encodes, a light decoder decides."""

    width: int = 64  # of every embedding
    layers: int = 2  # of the encoder
    heads: int = 4
    residual: bool = True  # logits start from the reduced gains
    relations: bool = True  # attention sees pairs of user and batch, and of two batches
    blind: tuple[Sight, ...] = ()  # what is hidden from it, to see what that is worth
    dtype: Dtype = "float32"  # of embeddings; parameters, logits and values stay in float32

    def validate(self) -> None:
        """Raises ValueError naming the field and the allowed values."""
        check = Checks(self, "network")
        check.counts("width", "layers", "heads")
        check.one_of("dtype", get_args(Dtype))
        allowed = get_args(Sight)
        check.require(set(self.blind) <= set(allowed), "blind", f"among {', '.join(allowed)}")
        unseen = not (self.residual and "reduced-gains" in self.blind)
        check.require(unseen, "residual", "false with network.blind reduced-gains")
        if self.width % self.heads:
            raise ValueError(
                f"network.heads is {self.heads}; must divide network.width ({self.width})"
            )

    def narrow(self) -> Any:
        """What layers compute in; None: in the type of what they are given (float64 in tests)."""
        return jnp.bfloat16 if self.dtype == "bfloat16" else None

    def module(self) -> ActorCritic:
        return ActorCritic(self)


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

    config: Transformer

    def setup(self) -> None:
        width, dtype = self.config.width, self.config.narrow()
        dense = partial(nn.Dense, width, dtype=dtype)
        self.embed_users, self.embed_batches, self.embed_pairs = dense(), dense(), dense()
        config = self.config
        self.blocks = [
            Block(width, config.heads, config.relations, dtype) for _ in range(config.layers)
        ]
        self.norm = nn.LayerNorm(dtype=dtype)
        self.keys = {name: dense(use_bias=False, name=f"key_{name}") for name in _KEYS}
        self.step_pairs, self.step_overall = dense(), dense()
        self.score, self.reject, self.critic = (Head(width, dtype) for _ in range(3))
        self.temperature = self.param("temperature", nn.initializers.constant(4.0), ())

    def __call__(
        self, description: Description, observation: Observation
    ) -> tuple[Float[Array, "actions"], Float[Array, ""]]:
        """Logits and value at once, to initialise; rollouts encode once and then decode."""
        return self.decode(self.encode(description), observation)

    def encode(self, description: Description) -> Encoding:
        """Once per instance, O((N + M)^2)."""
        for hidden in (_OF_PAIRS[sight] for sight in self.config.blind if sight in _OF_PAIRS):
            pairs = description.pairs.at[:, :, hidden].set(0)
            description = replace(description, pairs=pairs)
        description = self._narrowed(description)
        # Not `astype`: IREE's compiler (3.13) fuses that into the products below and then fails.
        real = jnp.where(description.mask, jnp.ones((), description.users.dtype), 0)
        count = jnp.maximum(jnp.sum(real), 1)
        pairs = self.embed_pairs(description.pairs)
        users = self.embed_users(description.users) + jnp.mean(pairs, axis=1)
        shared = jnp.einsum("n,nkw->kw", real, pairs) / count
        batches = self.embed_batches(description.batches) + shared
        tokens = jnp.concatenate([users, batches])
        visible = jnp.concatenate([description.mask, jnp.ones(batches.shape[0], bool)])
        for block in self.blocks:
            tokens = block(tokens, visible, description.pairs, description.links)
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
        # Reduced gains go into the logits as they are.
        observation = replace(self._narrowed(self._shown(observation)), reduced=observation.reduced)
        # Sums over users are shares of the real ones, so that padding changes nothing.
        undecided = observation.undecided @ encoding.users / encoding.count
        granted = observation.granted @ encoding.users / encoding.count
        context = encoding.overall + self.step_overall(observation.overall)
        context = context + self.keys["undecided"](undecided) + self.keys["granted"](granted)
        look = self._of_all if observation.chosen is None else self._of_chosen
        grants, refused = look(encoding, observation, context)
        return all_logits(observation, grants, self.reject(refused)), self.critic(refused)

    def _of_all(
        self, encoding: Encoding, observation: Observation, context: Float[Array, "width"]
    ) -> tuple[Float[Array, "rows columns"], Float[Array, "width"]]:
        """Logits of granting each pair, and what denying or stopping is judged by."""
        if observation.adaptive:
            candidate, users, pairs = observation.undecided, encoding.users, encoding.pairs
        else:
            candidate = jnp.ones_like(observation.undecided[:1])
            users = (observation.current @ encoding.users)[None]
            pairs = jnp.einsum("n,nkw->kw", observation.current, encoding.pairs)[None]
        users = self.keys["user"](users)
        joint = (
            context + users[:, None] + encoding.batches + pairs + self.step_pairs(observation.pairs)
        )
        grants = self._scores(joint, observation.reduced)
        # Denying is about the one user and its best batch, stopping about all who are undecided.
        share = candidate / jnp.maximum(jnp.sum(candidate), 1)
        return grants, context + share @ (users + jnp.max(joint, axis=1))

    def _of_chosen(
        self, encoding: Encoding, observation: Observation, context: Float[Array, "width"]
    ) -> tuple[Float[Array, "rows columns"], Float[Array, "width"]]:
        """The same from a look at the chosen pairs only."""
        chosen = observation.chosen
        assert chosen is not None
        pairs = self.keys["user"](encoding.users)[:, None] + encoding.batches + encoding.pairs
        flat = pairs.reshape(-1, pairs.shape[-1])
        joint = context + jnp.take(flat, chosen, axis=0) + self.step_pairs(observation.pairs[:, 0])
        grants = self._scores(joint, observation.reduced[:, 0])
        legal = jnp.take(observation.mask, chosen) & (jnp.arange(chosen.shape[0]) < flat.shape[0])
        share = jnp.where(legal, jnp.ones((), joint.dtype), 0)
        refused = context + share @ joint / jnp.maximum(jnp.sum(share), 1)
        return grants[:, None], refused

    def _scores(
        self, joint: Float[Array, "*pairs width"], reduced: Float[Array, "*pairs"]
    ) -> Float[Array, "*pairs"]:
        grants = self.score(joint)
        return grants + self.temperature * reduced if self.config.residual else grants

    def _shown(self, observation: Observation) -> Observation:
        """With zeros in the columns that the network is blind for."""
        hidden = {name for sight in self.config.blind for name in _OF_STEPS.get(sight, ())}
        if not hidden:
            return observation
        shown = np.array([name not in hidden for name in STEP_FEATURES])
        return replace(observation, pairs=jnp.where(shown, observation.pairs, 0))

    def _narrowed(self, tree: Any) -> Any:
        """Floating inputs in the type that layers compute in."""
        dtype = self.config.narrow()

        def cast(x: Array) -> Array:
            return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

        return tree if dtype is None else jax.tree.map(cast, tree)


_KEYS = ("user", "batch", "pair", "overall", "undecided", "granted")
