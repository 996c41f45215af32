"""A training run's settings: the rooms' own records, checked before anything is compiled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from offload_jax.env.config import EpisodeConfig
from offload_jax.env.environment import ENVIRONMENTS, Environment
from offload_jax.files import plugins
from offload_jax.files.checks import Checks, ConfigError
from offload_jax.files.disk import PACKAGE
from offload_jax.files.plugins import Plugins
from offload_jax.learning.algorithm import Algorithm, Learner
from offload_jax.learning.algorithms import ALGORITHMS
from offload_jax.learning.algorithms.ppo import PPO
from offload_jax.learning.config import LearnerConfig
from offload_jax.learning.devices import ONE_DEVICE, Devices, find_devices
from offload_jax.policy.network import Network
from offload_jax.policy.networks import NETWORKS
from offload_jax.policy.transformer import Transformer
from offload_jax.problem.scenario import SCENARIOS, PaperScenario, Scenario
from offload_jax.runs.tracking import registry
from offload_jax.runs.tracking.metrics import TrackingConfig
from offload_jax.splits import SplitsConfig, full_name

NotFinite = Literal["stop", "skip"]
FailedSave = Literal["stop", "go-on"]


@dataclass(frozen=True)
class RunConfig:
    """How a run goes about it; none of this changes what is learned."""

    log_every: int = 10  # updates between rows of metrics.jsonl
    eval_every: int = 50  # updates between evaluations, each followed by a checkpoint
    eval_instances: int = 1024  # fresh instances of every evaluation, the same each time
    keep: int = 3  # newest checkpoints kept, beside the best one
    save_s: float = 60.0  # seconds after which the state is saved between evaluations, too
    not_finite: NotFinite = "stop"  # an update with NaN or infinity: stop, or skip it and go on
    failed_save: FailedSave = "stop"  # a full disk: stop, or go on and save what was not later
    devices: int | None = None  # over which the instances are spread; default: all there are
    # Assertions inside every update, and slower: for finding faults in own scenarios,
    # environments, networks and algorithms.
    checks: bool = False

    def validate(self) -> None:
        """Raises ValueError naming the field and the allowed values."""
        check = Checks(self, "run")
        check.counts("log_every", "eval_every", "eval_instances", "keep")
        check.positive("save_s")
        check.one_of("not_finite", get_args(NotFinite))
        check.one_of("failed_save", get_args(FailedSave))
        if self.devices is not None:
            check.counts("devices")


@dataclass(frozen=True)
class Kinds:
    """The implementations that a section of the configuration chooses from, by its `kind`."""

    registry: Mapping[str, Any]
    default: str
    protocol: type  # what an implementation is

    def record(self, section: str, kind: Any, allowed: Plugins, folder: Path | None) -> type:
        """The record of settings of that kind.

        Raises ConfigError as `plugins.find`, and for one of the user's own that is no
        implementation.
        """
        found = plugins.find(kind, self.registry, f"{section}.kind", allowed, folder)
        if plugins.is_own(kind):
            said = f"{section}.kind is {kind!r}"
            plugins.check_record(found, self.protocol, said)
            self._check_settings(found, said)
        record: type = _settings_of(found)
        return record

    def _check_settings(self, found: type, said: str) -> None:
        """Refuses settings that belong to another implementation: they would mean that one."""
        mine, name = _settings_of(found), found.__name__
        plugins.check_frozen(mine, said)
        others = [one for one in self.registry.values() if _settings_of(one) is mine]
        twin = plugins.loaded(lambda one: _settings_of(one) is mine and one is not found)
        if others or twin:
            raise ConfigError(
                f"{said}; the Settings of {name} must be a record of its own, such as a frozen "
                f"dataclass that inherits {mine.__name__}"
            )

    def implementation(self, record: Any) -> tuple[str, Any]:
        """The name of what has this record of settings, and that itself.

        Raises ConfigError where there is nothing.
        """
        for name, one in self.registry.items():
            if _settings_of(one) is type(record):
                return name, one
        own = plugins.loaded(lambda one: _settings_of(one) is type(record))
        if own is None and not isinstance(record, self.protocol):
            raise ConfigError(
                f"{type(record).__name__} is the record of no {self.protocol.__name__} that is "
                "known; must be one of a kind that a configuration names"
            )
        return own or (plugins.name_of(type(record), self.protocol.__name__), type(record))


def _settings_of(implementation: Any) -> Any:
    """Itself, or what it names as its settings."""
    return getattr(implementation, "Settings", implementation)


KINDS = {
    "scenario": Kinds(SCENARIOS, "paper", Scenario),
    "env": Kinds(ENVIRONMENTS, "snapshot", Environment),
    "network": Kinds(NETWORKS, "transformer", Network),
    "algorithm": Kinds(ALGORITHMS, "ppo", Algorithm),
}


@dataclass(frozen=True)
class TrainConfig:
    """Everything that `train` takes."""

    scenario: Scenario = field(default_factory=PaperScenario)
    env: EpisodeConfig = field(default_factory=EpisodeConfig)
    splits: SplitsConfig = field(default_factory=SplitsConfig)
    network: Network = field(default_factory=Transformer)
    algorithm: Algorithm = field(default_factory=PPO)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    run: RunConfig = field(default_factory=RunConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    seed: int = 0
    init_from: str | None = None  # run directory or policy whose parameters training starts from

    def validate(self) -> None:
        """Raises ConfigError for the first impossible setting."""
        for section in KINDS:
            _check_static(section, getattr(self, section))
        try:
            for part in fields(self):
                if part.name != "algorithm" and hasattr(getattr(self, part.name), "validate"):
                    getattr(self, part.name).validate()
            self.algorithm.validate(self.to_learner())
        except ValueError as error:
            raise ConfigError(str(error)) from None
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"seed is {self.seed}; must be in 0..{2**32 - 1}")

    def to_env(self) -> Environment:
        """The environment: its episodes, and its splits."""
        make = KINDS["env"].implementation(self.env)[1]
        env: Environment = make(**asdict(self.env), solver=self.splits.to_solver())
        return env

    def to_learner(self, devices: Devices = ONE_DEVICE) -> Learner:
        """The static part of training."""
        parts = (self.scenario, self.to_env(), self.network, self.algorithm, self.learner)
        return Learner(*parts, devices)

    @property
    def deciding(self) -> str:
        """How plans are made, in words."""
        if order := getattr(self.env, "order", None):
            return f"{order} order"
        return f"environment {KINDS['env'].implementation(self.env)[0]}"

    def find_devices(self) -> Devices:
        """What to train on. Raises ConfigError where the instances cannot be spread over it."""
        devices = find_devices(self.run.devices)
        parts = self.learner.minibatches * devices.count
        if devices.count > 1 and self.learner.instances % parts:
            raise ConfigError(
                f"learner.instances is {self.learner.instances}; must be divisible by "
                f"learner.minibatches x devices ({self.learner.minibatches} x {devices.count}). "
                "Fewer devices: --run.devices"
            )
        if self.run.checks and devices.count > 1:
            raise ConfigError(
                f"run.checks is True, with {devices.count} devices; must be False with more than "
                "one: --run.devices 1"
            )
        return devices


def _check_static(section: str, record: Any) -> None:
    """Raises ConfigError for a setting that cannot be a static argument of a jitted function."""
    for one in fields(record):
        try:
            hash(getattr(record, one.name))
        except TypeError:
            raise ConfigError(
                f"{section}.{one.name} is a {type(getattr(record, one.name)).__name__}; must be "
                f"hashable: a tuple, declared as tuple[int, ...], instead of a list"
            ) from None


def to_settings(config: TrainConfig) -> dict[str, Any]:
    """Every setting, nested as in a file; files of own code by their absolute path."""
    settings = asdict(config)
    for section, kinds in KINDS.items():
        kind = kinds.implementation(getattr(config, section))[0]
        settings[section] = {"kind": kind} | settings[section] | {"kind": kind}
    settings["splits"]["solver"] = full_name(config.splits.solver)
    settings["tracking"]["also"] = tuple(map(registry.full_name, config.tracking.also))
    return settings


def own_code(settings: Mapping[str, Any]) -> dict[str, str]:
    """Names of the user's own code in settings, nested as in a file, by the setting that has it."""
    parts = {name: part for name, part in settings.items() if isinstance(part, dict)}
    named: dict[str, Any] = {f"{name}.kind": parts.get(name, {}).get("kind") for name in KINDS}
    named["splits.solver"] = parts.get("splits", {}).get("solver")
    also = parts.get("tracking", {}).get("also")
    for i, name in enumerate(also if isinstance(also, list | tuple) else ()):
        named[f"tracking.also[{i}]"] = name
    return {where: name for where, name in named.items() if plugins.is_own(name)}


def plugins_of(config: TrainConfig) -> list[str]:
    """The user's own code that a configuration names, as `plugins` that allow exactly that."""
    return [*dict.fromkeys(own_code(to_settings(config)).values())]


def plugins_option(config: TrainConfig) -> str:
    """What a command that reads this configuration from a run needs besides, after a space."""
    needed = plugins.sources(plugins_of(config))
    return f" {plugins.option(needed)}" if needed else ""


def with_kind(config: TrainConfig, section: str, kind: str, allowed: Plugins) -> TrainConfig:
    """With another kind of scenario, network, ..., whose settings are its defaults."""
    record = KINDS[section].record(section, kind, allowed, None)
    same = type(getattr(config, section)) is record
    return config if same else replace(config, **{section: record()})


def preset_folder() -> Path:
    """Where the shipped YAML files are: inside the installed package, or beside a checkout's."""
    places = (PACKAGE / "configs", PACKAGE.parent / "configs")
    return next((place for place in places if place.is_dir()), PACKAGE)


def presets() -> list[str]:
    """Names of the shipped configurations."""
    return sorted(path.stem for path in preset_folder().glob("*.yaml"))
