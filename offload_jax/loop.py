"""The training loop: updates, rows of metrics, evaluations and checkpoints, until told to stop."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from offload_jax import learner as learning
from offload_jax import model
from offload_jax.checkpoint import Checkpoints
from offload_jax.config import TrainConfig
from offload_jax.evaluation import validation_set
from offload_jax.learner import Learner, LearnerState, Metrics
from offload_jax.mirror import Mirror
from offload_jax.policies import Policy, greedy_plan
from offload_jax.tracking import MetricsFile

Row = dict[str, float]
Callback = Callable[[Row], None]
VALIDATION = 1  # the branch of the seed that evaluations draw from: never what training saw


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
) -> LearnerState:
    """Updates until all are made or `stop` is set, with rows, evaluations and checkpoints."""
    learner, every, updates = config.to_learner(), config.run, config.learner.updates
    validation_key = jax.random.fold_in(jax.random.key(config.seed), VALIDATION)
    instances, best = validation_set(
        config.scenario, every.eval_instances, validation_key, config.splits
    )
    decisions = config.learner.instances * config.learner.samples * config.scenario.max_users
    step, pending, since = int(state.step), [], time.perf_counter()
    while step < updates and not stop.is_set():
        state, metrics = _update(learner, state)
        pending.append(metrics)
        step += 1
        last = step == updates
        if step % every.log_every and step % every.eval_every and not last:
            continue
        row = _finite_mean(pending, step)
        seconds = time.perf_counter() - since
        row |= {
            "step": step,
            "seconds": seconds,
            "decisions_per_s": decisions * len(pending) / seconds,
        }
        # The first row too: it shows where learning starts.
        if step % every.eval_every == 0 or last or step == every.log_every:
            policy = Policy(state.params, config.network, config.to_env())
            gaps = model.gap(best, greedy_plan(policy, instances)[1])
            row["gap"] = float(jnp.mean(gaps))
        report.write(row)
        if "gap" in row:  # after the row: a checkpoint on disk means that its rows are, too
            checkpoints.save(state, row["gap"])
        report.tell(row)
        pending, since = [], time.perf_counter()
    if stop.is_set():
        if pending:
            _finite_mean(pending, step)
        checkpoints.save(state)
    return state


def _finite_mean(metrics: list[Metrics], step: int) -> Row:
    """The mean of some updates' metrics. Raises RunError rather than keep what has diverged."""
    rows = jax.device_get(metrics)
    row = {f.name: float(np.mean([getattr(row, f.name) for row in rows])) for f in fields(Metrics)}
    for name, value in row.items():
        if not np.isfinite(value):
            raise RunError(
                f"training diverged before update {step}: {name} is {value}. Its checkpoints "
                "remain; start a new run with a lower learner.lr or learner.max_grad_norm."
            )
    return row


class Reporter:
    """Puts each row into the file first, then tells the mirror and the callbacks."""

    def __init__(self, metrics: MetricsFile, mirror: Mirror, callbacks: Sequence[Callback]) -> None:
        self.metrics, self.mirror, self.callbacks = metrics, mirror, callbacks

    def write(self, row: Row) -> None:
        """Returns when the row is on disk; raises RunError where that fails."""
        try:
            self.metrics.append(row)
        except OSError as error:
            raise RunError(
                f"{self.metrics.path} cannot be written: {error.strerror}. Nothing before update "
                f"{row['step']} is lost: mend that and go on with the run."
            ) from None

    def tell(self, row: Row) -> None:
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
