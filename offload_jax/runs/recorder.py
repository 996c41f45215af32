"""What a training leaves on its way: rows of metrics, and checkpoints often enough."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from offload_jax.files.checks import CheckpointError, RunError
from offload_jax.learning.updates import LearnerState
from offload_jax.runs import multihost
from offload_jax.runs.checkpoint import Checkpoints
from offload_jax.runs.config import RunConfig, TrainConfig
from offload_jax.runs.tracking.tracker import Tracker

Row = dict[str, int | float]
Callback = Callable[[Row], None]


@dataclass
class Period:
    """What happened since the last row."""

    updates: list[Row] = field(default_factory=list)  # their metrics
    skipped: int = 0
    skipped_in_a_row: int = 0
    made: int = 0  # updates of this process: those of a checkpoint took no time here
    started: float = field(default_factory=time.perf_counter)

    def add(self, metrics: Mapping[str, Any]) -> None:
        """Numbers of an update, on the host."""
        self.updates.append({n: float(x) for n, x in metrics.items() if n != "sound"})
        self.made += 1
        self.skipped_in_a_row = 0

    def skip(self) -> None:
        self.skipped += 1
        self.skipped_in_a_row += 1

    def row(self, step: int, decisions: int) -> Row:
        """The mean of the updates' metrics, and how fast they were (`decisions` in each)."""
        seconds = time.perf_counter() - self.started
        found: dict[str, list[float]] = {}  # those of an earlier version may have other names
        for name, value in (item for one in self.updates for item in one.items()):
            found.setdefault(name, []).append(value)
        row: Row = {name: float(np.mean(values)) for name, values in found.items()}
        rate = decisions * self.made / seconds
        row |= {"step": step, "seconds": seconds, "decisions_per_s": rate}
        return row | ({"skipped": self.skipped} if self.skipped else {})

    def next(self) -> Period:
        """The period after a row."""
        return Period(skipped_in_a_row=self.skipped_in_a_row)


class Reporter:
    """Tells the tracker of each row, metrics.jsonl first, then the callbacks."""

    def __init__(
        self,
        tracker: Tracker,
        callbacks: Sequence[Callback],
        run: RunConfig,
        warn: Callable[[str], None],
    ) -> None:
        """Where writing may fail (run.failed_save), rows wait in memory until it works again."""
        self.tracker, self.callbacks, self.run, self.warn = tracker, callbacks, run, warn
        self._waiting: list[Row] = []

    def behind(self) -> bool:
        """Whether there are rows that are not on disk."""
        return bool(self._waiting)

    def write(self, row: Row) -> None:
        """Returns when the row is on disk; raises RunError where that fails, unless it may."""
        self._waiting.append(row)
        try:
            self.finish()
        except RunError as error:
            if self.run.failed_save == "stop":
                raise
            self.warn(f"{error} Training goes on; {len(self._waiting)} rows wait.")

    def finish(self) -> None:
        """Returns when every row is on disk; raises RunError where that fails."""
        while self._waiting:
            row = self._waiting[0]
            try:
                self.tracker.row(row)
            except OSError as error:
                raise RunError(
                    f"{error.filename} cannot be written: {error.strerror}. Nothing before "
                    f"update {row['step']} is lost: mend that and go on with the run."
                ) from None
            del self._waiting[0]

    def tell(self, row: Row) -> None:
        for callback in self.callbacks:
            callback(row)


def row_due(config: TrainConfig, step: int) -> bool:
    """Whether a row of metrics is written after an update."""
    return step % config.run.log_every == 0 or gap_due(config, step)


def gap_due(config: TrainConfig, step: int) -> bool:
    """Whether that row has a gap. The first one has, too: it shows where learning starts."""
    every = config.run
    return step % every.eval_every == 0 or step in (every.log_every, config.learner.updates)


class Recorder:
    """Of one run: its rows, and its state often enough.

    Where saving may fail (run.failed_save), training goes on.
    """

    def __init__(
        self,
        config: TrainConfig,
        checkpoints: Checkpoints,
        report: Reporter,
        saved: Mapping[str, Any] | None = None,
    ) -> None:
        """`saved` is what the checkpoint to go on from says of the updates after its last row."""
        self.config, self.checkpoints, self.report = config, checkpoints, report
        saved = saved or {}
        skipped = (saved.get(name, 0) for name in ("skipped", "skipped_in_a_row"))
        self.period = Period(list(saved.get("since_row", ())), *skipped)
        self._saved = time.monotonic()

    def row(self, state: LearnerState, gap: float | None) -> Row:
        """Writes the row of the updates since the last one, and saves where there is a `gap`."""
        learner = self.config.learner
        decisions = learner.instances * learner.samples * self.config.scenario.max_users
        row, self.period = self.period.row(int(state.step), decisions), self.period.next()
        if gap is not None:
            row["gap"] = gap
        self.report.write(row)
        if gap is not None:  # after the row: a checkpoint on disk means that its rows are, too
            self.save(state, gap)
        self.report.tell(row)
        return row

    def save_due(self) -> bool:
        """Whether `run.save_s` have passed since the last save, in any process."""
        return multihost.any_of_all(time.monotonic() - self._saved >= self.config.run.save_s)

    def save(self, state: LearnerState, gap: float | None = None) -> None:
        """Raises CheckpointError where this save or the one before it fails, unless it may."""
        self._saved = time.monotonic()
        if multihost.any_of_all(self.report.behind()):
            return  # rows that a resumed run would lack
        period = {
            "since_row": self.period.updates,
            "skipped": self.period.skipped,
            "skipped_in_a_row": self.period.skipped_in_a_row,
        }
        save = partial(self.checkpoints.save, state, gap, **period)
        for write in (self.checkpoints.wait, save):  # the one before may have failed: that is told
            try:
                write()
            except CheckpointError as error:
                if self.config.run.failed_save == "stop":
                    raise
                self.report.warn(f"{error} Training goes on.")
