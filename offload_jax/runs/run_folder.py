"""Run directories: what is in one, whose it is, and what may change within a run.

A run directory holds `config.yaml` (every setting), `run.json` (id, versions, commit, device),
`metrics.jsonl`, `checkpoints/`, `wandb/` and `learning_curve.png`; and `quarantine/`, checkpoints
found damaged, where there were any.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import re
import resource
import subprocess
import sys
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from offload_jax.files.checks import ConfigError
from offload_jax.files.disk import PACKAGE, replace_file
from offload_jax.files.plugins import Plugins
from offload_jax.runs import run_files
from offload_jax.runs.config import TrainConfig, plugins_of, to_settings
from offload_jax.runs.config_file import from_settings, load_config, read_settings, to_yaml
from offload_jax.runs.tracking.metrics import TrackingConfig

# What a start that was killed at once may leave (of files, by `disk.replace_file`).
_LEFT = re.compile(r"\.lock|run\.json|(config\.yaml|run\.json|population\.json)\.[0-9a-f]{32}\.tmp")


def is_run(folder: Path) -> bool:
    """Whether a folder is a run directory."""
    return (folder / run_files.CONFIG).is_file()


def check_folder(folder: Path, members: Collection[str] = ()) -> None:
    """Raises ConfigError where a folder is neither a run nor free to become one.

    It may hold folders of the `members` that are asked for: those of a start that was killed.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"run directory {folder} is a file; must be a run, empty or new")
    if folder.is_dir() and not is_run(folder):
        names = {path.name for path in folder.iterdir()} - {*members}
        strange = sorted(name for name in names if not _LEFT.fullmatch(name))
        if strange:
            raise ConfigError(
                f"run directory {folder} holds other files ({strange[0]}) and is no run; must be a "
                "run (with a config.yaml), empty or new"
            )


def new_folder(config: TrainConfig, parent: Path = Path("runs")) -> Path:
    """A fresh run directory's path, by scenario and time."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    return parent / f"{config.scenario.kind}-{stamp}-{uuid.uuid4().hex[:4]}"


def newest_run(parent: Path = Path("runs")) -> Path:
    """The run under `parent` that was started last. Raises ConfigError where there is none."""
    found = sorted(parent.glob("*/config.yaml"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise ConfigError(f"no run under {parent}/; train one first, or name one with --run DIR")
    return found[-1].parent


@contextmanager
def claimed(folder: Path, config: TrainConfig) -> Iterator[dict[str, Any]]:
    """A run directory for this process alone: its config.yaml and run.json, the latter returned.

    Raises ConfigError where it is in use, or the settings cannot change within its run.
    """
    with _claimed(folder):
        if is_run(folder):
            config = resumed(read_config(folder, plugins_of(config)), config)
        yield _write_about(folder, config)


@contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """One process per run directory; the claim ends with the process, however it ends."""
    check_folder(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise ConfigError(f"run directory {folder} cannot be written: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(
                f"run directory {folder} is in use by another process; wait for it or name another"
            ) from None
        for path in folder.glob("*.tmp"):
            if _LEFT.fullmatch(path.name):
                path.unlink(missing_ok=True)
        yield


def _write_about(folder: Path, config: TrainConfig) -> dict[str, Any]:
    """Writes config.yaml and run.json; a run that goes on keeps its id and notes the restart."""
    replace_file(folder / run_files.CONFIG, to_yaml(config))
    path = folder / run_files.ABOUT
    # W&B's agent says in the environment which of its runs this is.
    run_id = os.environ.get("WANDB_RUN_ID") or uuid.uuid4().hex[:8]
    about: dict[str, Any] = {"id": run_id, "starts": []}
    if path.exists():
        try:
            about = json.loads(path.read_bytes())
        except ValueError as error:
            raise ConfigError(f"{path} is not JSON ({error}); remove it to go on") from None
    about["starts"].append({"time": datetime.now().astimezone().isoformat(), **provenance()})
    replace_file(path, json.dumps(about, indent=1))
    return about


def write_end(folder: Path, about: dict[str, Any], step: int, seconds: float) -> None:
    """Adds to run.json how far this start came, and what it took, compiling included."""
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes there, KiB elsewhere
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
    about["starts"][-1] |= {"step": step, "seconds": seconds, "peak_memory_mb": peak}
    save_about(folder, about)


def save_about(folder: Path, about: dict[str, Any]) -> None:
    """Writes run.json."""
    replace_file(folder / run_files.ABOUT, json.dumps(about, indent=1))


def read_config(folder: str | Path, plugins: Plugins = ()) -> TrainConfig:
    """The settings of a run directory.

    Raises ConfigError where it is none, and for code of the user's own that `plugins` do not name.
    """
    return load_config(_config_file(folder), plugins)


def read_plain(folder: str | Path) -> tuple[dict[str, Any], TrackingConfig]:
    """The same as they stand in the file, whatever code they name, and where metrics go.

    Raises ConfigError where it is no run directory.
    """
    path = _config_file(folder)
    settings = read_settings(path.read_text(encoding="utf-8"), str(path))
    tracking = settings.get("tracking", {}) if isinstance(settings, dict) else settings
    if not isinstance(tracking, dict):
        raise ConfigError(f"{path}: tracking is {tracking!r}; must be a mapping of settings")
    told = {k: v for k, v in tracking.items() if k != "also"}
    return settings, from_settings({"tracking": told}, str(path)).tracking


def _config_file(folder: str | Path) -> Path:
    if not is_run(Path(folder)):
        inner = next(Path(folder).glob("*/config.yaml"), None)
        hint = f", such as {inner.parent}" if inner else ""
        raise ConfigError(
            f"run is {str(folder)!r}; must be a run directory (with a config.yaml){hint}"
        )
    return Path(folder) / run_files.CONFIG


def resumed(saved: TrainConfig, wanted: TrainConfig) -> TrainConfig:
    """The settings to go on with: `wanted`, which may differ from `saved` only in harmless ways.

    Raises ConfigError naming the setting that cannot change within a run.
    """
    same = replace(
        saved,
        run=replace(wanted.run, eval_instances=saved.run.eval_instances),
        tracking=wanted.tracking,
        learner=replace(saved.learner, updates=wanted.learner.updates),
    )
    before, after = flat(to_settings(same)), flat(to_settings(wanted))
    for name in before | after:
        if before.get(name) != after.get(name):
            raise ConfigError(
                f"{name} is {after.get(name)!r}; must stay {before.get(name)!r}, as in the run's "
                "config.yaml. A run that goes on may change only tracking.*, learner.updates and "
                "run.* but for run.eval_instances; start a new run for anything else."
            )
    return wanted


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by their dotted names."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        inner = isinstance(value, dict)
        found |= flat(value, f"{prefix}{key}.") if inner else {prefix + key: value}
    return found


def provenance() -> dict[str, Any]:
    """Versions, commit and device: what a number in a file must be read with."""
    packages = ("offload-jax", "jax", "jaxlib", "flax", "optax", "numpy")
    found = {}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    device = jax.devices()[0]
    return {
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted": bool(_git("status", "--porcelain")),
        "python": platform.python_version(),
        "versions": found,
        "device": f"{jax.device_count()} x {device.device_kind} ({device.platform})",
        "machine": platform.machine(),
    }


def _git(*words: str) -> str | None:
    root = PACKAGE.parent
    if not (root / ".git").exists():  # installed, perhaps inside somebody else's repository
        return None
    try:
        done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
