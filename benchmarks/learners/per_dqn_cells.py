"""The published cells (N users, E edge GPUs), and the instances of each.

The one instance of a cell is what the public code draws with its seed 1234, transfer times as in
the paper's equation (3), where that code multiplies by the spectral efficiency instead of dividing:
transfers are a hundred times shorter than its own, and granting everybody is optimal in 10 cells
instead of 3. Its optima are in the golden files. The four E of one N share their users, so the
twenty cells are five draws of users.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Literal

import jax
from jax import Array

from benchmarks.common import ROOT
from offload_jax.files.records import read_instances
from offload_jax.methods import assigner
from offload_jax.plans.outcome import evaluate
from offload_jax.problem.instance import Instance, from_record, stack
from offload_jax.problem.scenario import PaperScenario

Data = Literal["fixed", "fresh"]
FRESH = 1024  # instances that nobody trains on
POOL = 4096  # instances that training on fresh ones draws from
GOLDEN = ROOT / "tests" / "golden" / "paper.json"
_SEED = 1234


@dataclass(frozen=True)
class Cell:
    """N users and E edge GPUs."""

    users: int
    gpus: int

    @cached_property
    def fixed(self) -> Instance:
        """The published instance; the batch last."""
        return stack([_published()[f"paper-N{self.users}-E{self.gpus}-s1234"]])

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


@cache
def _published() -> dict[str, Instance]:
    return {record.name: from_record(record) for record in read_instances(GOLDEN)}


def cells_of(users: Sequence[int]) -> list[Cell]:
    """The published cells with these numbers of users."""
    return [Cell(n, e) for n in users for e in PaperScenario().edge_gpus]


def optimum(instances: Instance) -> Array:
    """The largest gain (s) of any plan, of each instance."""
    return evaluate(instances, assigner("top-b")(instances)).gain
