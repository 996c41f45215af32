"""One run at Weights & Biases, fed from its run directory. The only file that imports wandb.

A program of its own (wandb_tracker.py starts it): whatever wandb raises, and however long it waits,
the process that trains does not notice. Standard input has a job, then messages; standard output
has replies: JSON, one object a line. The rows themselves are read from metrics.jsonl. Where the
input ends without `finish`, the process that trains is gone: what is there is uploaded as a crash.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from pathlib import Path
from typing import IO, Any

CRASHED = 255  # exit code of a run whose process is gone
LAST = {"latest", "best"}  # aliases that move on to a newer checkpoint
Job = dict[str, Any]  # WandbTracker makes it


def main() -> None:
    """Mirrors one run; everything that goes wrong becomes a reply."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # for the process that trains, which tells us
    replies = os.dup(1)
    os.dup2(2, 1)  # what others print goes to standard error

    def reply(**words: Any) -> None:
        with contextlib.suppress(OSError):  # nobody is left to read it
            os.write(replies, json.dumps(words).encode() + b"\n")

    job, exit_code, failed = json.loads(sys.stdin.buffer.readline()), CRASHED, "stopped"
    try:
        if job["online"]:
            _claim(job)
        upload = _opened(job, reply)
        reply(opened=upload.run.url)
        for line in sys.stdin.buffer:
            match json.loads(line):
                case {"row": step}:
                    upload.rows(step)
                case {"artifact": path, "step": step, "aliases": aliases}:
                    upload.checkpoint(path, step, aliases)
                case {"figure": path, "name": name}:
                    upload.show(name, upload.wandb.Image(path))
                case {"finish": exit_code}:
                    break
        failed = "not everything was uploaded"
        upload.finish(exit_code)
        reply(finished=upload.sent)
    except Exception as error:
        reply(trouble=f"{failed} ({reason(error)})")
    # Not sys.exit: W&B would then wait, without a limit, for what it could not send.
    os._exit(0)


def _opened(job: Job, reply: Callable[..., None]) -> Upload:
    """An open run. Raises what wandb raises where there is no key, no server or no room."""
    # Logs and copies stay here, not in the user's home, unless the environment says otherwise.
    folder = os.path.join(job["scratch"], "wandb")
    for name in ("WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_ARTIFACT_DIR"):
        os.environ.setdefault(name, folder)
    os.environ.setdefault("WANDB_PROGRAM", job["program"])  # else it shows this file
    os.environ.setdefault("WANDB_X_STATS_PID", str(job["pid"]))  # whose memory and CPU it shows
    os.environ.pop("WANDB_SERVICE", None)  # of the process that trains, if it uses W&B itself
    # Not one for all starts: the process of a killed one may still be at work in its own.
    tempfile.tempdir = os.path.join(folder, "temporary", str(os.getpid()))
    os.makedirs(tempfile.tempdir, exist_ok=True)
    try:
        return Upload(job, job["online"])
    except Exception as error:
        if not (job["online"] and job["fallback"]):
            raise
        import wandb

        with contextlib.suppress(Exception):
            wandb.teardown()  # the failed run keeps its id until the service goes down with it
        upload = Upload(job, online=False)
        reply(trouble=f"could not connect; logging offline ({reason(error)})")
        return upload


