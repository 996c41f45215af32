"""Settings of a configuration as options: which there are depends on the kinds that are chosen."""

from __future__ import annotations

import sys
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
    found = None
    for i, word in enumerate(words):
        if word == f"--{name}" and i + 1 < len(words):
            found = words[i + 1]
        elif word.startswith(f"--{name}="):
            found = word.split("=", 1)[1]
    return found


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


def with_kinds(config: TrainConfig, words: list[str]) -> tuple[TrainConfig, list[str]]:
    """The configuration with the kinds that are asked for, and the other words.

    Options of an earlier version count, too. Raises ConfigError for an unknown kind.
    """
    rest, asked, earlier = [], {}, {}
    i = 0
    while i < len(words):
        option, joined, value = words[i].partition("=")
        section, _, key = option.removeprefix("--").partition(".")
        key = key.replace("-", "_")
        old = section == "learner" and key in MOVED
        if not option.startswith("--") or not (old or (key == "kind" and section in KINDS)):
            rest.append(words[i])
            i += 1
            continue
        if not joined:
            value = words[i + 1] if i + 1 < len(words) else ""
            i += 1
        if old:
            earlier[key] = yaml.safe_load(value)
        else:
            asked[section] = value
        i += 1
    for section, kind in asked.items():
        config = with_kind(config, section, kind, None)
    if earlier:
        names = ", ".join(f"--learner.{name}" for name in earlier)
        print(f"note: {names} belong to --algorithm now (--algorithm.kind ...)", file=sys.stderr)
        settings = to_settings(config)
        algorithm = {"algorithm": settings["algorithm"], "learner": earlier}
        chosen = from_settings({"learner": {}, **algorithm}, "options", None).algorithm
        config = replace(config, algorithm=chosen)
    return config, rest


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
