"""How far a command has come: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

_QUIET_S = 5.0  # between two lines


def warn(message: str) -> None:
    """One line, apart from the results."""
    print(f"warning: {message}", file=sys.stderr, flush=True)


class Stages:
    """Work in stages, some of which have steps to count. Use as a context manager."""

    def __init__(self, total: int) -> None:
        """`total` is the number of stages."""
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=console, transient=True)
        self._shown, self._said = console.is_terminal, -_QUIET_S
        self._stages = self._bar.add_task("compiling", total=total)
        self._steps = self._bar.add_task("", total=None, visible=False)

    def __enter__(self) -> Stages:
        if self._shown:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown:
            self._bar.stop()

    def stage(self, text: str) -> None:
        """The next stage begins."""
        if not self._shown:
            now = time.monotonic()
            if now - self._said >= _QUIET_S:
                self._said = now
                print(text, file=sys.stderr, flush=True)
            return
        self._bar.update(self._stages, advance=1, description=text)
        self._bar.update(self._steps, visible=False)

    def step(self, done: int, total: int) -> None:
        """So much of the stage is done."""
        self._bar.update(self._steps, completed=done, total=total, visible=done < total)
