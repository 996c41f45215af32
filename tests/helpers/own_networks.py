"""A network of one's own that a script imports."""

from __future__ import annotations

from dataclasses import dataclass

from offload_jax.policy.transformer import Transformer


@dataclass(frozen=True)
class Narrow(Transformer):
    width: int = 8
