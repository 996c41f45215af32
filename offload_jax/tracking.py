"""Metrics of a run: a local file that is the truth, and a Weights & Biases mirror that cannot hurt.

`metrics.jsonl` has one JSON object per row, on disk before the run goes on. The mirror never raises
into the training loop and never stalls it: starting and finishing have limits, and after the first
failure it stays off and says once how to upload later.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, get_args

Mode = Literal["offline", "online", "off"]
INIT_SECONDS = 20
FINISH_SECONDS = 30


@dataclass(frozen=True)
class TrackingConfig:
    """Where metrics go beside metrics.jsonl."""

    wandb: Mode = "offline"  # offline needs no account or network
    project: str = "offload-jax"
    group: str | None = None  # of W&B
    tags: tuple[str, ...] = ()  # of W&B

    def validate(self) -> None:
        """Raises ValueError naming the field and the allowed values."""
        if self.wandb not in get_args(Mode):
            choices = ", ".join(get_args(Mode))
            raise ValueError(f"tracking.wandb is {self.wandb!r}; must be one of {choices}")


class MetricsFile:
    """Append-only rows of numbers, each on disk (fsync) when `append` returns."""

    def __init__(self, path: Path, before_step: int | None = None) -> None:
        """Opens or creates; rows from step `before_step` on and a torn last row are dropped."""
        self.path = path
        rows = [row for row in read_rows(path) if before_step is None or row["step"] <= before_step]
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        os.replace(temporary, path)
        self._file = path.open("a", encoding="utf-8")

    def append(self, row: Mapping[str, Any]) -> None:
        """Writes one row; raises OSError (a full disk, say) rather than lose it silently."""
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file; a torn last one (a crash in mid-write) is left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


class Mirror:
    """Weights & Biases, held at arm's length. Use as a context manager."""

    def __init__(self, config: TrackingConfig, folder: Path, run_id: str, settings: dict) -> None:
        self.warning: str | None = None  # set once, by the first failure
        self.folder = folder
        self._run: Any = None
        if config.wandb != "off":
            self._start(config, run_id, settings)

    def _start(self, config: TrackingConfig, run_id: str, settings: dict) -> None:
        try:
            import wandb

            # Artifacts are staged outside the run by default, where a container would lose them.
            os.environ.setdefault("WANDB_DATA_DIR", str(self.folder))
            os.environ.setdefault("WANDB_CACHE_DIR", str(self.folder / "wandb-cache"))
            common = {
                "project": config.project,
                "group": config.group,
                "tags": list(config.tags),
                "config": settings,
                "dir": str(self.folder),
                "resume": "allow",
            }
            options = {
                "init_timeout": INIT_SECONDS,
                "finish_timeout": FINISH_SECONDS,
                "console": "off",
                "silent": True,
            }
            try:
                self._run = wandb.init(
                    mode=config.wandb, id=run_id, settings=wandb.Settings(**options), **common
                )
            except Exception as error:
                if config.wandb == "offline":
                    raise
                # The failed run keeps its id until the service goes down with it.
                wandb.teardown()
                offline = wandb.Settings(**options)
                self._run = wandb.init(mode="offline", id=run_id, settings=offline, **common)
                self._fail(error, "could not connect; logging offline")
        except Exception as error:
            self._fail(error, "switched off")

    def log(self, row: Mapping[str, Any]) -> None:
        """Mirrors one row; never raises."""
        if self._run is None:
            return
        try:
            self._run.log(dict(row), step=int(row["step"]))
        except Exception as error:
            self._run = None
            self._fail(error, "switched off")

    def _fail(self, error: Exception, outcome: str) -> None:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        self.warning = (
            f"W&B: {outcome} ({type(error).__name__}: {reason}). metrics.jsonl has every row; "
            f"upload later with: wandb sync {self.folder / 'wandb'}/offline-run-*"
        )

    def __enter__(self) -> Mirror:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._run is not None:
            try:
                self._run.finish(exit_code=0 if kind is None else 1)
            except Exception as failure:
                self._fail(failure, "did not finish")
