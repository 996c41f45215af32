"""What a training leaves on its way: rows of metrics, and checkpoints often enough."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial

import jax
import numpy as np

from offload_jax import processes
from offload_jax.checkpoint import Checkpoints
from offload_jax.config import RunConfig
from offload_jax.learner import LearnerState, Metrics
from offload_jax.mirror import Mirror
from offload_jax.saved import CheckpointError
from offload_jax.tracking import MetricsFile

Row = dict[str, int | float]
Callback = Callable[[Row], None]


class RunError(RuntimeError):
    """A run that cannot go on; its directory is as good as before, and the message says more."""


@dataclass
class Period:
    """What happened since the last row."""

    updates: list[Row] = field(default_factory=list)  # their metrics
    skipped: int = 0
    skipped_in_a_row: int = 0
    made: int = 0  # updates of this process: those of a checkpoint took no time here
    started: float = field(default_factory=time.perf_counter)

    def add(self, metrics: Metrics) -> None:
        numbers = asdict(jax.device_get(metrics))
        del numbers["sound"]
        self.updates.append({name: float(value) for name, value in numbers.items()})
        self.made += 1
        self.skipped_in_a_row = 0

    def skip(self) -> None:
        self.skipped += 1
        self.skipped_in_a_row += 1

    def row(self, step: int, decisions: int) -> Row:
        """The mean of the updates' metrics, and how fast they were (`decisions` in each)."""
        seconds = time.perf_counter() - self.started
        names = self.updates[0] if self.updates else ()
        row: Row = {name: float(np.mean([one[name] for one in self.updates])) for name in names}
        rate = decisions * self.made / seconds
        row |= {"step": step, "seconds": seconds, "decisions_per_s": rate}
        return row | ({"skipped": self.skipped} if self.skipped else {})

    def next(self) -> Period:
        """The period after a row."""
        return Period(skipped_in_a_row=self.skipped_in_a_row)


class Reporter:
    """Puts each row into the file first, then tells the mirror and the callbacks."""

    def __init__(
        self,
        metrics: MetricsFile | None,
        mirror: Mirror,
        callbacks: Sequence[Callback],
        may_fail: bool = False,
        warn: Callable[[str], None] = print,
    ) -> None:
        """Where writing `may_fail`, rows wait in memory until it works again.

        Without a file, as in every process but the first one, rows go nowhere.
        """
        self.metrics, self.mirror, self.callbacks = metrics, mirror, callbacks
        self.may_fail, self.warn = may_fail, warn
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
            if not self.may_fail:
                raise
            self.warn(f"{error} Training goes on; {len(self._waiting)} rows wait.")

    def finish(self) -> None:
        """Returns when every row is on disk; raises RunError where that fails."""
        if self.metrics is None:
            self._waiting.clear()
            return
        while self._waiting:
            row = self._waiting[0]
            try:
                self.metrics.append(row)
            except OSError as error:
                raise RunError(
                    f"{self.metrics.path} cannot be written: {error.strerror}. Nothing before "
                    f"update {row['step']} is lost: mend that and go on with the run."
                ) from None
            del self._waiting[0]

    def tell(self, row: Row) -> None:
        if not self._waiting:  # the mirror reads what is on disk
            self.mirror.log(row)
        for callback in self.callbacks:
            callback(row)


class Saver:
    """Saves the state, often enough; where saving may fail (run.failed_save), training goes on."""

    def __init__(self, run: RunConfig, checkpoints: Checkpoints, report: Reporter) -> None:
        self.checkpoints, self.report, self.run = checkpoints, report, run
        self._last = time.monotonic()

    def save_if_due(self, state: LearnerState, period: Period) -> None:
        """Saves where `run.save_s` have passed since the last time."""
        if processes.any_of_all(time.monotonic() - self._last >= self.run.save_s):
            self.save(state, period)

    def save(self, state: LearnerState, period: Period, gap: float | None = None) -> None:
        """Raises CheckpointError where this save or the one before it fails, unless it may."""
        self._last = time.monotonic()
        if processes.any_of_all(self.report.behind()):
            return  # rows that a resumed run would lack
        save = partial(self.checkpoints.save, state, gap, since_row=period.updates)
        for write in (self.checkpoints.wait, save):  # the one before may have failed: that is told
            try:
                write()
            except CheckpointError as error:
                if self.run.failed_save == "stop":
                    raise
                self.report.warn(f"{error} Training goes on.")
