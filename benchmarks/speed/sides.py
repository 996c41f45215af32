"""The two sides of a comparison: a tree each, an environment each, and what it answers.

`this` is a copy of this tree as it stands, so that edits meanwhile do not count; `other` is a
commit. Both run their own benchmarks.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import trees
from benchmarks.common import UsageError

_LOCK = "requirements.lock"
_SCRIPT = Path(__file__).with_name("side.py")


class Failed(Exception):
    """A side that gave no answer; the message says why."""


@dataclass(frozen=True)
class Side:
    """A tree and the interpreter that runs it."""

    name: str  # this or other
    tree: Path
    python: str
    environment: str  # which one that is, in words

    def listed(self, quick: bool) -> dict[str, Any]:
        """All its cases, none of them measured."""
        return self._answer({"quick": quick, "repeats": 0, "cases": None})

    def measured(self, cases: Sequence[str], repeats: int, quick: bool) -> dict[str, Any]:
        """Seconds of a call of each of these cases, from a fresh process."""
        return self._answer({"quick": quick, "repeats": repeats, "cases": list(cases)})

    def _answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        done = self.run("-P", str(_SCRIPT), json.dumps(asked))
        try:
            return json.loads(done.stdout.splitlines()[-1])
        except (ValueError, IndexError):
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise Failed(f"{self.name}: the process ended with {done.returncode}: {last}") from None

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Its Python, outside of any tree but its own."""
        return subprocess.run(
            [self.python, *words],
            cwd=self.tree.parent,
            env={**os.environ, "PYTHONPATH": str(self.tree)},
            capture_output=True,
            text=True,
        )


@contextmanager
def both(root: Path, commit: str) -> Iterator[tuple[Side, Side]]:
    """(this, other); their trees are gone when the block ends."""
    with trees.scratch("benchmarks-") as folder:
        this, other = folder / "this" / "tree", folder / "other" / "tree"
        trees.copy(root, this)
        other.parent.mkdir()
        with trees.worktree(root, commit, other):
            mine = (sys.executable, f"the interpreter {sys.executable}")
            theirs = mine if _lock(other) in (b"", _lock(this)) else _environment(other)
            sides = Side("this", this, *mine), Side("other", other, *theirs)
            for side in sides:
                _check_import(side)
            yield sides


def _lock(tree: Path) -> bytes:
    path = tree / _LOCK
    return path.read_bytes() if path.exists() else b""


def _environment(tree: Path) -> tuple[str, str]:
    """A new environment with what a tree locks: its Python, and what it is in words."""
    folder = tree.parent / "environment"
    python = str(folder / "bin" / "python")
    pip = ("-m", "pip", "--disable-pip-version-check", "--quiet", "install", "--require-hashes")
    try:
        for words in (
            (sys.executable, "-m", "venv", str(folder)),
            (python, *pip, "-r", str(tree / _LOCK)),
        ):
            subprocess.run(words, check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["no message"])[-1]
        raise UsageError(f"own has another {_LOCK}, which cannot be installed: {last}") from None
    return python, f"a new environment of its {_LOCK}"


def _check_import(side: Side) -> None:
    """An installed copy in front of PYTHONPATH would make both sides the same."""
    done = side.run("-P", "-c", "import offload_jax; print(offload_jax.__file__)")
    if done.returncode or not Path(done.stdout.strip()).is_relative_to(side.tree):
        found = done.stdout.strip() or done.stderr.strip()
        raise UsageError(f"offload_jax of {side.name} is not what Python imports, but {found}")
