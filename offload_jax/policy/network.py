"""Sizes of the network, and what its encoder hands to its decoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from offload_jax.files.checks import Checks

Dtype = Literal["float32", "bfloat16"]
Sight = Literal["reduced-gains", "prices", "pairs", "level-gains"]


@dataclass(frozen=True)
class NetworkConfig:
    """Sizes of the actor-critic (static)."""

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


@struct.dataclass
class Encoding:
    """What the decoder needs of an instance, the decoder's first layer already applied to it."""

    users: Float[Array, "users width"]
    batches: Float[Array, "batches width"]
    pairs: Float[Array, "users batches width"]
    overall: Float[Array, "width"]
    count: Float[Array, ""]  # real users
