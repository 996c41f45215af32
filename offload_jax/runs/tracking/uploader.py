"""One run at Weights & Biases, fed from its run directory. The only file that imports wandb.

Anything here may raise what wandb raises, and wait as long as wandb waits: it runs in a process of
its own (mirror_process.py), never in the one that trains.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

LAST = {"latest", "best"}  # aliases that move on to a newer checkpoint


@dataclass(frozen=True)
class Job:
    """What a process needs to know to mirror a run; JSON can hold it."""

    folder: str  # the run directory
    scratch: str  # where W&B keeps its own files
    run_id: str
    settings: dict[str, Any]  # of the run: its config at W&B
    mode: Literal["offline", "online"]
    fallback: bool  # offline, where online fails
    project: str
    entity: str | None
    group: str | None
    tags: Sequence[str]
    program: str  # what W&B shows as the script
    started: int  # when, in ns since 1970
    pid: int  # the process whose memory and CPU W&B shows
    init_seconds: float
    finish_seconds: float


class Upload:
    """An open run; only rows with steps above `have` are new to it."""

    def __init__(self, job: Job, online: bool) -> None:
        """Raises what wandb raises where there is no key, no server or no room."""
        import wandb

        self.job, self.online = job, online
        self._run = wandb.init(
            mode="online" if online else "offline",
            id=job.run_id,
            resume="allow",
            dir=job.scratch,
            project=job.project,
            entity=job.entity,
            group=job.group,
            tags=list(job.tags),
            config=job.settings,
            allow_val_change=True,
            settings=wandb.Settings(
                init_timeout=job.init_seconds,
                login_timeout=job.init_seconds,
                finish_timeout=job.finish_seconds,
                finish_timeout_raises=True,
                console="off",
                silent=True,
                program=job.program,
            ),
        )
        self._said = _Collected()
        wandb.termsetup(wandb.Settings(silent=True), self._said)
        self._run.define_metric("gap", summary="min")
        self.have: float = self._run.starting_step - 1  # the last step that the server has
        self.sent = 0  # rows
        self._newest = 0  # step of the last one of them
        self._checkpoints = _CheckpointQueue(self._log_checkpoint)

    @property
    def url(self) -> str | None:
        return self._run.url if self.online else None

    def rows(self, rows: Sequence[dict[str, Any]]) -> None:
        """Logs those that are new; call it with every row once."""
        self._said.check()
        self._check_room()
        for row in rows:
            if row["step"] > self.have:
                self.sent, self._newest = self.sent + 1, int(row["step"])
                self._run.log(row, step=self._newest)

    def picture(self, name: str, path: str) -> None:
        """Shows a PNG with the newest row."""
        import wandb

        self._show(name, wandb.Image(path))

    def table(self, name: str, rows: Sequence[dict[str, Any]]) -> None:
        """Shows rows as a table, with the newest row; no rows, no table."""
        import wandb

        if rows:
            keys = list(dict.fromkeys(key for row in rows for key in row))
            data = [[row.get(key) for key in keys] for row in rows]
            self._show(name, wandb.Table(columns=[*keys], data=data))

    def checkpoint(self, path: str, step: int, aliases: Sequence[str]) -> None:
        """Uploads a folder, which is then ours to remove. Offline it would only fill the disk."""
        if self.online:
            self._checkpoints.add(path, step, aliases)
        else:
            shutil.rmtree(path, ignore_errors=True)

    def finish(self, exit_code: int, evaluations: Sequence[dict[str, Any]]) -> None:
        """Returns when all is uploaded (online), or in the file. Raises TimeoutError and others."""
        self._check_room()
        if self._checkpoints.finish(self.job.finish_seconds / 2):
            # Only then: the client asks the server about a table, and waits long for an answer.
            self.table("evaluations", evaluations)
        self._run.finish(exit_code=exit_code)
        self._said.check()
        if self._checkpoints.failures:
            raise RuntimeError(self._checkpoints.failures[0])

    def _check_room(self) -> None:
        """Raises OSError where the disk is full: W&B would drop rows and say nothing."""
        probe = Path(tempfile.gettempdir()) / "room"
        probe.write_bytes(bytes(65536))
        probe.unlink()

    def _show(self, name: str, value: Any) -> None:
        # A row is open until the next one, and what is logged with its step joins it. Later it
        # would become a row of its own, behind which the server refuses the run's next rows.
        if self.sent:
            self._run.log({name: value}, step=self._newest)
        else:
            self._run.summary[name] = value

    def _log_checkpoint(self, path: str, step: int, aliases: Sequence[str]) -> None:
        import wandb

        artifact = wandb.Artifact(
            f"checkpoint-{self.job.run_id}", type="checkpoint", metadata={"step": step}
        )
        artifact.add_dir(path, policy="immutable", skip_cache=True)
        self._run.log_artifact(artifact, aliases=list(aliases)).wait()


class _Collected:
    """Takes what W&B would print. It raises nothing where a server refuses rows; it says so."""

    def __init__(self) -> None:
        self._fatal = False

    def info(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def error(self, text: str) -> None:
        self.info(text)
        self._fatal = self._fatal or "Fatal error" in text

    warning = error

    def check(self) -> None:
        """Raises RuntimeError where rows were given up."""
        if self._fatal:
            raise RuntimeError("the server refuses the rows of this run")


class _CheckpointQueue:
    """Sends checkpoints one after another on a thread; those overtaken while they wait are dropped.

    So a slow network holds up no rows, and the copies on disk stay few.
    """

    def __init__(self, send: Callable[[str, int, Sequence[str]], None]) -> None:
        self._send = send
        self._waiting: list[tuple[str, int, Sequence[str]]] = []
        self._change = threading.Condition()
        self._busy = False
        self.failures: list[str] = []
        threading.Thread(target=self._work, daemon=True).start()

    def add(self, path: str, step: int, aliases: Sequence[str]) -> None:
        with self._change:
            for entry in list(self._waiting):
                if LAST & set(entry[2]) <= set(aliases):
                    self._waiting.remove(entry)
                    shutil.rmtree(entry[0], ignore_errors=True)
            self._waiting.append((path, step, aliases))
            self._change.notify_all()

    def finish(self, seconds: float) -> bool:
        """Waits, at most that long, until all are sent; whether they are."""
        with self._change:
            done = self._change.wait_for(lambda: not (self._waiting or self._busy), seconds)
        if not done:
            self.failures.append("not all checkpoints were uploaded in time")
        return done

    def _work(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._waiting)
                path, step, aliases = self._waiting.pop(0)
                self._busy = True
            try:
                self._send(path, step, aliases)
            except Exception as error:
                self.failures.append(f"checkpoint {step}: {reason(error)}")
            shutil.rmtree(path, ignore_errors=True)
            with self._change:
                self._busy = False
                self._change.notify_all()


def close_service() -> None:
    """Ends the W&B service of this process, with the runs that are still open in it."""
    import wandb

    with contextlib.suppress(Exception):
        wandb.teardown()


def remove_temporary_files() -> None:
    """Those of `keep_files_in`, once nobody needs them."""
    shutil.rmtree(tempfile.gettempdir(), ignore_errors=True)


def keep_files_in(folder: Path, pid: int) -> None:
    """Has W&B keep logs and copies there instead of in the user's home, and watch process `pid`.

    Before the first import of wandb. Settings that users made in the environment stay. Raises
    OSError where the folder cannot be written.
    """
    # Not one for all starts: the process of a killed one may still be at work in its own.
    tempfile.tempdir = str(folder / "temporary" / str(os.getpid()))
    os.makedirs(tempfile.tempdir, exist_ok=True)
    os.environ.pop("WANDB_SERVICE", None)  # of the process that trains, if it uses W&B itself
    for name in ("WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_ARTIFACT_DIR"):
        os.environ.setdefault(name, str(folder))
    os.environ.setdefault("WANDB_X_STATS_PID", str(pid))


def cause(error: Exception) -> Literal["key", "server", "other"]:
    """What a run that could not be opened failed of."""
    if isinstance(error, ImportError):
        return "other"
    import wandb

    text = str(error).lower()
    if re.search(r"api key|\b401\b", text):  # alone: ports have such digits, too
        return "key"
    return "server" if isinstance(error, wandb.errors.CommError | TimeoutError) else "other"


def reason(error: BaseException) -> str:
    """In one line."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"{type(error).__name__}: {text}"
