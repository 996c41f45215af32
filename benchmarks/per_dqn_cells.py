"""The cells (N users, E edge GPUs) of PER-DQN's comparison, and the instances of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array

from offload_jax.baselines import assigner
from offload_jax.instance import Instance
from offload_jax.scenario import PaperScenario
from offload_jax.value import evaluate

Data = Literal["fixed", "fresh"]
FRESH = 1024  # instances that nobody trains on
POOL = 4096  # instances that training on fresh ones draws from
_SEED = 1234


@dataclass(frozen=True)
class Cell:
    """N users and E edge GPUs."""

    users: int
    gpus: int

    @cached_property
    def fixed(self) -> Instance:
        """The one instance that agents train on as published; the batch last."""
        return self._sample(jax.random.key(_SEED)[None])

    @cached_property
    def fresh(self) -> Instance:
        """Instances that nobody trains on, the batch last."""
        return self._sample(jax.random.split(jax.random.key(_SEED + 1), FRESH))

    def pool(self, data: Data, seed: int) -> Instance:
        """What an agent trains on; the fixed instance is the same for all seeds."""
        if data == "fixed":
            return self.fixed
        return self._sample(jax.random.split(jax.random.fold_in(jax.random.key(_SEED), seed), POOL))

    def _sample(self, keys: Array) -> Instance:
        scenario = PaperScenario(num_users=(self.users,), edge_gpus=(self.gpus,))
        return jax.jit(jax.vmap(scenario.sample, out_axes=-1))(keys)


def cells_of(users: Sequence[int]) -> list[Cell]:
    """The published cells with these numbers of users."""
    return [Cell(n, e) for n in users for e in PaperScenario().edge_gpus]


def optimum(instances: Instance) -> Array:
    """The largest gain (s) of any plan, of each instance."""
    return evaluate(instances, assigner("top-b")(instances)).gain


def stacked(trees: Sequence[Any]) -> Any:
    """Along a new first axis."""
    return jax.tree.map(lambda *x: jnp.stack(x), *trees)
