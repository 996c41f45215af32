"""Throw-away trees: this one as it stands, or another commit; gone however a block ends."""

from __future__ import annotations

import hashlib
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.common import UsageError

_ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def scratch(prefix: str) -> Iterator[Path]:
    """An empty folder, removed however the block ends; SIGTERM and SIGHUP end it as Ctrl-C does."""
    folder = Path(tempfile.mkdtemp(prefix=prefix)).resolve()
    before = {number: signal.signal(number, _leave) for number in _ENDINGS[1:]}
    try:
        yield folder
    finally:
        with _undisturbed():
            shutil.rmtree(folder, ignore_errors=True)
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def worktree(root: Path, commit: str, folder: Path) -> Iterator[None]:
    """Another commit of the repository at `root`, checked out in `folder`."""
    try:
        git(root, "worktree", "add", "--detach", str(folder), commit)
        yield
    finally:
        with _undisturbed():
            words = ("worktree", "remove", "--force", "--force", str(folder))
            subprocess.run(["git", *words], cwd=root, capture_output=True)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """A second Ctrl-C does not stop the cleaning; processes started here ignore it likewise."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in _ENDINGS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def copy(root: Path, folder: Path) -> None:
    """This tree as it stands, uncommitted changes too; what git ignores stays behind."""
    listed = git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    for name in filter(None, listed.split("\0")):
        if (root / name).is_file():  # else it was removed, and not committed yet
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, folder / name)


def digest(folder: Path, *below: str) -> str:
    """Of the names and contents of all files in these folders of a copy (default: in all).

    But for what Python compiles them to, which comes with the first run.
    """
    found = hashlib.sha256()
    tops = [folder / name for name in below] or [folder]
    files = (path for top in tops for path in top.rglob("*") if path.is_file())
    for path in sorted(path for path in files if path.suffix != ".pyc"):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        found.update(f"{path.relative_to(folder).as_posix()} {content}\n".encode())
    return found.hexdigest()


def commit_of(root: Path, argument: str, rev: str) -> str:
    """The commit that git understands by `rev`. Raises UsageError for none."""
    try:
        return git(root, "rev-parse", "--verify", "--end-of-options", f"{rev}^{{commit}}")
    except (subprocess.CalledProcessError, OSError):
        raise UsageError(
            f"{argument} is {rev!r}; must be a commit of the git checkout {root}"
        ) from None


def git(root: Path, *words: str) -> str:
    """What git prints in `root`. Without hooks: checking out must run nothing of the repository."""
    command = ["git", "-c", "core.hooksPath=/dev/null", *words]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    return done.stdout.strip()
