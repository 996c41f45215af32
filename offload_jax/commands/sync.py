"""`sync`: uploads a run to Weights & Biases, or what is missing there of it."""

from __future__ import annotations

import json
import math
import re
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from offload_jax.files.checks import ConfigError, SyncError
from offload_jax.runs import run_files, run_folder
from offload_jax.runs.restore import Checkpoint, aliases_of, best, examine
from offload_jax.runs.tracking.metrics import read_rows
from offload_jax.runs.tracking.tracker import RunStart
from offload_jax.runs.tracking.wandb_tracker import WandbTracker

CURES = {  # by what W&B says; 401 alone, since ports have such digits, too
    r"AuthenticationError|api key|\b401\b": "there is no W&B account to upload to; set "
    "WANDB_API_KEY, or call: wandb login",
    r"CommError|TimeoutError": "the W&B server cannot be reached; try again later (WANDB_BASE_URL "
    "names another)",
    "": "W&B failed; nothing is lost, try again later",
}


@dataclass(frozen=True)
class Arguments:
    """Upload a run to Weights & Biases: the rows of its metrics.jsonl that are not there yet, its
    checkpoints (latest and best), its learning curve and a table of its evaluations."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """Run directory; also of a run that was never online."""
    project: str | None = None
    """Project at W&B. Default: the run's tracking.project."""
    entity: str | None = None
    """User or team at W&B. Default: the run's tracking.entity, or the account's own."""
    no_checkpoints: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Leave out the checkpoints."""
    timeout_s: float = 600.0
    """Give up after that many seconds; a later call goes on."""


def run(words: list[str], prog: str) -> int:
    """Uploads as the words say. Raises ConfigError for no run, SyncError where W&B fails."""
    parsed = tyro.cli(Arguments, args=words, prog=prog)
    (settings, known), run_id = run_folder.read_plain(parsed.run), _run_id(parsed.run)
    if not 0 < parsed.timeout_s < math.inf:
        raise ConfigError(f"timeout-s is {parsed.timeout_s}; must be above 0 and finite (s)")
    rows = read_rows(parsed.run / run_files.ROWS)
    if not rows:
        raise ConfigError(f"run {parsed.run} has no rows yet; train it first")
    tracking = replace(
        known,
        wandb="online",
        project=parsed.project or known.project,
        entity=parsed.entity or known.entity,
    )
    checkpoints = (
        [] if parsed.no_checkpoints else _best_and_latest(parsed.run / run_files.CHECKPOINTS)
    )
    print(f"uploading {parsed.run} to W&B, project {tracking.project}, run {run_id}", flush=True)
    start = RunStart(parsed.run, run_id, settings, warn=lambda _: None)
    # Where that is interrupted, W&B may still write for a moment.
    with tempfile.TemporaryDirectory("-offload-jax", ignore_cleanup_errors=True) as scratch:
        # It is told what a run tells while it goes on.
        mirror = WandbTracker(tracking, start, later=(Path(scratch), parsed.timeout_s))
        mirror.row(rows[-1])
        for saved, aliases in checkpoints:
            mirror.artifact(saved.path, saved.step, aliases)
        if (curve := parsed.run / run_files.CURVE).is_file():
            mirror.figure("learning_curve", curve)
        mirror.finish()
        _check(mirror.heard, parsed, Path(scratch) / "wandb" / "mirror.log")
    if "failed" in mirror.heard:
        print(mirror.heard["failed"])  # a checkpoint that is gone by now
    print(f"{mirror.heard['finished']} of {len(rows)} rows are new there, all are there now")
    print(f"see {mirror.heard['opened']}")
    return 0


def _best_and_latest(folder: Path) -> list[tuple[Checkpoint, list[str]]]:
    """Checkpoints to upload, by step, with their aliases."""
    good, bad = examine(folder)
    for path, reason in bad.items():
        print(f"checkpoint {path.name} is left out: it is damaged ({reason})")
    chosen = {saved.step: saved for saved in (best(good), *good[-1:]) if saved is not None}
    return [(saved, aliases_of(saved, good)) for _, saved in sorted(chosen.items())]


def cure(trouble: str) -> str:
    """What to do about it."""
    return next(text for what, text in CURES.items() if re.search(what, trouble, re.IGNORECASE))


def _check(heard: dict[str, Any], parsed: Arguments, log: Path) -> None:
    """Raises SyncError where something is missing."""
    if "trouble" in heard:
        raise SyncError(f"{cure(heard['trouble'])} [{heard['trouble']}]")
    if "finished" not in heard:
        if "late" in heard:
            raise SyncError(
                f"not everything was uploaded in {parsed.timeout_s:g} s; the same command goes on"
            )
        lines = log.read_text(errors="replace").splitlines() if log.exists() else []
        raise SyncError(f"{CURES['']} [{heard['failed']}: {['it said nothing', *lines][-1]}]")


def _run_id(folder: Path) -> str:
    """By which W&B knows the run. Raises ConfigError where run.json does not tell it."""
    path = folder / run_files.ABOUT
    try:
        return str(json.loads(path.read_bytes())["id"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} does not tell the run's id ({error}); must have an id") from None
