"""`sync`: uploads a run to Weights & Biases, or what is missing there of it."""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from offload_jax.files.checks import ConfigError, SyncError
from offload_jax.runs import run_folder
from offload_jax.runs.config import TrainConfig, to_settings
from offload_jax.runs.restore import aliases_of, best, examine
from offload_jax.runs.tracking import mirror
from offload_jax.runs.tracking.courier import Courier
from offload_jax.runs.tracking.metrics import read_rows

CURES = {
    "key": "there is no W&B account to upload to; set WANDB_API_KEY, or call: wandb login",
    "server": "the W&B server cannot be reached; try again later (WANDB_BASE_URL names another)",
    "other": "W&B failed; nothing is lost, try again later",
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
    config, run_id = run_folder.read_config(parsed.run), _run_id(parsed.run)
    if not 0 < parsed.timeout_s < math.inf:
        raise ConfigError(f"timeout-s is {parsed.timeout_s}; must be above 0 and finite (s)")
    rows = read_rows(parsed.run / "metrics.jsonl")
    if not rows:
        raise ConfigError(f"run {parsed.run} has no rows yet; train it first")
    # Where that is interrupted, W&B may still write for a moment.
    with tempfile.TemporaryDirectory("-offload-jax", ignore_cleanup_errors=True) as scratch:
        return _upload(parsed, config, run_id, rows, Path(scratch))


def _upload(
    parsed: Arguments,
    config: TrainConfig,
    run_id: str,
    rows: list[dict[str, Any]],
    scratch: Path,
) -> int:
    tracking = replace(
        config.tracking,
        project=parsed.project or config.tracking.project,
        entity=parsed.entity or config.tracking.entity,
    )
    messages = list(_messages(parsed, rows, scratch))
    job = mirror.job_for(
        tracking, parsed.run, scratch, run_id, to_settings(config), only_online=True
    )
    job = replace(job, finish_seconds=parsed.timeout_s)
    end = time.monotonic() + parsed.timeout_s
    print(f"uploading {parsed.run} to W&B, project {tracking.project}, run {run_id}", flush=True)
    said: dict[str, Any] = {}
    with Courier(job, scratch / "log") as courier:
        for message in messages:
            courier.send_by(end, message)
        for reply in courier.replies(until=end):
            said = reply | said  # the first trouble counts
        late = not courier.gone
    _check(said, late, parsed, scratch / "log")
    print(f"{said['finished']} of {len(rows)} rows are new there, all are there now")
    print(f"see {said['opened']}")
    return 0


def _messages(
    parsed: Arguments, rows: list[dict[str, Any]], scratch: Path
) -> Iterator[dict[str, Any]]:
    """What the other process is told, in order."""
    yield {"rows": rows[-1]["step"]}
    if not parsed.no_checkpoints:
        yield from _checkpoints(parsed.run / "checkpoints", scratch / "checkpoints")
    curve = parsed.run / "learning_curve.png"
    if curve.is_file():
        yield {"picture": str(curve.resolve()), "name": "learning_curve"}
    yield {"finish": 0}


def _checkpoints(folder: Path, staged: Path) -> Iterator[dict[str, Any]]:
    """Copies of the best and the latest one: a run that is going on may remove its own."""
    good, bad = examine(folder)
    for path, reason in bad.items():
        print(f"checkpoint {path.name} is left out: it is damaged ({reason})")
    chosen = {saved.step: saved for saved in (best(good), *good[-1:]) if saved is not None}
    for step, saved in sorted(chosen.items()):
        try:
            mirror.link_tree(saved.path, staged / str(step), math.inf)
        except OSError as error:
            print(f"checkpoint {step} is left out: {error}")
            continue
        yield {
            "checkpoint": str(staged / str(step)),
            "step": step,
            "aliases": aliases_of(saved, good),
        }


def _check(said: dict[str, Any], late: bool, parsed: Arguments, log: Path) -> None:
    """Raises SyncError where something is missing."""
    if "trouble" in said:
        raise SyncError(f"{CURES[said['cause']]} [{said['trouble']}]")
    if late:
        raise SyncError(
            f"not everything was uploaded in {parsed.timeout_s:g} s; the same command goes on"
        )
    if "finished" not in said:
        lines = log.read_text(errors="replace").splitlines() or ["it said nothing"]
        raise SyncError(f"{CURES['other']} [its process ended: {lines[-1]}]")


def _run_id(folder: Path) -> str:
    """By which W&B knows the run. Raises ConfigError where run.json does not tell it."""
    path = folder / "run.json"
    try:
        return str(json.loads(path.read_bytes())["id"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} does not tell the run's id ({error}); must have an id") from None
