"""Weights & Biases, held at arm's length: a process of its own does all of it (wandb_process.py).

The process that trains only puts short messages into a pipe, and leaves out what does not fit; rows
are read by the other one from metrics.jsonl. So nothing that W&B does can raise into the training
loop or hold it up. The one thing that takes time is the end: `FINISH_SECONDS` at most, then the
other process is killed. What is missing then is uploaded by `offload-jax sync`.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from offload_jax.runs.tracking import wandb_process
from offload_jax.runs.tracking.metrics import TrackingConfig
from offload_jax.runs.tracking.tracker import Row, RunStart
from offload_jax.runs.tracking.wandb_process import reason

INIT_SECONDS = 20.0  # for the server to answer; training does not wait for it
UPLOAD_SECONDS = 16.0  # at the end, for rows; before that half as many for checkpoints
FINISH_SECONDS = 28.0  # at the end, for all of it; then the other process is killed
COPY_SECONDS = 2.0  # for a copy of a checkpoint, where it cannot be linked
KILL_SECONDS = 1.0  # for a process to end that was killed


class WandbTracker:
    """Mirrors a run. No method raises, whatever W&B, the disk or the network do; what went wrong
    is said once, and how to upload later."""

    def __init__(
        self, config: TrackingConfig, start: RunStart, later: tuple[Path, float] | None = None
    ) -> None:
        """`later` uploads what there is of a run: a folder for W&B's own files, and how many
        seconds it may take. Then nothing falls back to offline."""
        self.heard: dict[str, Any] = {}  # what the other process said; of each the first
        scratch, self._finish_seconds = later or (start.folder, FINISH_SECONDS)
        self._copy_seconds = later[1] if later else COPY_SECONDS
        self._staged = scratch.resolve() / "wandb" / "checkpoints"  # those that wait for upload
        self._start, self._online = start, config.wandb == "online"
        self._process: _Process | None = None
        job = {
            "folder": str(start.folder.resolve()),
            "scratch": str(scratch.resolve()),
            "online": self._online,
            "fallback": later is None,
            "init": {"id": start.run_id, "config": start.settings}  # of wandb.init
            | {name: getattr(config, name) for name in ("project", "entity", "group", "tags")},
            "program": sys.argv[0] or "python",  # what W&B shows as the script
            "started": time.time_ns(),
            "pid": os.getpid(),
            "init_seconds": INIT_SECONDS,
            "finish_seconds": later[1] if later else UPLOAD_SECONDS,
        }
        with self._harmless():
            self._staged.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(self._staged, ignore_errors=True)  # of an earlier start
            self._process = _Process(self._staged.with_name("mirror.log"))
            if not self._tell(job, limit=65536):  # what an empty pipe takes
                raise ValueError("the run's settings are too long")

    def row(self, row: Row) -> None:
        """Mirrors a row that is in metrics.jsonl already."""
        self._tell({"row": row["step"]})

    def figure(self, name: str, path: Path) -> None:
        """Shows a PNG file; it is read soon after, or at the end of the run."""
        self._tell({"figure": str(path.resolve()), "name": name})

    def artifact(self, path: Path, step: int, aliases: Sequence[str]) -> None:
        """Uploads a folder as version `step` of the run's checkpoints, online only.

        The folder may be removed at once: what is uploaded are links to its files, or a copy where
        the file system has no links.
        """
        if not self._online or self._process is None:
            return
        staged = self._staged / f"{step}-{time.time_ns()}"
        try:
            _link_tree(path, staged, self._copy_seconds)
        except OSError as error:
            self._fail(f"checkpoint {step} is not uploaded ({reason(error)})")
            return shutil.rmtree(staged, ignore_errors=True)
        if not self._tell({"artifact": str(staged), "step": step, "aliases": list(aliases)}):
            shutil.rmtree(staged, ignore_errors=True)

    def finish(self, failed: bool = False) -> None:
        """Returns when all is uploaded, or the time for it is over."""
        process, last = self._process, _line({"finish": int(failed)})
        if process is None:
            return
        with self._harmless():
            try:
                said, _ = process.communicate(last, timeout=self._finish_seconds)
            except subprocess.TimeoutExpired as error:
                said, self.heard["late"] = error.output, True
            finally:
                process.end()
            self._hear(said)
            if "finished" not in self.heard:
                late = "late" in self.heard
                self._fail("did not finish in time" if late else "switched off (its process ended)")

    def _tell(self, message: dict[str, Any], limit: int = select.PIPE_BUF) -> bool:
        """Whether it was sent: not where the pipe is full, or nobody reads it."""
        process, line, sent = self._process, _line(message), False
        with self._harmless():
            if process is not None and len(line) <= limit:
                try:
                    # Up to PIPE_BUF bytes a pipe takes a line as a whole or not at all.
                    sent = process.stdin.write(line) == len(line)
                finally:
                    self._hear(process.stdout.read(65536))
        return sent

    def _hear(self, said: bytes | None) -> None:
        """Keeps what the other process said, and passes on what went wrong there."""
        for reply in map(json.loads, (said or b"").splitlines()):
            self.heard = reply | self.heard
        if "trouble" in self.heard:
            self._fail(self.heard["trouble"])

    @contextlib.contextmanager
    def _harmless(self) -> Iterator[None]:
        """Whatever goes wrong inside switches W&B off, and nothing else."""
        try:
            yield
        except Exception as error:
            gone = isinstance(error, BrokenPipeError)
            self._fail(f"switched off ({'its process ended' if gone else reason(error)})")
            if self._process is not None:
                self._process.end()
            self._process = None

    def _fail(self, what: str) -> None:
        if "failed" not in self.heard:
            self.heard["failed"] = what
            self._start.warn(
                f"W&B: {what}. metrics.jsonl has every row; upload later with: "
                f"offload-jax sync {self._start.folder}"
            )


class _Process(subprocess.Popen[bytes]):
    """wandb_process.py, at the other end of two pipes that never block."""

    stdin: IO[bytes]
    stdout: IO[bytes]

    def __init__(self, path: Path) -> None:
        """Starts it; what it prints goes to `path`. Raises OSError."""
        with path.open("ab") as log:
            super().__init__(
                # -P: no file beside that one may take the place of a module.
                [sys.executable, "-P", wandb_process.__file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,
                start_new_session=True,  # Ctrl-C in a terminal is for the process that trains
            )
        os.set_blocking(self.stdin.fileno(), False)
        os.set_blocking(self.stdout.fileno(), False)

    def end(self) -> None:
        """Kills it, unless it has ended, within `KILL_SECONDS`."""
        self.stdin.close()
        self.stdout.close()
        self.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(KILL_SECONDS)


def _line(message: dict[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"


def _link_tree(source: Path, target: Path, seconds: float) -> None:
    """Links every file under `source`; copies what cannot be linked, for so many seconds.

    Raises OSError where that fails or takes longer.
    """
    end = time.monotonic() + seconds

    def link(old: str, new: str) -> None:
        try:
            os.link(old, new)
        except OSError:
            if time.monotonic() > end:
                raise TimeoutError("copying takes too long") from None
            shutil.copyfile(old, new)

    shutil.copytree(source, target, copy_function=link)
