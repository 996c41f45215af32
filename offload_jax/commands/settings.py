"""Settings of a configuration as options: which there are depends on the kinds that are chosen."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import fields, make_dataclass, replace
from typing import Any

import tyro
import yaml

from offload_jax.runs.config import KINDS, TrainConfig, to_settings, with_kind
from offload_jax.runs.config_file import from_settings
from offload_jax.runs.moved import MOVED


def peek(words: list[str], name: str) -> str | None:
    """The value of one option (the last, as the parser has it) before the full parse.

    The defaults of the full parse depend on it.
    """
    return _taken(words, lambda option: option == name)[0].get(name)


def peek_all(words: list[str], name: str) -> list[str]:
    """All values of an option that takes several."""
    found: list[str] = []
    taking = False
    for word in words:
        if word.startswith("-"):
            taking = word == f"--{name}"
            if word.startswith(f"--{name}="):
                found.append(word.split("=", 1)[1])
        elif taking:
            found.append(word)
    return found


def _taken(words: list[str], wanted: Callable[[str], bool]) -> tuple[dict[str, str], list[str]]:
    """The values of wanted options, by names with underscores, and the other words."""
    found, rest, left = {}, [], iter(words)
    for word in left:
        option, joined, value = word.partition("=")
        name = option.removeprefix("--").replace("-", "_")
        if option.startswith("--") and wanted(name):
            found[name] = value if joined else next(left, "")
        else:
            rest.append(word)
    return found, rest


def with_kinds(config: TrainConfig, words: list[str]) -> tuple[TrainConfig, list[str]]:
    """The configuration with the kinds that are asked for, and the other words.

    Options of an earlier version count, too. Raises ConfigError for an unknown kind.
    """
    kinds, rest = _taken(words, {f"{section}.kind" for section in KINDS}.__contains__)
    earlier, rest = _taken(rest, {f"learner.{key}" for key in MOVED}.__contains__)
    for name, kind in kinds.items():
        config = with_kind(config, name.removesuffix(".kind"), kind, None)
    if not earlier:
        return config, rest
    names = ", ".join(f"--{name}" for name in earlier)
    print(f"note: {names} belong to --algorithm now (--algorithm.kind ...)", file=sys.stderr)
    said = {name.removeprefix("learner."): yaml.safe_load(x) for name, x in earlier.items()}
    settings = {"algorithm": to_settings(config)["algorithm"], "learner": said}
    return replace(config, algorithm=from_settings(settings, "options", None).algorithm), rest


def configured(words: list[str], base: TrainConfig) -> TrainConfig:
    """The configuration with these options, and nothing but options of it."""
    chosen, words = with_kinds(base, words)
    typed = typed_settings(chosen)
    return untyped(tyro.cli(type(typed), args=with_flags(words, chosen), default=typed))


def kinds_there_are() -> str:
    """For the help: what `--algorithm.kind` and the like may be."""
    lines = [f"--{name}.kind: {', '.join(kinds.registry)}" for name, kinds in KINDS.items()]
    own = "or your own as file.py:Name or package.module:Name; each has its own options"
    return f"What is trained is chosen by kind, {own}.\n" + "\n".join(lines)


def typed_settings(config: TrainConfig) -> Any:
    """The same settings in a record whose types are those of the kinds, for the parser."""
    values = {field.name: getattr(config, field.name) for field in fields(config)}
    types = {field.name: str(field.type) for field in fields(TrainConfig)}
    typed = [
        (name, type(value) if name in KINDS or name in _SECTIONS else _PLAIN[types[name]])
        for name, value in values.items()
    ]
    record: Any = make_dataclass("Settings", typed, frozen=True)
    return record(**values)


def untyped(settings: Any) -> TrainConfig:
    """The configuration of `typed_settings`."""
    return TrainConfig(**{one.name: getattr(settings, one.name) for one in fields(TrainConfig)})


_SECTIONS = ("splits", "learner", "run", "tracking")
_PLAIN: dict[str, Any] = {"int": int, "str | None": str | None}


def with_flags(words: list[str], config: TrainConfig) -> list[str]:
    """W&B gives flags as --network.residual=False; the parser knows --network.no-residual."""
    records = {part: r for part, r in to_settings(config).items() if isinstance(r, dict)}
    flags = [(part, k) for part, r in records.items() for k, v in r.items() if isinstance(v, bool)]
    known: dict[str, str] = {}
    for part, key in flags:
        known |= {f"--{part}.{key}={yes}": f"--{part}.{key}" for yes in ("True", "true")}
        known |= {f"--{part}.{key}={no}": f"--{part}.no-{key}" for no in ("False", "false")}
    return [known.get(word, word) for word in words]
