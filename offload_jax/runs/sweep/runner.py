"""The loop of a sweep: takes trials, runs their trainings side by side, settles how they end."""

from __future__ import annotations

import fcntl
import itertools
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from offload_jax.files.checks import ConfigError
from offload_jax.runs.sweep.spec import SweepConfig
from offload_jax.runs.sweep.trials import Record, Trials
from offload_jax.runs.sweep.workers import Share, TrialProcess, end, shares

POLL_S = 0.5  # also what a shared database is asked


@dataclass(frozen=True)
class SweepStatus:
    """A sweep at one moment."""

    limit: int  # trials in all
    records: Sequence[Record]
    jobs: Sequence[TrialProcess]  # those of this process


ShowStatus = Callable[[SweepStatus], None]


def run(
    sweep: SweepConfig,
    trials: Trials,
    folder: Path,
    limit: int,
    workers: int,
    stop: threading.Event,
    show: ShowStatus,
) -> bool:
    """Works on trials until all `limit` are done, by whichever process; False where stopped before.

    Raises RunError where the storage does not answer. However it ends, no training goes on.
    """
    jobs: list[TrialProcess] = []
    at_once = True  # at a second Ctrl-C
    free = shares(workers)
    try:
        while not stop.is_set():
            for job in list(jobs):
                if _ended(job, trials):
                    job.close()
                    jobs.remove(job)
                    free.append(job.share)
            _fill(jobs, free, sweep, trials, folder, limit)
            status = SweepStatus(limit, trials.records(), tuple(jobs))
            show(status)
            if not jobs and sum(record.done for record in status.records) >= limit:
                return True
            time.sleep(POLL_S)
        at_once = False
        return False
    except Exception:
        at_once = False
        raise
    finally:
        end(jobs, at_once)


def _fill(
    jobs: list[TrialProcess],
    free: list[Share],
    sweep: SweepConfig,
    trials: Trials,
    folder: Path,
    limit: int,
) -> None:
    """Gives every free share of the machine a trial, while there are any."""
    while free and (trial := trials.take([job.trial.number for job in jobs], limit)):
        jobs.append(TrialProcess(trial, folder, sweep, free.pop(0)))


def _ended(job: TrialProcess, trials: Trials) -> bool:
    """Takes one look at a trial: starts it, reports what is new, settles it where it is over."""
    if not trials.beat(job.trial):  # another process took it for dead, and over
        job.kill()
        return True
    if not job.started:
        if reason := job.foreign():
            trials.fail(job.trial, reason)
            return True
        if job.start():
            trials.started(job.trial)
        return False
    code = job.poll()  # before the rows: after the end there are no more
    values = job.values()
    if trials.report(job.trial, values) and code is None:
        job.pruned = True
        job.stop()
    return code is not None and _settled(job, trials, code, values)


def _settled(job: TrialProcess, trials: Trials, code: int, values: list[float]) -> bool:
    """Puts the end of a training on record; False where it is started again."""
    if code == 0 and values:
        trials.finish(job.trial, trials.sweep.best(values))
    elif code == 0:
        trials.fail(job.trial, f"no row of metrics.jsonl has {trials.sweep.metric}")
    elif job.pruned:
        trials.prune(job.trial)
    elif reason := job.died(code):
        trials.fail(job.trial, reason)
    else:
        return False
    return True


@contextmanager
def named(folder: Path) -> Iterator[str]:
    """A name for this process among those that work on the sweep.

    Of the names that this machine has in the folder, the first that no process uses: so one that
    was killed finds its trials again. Raises ConfigError where the folder cannot be written.
    """
    try:
        name, lock = _free_name(folder / "owners")
    except OSError as error:
        raise ConfigError(
            f"out is {str(folder)!r}; must be a folder that can be written ({error.strerror})"
        ) from None
    with lock:
        yield name


def _free_name(folder: Path) -> tuple[str, IO[str]]:
    folder.mkdir(parents=True, exist_ok=True)
    for i in itertools.count():
        name = f"{socket.gethostname()}-{i}"
        lock = (folder / name).open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
        else:
            break
    lock.seek(0)
    known = lock.read()
    if not known:  # hosts of a shared database may have the same name
        known = uuid.uuid4().hex
        lock.write(known)
        lock.flush()
    return f"{name}-{known}", lock
