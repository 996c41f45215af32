"""Tests run on throw-away copies of the tree, a copy for each worker; Ctrl-C ends all of them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import Queue
from threading import Lock

from benchmarks import trees
from benchmarks.common import ROOT
from benchmarks.quality.mutation import Mutant

# The tests of each room: its own, and those of neighbours that lean on it.
TESTS = {
    "problem": ("tests/problem", "tests/plans/test_gains.py", "tests/evaluation/test_compare.py"),
    "splits": ("tests/splits", "tests/plans/test_gains.py", "tests/plans/test_advice.py"),
    "plans": ("tests/plans", "tests/problem", "tests/env", "tests/splits/test_rules.py"),
    "env": ("tests/env", "tests/policy"),
    "learning": ("tests/learning",),
    "files": ("tests/files", "tests/runs/test_checkpoint.py"),
    "runs": ("tests/runs/test_checkpoint.py", "tests/files/test_disk.py"),
    "deploy": ("tests/deploy",),
}
TIERS = ("fast and not slow", "not fast and not slow")  # in this order
# Programs that a fault does not change are not compiled again. Here the tests keep theirs, too.
CACHE = {
    "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".pytest_cache" / "jax"),
    "JAX_COMPILATION_CACHE_MAX_SIZE": str(4 * 2**30),
}


class Stopped(Exception):
    """What a worker's run ends with after Ctrl-C."""


@dataclass(frozen=True)
class Result:
    """How the tests came out."""

    passed: bool
    by: str  # the test that failed first, or what else happened; empty where all passed
    seconds: float
    output: str  # its end


@dataclass
class Workers:
    """Copies of the tree that are free, and the test processes that run."""

    limit_s: float  # of all tests of one mutant
    free: Queue[Path] = field(default_factory=Queue)
    running: set[subprocess.Popen[str]] = field(default_factory=set)
    stopped: bool = False
    lock: Lock = field(default_factory=Lock)

    @contextmanager
    def copy(self) -> Iterator[Path]:
        """A copy for a while."""
        folder = self.free.get()
        try:
            yield folder
        finally:
            self.free.put(folder)

    def stop(self) -> None:
        """Ends all processes of all runs; those to come raise Stopped."""
        with self.lock:
            self.stopped = True
            for process in self.running:
                _end(process)

    def tested(self, folder: Path, room: str, first: str) -> Result:
        """A room's tests on a copy up to the first failure: `first` alone, then all others.

        Of both the fast tier before the rest.
        """
        files = test_files(folder, room, first)
        parts = [part for part in (files[:1], files[1:]) if part]
        return self._up_to_failure(folder, [[*p, "-m", tier] for p in parts for tier in TIERS])

    def untouched(self, folder: Path, mutant: Mutant, by: str) -> Result:
        """What noticed a mutant, on a copy without it: that test, all parameters, or the room."""
        name = re.search(r"tests/[^ \[]+", by)
        if name is None:
            return self.tested(folder, mutant.room, mutant.first)
        return self._up_to_failure(folder, [[name[0]]])

    def _up_to_failure(self, folder: Path, runs: Sequence[Sequence[str]]) -> Result:
        began = time.monotonic()
        for words in runs:
            left = self.limit_s - (time.monotonic() - began)
            status, output = self._pytest(folder, words, left)
            by = killer(status, output)
            if by:
                return Result(False, by, time.monotonic() - began, output[-4000:])
        return Result(True, "", time.monotonic() - began, "")

    def _pytest(self, folder: Path, words: Sequence[str], limit_s: float) -> tuple[int | None, str]:
        """(exit status, output); no status where the time was up."""
        options = ("-x", "-q", "-n", "0", "-p", "no:cacheprovider")
        temporary = folder.with_name(f"{folder.name}-tmp")
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
            process = self._start([*options, *words], folder, temporary, output.fileno())
            try:
                status = process.wait(max(limit_s, 0.1))
            except subprocess.TimeoutExpired:
                status = None
            finally:
                with self.lock:
                    self.running.discard(process)
                _end(process)  # what a test has left running, too
                process.wait()
            if self.stopped:
                raise Stopped
            output.seek(0)
            return status, output.read()

    def _start(
        self, words: Sequence[str], folder: Path, temporary: Path, output: int
    ) -> subprocess.Popen[str]:
        temporary.mkdir(exist_ok=True)
        env = {**CACHE, **os.environ, "PYTHONPATH": str(folder), "TMPDIR": str(temporary)}
        env["PYTHONDONTWRITEBYTECODE"] = "1"  # else a fault as long as what it replaces goes unseen
        with self.lock:
            if self.stopped:
                raise Stopped
            process = subprocess.Popen(
                [sys.executable, "-m", "pytest", *words],
                cwd=folder,
                env=env,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,  # Ctrl-C is for us, and `stop` reaches its children
            )
            self.running.add(process)
            return process


def _end(process: subprocess.Popen[str]) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


@contextmanager
def workers(root: Path, count: int, limit_s: float) -> Iterator[Workers]:
    """So many copies of the tree as it stands, gone at the end; no process outlives the block."""
    with trees.scratch("mutants-") as scratch:
        found = Workers(limit_s)
        for number in range(count):
            trees.copy(root, scratch / str(number))
            found.free.put(scratch / str(number))
        try:
            yield found
        finally:
            found.stop()


def test_files(tree: Path, room: str, first: str) -> list[str]:
    """The files of tests of a room, `first` in front."""
    found = [first]
    for name in TESTS[room]:
        path = tree / name
        below = sorted(path.rglob("test_*.py")) if path.is_dir() else [path]
        found += [one.relative_to(tree).as_posix() for one in below]
    return list(dict.fromkeys(found))


def killer(status: int | None, output: str) -> str:
    """What ended a run of pytest that did not pass: a test's name, time, or a signal; else empty.

    Raises RuntimeError where pytest itself could not run.
    """
    if status in (0, 5):  # passed, or no test of that tier
        return ""
    if status is None:
        return "time-out"
    if status in (3, 4):
        raise RuntimeError(f"pytest ended with {status}: {output[-2000:]}")
    found = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", output, re.MULTILINE)
    name = found[1] if found else f"pytest ended with {status}"
    return f"time-out, {name}" if "Failed: Timeout" in output else name
