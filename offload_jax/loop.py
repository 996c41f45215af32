"""The training loop: updates, rows of metrics, evaluations and checkpoints, until told to stop."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from offload_jax import faults, model
from offload_jax import learner as learning
from offload_jax.checkpoint import CheckpointError, Checkpoints
from offload_jax.config import TrainConfig
from offload_jax.evaluation import validation_set
from offload_jax.learner import Learner, LearnerState, Metrics
from offload_jax.mirror import Mirror
from offload_jax.policies import Policy, greedy_plan
from offload_jax.tracking import MetricsFile

Row = dict[str, int | float]
Callback = Callable[[Row], None]
VALIDATION = 1  # the branch of the seed that evaluations draw from: never what training saw
MAX_SKIPPED = 10  # updates in a row: more are no accident


class RunError(RuntimeError):
    """A run that cannot go on; its directory is as good as before, and the message says more."""


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def _update(learner: Learner, state: LearnerState) -> tuple[LearnerState, Metrics]:
    return learning.update(learner, state)


def loop(
    config: TrainConfig,
    state: LearnerState,
    checkpoints: Checkpoints,
    report: Reporter,
    stop: threading.Event,
    since_row: Sequence[Row] = (),
) -> LearnerState:
    """Updates until all are made or `stop` is set, with rows, evaluations and checkpoints.

    `since_row` are the metrics of the updates after the last row, as a checkpoint kept them.
    """
    learner, every, updates = config.to_learner(), config.run, config.learner.updates
    gap = _evaluation(config)
    period, saver = _Period(list(since_row)), _Saver(config, checkpoints, report)
    while int(state.step) < updates and not stop.is_set():
        state, metrics = _update(learner, state)
        if metrics.sound:
            period.add(metrics)
        else:
            state = _past_fault(config, state, saver, period, report.warn)
        step = int(state.step)
        last = step == updates
        if step % every.log_every and step % every.eval_every and not last:
            saver.save_if_due(state, period)
            continue
        row = period.row(step, _decisions(config))
        # The first row too: it shows where learning starts.
        if step % every.eval_every == 0 or last or step == every.log_every:
            row["gap"] = gap(state)
        period = _Period(skipped_in_a_row=period.skipped_in_a_row)
        report.write(row)
        if "gap" in row:  # after the row: a checkpoint on disk means that its rows are, too
            saver.save(state, period, row["gap"])
        else:
            saver.save_if_due(state, period)
        report.tell(row)
    if stop.is_set():
        saver.save(state, period)
    return state


def _evaluation(config: TrainConfig) -> Callable[[LearnerState], float]:
    """The mean gap of the greedy policy on the run's own validation instances."""
    key = jax.random.fold_in(jax.random.key(config.seed), VALIDATION)
    count = config.run.eval_instances
    instances, best = validation_set(config.scenario, count, key, config.splits)

    def gap(state: LearnerState) -> float:
        policy = Policy(state.params, config.network, config.to_env())
        return float(jnp.mean(model.gap(best, greedy_plan(policy, instances)[1])))

    return gap


def _decisions(config: TrainConfig) -> int:
    """Of one update."""
    return config.learner.instances * config.learner.samples * config.scenario.max_users


@dataclass
class _Period:
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

    def row(self, step: int, decisions: int) -> Row:
        """The mean of the updates' metrics, and how fast they were."""
        seconds = time.perf_counter() - self.started
        names = self.updates[0] if self.updates else ()
        row: Row = {name: float(np.mean([one[name] for one in self.updates])) for name in names}
        row |= {
            "step": step,
            "seconds": seconds,
            "decisions_per_s": decisions * self.made / seconds,
        }
        return row | ({"skipped": self.skipped} if self.skipped else {})


def _past_fault(
    config: TrainConfig,
    state: LearnerState,
    saver: _Saver,
    period: _Period,
    warn: Callable[[str], None],
) -> LearnerState:
    """Skips the update that `state` cannot make, or raises RunError, the state saved."""
    step = int(state.step)
    cause = f"update {step + 1}: {faults.explain(config.to_learner(), state)}"
    if config.run.not_finite == "skip" and period.skipped_in_a_row < MAX_SKIPPED:
        warn(f"skipped {cause}")
        period.skipped += 1
        period.skipped_in_a_row += 1
        return learning.skip(state)
    saver.save(state, period)
    saver.checkpoints.wait()
    raise RunError(
        f"training diverged at {cause}. That update was not applied, and a checkpoint of update "
        f"{step} is kept. Start a new run with a lower learner.lr or learner.max_grad_norm, or go "
        "on without such updates: --run.not-finite skip"
    )


class _Saver:
    """Saves the state, often enough; where saving may fail (run.failed_save), training goes on."""

    def __init__(self, config: TrainConfig, checkpoints: Checkpoints, report: Reporter) -> None:
        self.checkpoints, self.report, self.run = checkpoints, report, config.run
        self._last = time.monotonic()

    def save_if_due(self, state: LearnerState, period: _Period) -> None:
        """Saves where `run.save_s` have passed since the last time."""
        if time.monotonic() - self._last >= self.run.save_s:
            self.save(state, period)

    def save(self, state: LearnerState, period: _Period, gap: float | None = None) -> None:
        """Raises CheckpointError where this save or the one before it fails, unless it may."""
        self._last = time.monotonic()
        if self.report.behind():
            return  # rows that a resumed run would lack
        save = partial(self.checkpoints.save, state, gap, since_row=period.updates)
        for write in (self.checkpoints.wait, save):  # the one before may have failed: that is told
            try:
                write()
            except CheckpointError as error:
                if self.run.failed_save == "stop":
                    raise
                self.report.warn(f"{error} Training goes on.")


class Reporter:
    """Puts each row into the file first, then tells the mirror and the callbacks."""

    def __init__(
        self,
        metrics: MetricsFile,
        mirror: Mirror,
        callbacks: Sequence[Callback],
        may_fail: bool = False,
        warn: Callable[[str], None] = print,
    ) -> None:
        """Where writing `may_fail`, rows wait in memory until it works again."""
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


@contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """An event set by Ctrl-C or SIGTERM; the handlers before are back afterwards."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may handle signals
        return

    def request(number: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        # Compiling goes on for some seconds. Not print: a handler may run in the middle of one.
        os.write(2, b"\nstopping after this update; once more to stop at once\n")

    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
