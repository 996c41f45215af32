"""Training processes of a sweep: each on a share of the cores, over restarts."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from offload_jax.files.disk import cache_folder, replace_file
from offload_jax.runs import run_files
from offload_jax.runs.run_folder import is_run
from offload_jax.runs.sweep.space import Scalar
from offload_jax.runs.sweep.spec import SweepConfig
from offload_jax.runs.sweep.trials import Trial
from offload_jax.runs.tracking.metrics import read_rows

STOP_S = 60.0  # a training process that was asked to stop and is still there is killed
GIVE_UP = 3  # deaths of a training process, one after the other, without a new row between
_INTERRUPTED = 130  # status of a training that was asked to stop


@dataclass(frozen=True)
class Share:
    """What one of several training processes may use of this machine."""

    cores: frozenset[int]
    part: float  # of a GPU's memory

    def environment(self) -> dict[str, str]:
        """Variables of the process; those that are set already stay as they are."""
        threads = str(len(self.cores))
        wanted = {
            "OMP_NUM_THREADS": threads,
            "OPENBLAS_NUM_THREADS": threads,
            "XLA_PYTHON_CLIENT_MEM_FRACTION": f"{0.9 * self.part:.3f}",
            # What a restarted trial would compile again; programs are for this machine's processor.
            # Not in the sweep's directory: who gave us that must not give us programs to run.
            "JAX_COMPILATION_CACHE_DIR": str(cache_folder() / "sweeps" / socket.gethostname()),
        }
        return wanted | dict(os.environ)


def shares(workers: int) -> list[Share]:
    """The cores that this process may use, dealt out; more workers than cores share them."""
    cores = sorted(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else _all_cores())
    return [
        Share(frozenset(cores[i::workers] or [cores[i % len(cores)]]), 1 / workers)
        for i in range(workers)
    ]


def _all_cores() -> range:
    return range(os.cpu_count() or 1)


class TrialProcess:
    """The work on one trial: its training process, over as many starts as it takes."""

    def __init__(self, trial: Trial, folder: Path, sweep: SweepConfig, share: Share) -> None:
        """`folder` is the sweep's; the trial's run directory is `trials/N` in it."""
        self.trial, self.sweep, self.share, self.out = trial, sweep, share, folder
        self.folder = folder / "trials" / str(trial.number)
        self.pruned = False
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: IO[str] | None = None
        self._stop_at: float | None = None  # when its end was asked for
        self._rows: tuple[int, list[float]] = (-1, [])  # size of the file, values in it
        self._deaths, self._values_at_death = 0, -1

    def start(self) -> bool:
        """Starts the training, or goes on with it in its run directory.

        False while the process of a sweep that was killed is still at it. That one holds the
        trial's lock: it inherited it, and a lock of this kind ends with the last who has it.
        """
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        self._lock = self.folder.with_suffix(".lock").open("a")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            return False
        if not is_run(self.folder):
            replace_file(self.folder.with_suffix(".json"), json.dumps(self._about()))
        with self.folder.with_suffix(".log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.share.environment(),
                pass_fds=(self._lock.fileno(),),
                start_new_session=True,  # Ctrl-C is for the sweep, which passes it on
            )
        if hasattr(os, "sched_setaffinity"):
            # XLA makes as many threads as it has cores: there are none yet.
            with suppress(ProcessLookupError):
                os.sched_setaffinity(self._process.pid, self.share.cores)
        return True

    def _command(self) -> list[str]:
        run = [f"--run={self.folder}"]
        if is_run(self.folder):  # its own config.yaml has all settings
            own = self.sweep.plugins
            return self.sweep.command_line([*run, *(["--plugins", *own] if own else [])])
        return self.sweep.command_line([*self.sweep.words(self.trial.parameters), *run])

    def foreign(self) -> str | None:
        """Why the run directory that is there is not this trial's; None where it is, or none is."""
        about = self.folder.with_suffix(".json")
        if not is_run(self.folder) or not about.exists():
            return None
        if json.loads(about.read_bytes()) == self._about():
            return None
        return f"{self.folder} holds a run with other parameters; take another directory (--out)"

    def _about(self) -> dict[str, Scalar]:
        """What says whose run a directory is: parameters, but not where its numbers go."""
        return {k: v for k, v in self.trial.parameters.items() if not k.startswith("tracking.")}

    @property
    def started(self) -> bool:
        return self._process is not None

    def poll(self) -> int | None:
        """The training's exit status (negative: the signal that ended it), None while it runs."""
        code = self._process.poll() if self._process else None
        overdue = self._stop_at is not None and time.monotonic() - self._stop_at > STOP_S
        if code is None and overdue:
            self.kill()
        return code

    def values(self) -> list[float]:
        """The metric in all rows that have it."""
        path = self.folder / run_files.ROWS
        size = path.stat().st_size if path.exists() else -1
        if size != self._rows[0]:
            rows = read_rows(path)
            self._rows = size, [row[self.sweep.metric] for row in rows if self.sweep.metric in row]
        return self._rows[1]

    def stop(self) -> None:
        """Asks the training to save and end."""
        if self._process and self._stop_at is None:
            self._stop_at = time.monotonic()
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Ends the training, and what it started, at once."""
        if self._process and self._process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        """Waits for the end of the process and lets go of the trial."""
        if self._process:
            self._process.wait()
        if self._lock:
            self._lock.close()

    def died(self, code: int) -> str | None:
        """After an end that was not the training's own: None to start it again, or why not."""
        if code not in (_INTERRUPTED, 128 + signal.SIGKILL, 128 + signal.SIGTERM) and code >= 0:
            return f"status {code}: {self._last_words()}"
        count = len(self.values())
        self._deaths = 1 if count > self._values_at_death else self._deaths + 1
        self._values_at_death = max(count, self._values_at_death)
        if self._deaths >= GIVE_UP:
            return f"ended {GIVE_UP} times without a new row (status {code})"
        self.close()
        self._process, self._stop_at = None, None
        return None

    def _last_words(self) -> str:
        text = self.folder.with_suffix(".log").read_text(errors="replace")
        lines = [line for line in text.splitlines() if line.strip()]
        said = [line for line in lines if line.startswith("error: ")] or lines or ["nothing said"]
        return said[-1]


def end(jobs: Sequence[TrialProcess], at_once: bool) -> None:
    """Ends all trainings: after they have saved, or at once."""
    try:
        for job in jobs:
            job.kill() if at_once else job.stop()
        while any(job.started and job.poll() is None for job in jobs):
            time.sleep(0.05)
    except KeyboardInterrupt:  # another Ctrl-C does not wait
        for job in jobs:
            job.kill()
        raise
    finally:
        for job in jobs:
            job.close()
