"""Distributions of instances: frozen ranges with units, checked before anything is sampled.

`PaperScenario` is the single-batch scenario of arXiv 2411.15781 as its public reference
implementation fixes it. `EdgeScenario` has several batches, cluster-wide models and servers with
budgets; `MixtureScenario` draws from several of those. Sampling is pure, unbatched and jit-able:
`jax.vmap(scenario.sample)(keys)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax

from offload_jax.problem.contracts import Returned
from offload_jax.problem.instance import Instance
from offload_jax.problem.scenario.edge import EdgeScenario as EdgeScenario
from offload_jax.problem.scenario.mixture import MixtureScenario as MixtureScenario
from offload_jax.problem.scenario.paper import DEVICE_PROFILE_MS as DEVICE_PROFILE_MS
from offload_jax.problem.scenario.paper import PaperScenario as PaperScenario
from offload_jax.problem.scenario.sized import SizedScenario as SizedScenario
from offload_jax.problem.types import Key


@runtime_checkable
class Scenario(Protocol):
    """A distribution of instances, as a frozen record of its settings.

    `SizedScenario` has all of it but `num_users` and `sample`.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def kind(self) -> str:
        """What runs of it are called."""

    @property
    def reference(self) -> str:
        """The method that training measures its gap against."""

    @property
    def num_users(self) -> tuple[int, ...]:
        """The numbers N of users that instances have."""

    @property
    def max_users(self) -> int:
        """To which all instances are padded."""

    def validate(self) -> None:
        """Raises ValueError naming the field and the allowed values."""

    def sample(self, key: Key) -> Instance:
        """One instance, its users in order of arrival; pure, unbatched and jit-able."""

    def cells(self) -> Mapping[str, Scenario]:
        """Its parts that an evaluation looks at one by one."""

    def hard_cells(self) -> list[str]:
        """Those that tell methods apart."""

    def of_size(self, users: int) -> Scenario:
        """The same with N users in every instance."""


SCENARIOS: dict[str, type[Scenario]] = {
    "paper": PaperScenario,
    "edge": EdgeScenario,
    "mixture": MixtureScenario,
}

PRESETS: dict[str, Scenario] = {
    "paper": PaperScenario(),
    "edge": EdgeScenario(),
    "edge_large": EdgeScenario(num_users=tuple(range(50, 101)), batches=16, servers=8, models=4),
}


def from_settings(settings: Mapping[str, Any]) -> Scenario:
    """The scenario of which `dataclasses.asdict` (or its JSON) gave these settings."""
    tuples = {k: tuple(v) if isinstance(v, list | tuple) else v for k, v in settings.items()}
    if "parts" in tuples:
        tuples["parts"] = tuple(from_settings(part) for part in tuples["parts"])
    make: Any = SCENARIOS[settings["kind"]]
    made: Scenario = make(**tuples)
    return made


def sample(scenario: Scenario, key: Key) -> Instance:
    """One instance of a scenario; unbatched and pure, `jax.vmap` over keys for many.

    Raises InterfaceError where it is not of the scenario's sizes.
    """
    instance = scenario.sample(key)
    sizes = {"users": scenario.max_users}
    Returned("Scenario.sample", scenario, sizes).record(instance, Instance)
    return instance


def sample_many(scenario: Scenario, keys: Key) -> Instance:
    """An instance for each key, the batch last."""
    found: Instance = jax.vmap(partial(sample, scenario), out_axes=-1)(keys)
    return found
