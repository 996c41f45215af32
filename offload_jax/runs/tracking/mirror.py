"""A run's mirror at Weights & Biases, held at arm's length: a process of its own does all of it.

The process that trains only puts short messages into a pipe, and leaves out what does not fit; rows
are read by the other one from metrics.jsonl. So nothing that W&B does can raise into the training
loop or hold it up. The one thing that takes time is the end: `FINISH_SECONDS` at most, then the
other process is killed. What is missing then is uploaded by `offload-jax sync`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from offload_jax.runs.tracking.courier import Courier, Reply
from offload_jax.runs.tracking.metrics import TrackingConfig
from offload_jax.runs.tracking.uploader import Job, reason

INIT_SECONDS = 20.0  # for the server to answer; training does not wait for it
UPLOAD_SECONDS = 16.0  # at the end, for rows; before that half as many for checkpoints
FINISH_SECONDS = 28.0  # at the end, for all of it; then the other process is killed
COPY_SECONDS = 2.0  # for a copy of a checkpoint, where it cannot be linked


class Mirror:
    """Use as a context manager. No method raises, whatever W&B, the disk or the network do.

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
        self._online = config.wandb == "online"
        self._warned = False
        self._courier: Courier | None = None
        if config.wandb == "off":
            return
        with self._harmless():
            _clean_scratch(folder)
            job = job_for(config, folder, folder, run_id, settings)
            self._courier = Courier(job, folder / "wandb" / "mirror.log")

    def log(self, row: Mapping[str, Any]) -> None:
        """Mirrors a row that is in metrics.jsonl already."""
        self._tell({"rows": row["step"]})

    def picture(self, name: str, path: Path) -> None:
        """Shows a PNG file; it is read soon after, or at the end of the run."""
        self._tell({"picture": str(path.resolve()), "name": name})

    def checkpoint(self, path: Path, step: int, aliases: Sequence[str]) -> None:
        """Uploads a folder as version `step` of the run's checkpoints, online only.

        `aliases` are among latest, best and step-N. The folder may be removed at once: what is
        uploaded are links to its files, or a copy where the file system has no links.
        """
        if not self._online or self._courier is None:
            return
        staged = self.folder.resolve() / "wandb" / "checkpoints" / f"{step}-{time.time_ns()}"
        try:
            link_tree(path, staged, COPY_SECONDS)
        except OSError as error:
            self._fail(f"checkpoint {step} is not uploaded ({reason(error)})")
            shutil.rmtree(staged, ignore_errors=True)
            return
        if not self._tell({"checkpoint": str(staged), "step": step, "aliases": list(aliases)}):
            shutil.rmtree(staged, ignore_errors=True)

    def __enter__(self) -> Mirror:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        courier, self._courier = self._courier, None
        if courier is None:
            return
        end = time.monotonic() + FINISH_SECONDS
        with self._harmless(), courier:
            courier.send_by(end, {"finish": 0 if kind is None else 1})
            if not any("finished" in reply for reply in self._heard(courier, end)):
                self._fail("did not finish in time")

    def _tell(self, message: dict[str, Any]) -> bool:
        """Whether it was sent."""
        courier = self._courier
        if courier is None:
            return False
        sent = False
        with self._harmless():
            sent = courier.send(message)
            self._heard(courier)
            if courier.gone:
                self._fail("switched off (its process ended)")
        if courier.gone or self._courier is None:
            courier.close()
            self._courier = None
        return sent

    def _heard(self, courier: Courier, until: float | None = None) -> list[Reply]:
        """What the other process said; what went wrong there is passed on."""
        replies = list(courier.replies(until))
        for reply in replies:
            if "trouble" in reply:
                self._fail(reply["trouble"])
        return replies

    @contextlib.contextmanager
    def _harmless(self) -> Iterator[None]:
        """Whatever goes wrong inside switches the mirror off, and nothing else."""
        try:
            yield
        except Exception as error:
            self._fail(f"switched off ({reason(error)})")
            self._courier = None

    def _fail(self, what: str) -> None:
        if self._warned:
            return
        self._warned = True
        self.warn(
            f"W&B: {what}. metrics.jsonl has every row; upload later with: "
            f"offload-jax sync {self.folder}"
        )


def job_for(
    config: TrackingConfig,
    folder: Path,
    scratch: Path,
    run_id: str,
    settings: dict[str, Any],
    only_online: bool = False,
) -> Job:
    """The job of mirroring the run in `folder`, W&B's own files under `scratch`."""
    return Job(
        folder=str(folder.resolve()),
        scratch=str(scratch.resolve()),
        run_id=run_id,
        settings=settings,
        mode="online" if config.wandb == "online" or only_online else "offline",
        fallback=not only_online,
        project=config.project,
        entity=config.entity,
        group=config.group,
        tags=config.tags,
        program=sys.argv[0],
        started=time.time_ns(),
        pid=os.getpid(),
        init_seconds=INIT_SECONDS,
        finish_seconds=UPLOAD_SECONDS,
    )


def _clean_scratch(folder: Path) -> None:
    """Makes the folder for W&B's files; checkpoints that an earlier start did not upload go."""
    (folder / "wandb").mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder / "wandb" / "checkpoints", ignore_errors=True)


def link_tree(source: Path, target: Path, seconds: float) -> None:
    """Links every file under `source`; copies what cannot be linked, for so many seconds.

    Raises OSError where that fails or takes longer.
    """
    end = time.monotonic() + seconds

    def link(old: str, new: str) -> None:
        try:
            os.link(old, new)
        except OSError:
            if time.monotonic() > end:
                raise TimeoutError("copying takes too long") from None
            shutil.copyfile(old, new)

    shutil.copytree(source, target, copy_function=link)
