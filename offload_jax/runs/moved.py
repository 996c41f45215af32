"""Settings that an earlier version had elsewhere: read for one more release."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from offload_jax.files.checks import ConfigError
from offload_jax.learning.algorithms import ALGORITHMS

# What `learner` had of its algorithm, and what that is called now.
MOVED = {
    "objective": "kind",
    "baseline": "kind",
    "layer": "weight",
    "labels": "labels",
    "paths": "paths",
    "clip": "clip",
    "value": "value",
    "gae_decay": "gae_decay",
    "temperature": "temperature",
    "sharpness": "sharpness",
}
_KINDS = {
    "surrogate": "ppo",
    "imitation": "self-labelling",
    "preference": "preference",
    "layer": "layer",
}


def moved(settings: Any) -> Any:
    """Settings, nested as in a file, with those of an earlier version where they are now.

    Raises ConfigError for what this version cannot do.
    """
    if not isinstance(settings, dict):
        return settings
    settings = dict(settings)
    if isinstance(settings.get("env"), dict) and "one_shot" in settings["env"]:
        settings["env"] = dict(settings["env"])
        if settings["env"].pop("one_shot") is not False:
            raise ConfigError("env.one_shot is true; must be left out: it is no more")
    learner = settings.get("learner")
    earlier = {key for key in MOVED if isinstance(learner, dict) and key in learner}
    if isinstance(learner, dict) and earlier:
        settings["learner"] = {k: v for k, v in learner.items() if k not in earlier}
        now = settings.get("algorithm", {})
        settings["algorithm"] = _algorithm({key: learner[key] for key in earlier}, now)
    return settings


def moved_name(name: str) -> str:
    """What a single setting is called now. Raises ConfigError for one that is no longer alone."""
    section, _, key = str(name).partition(".")
    if section != "learner" or key not in MOVED:
        return name
    if key in ("objective", "baseline", "layer"):
        raise ConfigError(
            f"{name} is no longer a setting of its own; must be algorithm.kind, one of "
            f"{', '.join(ALGORITHMS)}"
        )
    return f"algorithm.{MOVED[key]}"


def _algorithm(earlier: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """The algorithm's section: `now` with what `learner` said of it."""
    kind = _kind(earlier) if {"objective", "baseline", "layer"} & earlier.keys() else None
    kind = kind or now.get("kind", "ppo")
    if kind not in ALGORITHMS:
        return now
    known = {field.name for field in fields(ALGORITHMS[kind])}
    kept = now if now.get("kind", "ppo") == kind else {}
    said = {MOVED[key]: value for key, value in earlier.items() if MOVED[key] in known}
    if earlier.get("objective") == "layer":
        said["surrogate"] = 0.0
    return {**kept, **said, "kind": kind}


def _kind(earlier: dict[str, Any]) -> str:
    """The algorithm that an objective, a baseline and the layer's weight stood for."""
    objective, critic = earlier.get("objective", "surrogate"), earlier.get("baseline") == "critic"
    if objective not in _KINDS:
        names = ", ".join(ALGORITHMS)
        raise ConfigError(f"algorithm.kind is {objective!r}; must be one of {names}")
    if earlier.get("layer") and (critic or objective not in ("surrogate", "layer")):
        raise ConfigError(
            f"learner.layer is {earlier['layer']}; must be 0 beside another algorithm than PPO "
            "with a shared baseline: see algorithm.kind layer"
        )
    return "layer" if earlier.get("layer") else "ppo-critic" if critic else _KINDS[objective]
