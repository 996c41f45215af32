"""A training run's settings: the modules' own records, read from YAML, checked before compiling."""

from __future__ import annotations

import difflib
import re
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import yaml
from pydantic import Discriminator, TypeAdapter, ValidationError

from offload_jax.env.config import EnvConfig, EpisodeConfig
from offload_jax.files.checks import Checks, ConfigError
from offload_jax.files.disk import PACKAGE
from offload_jax.learning.config import Learner, LearnerConfig
from offload_jax.learning.devices import ONE_DEVICE, Devices, find_devices
from offload_jax.policy.network import NetworkConfig
from offload_jax.problem.scenario import SCENARIOS, EdgeScenario, MixtureScenario, PaperScenario
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
class TrainConfig:
    """Everything that `train` takes."""

    scenario: Annotated[PaperScenario | EdgeScenario | MixtureScenario, Discriminator("kind")] = (
        field(default_factory=PaperScenario)
    )
    env: EpisodeConfig = field(default_factory=EpisodeConfig)
    splits: SplitsConfig = field(default_factory=SplitsConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    run: RunConfig = field(default_factory=RunConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    seed: int = 0
    init_from: str | None = None  # run directory or policy whose parameters training starts from

    def validate(self) -> None:
        """Raises ConfigError for the first impossible setting."""
        for part in fields(self):
            value: Any = getattr(self, part.name)
            if hasattr(value, "validate"):
                try:
                    value.validate()
                except ValueError as error:
                    raise ConfigError(str(error)) from None
        if self.learner.layer and (self.splits.constraints or self.splits.terms):
            raise ConfigError(
                f"learner.layer is {self.learner.layer}; must be 0 with splits.constraints or "
                "splits.terms, which speak of one split per user"
            )
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"seed is {self.seed}; must be in 0..{2**32 - 1}")

    def to_env(self) -> EnvConfig:
        """The environment's static choices: its episodes, and its splits."""
        return EnvConfig(**asdict(self.env), solver=self.splits)

    def to_learner(self, devices: Devices = ONE_DEVICE) -> Learner:
        """The static part of training."""
        return Learner(self.scenario, self.to_env(), self.network, self.learner, devices)

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


def preset_folder() -> Path:
    """Where the shipped YAML files are: inside the installed package, or beside a checkout's."""
    places = (PACKAGE / "configs", PACKAGE.parent / "configs")
    return next((place for place in places if place.is_dir()), PACKAGE)


def presets() -> list[str]:
    """Names of the shipped configurations."""
    return sorted(path.stem for path in preset_folder().glob("*.yaml"))


def load_config(source: str | Path) -> TrainConfig:
    """A shipped configuration by name, or any YAML file by path.

    Settings left out keep their defaults. Raises ConfigError for an unknown name, an unreadable
    file, an unknown setting (naming the nearest), a wrong type or an impossible value.
    """
    path = Path(source)
    if str(source) in presets():
        path = preset_folder() / f"{source}.yaml"
    elif not path.is_file():
        near = nearest(str(source), presets())
        raise ConfigError(
            f"config is {str(source)!r}; must be a YAML file or one of {', '.join(presets())}{near}"
        )
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config is {str(source)!r}, which cannot be read: {error}") from None
    return parse_config(text, str(path))


def parse_config(text: str, source: str = "<text>") -> TrainConfig:
    """The configuration in a YAML text; `source` names it in errors."""
    try:
        settings = yaml.load(text, _StrictLoader)  # a SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from None
    return from_settings({} if settings is None else settings, source)


def from_settings(settings: Any, source: str) -> TrainConfig:
    """The configuration with these settings, nested as in a file; `source` names them in errors.

    Raises ConfigError as `load_config`.
    """
    _refuse_unknown(settings, TrainConfig, source, "")
    if "scenario" in settings:
        settings = {**settings, "scenario": {"kind": "paper", **settings["scenario"]}}
    try:
        config = TypeAdapter(TrainConfig).validate_python(settings)
    except ValidationError as error:
        raise ConfigError(
            "\n".join(dict.fromkeys(_describe(source, e) for e in error.errors()))
        ) from None
    try:
        config.validate()
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
    return config


def to_yaml(config: TrainConfig) -> str:
    """Every setting, resolved; `parse_config` reads it back to an equal configuration."""
    settings = _lists(asdict(config))
    return yaml.safe_dump(settings, sort_keys=False, default_flow_style=None, width=100)


class UniqueKeyLoader(yaml.SafeLoader):
    """YAML in which a key may not appear twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in seen:
            if seen.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"setting {key!r} appears twice", node.start_mark
                )
        return super().construct_mapping(node, deep)


class _StrictLoader(UniqueKeyLoader):
    """In which `off` and `no` are words, too, as in YAML 1.2."""


_StrictLoader.yaml_implicit_resolvers = {
    first: [(tag, rule) for tag, rule in rules if not tag.endswith(":bool")]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile("true|True|TRUE|false|False|FALSE"), list("tTfF")
)


def _refuse_unknown(settings: Any, record: type, source: str, path: str) -> None:
    if not isinstance(settings, dict):
        what = path or "the file"
        raise ConfigError(f"{source}: {what} is {settings!r}; must be a mapping of settings")
    types = get_type_hints(record)
    allowed = list(types)
    for key, value in settings.items():
        name = f"{path}.{key}" if path else str(key)
        if key not in allowed:
            near = nearest(str(key), allowed)
            raise ConfigError(
                f"{source}: {name} is unknown; must be one of {', '.join(allowed)}{near}"
            )
        if isinstance(value, bool) != (types[key] is bool):  # pydantic takes true for 1
            wanted = "true or false" if types[key] is bool else "a number or a text"
            raise ConfigError(f"{source}: {name} is {value!r}; must be {wanted}")
        for inner, of, where in _inside(types[key], value, source, name):
            _refuse_unknown(inner, of, source, where)


def _inside(kind: Any, value: Any, source: str, name: str) -> list[tuple[Any, type, str]]:
    """The settings within a setting of some type: themselves, their record and their path."""
    found = get_args(kind) or (kind,)
    records = [each for each in found if isinstance(each, type) and is_dataclass(each)]
    if get_origin(kind) is tuple:
        parts = value if records and isinstance(value, list | tuple) else ()
        return [(part, records[0], f"{name}.{i}") for i, part in enumerate(parts)]
    if len(records) > 1:
        return [(value, _scenario_class(value, source), name)]
    return [(value, record, name) for record in records]


def _scenario_class(settings: Any, source: str) -> type:
    kind = settings.get("kind", "paper") if isinstance(settings, dict) else "paper"
    if not isinstance(kind, str) or kind not in SCENARIOS:
        raise ConfigError(
            f"{source}: scenario.kind is {kind!r}; must be one of {', '.join(SCENARIOS)}"
            + nearest(str(kind), list(SCENARIOS))
        )
    return SCENARIOS[kind]


def nearest(name: str, allowed: list[str]) -> str:
    close = difflib.get_close_matches(name, allowed, n=1, cutoff=0.5)
    return f" (did you mean {close[0]}?)" if close else ""


def _describe(source: str, error: Any) -> str:
    place = [str(part) for part in error["loc"]]
    if place[0] == "scenario":  # then comes its kind, which is no part of the path in the file
        del place[1]
    path = ".".join(place)
    return f"{source}: {path} is {error['input']!r}; {error['msg'][0].lower()}{error['msg'][1:]}"


def _lists(value: Any) -> Any:
    """Tuples as lists: YAML knows no tuples."""
    if isinstance(value, dict):
        return {key: _lists(item) for key, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, list | tuple) else value
