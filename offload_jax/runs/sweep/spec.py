"""What a sweep file says: one YAML in the sweep format of Weights & Biases.

`wandb sweep` and `wandb agent` run the same file, so every key means here what it means there.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from offload_jax.files.plugins import is_own, sources
from offload_jax.runs.config import KINDS, TrainConfig, own_code, to_settings, with_kind
from offload_jax.runs.config_file import from_settings, load_config
from offload_jax.runs.sweep.space import Scalar, Space

Goal = Literal["minimize", "maximize"]
CONFIG = "config"  # the parameter that names a configuration; all others are settings of it


@dataclass(frozen=True)
class Hyperband:
    """Early stopping: at rungs first, first * eta, ... only the best 1 / eta of trials go on."""

    first: int  # the first rung, in evaluations of the metric
    eta: int


@dataclass(frozen=True)
class SweepConfig:
    """A sweep file, read."""

    source: str  # of what is wrong, in errors
    name: str
    program: str
    method: str
    metric: str
    goal: Goal
    parameters: dict[str, Space]
    early: Hyperband | None
    command: tuple[str, ...]
    run_cap: int | None
    document: dict[str, Any]  # as it stands in the file

    @cached_property
    def key(self) -> str:
        """What has to stay the same within a sweep, as a text."""
        kept = ("method", "metric", "parameters", "early_terminate")
        return json.dumps({key: self.document.get(key) for key in kept}, sort_keys=True)

    @cached_property
    def fixed(self) -> dict[str, Scalar]:
        """Parameters with a single value."""
        return {name: s.values[0] for name, s in self.parameters.items() if s.fixed}

    @cached_property
    def varied(self) -> dict[str, Space]:
        """All others."""
        return {name: s for name, s in self.parameters.items() if not s.fixed}

    def best(self, values: Collection[float]) -> float:
        return min(values) if self.goal == "minimize" else max(values)

    def grid_size(self) -> int | None:
        """Number of combinations of a grid, None for other methods."""
        if self.method != "grid":
            return None
        return math.prod(len(space.grid() or ()) for space in self.parameters.values())

    def settings(self, values: Mapping[str, Scalar]) -> TrainConfig:
        """The configuration of a trial with these parameters.

        Raises ConfigError for unknown parameters and impossible values.
        """
        chosen = dict(values)
        config = load_config(str(chosen.pop(CONFIG, "paper")))
        for name in [name for name in chosen if _is_kind(name)]:
            config = with_kind(config, name.partition(".")[0], str(chosen.pop(name)), None)
        known = to_settings(config)
        for name, value in chosen.items():
            part, _, key = name.rpartition(".")
            record = known[part] if part else known
            # On a command line a single value makes a tuple of one.
            record[key] = (value,) if isinstance(record.get(key), tuple) else value
        return from_settings(known, f"{self.source}: parameters", plugins=None)

    def known(self, config: str) -> dict[str, Any]:
        """All settings that trials with this configuration may have, nested as in a file."""
        base = load_config(config)
        found = to_settings(base)
        for name, space in self.parameters.items():
            section = name.partition(".")[0]
            for kind in space.values if _is_kind(name) else ():
                other = to_settings(with_kind(base, section, str(kind), None))
                found[section] = other[section] | found[section]
        return found

    @cached_property
    def plugins(self) -> list[str]:
        """Own code that the file's trials may name: what they go on with has to be told of it."""
        configs = self.parameters.get(CONFIG, Space("choice", ("paper",))).values
        named = [own_code(to_settings(load_config(str(config)))).values() for config in configs]
        spaces = [space.values for space in self.parameters.values()]
        own = [str(name) for names in (*named, *spaces) for name in names if is_own(name)]
        return sources(own)

    def words(self, values: Mapping[str, Scalar]) -> list[str]:
        """The options of a trial, as W&B's ${args}."""
        return [f"--{name}={value}" for name, value in values.items()]

    def command_line(self, arguments: list[str]) -> list[str]:
        """The whole command, with these options."""
        macros = {
            "${env}": ["/usr/bin/env"],
            "${interpreter}": [sys.executable],
            "${program}": [self.program],
            "${args}": arguments,
        }
        return [word for item in self.command for word in macros.get(item, [item])]


def _is_kind(name: str) -> bool:
    """Whether a parameter chooses an implementation."""
    section, _, key = name.partition(".")
    return key == "kind" and section in KINDS
