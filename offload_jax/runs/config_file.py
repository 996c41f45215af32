"""Configurations as YAML: read, refused with the place of what is wrong, and written."""

from __future__ import annotations

import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from offload_jax.files.checks import ConfigError
from offload_jax.files.plugins import Plugins, check_allowed, is_own, name_of, nearest
from offload_jax.runs.config import (
    KINDS,
    TrainConfig,
    own_code,
    preset_folder,
    presets,
    to_settings,
)
from offload_jax.runs.moved import moved
from offload_jax.runs.tracking.registry import find_maker
from offload_jax.splits import find_solver


def load_config(source: str | Path, plugins: Plugins = None) -> TrainConfig:
    """A shipped configuration by name, or any YAML file by path.

    Settings left out keep their defaults. Code of the user's own that it names (`file.py:Name`) is
    loaded; for a file that may come from somebody else, say which `plugins` may be. Raises
    ConfigError for an unknown name, an unreadable file, an unknown setting (naming the nearest), a
    wrong type or an impossible value.
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
    return parse_config(text, str(path), plugins, path.parent)


def parse_config(
    text: str, source: str = "<text>", plugins: Plugins = None, folder: Path | None = None
) -> TrainConfig:
    """The configuration in a YAML text; `source` names it in errors."""
    return from_settings(read_settings(text, source), source, plugins, folder)


def read_settings(text: str, source: str) -> Any:
    """The settings in a YAML text as they stand there: nothing is checked, and no code loaded."""
    try:
        settings = yaml.load(text, _StrictLoader)  # a SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from None
    return {} if settings is None else settings


def from_settings(
    settings: Any, source: str, plugins: Plugins = (), folder: Path | None = None
) -> TrainConfig:
    """The configuration with these settings, nested as in a file; `source` names them in errors.

    Raises ConfigError as `load_config`.
    """
    try:
        settings = moved(settings)
        if not isinstance(settings, dict):
            raise ConfigError(f"the file is {settings!r}; must be a mapping of settings")
        check_allowed(own_code(settings), plugins)  # all at once
        records = _records(settings, plugins, folder)
        settings = _loaded(settings, plugins, folder)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
    _refuse_unknown(settings, TrainConfig, source, "")
    for name, record in records.items():
        _refuse_unknown(_plain(settings, name), record, source, name)
    found, wrong = {}, []
    hints = get_type_hints(TrainConfig)
    for name in settings:
        record = records.get(name, hints[name])
        try:
            found[name] = TypeAdapter(record).validate_python(_plain(settings, name))
        except ValidationError as error:
            wrong += [_describe(source, name, one) for one in error.errors()]
    if wrong:
        raise ConfigError("\n".join(dict.fromkeys(wrong)))
    config = TrainConfig(**found)
    try:
        # Again, as the records have it: what YAML calls binary or a set has become words by now.
        check_allowed(own_code({k: vars(x) for k, x in found.items() if is_dataclass(x)}), plugins)
        config.validate()
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
    return config


def to_yaml(config: TrainConfig) -> str:
    """Every setting, resolved; `parse_config` reads it back to an equal configuration."""
    settings = _lists(to_settings(config))
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


def _loaded(settings: dict[str, Any], plugins: Plugins, folder: Path | None) -> dict[str, Any]:
    """With solver and trackers of the user's own loaded, and under their full names."""
    splits, tracking = (dict(settings.get(name) or {}) for name in ("splits", "tracking"))
    named = own_code(settings)
    if "splits.solver" in named:
        solver = find_solver(named["splits.solver"], "splits.solver", plugins, folder)
        splits["solver"] = name_of(solver, "splits.solver")
        settings = {**settings, "splits": splits}
    if any(where.startswith("tracking.") for where in named):
        also = [find_maker(name, plugins, folder) for name in tracking["also"]]
        pairs = zip(tracking["also"], also, strict=True)
        tracking["also"] = [name_of(one, name) if is_own(name) else name for name, one in pairs]
        settings = {**settings, "tracking": tracking}
    return settings


def _records(settings: dict[str, Any], plugins: Plugins, folder: Path | None) -> dict[str, type]:
    """The record of every section that is a mapping."""
    found = {name: kind for name, kind in get_type_hints(TrainConfig).items() if name in settings}
    for section in KINDS.keys() & settings.keys():
        inner, kinds = settings[section], KINDS[section]
        kind = inner.get("kind", kinds.default) if isinstance(inner, dict) else kinds.default
        found[section] = kinds.record(section, kind, plugins, folder)
    return {
        name: record
        for name, record in found.items()
        if isinstance(record, type) and is_dataclass(record)
    }


def _plain(settings: dict[str, Any], name: str) -> Any:
    """A section without its kind, which its record is chosen by."""
    inner = settings[name]
    if name not in KINDS or not isinstance(inner, dict):
        return inner
    return {key: value for key, value in inner.items() if key != "kind"}


def _refuse_unknown(settings: Any, record: type, source: str, path: str) -> None:
    if not isinstance(settings, dict):
        raise ConfigError(f"{source}: {path} is {settings!r}; must be a mapping of settings")
    types = get_type_hints(record)
    allowed = [field.name for field in fields(record)]
    for key, value in settings.items():
        name = f"{path}.{key}" if path else str(key)
        if key not in allowed:
            near = nearest(str(key), allowed)
            raise ConfigError(
                f"{source}: {name} is unknown; must be one of {', '.join(allowed)}{near}"
            )
        if (not path and is_dataclass(types[key])) or key in KINDS:
            continue  # a section
        if isinstance(value, bool) != (types[key] is bool):  # pydantic takes true for 1
            wanted = "true or false" if types[key] is bool else "a number or a text"
            raise ConfigError(f"{source}: {name} is {value!r}; must be {wanted}")
        for inner, of, where in _inside(types[key], value, name):
            _refuse_unknown(inner, of, source, where)


def _inside(kind: Any, value: Any, name: str) -> list[tuple[Any, type, str]]:
    """Settings within a setting that is a tuple of records: with their record and their path."""
    records = [one for one in get_args(kind) if isinstance(one, type) and is_dataclass(one)]
    if get_origin(kind) is not tuple or not records or not isinstance(value, list | tuple):
        return []
    return [(part, records[0], f"{name}.{i}") for i, part in enumerate(value)]


def _describe(source: str, section: str, error: Any) -> str:
    path = ".".join([section, *map(str, error["loc"])])
    return f"{source}: {path} is {error['input']!r}; {error['msg'][0].lower()}{error['msg'][1:]}"


def _lists(value: Any) -> Any:
    """Tuples as lists: YAML knows no tuples."""
    if isinstance(value, dict):
        return {key: _lists(item) for key, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, list | tuple) else value
