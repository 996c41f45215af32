"""Policies as files of their own, independent of checkpoints: what is shipped and handed on.

A policy folder holds `policy.json` (settings, and where the weights come from), `weights.npz`
(arrays by their path in the parameters), `README.md` (the model card) and `MANIFEST.json` (size and
SHA-256 of every file). It needs neither orbax nor the run that it comes from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from offload_jax.files import disk
from offload_jax.files.checks import ConfigError, PolicyError
from offload_jax.files.plugins import Plugins, nearest
from offload_jax.learning import updates
from offload_jax.policy.policy import Policy
from offload_jax.runs.config import TrainConfig, to_settings
from offload_jax.runs.config_file import from_settings

FORMAT, VERSION = "offload-jax/policy", 1
FOLDER = disk.PACKAGE / "assets" / "policies"  # looked up at every call
SETTINGS = ("scenario", "env", "splits", "network")  # of a TrainConfig: what decides a plan


def names() -> list[str]:
    """The shipped policies."""
    return sorted(path.parent.name for path in FOLDER.glob("*/policy.json"))


def is_policy(source: str | Path) -> bool:
    """Whether this is the name of a shipped policy, or a folder that holds one.

    A name is a string: Path("edge") and "./edge" are folders.
    """
    return source in names() or (Path(source) / "policy.json").is_file()


def find(source: str | Path) -> Path:
    """The folder of a shipped policy by name, or of any by path. Raises ConfigError for others."""
    if not is_policy(source):
        raise ConfigError(
            f"policy is {str(source)!r}; must be a policy folder or one of {', '.join(names())}"
            + nearest(str(source), names())
        )
    return FOLDER / source if source in names() else Path(source)


def save(
    folder: Path, policy: Policy, config: TrainConfig, about: Mapping[str, Any], card: str
) -> None:
    """Writes a policy folder, which must be new or empty; all of it or nothing.

    `about` is what policy.json says of the weights' origin; `card` is the text for people.
    """
    disk.check_free(folder)
    settings = to_settings(config)
    document = {
        "format": FORMAT,
        "version": VERSION,
        "settings": {name: settings[name] for name in SETTINGS},
        "temperature": float(policy.temperature),
        "about": dict(about),
    }
    with disk.staged(folder) as new:
        (new / "policy.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        (new / "README.md").write_text(card, encoding="utf-8")
        np.savez(new / "weights.npz", **_flat(policy.params))
        disk.seal(new)


def load(source: str | Path, plugins: Plugins = ()) -> tuple[Policy, TrainConfig]:
    """A shipped policy by name, or any policy folder, and the configuration it was trained for.

    Raises ConfigError where there is none, and for code of the user's own that `plugins` does not
    name; PolicyError where it is not as it was written.
    """
    folder = find(source)
    try:
        disk.check(folder)
        document = json.loads((folder / "policy.json").read_bytes())
    except (disk.Damaged, OSError) as error:
        raise PolicyError(
            f"policy {folder} is not as it was written: {error}; bring it back from a copy"
        ) from None
    found = document.get("format"), document.get("version")
    if found != (FORMAT, VERSION):
        raise PolicyError(
            f"{folder}/policy.json is of format {found}; this version of offload-jax reads "
            f"{(FORMAT, VERSION)}"
        )
    config = from_settings(document["settings"], f"{folder}/policy.json", plugins)
    with np.load(folder / "weights.npz", allow_pickle=False) as arrays:
        params = _nested(dict(arrays), config, folder)
    name = folder.name if source in names() else str(folder)
    return Policy(params, config.network, config.to_env(), name, document["temperature"]), config


def _flat(params: Any) -> dict[str, Any]:
    flat: dict[str, Any] = traverse_util.flatten_dict(params, sep="/")
    return {name: np.asarray(x) for name, x in flat.items()}


def _nested(arrays: Mapping[str, np.ndarray], config: TrainConfig, folder: Path) -> Any:
    """The parameters; refuses arrays that this version's network does not have."""
    like = jax.eval_shape(lambda key: updates.init(config.to_learner(), key), jax.random.key(0))
    wanted: dict[str, Any] = traverse_util.flatten_dict(like.params, sep="/")
    for name in sorted(wanted.keys() | arrays.keys()):
        mine = wanted[name].shape if name in wanted else "no such array"
        theirs = arrays[name].shape if name in arrays else "missing"
        if mine != theirs:
            raise PolicyError(
                f"{folder}/weights.npz: {name} is {theirs}; must be {mine}, as this version of "
                "offload-jax has it"
            )
    flat = {name: jnp.asarray(x) for name, x in arrays.items()}
    return traverse_util.unflatten_dict(flat, sep="/")
