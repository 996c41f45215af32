"""W&B, its real client with a server here, can fail in any way: no run fails, no row is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from wandb_server import Server

from offload_jax import cli, mirror
from offload_jax.config import TrainConfig, to_yaml
from offload_jax.mirror import Mirror
from offload_jax.tracking import MetricsFile, TrackingConfig, read_rows

ONLINE = TrackingConfig(wandb="online", project="tests", tags=("a",))
RETRY = {  # s, instead of a minute: the client's wait until it tries a lost server again
    "WANDB_X_FILE_STREAM_RETRY_WAIT_MIN_SECONDS": "1",  # whole seconds
    "WANDB_X_FILE_STREAM_RETRY_WAIT_MAX_SECONDS": "1",
}


class Loop:
    """A training loop without the training: rows into the file, then to the mirror.

    It keeps the time that the mirror took: none of it may raise, and all of it has limits.
    """

    def __init__(self, folder: Path, tracking: TrackingConfig = ONLINE) -> None:
        folder.mkdir(exist_ok=True)
        config = TrainConfig(tracking=tracking)
        (folder / "config.yaml").write_text(to_yaml(config))
        (folder / "run.json").write_text(json.dumps({"id": folder.name}))
        self.folder, self.said, self.delay = folder, [], 0.0
        self._metrics = MetricsFile(folder / "metrics.jsonl")
        self.timed(lambda: self._start(tracking, {"seed": config.seed}))

    def _start(self, tracking: TrackingConfig, settings: dict[str, int]) -> None:
        self.mirror = Mirror(tracking, self.folder, self.folder.name, settings, self.said.append)

    def timed(self, call: Callable[[], object]) -> None:
        start = time.monotonic()
        call()
        self.delay += time.monotonic() - start

    def rows(self, *steps: int) -> None:
        for step in steps:
            row = {"step": step, "gap": 1 / step}
            self._metrics.append(row)
            self.timed(lambda row=row: self.mirror.log(row))

    def listens(self) -> bool:
        """Makes one more row; whether something has been said by then."""
        self.rows(len(read_rows(self.folder / "metrics.jsonl")) + 1)
        return bool(self.said)

    def checkpoint(self, step: int, aliases: list[str]) -> None:
        """One that retention removes at once."""
        folder = self.folder / f"state-{step}"
        folder.mkdir()
        (folder / "weights").write_bytes(b"%d" % step * 100)
        self.timed(lambda: self.mirror.checkpoint(folder, step, aliases))
        (folder / "weights").unlink()
        folder.rmdir()

    def finish(self) -> None:
        self._metrics.close()
        self.timed(lambda: self.mirror.__exit__(None, None, None))

    def core(self) -> int:
        """The process id of the W&B service."""
        mine = self.mirror._courier._process.pid
        children = Path(f"/proc/{mine}/task/{mine}/children").read_text().split()
        [core] = [int(p) for p in children if "wandb-core" in Path(f"/proc/{p}/comm").read_text()]
        return core

    def until(self, state: Callable[[], object], seconds: float = 20) -> None:
        """Goes on in small steps, as a training loop would, until `state`."""
        end = time.monotonic() + seconds
        while not state():
            assert time.monotonic() < end
            time.sleep(0.05)


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    with Server() as server:
        for name, value in (server.environment() | RETRY).items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.fixture
def hurried(monkeypatch) -> None:
    """Shorter limits than those of real runs."""
    monkeypatch.setattr(mirror, "INIT_SECONDS", 2.0)
    monkeypatch.setattr(mirror, "UPLOAD_SECONDS", 2.0)
    monkeypatch.setattr(mirror, "FINISH_SECONDS", 8.0)


def steps(run: object) -> list[float]:
    return [row["step"] for row in run.history]


def synced(folder: Path) -> None:
    assert cli.main(["sync", str(folder), "--no-checkpoints"]) == 0


def assert_told(loop: Loop, phrase: str) -> None:
    [message] = loop.said
    assert message.startswith("W&B: ")
    assert phrase in message
    assert message.endswith(f"upload later with: offload-jax sync {loop.folder}")


def test_offline_needs_nothing(tmp_path) -> None:
    loop = Loop(tmp_path / "id0", TrackingConfig())
    loop.rows(1, 2)
    loop.checkpoint(2, ["latest"])
    loop.finish()
    assert list((loop.folder / "wandb").glob("offline-run-*-id0/run-id0.wandb"))
    assert loop.said == []
    assert loop.delay < 20
    assert not list((loop.folder / "wandb").glob("checkpoints/*"))


def test_online_has_everything(server, tmp_path) -> None:
    loop = Loop(tmp_path / "id1")
    loop.rows(10, 20)
    loop.checkpoint(20, ["latest", "best", "step-20"])
    loop.until(lambda: server.artifacts)
    loop.rows(30)
    loop.finish()
    assert loop.said == []
    run = server.runs["id1"]
    assert run.project == "tests"
    assert [(row["step"], row["gap"]) for row in run.history] == [(s, 1 / s) for s in (10, 20, 30)]
    assert run.config["seed"] == {"value": 0}
    assert (run.complete, run.exit_code) == (True, 0)
    assert "evaluations" in run.history[-1]
    assert run.summary["gap"] == {"min": 1 / 30}
    assert any("system.proc.memory.rssMB" in row for row in run.lines("wandb-events.jsonl"))
    [checkpoint] = [a for a in server.artifacts if a["artifactTypeName"] == "checkpoint"]
    assert set(checkpoint["aliases"]) == {"latest", "best", "step-20"}
    assert server.uploads[checkpoint["files"]["weights"]] == 200
    assert not list((loop.folder / "wandb").glob("checkpoints/*"))


def test_a_resumed_run_catches_up_and_doubles_nothing(server, tmp_path) -> None:
    first = Loop(tmp_path / "id2")
    first.rows(10, 20)
    first.finish()
    offline = Loop(tmp_path / "id2", TrackingConfig())
    offline.rows(30)
    offline.finish()
    again = Loop(tmp_path / "id2")
    again.rows(40)
    again.finish()
    assert steps(server.runs["id2"]) == [10, 20, 30, 40]
    assert [*first.said, *offline.said, *again.said] == []


@pytest.mark.usefixtures("hurried")
def test_no_server_at_the_start(server, tmp_path, capsys) -> None:
    server.stop()
    loop = Loop(tmp_path / "id3")
    loop.until(loop.listens)
    loop.checkpoint(1, ["latest"])
    loop.finish()
    assert_told(loop, "could not connect; logging offline (")
    assert list((loop.folder / "wandb").glob("offline-run-*-id3/run-id3.wandb"))
    assert not list((loop.folder / "wandb").glob("checkpoints/*"))
    server.start()
    rows = read_rows(loop.folder / "metrics.jsonl")
    synced(loop.folder)
    assert f"{len(rows)} of {len(rows)} rows are new there" in capsys.readouterr().out
    synced(loop.folder)
    assert f"0 of {len(rows)} rows are new there" in capsys.readouterr().out
    assert steps(server.runs["id3"]) == [row["step"] for row in rows]


def test_the_server_goes_and_comes_back(server, tmp_path) -> None:
    loop = Loop(tmp_path / "id4")
    loop.rows(1, 2)
    server.wait_for("id4", 1)
    server.stop()
    loop.rows(3, 4)
    time.sleep(1)
    server.start()
    loop.rows(5)
    server.wait_for("id4", 4)
    loop.finish()
    assert loop.said == []
    assert steps(server.runs["id4"]) == [1, 2, 3, 4, 5]


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("mood", ["gone", "broken", "silent", "forbidding"])
def test_the_server_goes_for_good(server, tmp_path, mood) -> None:
    loop = Loop(tmp_path / "id5")
    loop.rows(1, 2)
    server.wait_for("id5", 1)
    if mood == "gone":
        server.stop()
    else:
        server.mood = mood
    loop.rows(3, 4)
    loop.finish()
    assert_told(loop, "")
    assert loop.delay < mirror.FINISH_SECONDS + 3
    server.mood = "good"
    if mood == "gone":
        server.start()
    synced(loop.folder)
    assert steps(server.runs["id5"]) == [1, 2, 3, 4]


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("tracking", [TrackingConfig(), ONLINE], ids=["offline", "online"])
def test_a_dead_service(server, tmp_path, tracking) -> None:
    loop = Loop(tmp_path / "id6", tracking)
    loop.rows(1)
    loop.until(lambda: list(loop.folder.glob("wandb/*run-*/*.wandb")))
    os.kill(loop.core(), signal.SIGKILL)
    time.sleep(0.2)
    loop.rows(2, 3)
    loop.finish()
    assert_told(loop, "")
    assert loop.delay < mirror.FINISH_SECONDS + 3
    synced(loop.folder)
    assert steps(server.runs["id6"]) == [1, 2, 3]


def test_a_dead_or_stopped_process(server, tmp_path, monkeypatch) -> None:
    """Killed it is noticed at once; one that only hangs holds up nothing but the end."""
    monkeypatch.setattr(mirror, "FINISH_SECONDS", 1.0)
    killed, hung = Loop(tmp_path / "id7"), Loop(tmp_path / "id8")
    os.kill(killed.mirror._courier._process.pid, signal.SIGKILL)
    killed.until(killed.listens)
    assert_told(killed, "switched off (its process ended)")
    os.kill(hung.mirror._courier._process.pid, signal.SIGSTOP)
    hung.rows(1)
    hung.timed(lambda: [hung.mirror.log({"step": 1}) for _ in range(10_000)])  # a pipe holds 5,461
    hung.checkpoint(1, ["latest"])
    hung.finish()
    assert_told(hung, "did not finish in time")
    assert hung.delay < mirror.FINISH_SECONDS + 3
    killed.finish()


def test_a_folder_that_cannot_be_written(tmp_path) -> None:
    (tmp_path / "id9").mkdir()
    (tmp_path / "id9" / "wandb").write_text("in the way")
    loop = Loop(tmp_path / "id9")
    loop.rows(1)
    loop.checkpoint(1, ["latest"])
    loop.finish()
    assert_told(loop, "switched off (FileExistsError")


def test_a_killed_run_is_marked_and_has_its_rows(server, tmp_path) -> None:
    """The mirror outlives the process that trains, for as long as it takes."""
    program = f"""
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_mirror import Loop
loop = Loop(Path({str(tmp_path / "id10")!r}))
loop.rows(1, 2)
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", program], timeout=60)
    end = time.monotonic() + 20
    while not (server.runs.get("id10") and server.runs["id10"].complete):
        assert time.monotonic() < end
        time.sleep(0.05)
    assert (steps(server.runs["id10"]), server.runs["id10"].exit_code) == ([1, 2], 255)


