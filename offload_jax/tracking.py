"""Metrics of a run: a local file that is the truth, and a Weights & Biases mirror that cannot hurt.

`metrics.jsonl` has one JSON object per row, on disk before the run goes on. The mirror never raises
into the training loop and never stalls it: starting and finishing have limits, and after the first
failure it stays off and says once how to upload later.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, get_args

from offload_jax.checks import Checks
from offload_jax.documents import replace_file

Mode = Literal["offline", "online", "off"]
INIT_SECONDS = 20
FINISH_SECONDS = 30


@dataclass(frozen=True)
class TrackingConfig:
    """Where metrics go beside metrics.jsonl."""

    wandb: Mode = "offline"  # offline needs no account or network
    project: str = "offload-jax"
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
    if not path.exists():
        return []
    rows = []
    for line in path.read_bytes().splitlines():
        with contextlib.suppress(ValueError):  # of JSON, or of UTF-8
            rows.append(json.loads(line))
    return rows


class Mirror:
    """Weights & Biases, held at arm's length. Use as a context manager.

    `warn` is told, once, what went wrong and how to upload later.
    """

    def __init__(
        self,
        config: TrackingConfig,
        folder: Path,
        run_id: str,
        settings: dict[str, Any],
        warn: Callable[[str], None] = print,
    ) -> None:
        self.folder, self.warn = folder, warn
        self._warned = False
        self._run: Any = None
        if config.wandb == "off":
            return
        try:
            self._run = self._start(config, run_id, settings)
        except Exception as error:
            self._fail(error, "switched off")

    def _start(self, config: TrackingConfig, run_id: str, settings: dict[str, Any]) -> Any:
        import wandb

        def start(mode: Literal["offline", "online"]) -> Any:
            return wandb.init(
                mode=mode,
                id=run_id,
                resume="allow",
                dir=str(self.folder),
                project=config.project,
                group=config.group,
                tags=list(config.tags),
                config=settings,
                settings=wandb.Settings(
                    init_timeout=INIT_SECONDS,
                    login_timeout=INIT_SECONDS,
                    finish_timeout=FINISH_SECONDS,
                    console="off",
                    silent=True,
                ),
            )

        with _logs_under(self.folder / "wandb"):
            if config.wandb != "online":
                return start("offline")
            try:
                return start("online")
            except Exception as error:
                # The failed run keeps its id until the service goes down with it.
                wandb.teardown()
                run = start("offline")
                self._fail(error, "could not connect; logging offline")
                return run

    def log(self, row: Mapping[str, Any]) -> None:
        """Mirrors one row; never raises."""
        if self._run is None:
            return
        try:
            self._run.log(dict(row), step=int(row["step"]))
        except Exception as error:
            self._fail(error, "switched off")
            self._finish(exit_code=1)

    def _finish(self, exit_code: int) -> None:
        run, self._run = self._run, None
        try:
            run.finish(exit_code=exit_code)
        except Exception as error:
            self._fail(error, "did not finish")
            with contextlib.suppress(Exception):  # a dead service would complain again at exit
                import wandb

                wandb.teardown()

    def _fail(self, error: Exception, outcome: str) -> None:
        if self._warned:
            return
        self._warned = True
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        self.warn(
            f"W&B: {outcome} ({type(error).__name__}: {reason}). metrics.jsonl has every row; "
            f"upload later with: wandb sync {self.folder / 'wandb'}/*run-*"
        )

    def __enter__(self) -> Mirror:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._run is not None:
            self._finish(exit_code=0 if kind is None else 1)


@contextlib.contextmanager
def _logs_under(folder: Path) -> Iterator[None]:
    """Has the W&B service, started inside, keep its logs in `folder` instead of the user's home."""
    folder.mkdir(parents=True, exist_ok=True)
    name = "WANDB_CACHE_DIR"
    chosen = os.environ.get(name)
    os.environ.setdefault(name, str(folder.resolve()))
    try:
        yield
    finally:
        if chosen is None:
            del os.environ[name]
