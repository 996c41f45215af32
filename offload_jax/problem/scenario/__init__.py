"""Distributions of instances: frozen ranges with units, checked before anything is sampled.

`PaperScenario` is the single-batch scenario of arXiv 2411.15781 as its public reference
implementation fixes it. `EdgeScenario` has several batches, cluster-wide models and servers with
budgets; `MixtureScenario` draws from several of those. Sampling is pure, unbatched and jit-able:
`jax.vmap(scenario.sample)(keys)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from offload_jax.problem.instance import Instance
from offload_jax.problem.scenario.edge import EdgeScenario as EdgeScenario
from offload_jax.problem.scenario.mixture import MixtureScenario as MixtureScenario
from offload_jax.problem.scenario.paper import DEVICE_PROFILE_MS as DEVICE_PROFILE_MS
from offload_jax.problem.scenario.paper import PaperScenario as PaperScenario
from offload_jax.problem.types import Key

Scenario = PaperScenario | EdgeScenario | MixtureScenario

SCENARIOS = {"paper": PaperScenario, "edge": EdgeScenario, "mixture": MixtureScenario}  # by kind

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
    return SCENARIOS[settings["kind"]](**tuples)


def sample(scenario: Scenario, key: Key) -> Instance:
    """One instance of a scenario; unbatched and pure, `jax.vmap` over keys for many."""
    return scenario.sample(key)
