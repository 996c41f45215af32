"""Metrics of a run: a local file that is the truth, whatever else they are shown in.

`metrics.jsonl` has one JSON object per row, on disk before the run goes on.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, get_args

from offload_jax.files.checks import Checks
from offload_jax.files.disk import replace_file

Mode = Literal["offline", "online", "off"]


@dataclass(frozen=True)
class TrackingConfig:
    """Where metrics go beside metrics.jsonl."""

    wandb: Mode = "offline"  # offline needs no account or network
    project: str = "offload-jax"
    entity: str | None = None  # user or team at W&B; none: the account's own default
    group: str | None = None  # of W&B
    tags: tuple[str, ...] = ()  # of W&B

    def validate(self) -> None:
        """Raises ValueError naming the field and the allowed values."""
        Checks(self, "tracking").one_of("wandb", get_args(Mode))


class MetricsFile:
    """Append-only rows of numbers, each on disk (fsync) when `append` returns."""

    def __init__(self, path: Path, up_to_step: int | None = None) -> None:
        """Opens or creates; rows after step `up_to_step` and torn rows are dropped."""
        self.path = path
        rows = [row for row in read_rows(path) if up_to_step is None or row["step"] <= up_to_step]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        if not path.exists() or path.read_bytes() != text.encode():
            replace_file(path, text)
        self._file = path.open("ab", buffering=0)

    def append(self, row: Mapping[str, Any]) -> None:
        """Writes one row; raises OSError (a full disk, say) rather than lose it silently."""
        line = (json.dumps(row) + "\n").encode()
        handle = self._file.fileno()
        before = os.fstat(handle).st_size
        try:
            if self._file.write(line) != len(line):  # only a full disk cuts a line short
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
            os.fsync(handle)
        except OSError:
            with contextlib.suppress(OSError):  # no such thing as a device file, say
                os.ftruncate(handle, before)  # so that the row can be tried again
            raise

    def close(self) -> None:
        self._file.close()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file; torn ones (a crash in mid-write) are left out."""
    return _parsed(path.read_bytes()) if path.exists() else []


class NewRows:
    """Reads a growing metrics file, each row once.

    It keeps the file open: a later start of the run, which may put another in its place, is not
    read by mistake.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._torn = path, b""
        self._file: IO[bytes] | None = None

    def next(self) -> list[dict[str, Any]]:
        """The rows added since the last call; a line without its end waits for the next."""
        if self._file is None:
            if not self.path.exists():
                return []
            self._file = self.path.open("rb")
        whole, end, self._torn = (self._torn + self._file.read()).rpartition(b"\n")
        return _parsed(whole + end)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _parsed(text: bytes) -> list[dict[str, Any]]:
    rows = []
    for line in text.splitlines():
        with contextlib.suppress(ValueError):  # of JSON, or of UTF-8
            rows.append(json.loads(line))
    return rows
