"""The training loop: updates, rows of metrics, evaluations and checkpoints, until told to stop."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax

from offload_jax.files.checks import RunError
from offload_jax.learning import learner as learning
from offload_jax.learning import nonfinite
from offload_jax.learning.algorithm import Learner
from offload_jax.learning.devices import ONE_DEVICE, Devices, local_copy, memory_mb
from offload_jax.learning.learner import LearnerState, Metrics
from offload_jax.runs import multihost
from offload_jax.runs.heldout import validation
from offload_jax.runs.recorder import Recorder, gap_due, row_due

MAX_SKIPPED = 10  # updates in a row: more are no accident


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def _update(learner: Learner, state: LearnerState) -> tuple[LearnerState, Metrics]:
    return learning.update(learner, state)


def loop(
    recorder: Recorder,
    state: LearnerState,
    stop: threading.Event,
    devices: Devices = ONE_DEVICE,
) -> LearnerState:
    """Updates until all are made or `stop` is set, with rows, evaluations and checkpoints.

    In several processes, `stop` in one of them stops all after the same update.
    """
    config = recorder.config
    learner, gap = config.to_learner(devices), validation(config, devices)
    while int(state.step) < config.learner.updates:
        if multihost.any_of_all(stop.is_set()):
            break
        state, metrics = _update(learner, state)
        if metrics["sound"]:
            recorder.period.add(metrics)
        else:
            state = past_fault(recorder, state)
        step = int(state.step)
        if row_due(config, step):
            recorder.row(state, gap(state.params) if gap_due(config, step) else None)
        if recorder.save_due():
            recorder.save(state)
    recorder.report.finish()
    recorder.save(state)  # no update is saved twice
    return state


def past_fault(recorder: Recorder, state: LearnerState) -> LearnerState:
    """Skips the update that `state` cannot make, or raises RunError, the state saved."""
    config, period, step = recorder.config, recorder.period, int(state.step)
    skip = config.run.not_finite == "skip" and period.skipped_in_a_row < MAX_SKIPPED
    if not skip:  # first: explaining needs time and memory
        recorder.save(state)
        recorder.checkpoints.wait()
    cause = f"update {step + 1}: {nonfinite.explain(config.to_learner(), local_copy(state))}"
    if skip:
        if multihost.is_first():
            recorder.report.warn(f"skipped {cause}")
        period.skip()
        return learning.skip(state)
    raise RunError(
        f"training diverged at {cause}. That update was not applied, and a checkpoint of update "
        f"{step} is kept. Start a new run with a lower learner.lr or learner.max_grad_norm, or go "
        "on without such updates: --run.not-finite skip"
    )


def prepare(learner: Learner, state: LearnerState) -> dict[str, Any]:
    """Compiles the update; says what it runs on and what it needs."""
    return needs_of(_update.lower(learner, state), learner.devices)


def needs_of(program: jax.stages.Lowered, devices: Devices) -> dict[str, Any]:
    """Compiles a program; what it runs on and needs, for run.json and the first line of a run."""
    memory = memory_mb(program.compile())
    multihost.any_of_all(False)  # compiling takes some longer, and a first collective waits 30 s
    return {
        "devices": devices.count,
        "processes": jax.process_count(),
        "memory_mb_per_device": memory,
    }


def describe_needs(needs: dict[str, Any]) -> str:
    """The first line of a run."""
    devices, found = needs["devices"], needs["processes"]
    memory = needs["memory_mb_per_device"]
    text = f"{devices} device{'s' * (devices > 1)} ({jax.devices()[0].device_kind})"
    text += f" in {found} processes" if found > 1 else ""
    return text + (f"; an update needs {memory:,.1f} MB on each" if memory is not None else "")


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
