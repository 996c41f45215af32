"""A small MLP that looks at one pair of user and batch at a time."""

from __future__ import annotations

from dataclasses import dataclass

import jax
from flax import linen as nn

from offload_jax.env.description import Description
from offload_jax.env.observation import Observation
from offload_jax.files.checks import Checks
from offload_jax.policy.network import FlaxNetwork, all_logits


@dataclass(frozen=True)
class PairMLP(FlaxNetwork):
    """One MLP scores every pair, so that the order of users and batches does not matter."""

    width: int = 32

    def validate(self) -> None:
        Checks(self, "network").counts("width")

    def module(self) -> nn.Module:
        return Module(self.width)


class Module(nn.Module):
    width: int

    def setup(self) -> None:
        self.pair = nn.Sequential([nn.Dense(self.width), nn.relu, nn.Dense(1)])
        self.overall = nn.Sequential([nn.Dense(self.width), nn.relu, nn.Dense(2)])

    def __call__(
        self, description: Description, observation: Observation
    ) -> tuple[jax.Array, jax.Array]:
        return self.decode(self.encode(description), observation)

    def encode(self, description: Description) -> tuple[()]:
        return ()  # every decision is made from the observation alone

    def decode(self, encoding: tuple[()], observation: Observation) -> tuple[jax.Array, jax.Array]:
        scores = self.pair(observation.pairs)[..., 0]  # (rows, columns)
        grants = scores + 4 * observation.reduced  # a heuristic before any training
        refuse, value = self.overall(observation.overall)
        return all_logits(observation, grants, refuse), value
