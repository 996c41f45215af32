"""The process that mirrors a run, as the one that trains sees it: two pipes that never block."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from offload_jax.files.disk import PACKAGE
from offload_jax.runs.tracking.uploader import Job

KILL_SECONDS = 1.0  # for a process to end, once it said so or was told
Reply = dict[str, Any]
# The other process finds this package wherever this one has it from: in a checkout, perhaps.
_PROGRAM = """
import sys
if sys.argv[1] not in sys.path:
    sys.path.insert(0, sys.argv[1])
from offload_jax.runs.tracking.mirror_process import main
main()
"""


class Courier:
    """The process that talks to W&B, at the other end of two pipes. Close it, or use `with`."""

    def __init__(self, job: Job, log: Path | None = None) -> None:
        """Starts it; what it prints goes to `log`. Raises OSError, or ValueError for a job of
        more than a pipe holds."""
        with log.open("ab") if log else open(os.devnull, "ab") as errors:
            self._process = subprocess.Popen(
                # -P: no file beside the user's script may take the place of a module.
                [sys.executable, "-P", "-c", _PROGRAM, str(PACKAGE.parent)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                bufsize=0,
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
        # Up to that length a pipe takes a line as a whole or not at all.
        return len(line) <= select.PIPE_BUF and self._write(line)

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


def _line(words: dict[str, Any]) -> bytes:
    return json.dumps(words).encode() + b"\n"
