"""For tests of the mirror: a training loop without the training, and what can go wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from wandb_server import Server

from offload_jax.runs.config import TrainConfig
from offload_jax.runs.config_file import to_yaml
from offload_jax.runs.tracking.metrics import MetricsFile, TrackingConfig, read_rows
from offload_jax.runs.tracking.tracker import Noop, RunStart
from offload_jax.runs.tracking.wandb_tracker import WandbTracker

ONLINE = TrackingConfig(wandb="online", project="tests", tags=("a",))
OFFLINE = TrackingConfig(project="tests")


class Loop:
    """Rows into the file, then to the mirror; it keeps the time that the mirror took."""

    def __init__(self, folder: Path, tracking: TrackingConfig = ONLINE) -> None:
        folder.mkdir(exist_ok=True)
        config = TrainConfig(tracking=tracking)
        (folder / "config.yaml").write_text(to_yaml(config))
        (folder / "run.json").write_text(json.dumps({"id": folder.name}))
        self.folder, self.said = folder, []
        self.delay, self.longest = 0.0, 0.0  # s: of all calls, of one (the end left out)
        self._metrics = MetricsFile(folder / "metrics.jsonl")
        self._step = max((row["step"] for row in self.written()), default=0)
        self.timed(lambda: self._start(tracking, {"seed": config.seed}))

    def _start(self, tracking: TrackingConfig, settings: dict[str, int]) -> None:
        start = RunStart(self.folder, self.folder.name, settings, self._step, self.said.append)
        self.mirror = Noop() if tracking.wandb == "off" else WandbTracker(tracking, start)

    def timed(self, call: Callable[[], object]) -> float:
        start = time.monotonic()
        call()
        took = time.monotonic() - start
        self.delay += took
        return took

    def rows(self, count: int = 1, pause: float = 0.0) -> None:
        for _ in range(count):
            self._step += 1
            row = {"step": self._step, "gap": 1 / self._step}
            self._metrics.row(row)
            self.longest = max(self.longest, self.timed(lambda row=row: self.mirror.row(row)))
            time.sleep(pause)

    def checkpoint(self, aliases: tuple[str, ...] = ("latest",)) -> None:
        """One that retention removes at once."""
        folder = self.folder / f"state-{self._step}"
        folder.mkdir()
        (folder / "weights").write_bytes(b"%d" % self._step * 100)
        took = self.timed(lambda: self.mirror.artifact(folder, self._step, list(aliases)))
        self.longest = max(self.longest, took)
        (folder / "weights").unlink()
        folder.rmdir()

    def finish(self) -> None:
        self._metrics.finish()
        self.timed(self.mirror.finish)

    def written(self) -> list[dict[str, float]]:
        return read_rows(self.folder / "metrics.jsonl")

    def process(self) -> int:
        """The id of the process that mirrors."""
        return self.mirror._process.pid

    def service(self) -> int:
        """The id of its W&B service."""
        if not Path("/proc").is_dir():
            pytest.skip("needs /proc")
        mine = self.process()
        children = Path(f"/proc/{mine}/task/{mine}/children").read_text().split()
        [core] = [int(p) for p in children if "wandb-core" in Path(f"/proc/{p}/comm").read_text()]
        return core

    def until(self, state: Callable[[], object], seconds: float = 60) -> None:
        """Makes rows until `state`."""
        end = time.monotonic() + seconds
        while not state():
            assert time.monotonic() < end
            self.rows(pause=0.05)

    def files(self) -> list[Path]:
        """W&B's own of this run."""
        return list(self.folder.glob("wandb/*run-*/*.wandb"))


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong in the middle of a run, or before it starts."""

    strike: Callable[[Loop, Server], object] = lambda loop, server: None
    before: Callable[[Path, Server], object] = lambda folder, server: None
    mend: Callable[[Loop, Server], object] = lambda loop, server: None
    tracking: TrackingConfig = ONLINE
    said: str | None = None  # a part of what is said, once; None: nothing is
    disk: bool = False  # W&B's folder is a small disk of its own


def _mood(mood: str) -> Callable[[object, Server], None]:
    return lambda _, server: setattr(server, "mood", mood)


def _in_the_way(folder: Path, server: Server) -> None:
    folder.mkdir()
    (folder / "wandb").write_text("a file")


def _kill(number: int, which: Callable[[Loop], int]) -> Callable[[Loop, Server], None]:
    return lambda loop, server: os.kill(which(loop), number)


def _fill(loop: Loop, server: Server) -> None:
    """Until there is no room for a byte."""
    with (loop.folder / "wandb" / "filler").open("wb", buffering=0) as file:
        for size in (4096, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                pass


FAULTS = {
    "none": Fault(),
    "no server at the start": Fault(before=lambda _, s: s.stop(), said="could not connect"),
    "a silent server at the start": Fault(before=_mood("silent"), said="could not connect"),
    "the server goes and comes back": Fault(lambda _, s: s.stop(), mend=lambda _, s: s.start()),
    "the server goes for good": Fault(lambda _, s: s.stop(), said=""),
    "the server breaks for good": Fault(_mood("broken"), said=""),
    "the server falls silent": Fault(_mood("silent"), said=""),
    "the server refuses": Fault(_mood("forbidding"), said="the server refuses the rows"),
    "the service dies": Fault(_kill(signal.SIGKILL, Loop.service), said="stopped ("),
    "the service dies offline": Fault(
        _kill(signal.SIGKILL, Loop.service), tracking=OFFLINE, said="stopped ("
    ),
    "the process dies": Fault(_kill(signal.SIGKILL, Loop.process), said="its process ended"),
    "the process hangs": Fault(_kill(signal.SIGSTOP, Loop.process), said="did not finish in time"),
    "the folder cannot be made": Fault(before=_in_the_way, said="switched off (FileExistsError"),
    "the disk fills up": Fault(_fill, said="No space left on device", disk=True),
    "the disk fills up offline": Fault(
        _fill, tracking=OFFLINE, said="No space left on device", disk=True
    ),
}


def go_through(fault: Fault, server: Server, folder: Path, rows: int, pause: float) -> Loop:
    """A run with `rows` rows before the fault, and again after it, and after it is mended."""
    fault.before(folder, server)
    loop = Loop(folder, fault.tracking)
    loop.rows(rows, pause)
    if fault.before is Fault.before:
        online = fault.tracking is ONLINE
        loop.until(lambda: server.rows(folder.name) if online else loop.files())
    loop.checkpoint(("latest", "best"))
    fault.strike(loop, server)
    loop.rows(rows, pause)
    loop.checkpoint()
    fault.mend(loop, server)
    loop.rows(rows, pause)
    if fault.mend is not Fault.mend:
        loop.until(lambda: len(server.artifacts) == 2)
    loop.finish()
    return loop


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Mounts 2 MiB at `folder`. Raises PermissionError where that is not allowed."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True)
    except FileNotFoundError:
        raise PermissionError("there is no mount") from None
    if done.returncode:
        raise PermissionError(done.stderr)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
