"""A run's mirror at Weights & Biases, held at arm's length: a process of its own does all of it.

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from offload_jax.tracking import TrackingConfig
from offload_jax.uploader import TEMPORARY, Job, reason

INIT_SECONDS = 20.0  # for the server to answer; training does not wait for it
UPLOAD_SECONDS = 16.0  # at the end, for rows that are not uploaded yet; before that half as many
# for checkpoints
FINISH_SECONDS = 28.0  # at the end, for all that W&B does
KILL_SECONDS = 1.0
COPY_SECONDS = 2.0  # for a copy of a checkpoint, where it cannot be linked
PIPE_ATOMIC = 4096  # bytes: a message is written as a whole or not at all (PIPE_BUF of Linux)
Reply = dict[str, Any]


class SyncError(RuntimeError):
    """A run that could not be uploaded; the message says why and what to do."""


class Mirror:
    """Use as a context manager. No method raises, whatever W&B, the disk or the network do.

    `warn` is told, once, what went wrong and how to upload later.
    """

    def __init__(
        self,
        config: TrackingConfig,
        folder: Path,
        run_id: str,
        settings: dict[str, Any],
        warn: Callable[[str], None] = print,
    ) -> None:
        self.folder, self.warn = folder, warn
        self._online = config.wandb == "online"
        self._warned = False
        self._courier: Courier | None = None
        if config.wandb == "off":
            return
        with self._harmless():
            _clean_scratch(folder)
            job = job_for(config, folder, folder, run_id, settings)
            self._courier = Courier(job, folder / "wandb" / "mirror.log")

    def log(self, row: Mapping[str, Any]) -> None:
        """Mirrors a row that is in metrics.jsonl already."""
        self._tell({"rows": row["step"]})

    def picture(self, name: str, path: Path) -> None:
        """Shows a PNG file; it is read soon after, or at the end of the run."""
        self._tell({"picture": str(path.resolve()), "name": name})

    def checkpoint(self, path: Path, step: int, aliases: Sequence[str]) -> None:
        """Uploads a folder as version `step` of the run's checkpoints, online only.

        `aliases` are among latest, best and step-N. The folder may be removed at once: what is
        uploaded are links to its files, or a copy where the file system has no links.
        """
        if not self._online or self._courier is None:
            return
        staged = self.folder.resolve() / "wandb" / "checkpoints" / f"{step}-{time.time_ns()}"
        try:
            link_tree(path, staged, COPY_SECONDS)
        except OSError as error:
            self._fail(f"checkpoint {step} is not uploaded ({reason(error)})")
            shutil.rmtree(staged, ignore_errors=True)
            return
        if not self._tell({"checkpoint": str(staged), "step": step, "aliases": list(aliases)}):
            shutil.rmtree(staged, ignore_errors=True)

    def __enter__(self) -> Mirror:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        courier, self._courier = self._courier, None
        if courier is None:
            return
        end = time.monotonic() + FINISH_SECONDS
        with self._harmless(), courier:
            courier.send_by(end, {"finish": 0 if kind is None else 1})
            if not any("finished" in reply for reply in self._heard(courier, end)):
                self._fail("did not finish in time")

    def _tell(self, message: dict[str, Any]) -> bool:
        """Whether it was sent."""
        courier = self._courier
        if courier is None:
            return False
        sent = False
        with self._harmless():
            sent = courier.send(message)
            self._heard(courier)
            if courier.gone:
                self._fail("switched off (its process ended)")
        if courier.gone or self._courier is None:
            courier.close()
            self._courier = None
        return sent

    def _heard(self, courier: Courier, until: float | None = None) -> list[Reply]:
        """What the other process said; what went wrong there is passed on."""
        replies = list(courier.replies(until))
        for reply in replies:
            if "trouble" in reply:
                self._fail(reply["trouble"])
        return replies

    @contextlib.contextmanager
    def _harmless(self) -> Iterator[None]:
        """Whatever goes wrong inside switches the mirror off, and nothing else."""
        try:
            yield
        except Exception as error:
            self._fail(f"switched off ({reason(error)})")
            self._courier = None

    def _fail(self, what: str) -> None:
        if self._warned:
            return
        self._warned = True
        self.warn(
            f"W&B: {what}. metrics.jsonl has every row; upload later with: "
            f"offload-jax sync {self.folder}"
        )


class Courier:
    """The process that talks to W&B, at the other end of two pipes. Close it, or use `with`."""

    def __init__(self, job: Job, log: Path | None = None) -> None:
        """Starts it; what it prints goes to `log`. Raises OSError, or ValueError for a job of
        more than a pipe holds."""
        with log.open("ab") if log else open(os.devnull, "ab") as errors:
            self._process = subprocess.Popen(
                # -P: no file beside the user's script may take the place of a module.
                [sys.executable, "-P", "-m", "offload_jax.mirror_process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                bufsize=0,
                env=_environment(),
                start_new_session=True,  # Ctrl-C in a terminal is for the process that trains
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in, self._out = self._process.stdin, self._process.stdout
        os.set_blocking(self._in.fileno(), False)
        os.set_blocking(self._out.fileno(), False)
        self._heard = b""
        self.gone = False  # the other end is closed
        if not self._write(_line(asdict(job))):
            self.close()
            raise ValueError("the run's settings are too long")

    def send(self, message: dict[str, Any]) -> bool:
        """Puts a message into the pipe; False where it does not fit now, or nobody reads it."""
        line = _line(message)
        return len(line) <= PIPE_ATOMIC and self._write(line)

    def send_by(self, end: float, message: dict[str, Any]) -> bool:
        """The same, waiting for room until `end` (of time.monotonic())."""
        while not self.send(message):
            if self.gone or time.monotonic() > end:
                return False
            time.sleep(0.01)
        return True

    def replies(self, until: float | None = None) -> Iterator[Reply]:
        """What it said since; with `until`, all that it says until it ends, or that time comes."""
        while True:
            if until is not None:
                left = until - time.monotonic()
                if left <= 0 or not select.select([self._out], [], [], left)[0]:
                    return
            part = self._read()
            if not part:
                return
            *lines, self._heard = (self._heard + part).split(b"\n")
            yield from map(json.loads, lines)

    def close(self) -> None:
        """Ends the process, however it is, within twice `KILL_SECONDS`."""
        self._in.close()
        self._out.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(KILL_SECONDS if self.gone else 0)
            return
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(KILL_SECONDS)

    def __enter__(self) -> Courier:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, line: bytes) -> bool:
        try:
            return os.write(self._in.fileno(), line) == len(line)
        except BlockingIOError:
            return False
        except OSError:
            self.gone = True
            return False

    def _read(self) -> bytes:
        try:
            part = os.read(self._out.fileno(), 65536)
        except BlockingIOError:
            return b""
        self.gone = self.gone or not part
        return part


def job_for(
    config: TrackingConfig,
    folder: Path,
    scratch: Path,
    run_id: str,
    settings: dict[str, Any],
    only_online: bool = False,
) -> Job:
    """The job of mirroring the run in `folder`, W&B's own files under `scratch`."""
    return Job(
        folder=str(folder.resolve()),
        scratch=str(scratch.resolve()),
        run_id=run_id,
        settings=settings,
        mode="online" if config.wandb == "online" or only_online else "offline",
        fallback=not only_online,
        project=config.project,
        entity=config.entity,
        group=config.group,
        tags=config.tags,
        program=sys.argv[0],
        pid=os.getpid(),
        init_seconds=INIT_SECONDS,
        finish_seconds=UPLOAD_SECONDS,
    )


def _line(words: dict[str, Any]) -> bytes:
    return json.dumps(words).encode() + b"\n"


def _environment() -> dict[str, str]:
    """This package is found by the other process wherever this one has it from."""
    package = str(Path(__file__).resolve().parents[1])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def _clean_scratch(folder: Path) -> None:
    """Makes the folder for W&B's files; what earlier starts left there for a while goes."""
    (folder / "wandb").mkdir(parents=True, exist_ok=True)
    for name in ("checkpoints", TEMPORARY):
        shutil.rmtree(folder / "wandb" / name, ignore_errors=True)


def link_tree(source: Path, target: Path, seconds: float) -> None:
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