def test_without_wandb_installed(tmp_path, monkeypatch) -> None:
    (tmp_path / "wandb.py").write_text("raise ModuleNotFoundError('No module named wandb')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    loop = Loop(tmp_path / "id11", TrackingConfig())
    loop.rows(1)
    loop.finish()
    assert_told(loop, "stopped (ModuleNotFoundError")


def test_sync_refuses(tmp_path, monkeypatch, capsys) -> None:
    loop = Loop(tmp_path / "id12", TrackingConfig(wandb="off"))
    words = ["sync", str(loop.folder)]
    assert cli.main(["sync", str(tmp_path)]) == 1
    assert cli.main(words) == 1
    said = capsys.readouterr().err
    assert "must be a run directory (with a config.yaml)" in said
    assert "has no rows yet" in said
    loop.rows(1)
    loop.finish()
    monkeypatch.setattr(mirror, "INIT_SECONDS", 2.0)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cli.main(words) == 1
    assert "set WANDB_API_KEY, or call: wandb login" in capsys.readouterr().err
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert cli.main(words) == 1
    assert "the W&B server cannot be reached" in capsys.readouterr().err
    assert {path.name for path in loop.folder.iterdir()} == {
        "config.yaml",
        "run.json",
        "metrics.jsonl",
        ".upload.lock",
    }
