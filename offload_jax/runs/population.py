"""Populations: runs of several seeds and hyperparameters, trained side by side in one program.

A population is a folder of run directories. Each is a run like any other, with its own settings,
rows and checkpoints: it can be evaluated, or gone on with alone. They share the scenario and all
static settings, so one compiled update serves all of them (`Learner.numbers` are traced).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

import jax

from offload_jax.files.checks import ConfigError
from offload_jax.files.disk import replace_file
from offload_jax.files.plugins import Plugins
from offload_jax.learning.devices import Devices, find_devices
from offload_jax.runs import run_files, run_folder
from offload_jax.runs.config import TrainConfig, to_settings

Members = dict[str, TrainConfig]  # settings by the name of the member's folder


@dataclass(frozen=True)
class PopulationConfig:
    """A run for every combination of seeds and values, trained side by side in one program."""

    seeds: int = 1  # the configuration's seed and those after it
    lr: tuple[float, ...] = ()  # values of learner.lr; none: the configuration's own
    max_grad_norm: tuple[float, ...] = ()  # of learner.max_grad_norm, and so on
    clip: tuple[float, ...] = ()
    entropy: tuple[float, ...] = ()
    value: tuple[float, ...] = ()
    gae_decay: tuple[float, ...] = ()
    sharpness: tuple[float, ...] = ()
    temperature: tuple[float, ...] = ()
    weight: tuple[float, ...] = ()
    surrogate: tuple[float, ...] = ()

    def members(self, base: TrainConfig) -> Members:
        """The runs by name. Raises ConfigError for impossible values."""
        if self.seeds < 1:
            raise ConfigError(f"population.seeds is {self.seeds}; must be at least 1")
        names = [one.name for one in fields(self) if one.name != "seeds"]
        varied = {name: getattr(self, name) for name in names if getattr(self, name)}
        for name, values in varied.items():
            if len(set(values)) < len(values):
                raise ConfigError(f"population.{name} is {values}; must be different values")
        found = {}
        for seed, *values in product(range(base.seed, base.seed + self.seeds), *varied.values()):
            chosen = dict(zip(varied, values, strict=True))
            name = "-".join([f"seed-{seed}", *(f"{key}-{v!r}" for key, v in chosen.items())])
            found[name] = replace(_with(base, chosen), seed=seed)
            found[name].validate()
        return found

    def is_one(self) -> bool:
        """Whether this asks for no more than an ordinary run."""
        return self == PopulationConfig()


def _with(config: TrainConfig, chosen: Mapping[str, float]) -> TrainConfig:
    """The settings with other numbers of the learner or of its algorithm."""
    known = {name.partition(".")[2]: name for name in config.to_learner().numbers()}
    for key, value in chosen.items():
        if key not in known:
            raise ConfigError(
                f"population.{key} is given, which this algorithm does not have; must be among "
                f"{', '.join(known)}"
            )
        section = known[key].partition(".")[0]
        config = replace(config, **{section: replace(getattr(config, section), **{key: value})})
    return config


def is_population(folder: Path) -> bool:
    """Whether a folder is a population's."""
    return (folder / run_files.POPULATION).is_file()


def write_members(folder: Path, members: Members) -> None:
    """Makes a folder that has all the runs a population's."""
    replace_file(folder / run_files.POPULATION, json.dumps({"members": list(members)}, indent=1))


def read_members(folder: Path, plugins: Plugins = ()) -> Members:
    """The settings of a population's runs. Raises ConfigError where they cannot be read."""
    try:
        names = json.loads((folder / run_files.POPULATION).read_bytes())["members"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{folder / run_files.POPULATION} cannot be read ({error!r}); must name members"
        ) from None
    return {name: run_folder.read_config(folder / name, plugins) for name in names}


def going_on(saved: Members, base: TrainConfig, wanted: TrainConfig) -> Members:
    """The members with what `wanted` changes of `base`, the first of them.

    Raises ConfigError where that is more than a run that goes on may change.
    """
    run_folder.resumed(base, wanted)
    return {
        name: replace(
            config,
            run=replace(wanted.run, eval_instances=config.run.eval_instances),
            tracking=wanted.tracking,
            learner=replace(config.learner, updates=wanted.learner.updates),
        )
        for name, config in saved.items()
    }


def check_alike(members: Mapping[str, TrainConfig]) -> None:
    """Raises ConfigError where members differ in what is not traced."""
    if jax.process_count() > 1:
        raise ConfigError("population cannot be trained in several processes; must be in one")
    first = next(iter(members.values()))
    if first.run.checks:
        raise ConfigError("run.checks is True; must be False with a population, or train one alone")
    numbers = first.to_learner().numbers()
    for name, config in members.items():
        config.validate()
        if _shared(config) != _shared(first):
            raise ConfigError(
                f"population has a member {name} that differs from the first; must share all "
                f"settings but seed, {', '.join(numbers)}"
            )


def _shared(config: TrainConfig) -> dict[str, Any]:
    """All settings but the seed and the numbers that may differ."""
    settings, numbers = to_settings(config), config.to_learner().numbers()
    for section in ("learner", "algorithm"):
        inner = settings[section].items()
        settings[section] = {k: v for k, v in inner if f"{section}.{k}" not in numbers}
    return {**settings, "seed": None}


def member_devices(members: Mapping[str, TrainConfig]) -> Devices:
    """The most devices, of those allowed, that get equal numbers of members."""
    limit = next(iter(members.values())).run.devices
    available = find_devices(limit).count
    fitting = (n for n in range(1, available + 1) if len(members) % n == 0)
    return find_devices(max(fitting))
