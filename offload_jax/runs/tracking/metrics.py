"""Metrics of a run: a local file that is the truth, whatever else they are shown in.

`metrics.jsonl` has one JSON object per row, on disk before the run goes on.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from offload_jax.files.checks import Checks
from offload_jax.files.disk import replace_file
from offload_jax.runs.tracking.tracker import Noop, Row

Mode = Literal["offline", "online", "off"]


@dataclass(frozen=True)
class TrackingConfig:
    """Where metrics go beside metrics.jsonl."""

    wandb: Mode = "offline"  # offline needs no account or network
    project: str = "offload-jax"
    entity: str | None = None  # user or team at W&B; none: the account's own default
    group: str | None = None  # of W&B
    tags: tuple[str, ...] = ()  # of W&B
    also: tuple[str, ...] = ()  # further trackers by their names

    def validate(self) -> None:
        """Raises ValueError naming the field and the allowed values."""
        Checks(self, "tracking").one_of("wandb", get_args(Mode))


class MetricsFile(Noop):
    """Append-only rows of numbers, each on disk (fsync) when `row` returns."""

    def __init__(self, path: Path, up_to_step: int | None = None) -> None:
        """Opens or creates; rows after step `up_to_step` and torn rows are dropped."""
        self.path = path
        rows = [row for row in read_rows(path) if up_to_step is None or row["step"] <= up_to_step]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        if not path.exists() or path.read_bytes() != text.encode():
            replace_file(path, text)
        self._file = path.open("ab", buffering=0)

    def row(self, row: Row) -> None:
        """Writes one row; raises OSError (a full disk, say) rather than lose it silently."""
        line = (json.dumps(row) + "\n").encode()
        handle = self._file.fileno()
        before = os.fstat(handle).st_size
        try:
            if self._file.write(line) != len(line):  # only a full disk cuts a line short
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(handle)
        except OSError as error:
            with contextlib.suppress(OSError):  # no such thing as a device file, say
                os.ftruncate(handle, before)  # so that the row can be tried again
            raise OSError(error.errno, error.strerror, str(self.path)) from None

    def finish(self, failed: bool = False) -> None:
        self._file.close()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file; torn ones (a crash in mid-write) are left out."""
    rows = []
    for line in path.read_bytes().splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):  # of JSON, or of UTF-8
            rows.append(json.loads(line))
    return rows
