"""Every network by name."""

from __future__ import annotations

from offload_jax.policy.network import Network
from offload_jax.policy.transformer import Transformer

NETWORKS: dict[str, type[Network]] = {"transformer": Transformer}
