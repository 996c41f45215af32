"""The training loop: updates, rows of metrics, evaluations and checkpoints, until told to stop."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np

from offload_jax.files.checks import RunError
from offload_jax.learning.devices import memory_mb
from offload_jax.runs import multihost
from offload_jax.runs.recorder import Recorder, Row, gap_due, row_due
from offload_jax.runs.task import Task

MAX_SKIPPED = 10  # updates in a row: more are no accident


class Member:
    """A run that the loop keeps; one that diverges is left out from then on."""

    def __init__(
        self, recorder: Recorder, name: str = "", on_divergence: Callable[[int], None] | None = None
    ) -> None:
        """`on_divergence` is told the update; without it, divergence ends the loop."""
        self.recorder, self.name, self._on_divergence = recorder, name, on_divergence
        self.diverged = False

    def save_due(self) -> bool:
        """Never of one that diverged: it is saved no more, so the time since then only grows."""
        return not self.diverged and self.recorder.save_due()

    def diverge(self, step: int, error: RunError) -> None:
        if self._on_divergence is None:
            raise error
        self.diverged = True
        self._on_divergence(step)
        self.recorder.report.warn(f"{self.name}: {error} The others go on.")


def loop(
    task: Task,
    members: Sequence[Member],
    state: Any,
    stop: threading.Event,
    tell: Callable[[dict[str, Row]], None] = lambda rows: None,
) -> Any:
    """Updates until all are made or `stop` is set, with rows, evaluations and checkpoints.

    `tell` hears the rows of all members at once. In several processes, `stop` in one of them stops
    all after the same update.

    Raises RunError where the only member, or the last one, diverges.
    """
    config = members[0].recorder.config  # they share all that is looked at here
    step = int(np.max(state.step))
    while step < config.learner.updates and not multihost.any_of_all(stop.is_set()):
        state, metrics = task.update(state)
        step += 1
        state = _recorded(task, members, state, metrics)
        if row_due(config, step):
            gaps = task.evaluate(state) if gap_due(config, step) else [None] * len(members)
            parts = zip(members, task.split(state), gaps, strict=True)
            tell({m.name: m.recorder.row(part, gap) for m, part, gap in parts if not m.diverged})
        if any(member.save_due() for member in members):
            _save(task, members, state)
    for member in members:
        member.recorder.report.finish()
    _save(task, members, state)  # no update is saved twice
    return state


def _recorded(task: Task, members: Sequence[Member], state: Any, metrics: dict[str, Any]) -> Any:
    """Keeps every member's metrics of an update; the state, past the updates that failed."""
    found = {name: np.atleast_1d(value) for name, value in jax.device_get(metrics).items()}
    past = {}
    for i, member in enumerate(members):
        own = {name: value[i] for name, value in found.items()}
        if member.diverged:
            continue
        if own["sound"]:
            member.recorder.period.add(own)
        else:
            part = task.split(state)[i]
            try:
                past[i] = _past_fault(task, member, i, part)
            except RunError as error:
                member.diverge(int(part.step) + 1, error)
    if all(member.diverged for member in members):
        raise RunError(
            "all members have diverged. Their checkpoints remain; start anew with lower "
            "learner.lr or learner.max_grad_norm."
        )
    return task.join(state, past) if past else state


def _save(task: Task, members: Sequence[Member], state: Any) -> None:
    for member, part in zip(members, task.split(state), strict=True):
        if not member.diverged:
            member.recorder.save(part)


def _past_fault(task: Task, member: Member, number: int, part: Any) -> Any:
    """Skips the update that a member cannot make, or raises RunError, its state saved."""
    recorder = member.recorder
    config, period, step = recorder.config, recorder.period, int(part.step)
    skip = config.run.not_finite == "skip" and period.skipped_in_a_row < MAX_SKIPPED
    if not skip:  # first: explaining needs time and memory
        recorder.save(part)
        recorder.checkpoints.wait()
    cause = f"update {step + 1}: {task.explain(number, part)}"
    if skip:
        if multihost.is_first():
            recorder.report.warn(f"skipped {cause}")
        period.skip()
        return task.skip(part)
    raise RunError(
        f"training diverged at {cause}. That update was not applied, and a checkpoint of update "
        f"{step} is kept. Start a new run with a lower learner.lr or learner.max_grad_norm, or go "
        "on without such updates: --run.not-finite skip"
    )


def prepare(task: Task, state: Any) -> dict[str, Any]:
    """Compiles the update; what it runs on and needs, for run.json and the first line of a run."""
    memory = memory_mb(task.lower(state).compile())
    multihost.any_of_all(False)  # compiling takes some longer, and a first collective waits 30 s
    return {
        "devices": task.devices.count,
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
