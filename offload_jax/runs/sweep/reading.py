"""Sweep files, read and checked before anything starts.

Every refusal names the key; what has no meaning here is refused rather than ignored.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml

from offload_jax.files.checks import ConfigError
from offload_jax.files.plugins import nearest
from offload_jax.learning.updates import METRICS as METRICS_OF_UPDATE
from offload_jax.runs.config import preset_folder
from offload_jax.runs.config_file import UniqueKeyLoader
from offload_jax.runs.moved import moved_name
from offload_jax.runs.run_folder import flat
from offload_jax.runs.sweep.space import Space, combinations, read_space
from offload_jax.runs.sweep.spec import CONFIG, Goal, Hyperband, SweepConfig

METHODS = ("grid", "random", "bayes")
GOALS: tuple[Goal, ...] = get_args(Goal)
METRICS = (  # of a row
    "gap",
    *METRICS_OF_UPDATE,
    "value_error",  # of algorithms that have them
    "layer",
    "seconds",
    "decisions_per_s",
)
_Name = TypeVar("_Name", bound=str)
_KEYS = ("program", "method", "metric", "parameters", "early_terminate", "command", "run_cap")
_WORDS = ("name", "description", "project", "entity")  # of W&B; the name is used here, too
_MACROS = ("${env}", "${interpreter}", "${program}", "${args}")


def check_own(path: Path, sweep: SweepConfig) -> None:
    """Raises ConfigError where a directory keeps the file of another sweep, or no sweep file."""
    if not path.is_file():
        return
    kept = _as_it_stands(path)  # nothing that it names is loaded: the directory may be a stranger's
    if (kept.document.get("name"), kept.key) != (sweep.document.get("name"), sweep.key):
        raise ConfigError(
            f"out is {str(path.parent)!r}, which holds another sweep ({path.name}: another name, "
            "method, metric, early_terminate or parameters); must be a directory of its own"
        )


def sweeps() -> list[str]:
    """Names of the shipped sweep files."""
    return sorted(path.stem for path in (preset_folder() / "sweeps").glob("*.yaml"))


def load_sweep(source: str) -> SweepConfig:
    """A shipped sweep by name, or any sweep file by path.

    Raises ConfigError for a file that cannot be read, an unknown key, method, parameter or
    distribution (naming the nearest), a value that no training would accept, a missing program.
    """
    path = Path(source)
    if source in sweeps():
        path = preset_folder() / "sweeps" / f"{source}.yaml"
    elif not path.is_file():
        near = nearest(source, sweeps())
        raise ConfigError(
            f"file is {source!r}; must be a sweep file or one of {', '.join(sweeps())}{near}"
        )
    sweep = _as_it_stands(path)
    _check_settings(sweep)
    return sweep


def _as_it_stands(path: Path) -> SweepConfig:
    """A sweep file whose settings have not been looked at."""
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), UniqueKeyLoader)  # a SafeLoader
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"file is {str(path)!r}, which cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    try:
        return _read(document, path)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _read(document: Any, path: Path) -> SweepConfig:
    _known_keys(document, (*_KEYS, *_WORDS), "the file")
    for word in _WORDS:
        if not isinstance(document.get(word, ""), str):
            raise ConfigError(f"{word} is {document[word]!r}; must be a text")
    metric, goal = _metric(document.get("metric", {}))
    parameters = document.get("parameters")
    if not isinstance(parameters, dict) or not parameters:
        raise ConfigError(f"parameters is {parameters!r}; must be a mapping of one or more")
    method = _one_of(document.get("method"), METHODS, "method")
    spaces = {
        moved_name(name): read_space(e, f"parameters.{name}") for name, e in parameters.items()
    }
    for name, space in spaces.items():
        if method == "grid" and space.grid() is None:
            raise ConfigError(
                f"parameters.{name} is a range of numbers; must be values, whole numbers or "
                "q_uniform where method is grid"
            )
    return SweepConfig(
        source=str(path),
        name=document.get("name", path.stem),
        program=_program(document.get("program")),
        method=method,
        metric=metric,
        goal=goal,
        parameters=spaces,
        early=_early(document.get("early_terminate")),
        command=_command(document.get("command", list(_MACROS))),
        run_cap=_count(document["run_cap"], "run_cap") if "run_cap" in document else None,
        document=document,
    )


def _known_keys(record: Any, allowed: tuple[str, ...], path: str) -> None:
    if not isinstance(record, dict):
        raise ConfigError(f"{path} is {record!r}; must be a mapping")
    for key in record:
        if key not in allowed:
            near = nearest(str(key), list(allowed))
            raise ConfigError(f"{path} has {key}; must have only {', '.join(allowed)}{near}")


def _one_of(value: Any, allowed: tuple[_Name, ...], path: str) -> _Name:
    if value not in allowed:
        near = nearest(str(value), list(allowed))
        raise ConfigError(f"{path} is {value!r}; must be one of {', '.join(allowed)}{near}")
    return allowed[allowed.index(value)]


def _count(value: Any, path: str, least: int = 1) -> int:
    if type(value) is not int or value < least:
        raise ConfigError(f"{path} is {value!r}; must be a whole number of at least {least}")
    return value


def _metric(record: Any) -> tuple[str, Goal]:
    _known_keys(record, ("name", "goal"), "metric")
    name = _one_of(record.get("name", "gap"), METRICS, "metric.name")
    return name, _one_of(record.get("goal", "minimize"), GOALS, "metric.goal")


def _early(record: Any) -> Hyperband | None:
    if record is None:
        return None
    _known_keys(record, ("type", "min_iter", "max_iter", "s", "eta"), "early_terminate")
    _one_of(record.get("type"), ("hyperband",), "early_terminate.type")
    eta = _count(record.get("eta", 3), "early_terminate.eta", 2)
    if ("min_iter" in record) == ("max_iter" in record) or ("max_iter" in record) != (
        "s" in record
    ):
        raise ConfigError("early_terminate must have either min_iter, or max_iter and s")
    if "min_iter" in record:
        return Hyperband(_count(record["min_iter"], "early_terminate.min_iter"), eta)
    last = _count(record["max_iter"], "early_terminate.max_iter")
    rungs = _count(record["s"], "early_terminate.s")
    return Hyperband(max(1, last // eta**rungs), eta)


def _program(program: Any) -> str:
    if not isinstance(program, str) or not Path(program).is_file():
        raise ConfigError(
            f"program is {program!r}; must be a file, seen from where the command is given "
            "(train.py in the repository's root)"
        )
    return program


def _command(command: Any) -> tuple[str, ...]:
    if not isinstance(command, list) or not all(isinstance(word, str) for word in command):
        raise ConfigError(f"command is {command!r}; must be a list of texts")
    for word in command:
        if word.startswith("$") and word not in _MACROS:
            raise ConfigError(f"command has {word}; must be one of {', '.join(_MACROS)}")
        if word.startswith("--"):
            raise ConfigError(f"command has {word}; must be in parameters, with a value")
    if command.count("${program}") != 1 or command[-1:] != ["${args}"]:
        raise ConfigError("command must have ${program} once and end with ${args}")
    return tuple(command)


def _check_settings(sweep: SweepConfig) -> None:
    """Every name is a setting, every value of its type, and their combinations make sense."""
    for config in sweep.parameters.get(CONFIG, Space("choice", ("paper",))).ends():
        settings = sweep.known(str(config))
        for name, space in sweep.parameters.items():
            if name != CONFIG:
                _check_parameter(sweep.source, name, space, settings)
    for values in combinations(sweep.parameters):
        try:
            sweep.settings(values)
        except ConfigError as error:
            together = " ".join(sweep.words(values))
            raise ConfigError(f"{error} (with {together})") from None


def _check_parameter(source: str, name: str, space: Space, settings: dict[str, Any]) -> None:
    known = flat(settings)
    known.pop("scenario.kind")  # of the configuration, whose other settings hang on it
    if name not in known:
        same_end = [one for one in known if one.endswith(f".{str(name).rpartition('.')[2]}")]
        near = f" (did you mean {same_end[0]}?)" if same_end else nearest(str(name), list(known))
        raise ConfigError(
            f"{source}: parameters.{name} is unknown; must be {CONFIG} or a setting, as in the "
            f"output of offload-jax info --config paper{near}"
        )
    if type(known[name]) is int:
        wrong = [value for value in space.ends() if type(value) is not int]
        if wrong or space.kind == "float":
            raise ConfigError(
                f"{source}: parameters.{name} takes {(wrong or ['fractions'])[0]}; must be whole "
                "numbers (int_uniform, values, or q_uniform of whole numbers)"
            )