class Upload:
    """An open run; only rows with steps above `have` are new to it."""

    def __init__(self, job: Job, online: bool) -> None:
        import wandb

        self.job, self.online, self.wandb = job, online, wandb
        self.run = wandb.init(
            **job["init"],
            mode="online" if online else "offline",
            resume="allow",
            dir=job["scratch"],
            allow_val_change=True,
            settings=wandb.Settings(
                init_timeout=job["init_seconds"],
                login_timeout=job["init_seconds"],
                finish_timeout=job["finish_seconds"],
                finish_timeout_raises=True,
                console="off",
                silent=True,
            ),
        )
        self._said = _Said()
        wandb.termsetup(wandb.Settings(silent=True), self._said)
        self.run.define_metric("gap", summary="min")
        # The last step that the server has. Offline: the files of earlier starts have those before
        # the first row that we are told of.
        self.have: float | None = self.run.starting_step - 1 if online else None
        self.sent, self._newest = 0, 0  # rows, step of the last one of them
        # Kept open: a later start of the run may put another file in its place.
        self._file = (Path(job["folder"]) / "metrics.jsonl").open("rb")
        self._evaluations: list[dict[str, Any]] = []
        # One after another, and not on this thread: a slow network holds up no rows.
        self._thread = futures.ThreadPoolExecutor(1)
        self._checkpoints: list[tuple[str, set[str], futures.Future[None]]] = []

    def rows(self, step: int) -> None:
        """Logs what metrics.jsonl has that is new; it has the row of `step`."""
        self._check()
        self.have = step - 1 if self.have is None else self.have
        for row in new_rows(self._file):
            self._evaluations += [row] if "gap" in row else []
            if row["step"] > self.have:
                self.sent, self._newest = self.sent + 1, int(row["step"])
                self.run.log(row, step=self._newest)

    def checkpoint(self, path: str, step: int, aliases: Sequence[str]) -> None:
        """Uploads a folder that is ours to remove; those overtaken while they wait are left out.

        Offline it would only fill the disk.
        """
        if not self.online:
            return shutil.rmtree(path, ignore_errors=True)
        for other, theirs, sending in self._checkpoints:
            if theirs & LAST <= set(aliases) and sending.cancel():
                shutil.rmtree(other, ignore_errors=True)
        sending = self._thread.submit(self._send, path, step, aliases)
        self._checkpoints.append((path, set(aliases), sending))

    def finish(self, exit_code: int) -> None:
        """Returns when all is uploaded (online), or in the file. Raises TimeoutError and others."""
        if self.have is not None:
            self.rows(self._newest)  # those that we were not told of
        sending = [one for _, _, one in self._checkpoints if not one.cancelled()]
        late = futures.wait(sending, self.job["finish_seconds"] / 2).not_done
        if self._evaluations and exit_code != CRASHED and not late:
            # Only then: the client asks the server about a table, and waits long for an answer.
            names = list(dict.fromkeys(name for row in self._evaluations for name in row))
            cells = [[row.get(name) for name in names] for row in self._evaluations]
            self.show("evaluations", self.wandb.Table(columns=[*names], data=cells))
        self.run.finish(exit_code=exit_code)
        self._check()
        if late:
            raise TimeoutError("not all checkpoints were uploaded in time")
        for one in sending:
            one.result()
        with contextlib.suppress(Exception):
            self.wandb.teardown()
        if self.online:  # offline, `wandb sync` may want them
            shutil.rmtree(tempfile.gettempdir(), ignore_errors=True)

    def _send(self, path: str, step: int, aliases: Sequence[str]) -> None:
        name = f"checkpoint-{self.job['init']['id']}"
        try:
            artifact = self.wandb.Artifact(name, type="checkpoint", metadata={"step": step})
            artifact.add_dir(path, policy="immutable", skip_cache=True)
            self.run.log_artifact(artifact, aliases=list(aliases)).wait()
        except Exception as error:
            raise RuntimeError(f"checkpoint {step}: {reason(error)}") from error
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def show(self, name: str, value: Any) -> None:
        """Shows a picture or a table with the newest row."""
        # A row is open until the next one, and what is logged with its step joins it. Later it
        # would become a row of its own, behind which the server refuses the run's next rows.
        if self.sent:
            self.run.log({name: value}, step=self._newest)
        else:
            self.run.summary[name] = value

    def _check(self) -> None:
        """Raises RuntimeError where the server gave rows up, OSError where the disk is full: W&B
        would drop rows and say nothing."""
        if self._said.fatal:
            raise RuntimeError("the server refuses the rows of this run")
        probe = Path(tempfile.gettempdir()) / "room"
        probe.write_bytes(bytes(65536))
        probe.unlink()


class _Said:
    """Takes what W&B would print. Where a server refuses rows it raises nothing, but says so."""

    fatal = False

    def info(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)
        self.fatal = self.fatal or "Fatal error" in text

    warning = error = info


def new_rows(file: IO[bytes]) -> Iterator[dict[str, Any]]:
    """The rows that were added to an open metrics file; a line without its end waits."""
    while (line := file.readline()).endswith(b"\n"):
        with contextlib.suppress(ValueError):  # of JSON, or of UTF-8: a crash in mid-write
            yield json.loads(line)
    file.seek(-len(line), os.SEEK_CUR)


def _claim(job: Job) -> None:
    """Takes the run, until this process ends: that of a killed start may still be uploading it.

    Raises RuntimeError where that takes long, or where a later start has been here: that uploads
    all that is missing.
    """
    try:
        lock = os.open(os.path.join(job["folder"], ".upload.lock"), os.O_RDWR | os.O_CREAT, 0o644)
    except OSError:  # a run directory that cannot be written has nobody writing, either
        return
    end = time.monotonic() + job["init_seconds"]
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError:
            if time.monotonic() > end:
                raise RuntimeError("another process is uploading this run") from None
            time.sleep(0.1)
    if int(os.read(lock, 32) or 0) > job["started"]:
        raise RuntimeError("a later start of this run uploads it")
    os.pwrite(lock, b"%d" % job["started"], 0)  # as long as the number before


def reason(error: BaseException) -> str:
    """In one line."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"{type(error).__name__}: {text[:1000]}"


if __name__ == "__main__":
    main()
