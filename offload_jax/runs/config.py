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
from offload_jax.runs.tracking.metrics import TrackingConfig
from offload_jax.splits import SplitsConfig

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

    def record(self, section: str, kind: Any, plugins_: Plugins, folder: Path | None) -> type:
        """The record of settings of that kind. Raises ConfigError as `plugins.find`."""
        found = plugins.find(kind, self.registry, f"{section}.kind", plugins_, folder)
        return _settings_of(found)

    def implementation(self, record: Any) -> Any:
        """What has this record of settings, and the name of it."""
        known = {_settings_of(one): (name, one) for name, one in self.registry.items()}
        if type(record) in known:
            return known[type(record)]
        return plugins.own(lambda one: _settings_of(one) is type(record))


def _settings_of(implementation: Any) -> type:
    """Itself, or what it names as its settings."""
    record: type = getattr(implementation, "Settings", implementation)
    return record


KINDS = {
    "scenario": Kinds(SCENARIOS, "paper"),
    "env": Kinds(ENVIRONMENTS, "snapshot"),
    "network": Kinds(NETWORKS, "transformer"),
    "algorithm": Kinds(ALGORITHMS, "ppo"),
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

    def find_devices(self) -> Devices:
        """What to train on. Raises ConfigError where the instances cannot be spread over it."""
        try:
            devices = find_devices(self.run.devices)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        parts = self.learner.minibatches * devices.count
        if devices.count > 1 and self.learner.instances % parts:
            raise ConfigError(
                f"learner.instances is {self.learner.instances}; must be divisible by "
                f"learner.minibatches x devices ({self.learner.minibatches} x {devices.count}). "
                "Fewer devices: --run.devices"
            )
        return devices


def to_settings(config: TrainConfig) -> dict[str, Any]:
    """Every setting, nested as in a file."""
    settings = asdict(config)
    for section, kinds in KINDS.items():
        kind = kinds.implementation(getattr(config, section))[0]
        settings[section] = {"kind": kind, **settings[section]}
    return settings


def with_kind(config: TrainConfig, section: str, kind: str, allowed: Plugins) -> TrainConfig:
    """With another kind of scenario, network, ..., whose settings are its defaults."""
    return replace(config, **{section: KINDS[section].record(section, kind, allowed, None)()})


def preset_folder() -> Path:
    """Where the shipped YAML files are: inside the installed package, or beside a checkout's."""
    places = (PACKAGE / "configs", PACKAGE.parent / "configs")
    return next((place for place in places if place.is_dir()), PACKAGE)


def presets() -> list[str]:
    """Names of the shipped configurations."""
    return sorted(path.stem for path in preset_folder().glob("*.yaml"))
