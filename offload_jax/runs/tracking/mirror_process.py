"""The process that talks to Weights & Biases for a run; courier.py starts it.

On its standard input come a `Job` and then messages, on its standard output go replies: JSON, one
object a line. The rows themselves are read from metrics.jsonl. Where the input ends without a
`finish`, the process that trains is gone, and what has arrived so far is uploaded as a crashed run.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from offload_jax.runs.tracking import uploader
from offload_jax.runs.tracking.metrics import NewRows, read_rows
from offload_jax.runs.tracking.uploader import Job, Upload

CRASHED = 255  # exit code of a run whose process is gone
Reply = Callable[..., None]


def main() -> None:
    """Mirrors one run; everything that goes wrong becomes a reply."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # for the process that trains, which tells us
    reply, messages = _replies(), _messages()
    job = Job(**next(messages))
    try:
        uploader.keep_files_in(Path(job.scratch) / "wandb", job.pid)
        with _claimed(job):
            _mirror(job, messages, reply)
    except Exception as error:
        reply(trouble=f"stopped ({uploader.reason(error)})", cause=uploader.cause(error))
    # Not sys.exit: W&B would then wait, without a limit, for what it could not send.
    os._exit(0)


def _mirror(job: Job, messages: Iterator[dict[str, Any]], reply: Reply) -> None:
    upload = _opened(job, reply)
    reply(opened=upload.url)
    metrics = Path(job.folder) / "metrics.jsonl"
    rows, exit_code, evaluations = NewRows(metrics), CRASHED, list[dict[str, Any]]()
    for message in messages:
        match message:
            case {"rows": step}:
                if not upload.online and not upload.sent:
                    upload.have = step - 1  # those before are in files of earlier starts
                upload.rows(rows.next())
            case {"checkpoint": path, "step": step, "aliases": aliases}:
                upload.checkpoint(path, step, aliases)
            case {"picture": path, "name": name}:
                upload.picture(name, path)
            case {"finish": exit_code}:
                evaluations = [row for row in read_rows(metrics) if "gap" in row]
    try:
        upload.finish(exit_code, evaluations)
    except Exception as error:
        reason, cause = uploader.reason(error), uploader.cause(error)
        reply(trouble=f"not everything was uploaded ({reason})", cause=cause)
        return
    uploader.close_service()
    if upload.online:  # offline, `wandb sync` may want them
        uploader.remove_temporary_files()
    reply(finished=upload.sent)


def _opened(job: Job, reply: Reply) -> Upload:
    try:
        return Upload(job, online=job.mode == "online")
    except Exception as error:
        if job.mode == "offline" or not job.fallback:
            raise
        # The failed run keeps its id until the service goes down with it.
        uploader.close_service()
        upload = Upload(job, online=False)
        reply(trouble=f"could not connect; logging offline ({uploader.reason(error)})")
        return upload


@contextlib.contextmanager
def _claimed(job: Job) -> Iterator[None]:
    """One process at a time uploads a run: that of a killed start may still be at it.

    Raises RuntimeError where it is the one of a later start: that uploads all that is missing.
    """
    if job.mode == "offline":
        yield
        return
    try:
        lock = (Path(job.folder) / ".upload.lock").open("a+")
    except OSError:  # a run directory that cannot be written has nobody writing, either
        yield
        return
    with lock:
        _wait_for(lock, job.init_seconds)
        lock.seek(0)
        if int(lock.read() or 0) > job.started:
            raise RuntimeError("a later start of this run uploads it")
        lock.truncate(0)
        lock.write(str(job.started))
        lock.flush()
        yield


def _wait_for(lock: IO[str], seconds: float) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError:
            if time.monotonic() > end:
                raise RuntimeError("another process is uploading this run") from None
            time.sleep(0.1)


def _messages() -> Iterator[dict[str, Any]]:
    """Until the other end is closed, or after `finish`."""
    for line in sys.stdin.buffer:
        message = json.loads(line)
        yield message
        if "finish" in message:
            return


def _replies() -> Reply:
    """Takes standard output for replies; what others print goes to standard error."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def reply(**words: Any) -> None:
        with contextlib.suppress(OSError):  # nobody is left to read it
            out.write(json.dumps(words) + "\n")

    return reply
