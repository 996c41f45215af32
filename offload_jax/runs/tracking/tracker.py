"""What a run tells while it goes on, and who may listen.

A tracker hears of rows, figures and artifacts. It never raises and never stalls the training that
it listens to. One of them is different: metrics.jsonl is the truth, so it comes first, and where it
cannot be written, nobody else hears of that row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

Row = Mapping[str, Any]  # numbers by name; `step` is the update


@dataclass(frozen=True)
class RunStart:
    """What a tracker is told of the run when it is made."""

    folder: Path  # the run directory
    run_id: str
    settings: dict[str, Any]  # of the run
    step: int = 0  # the update that this start goes on from: rows after it come again
    warn: Callable[[str], None] = print  # for what went wrong, in one line


@runtime_checkable
class Tracker(Protocol):
    """Listens to one start of a run. No method raises or waits; `finish` may take its time."""

    def row(self, row: Row) -> None:
        """Hears of a row that is in metrics.jsonl. Only that file itself may raise OSError."""

    def figure(self, name: str, path: Path) -> None:
        """Hears of a PNG file, which stays."""

    def artifact(self, path: Path, step: int, aliases: Sequence[str]) -> None:
        """Hears of a checkpoint, a folder that may be gone a moment later.

        `aliases` are among latest, best and step-N.
        """

    def finish(self, failed: bool = False) -> None:
        """The start is over; nothing is told afterwards."""


class Noop:
    """Does nothing. Trackers may inherit what they do not care about."""

    def row(self, row: Row) -> None:
        pass

    def figure(self, name: str, path: Path) -> None:
        pass

    def artifact(self, path: Path, step: int, aliases: Sequence[str]) -> None:
        pass

    def finish(self, failed: bool = False) -> None:
        pass


class Composite:
    """Tells the truth file first, then the others. One of those that raises is told nothing more,
    and `warn` is told once."""

    def __init__(
        self, truth: Tracker, others: Sequence[Tracker], warn: Callable[[str], None]
    ) -> None:
        self._truth, self._others, self._warn = truth, list(others), warn

    def row(self, row: Row) -> None:
        """Returns when the row is on disk. Raises OSError where it is not: nobody heard of it."""
        self._truth.row(row)
        self._tell(lambda tracker: tracker.row(row))

    def figure(self, name: str, path: Path) -> None:
        self._tell(lambda tracker: tracker.figure(name, path))

    def artifact(self, path: Path, step: int, aliases: Sequence[str]) -> None:
        self._tell(lambda tracker: tracker.artifact(path, step, aliases))

    def finish(self, failed: bool = False) -> None:
        self._truth.finish(failed)
        self._tell(lambda tracker: tracker.finish(failed))

    def _tell(self, tell: Callable[[Tracker], None]) -> None:
        for tracker in list(self._others):
            try:
                tell(tracker)
            except Exception as error:
                self._others.remove(tracker)
                self._warn(switched_off(type(tracker).__name__, error))


def switched_off(name: str, error: Exception) -> str:
    """The warning about a tracker that raised."""
    reason = f"{type(error).__name__}: {error}"
    return f"tracker {name} is switched off ({reason}); metrics.jsonl has every row"
