"""An episode in which only so many users may be granted."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import jax
import jax.numpy as jnp

from offload_jax.env.config import EpisodeConfig
from offload_jax.env.environment import Snapshot
from offload_jax.env.observation import Observation
from offload_jax.env.state import State
from offload_jax.problem.instance import Instance


@dataclass(frozen=True)
class CappedSettings(EpisodeConfig):
    """What a configuration says under `env`: those of a snapshot, and one more."""

    grants: int = 4  # at most


@dataclass(frozen=True)
class Capped(CappedSettings, Snapshot):
    """The snapshot, in which granting is illegal from that number on."""

    Settings: ClassVar[type] = CappedSettings

    def action_mask(self, instance: Instance, state: State) -> jax.Array:
        legal = super().action_mask(instance, state)  # (actions, *batch)
        refusal = legal.shape[0] - 1 if self.order == "adaptive" else 0
        refuses = jnp.arange(legal.shape[0]) == refusal
        full = jnp.sum(state.assignment > 0, axis=0) >= self.grants
        return legal & (refuses.reshape(-1, *(1,) * full.ndim) | ~full)

    def observe(self, instance: Instance, state: State) -> Observation:
        return replace(super().observe(instance, state), mask=self.action_mask(instance, state))
