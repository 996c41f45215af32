"""W&B, its real client with a server here, can fail in any way: no run fails, no row is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, nullcontext
from importlib import metadata
from pathlib import Path

import pytest
from paths import HELPERS
from small_runs import tiny
from tracked import FAULTS, OFFLINE, Fault, Loop, go_through, small_disk
from wandb_server import Server

from offload_jax import cli
from offload_jax.commands.sync import cure
from offload_jax.files.disk import NAME, seal
from offload_jax.runs import run_folder
from offload_jax.runs.tracking import wandb_tracker
from offload_jax.runs.tracking.metrics import TrackingConfig
from offload_jax.runs.tracking.wandb_process import Upload
from offload_jax.runs.train import train


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    with Server() as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.fixture
def long_server(monkeypatch) -> Iterator[Server]:
    """The same, with the client's own waits."""
    with Server() as server:
        for name, value in server.environment(hurry=False).items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.fixture
def hurried(monkeypatch) -> None:
    """Shorter limits than those of real runs."""
    monkeypatch.setattr(wandb_tracker, "INIT_SECONDS", 2.0)
    monkeypatch.setattr(wandb_tracker, "UPLOAD_SECONDS", 2.0)
    monkeypatch.setattr(wandb_tracker, "FINISH_SECONDS", 20.0)


def test_offline_needs_nothing(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "another")  # of a shell that started other runs, too
    loop = Loop(tmp_path / "offline", OFFLINE)
    loop.rows(2)
    loop.checkpoint()
    loop.finish()
    [file] = loop.files()
    assert file.name == "run-offline.wandb"
    assert b"wandb_process.py" not in file.read_bytes()  # the run is of the script that trains
    assert loop.said == []
    assert not list(loop.folder.glob("wandb/checkpoints/*"))


def test_online_has_everything_and_a_resumed_run_catches_up(server, tmp_path) -> None:
    loop = Loop(tmp_path / "online")
    loop.rows(2)
    loop.checkpoint(("latest", "best", "step-2"))
    loop.until(lambda: server.artifacts)
    loop.finish()
    run, first = server.runs["online"], len(loop.written())
    assert run.project == "tests"
    assert [row["step"] for row in run.history] == list(range(1, first + 1))
    assert [row["gap"] for row in run.history] == [1 / row["step"] for row in run.history]
    assert run.config["seed"] == {"value": 0}
    assert (run.complete, run.exit_code) == (True, 0)
    assert run.history[-1]["evaluations"]["nrows"] == first
    assert run.summary["gap"] == {"min": 1 / first}
    assert any("system.proc.memory.rssMB" in row for row in run.lines("wandb-events.jsonl"))
    [checkpoint] = [a for a in server.artifacts if a["artifactTypeName"] == "checkpoint"]
    assert set(checkpoint["aliases"]) == {"latest", "best", "step-2"}
    assert server.uploads[checkpoint["files"]["weights"]] == 100
    assert not list(loop.folder.glob("wandb/checkpoints/*"))

    unseen = Loop(tmp_path / "online", TrackingConfig(wandb="off"))
    unseen.rows(2)
    unseen.finish()
    again = Loop(tmp_path / "online")
    again.rows(2)
    again.finish()
    assert [row["step"] for row in run.history] == list(range(1, first + 5))
    assert [*loop.said, *unseen.said, *again.said] == []


QUICK = (  # and whether it takes a sync to see that no row is lost
    ("no server at the start", True),
    ("the server refuses", False),
    ("the service dies", False),
    ("the process hangs", False),
    ("the folder cannot be made", False),
    ("the disk fills up offline", False),
)


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize(("name", "sync"), QUICK)
def test_faults(server, tmp_path, monkeypatch, name, sync) -> None:
    """Nothing is raised, all is said once, the limits are kept, and all rows get there later."""
    fault, folder = FAULTS[name], tmp_path / "run"
    if fault.said == "did not finish in time":
        monkeypatch.setattr(wandb_tracker, "FINISH_SECONDS", 1.0)
    with disk(fault, folder):
        loop = go_through(fault, server, folder, rows=3, pause=0.1)
    assert_survived(loop, fault)
    if sync:
        assert_recovered(loop, server)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", FAULTS)
def test_faults_in_long_runs(long_server, tmp_path, name) -> None:
    """The same with the limits of real runs, and what it costs. `MIRROR_RESULTS` names a file
    that keeps it."""
    fault, folder = FAULTS[name], tmp_path / "run"
    with disk(fault, folder):
        loop = go_through(fault, long_server, folder, rows=100, pause=0.05)
    assert_survived(loop, fault)
    assert_recovered(loop, long_server)
    if out := os.environ.get("MIRROR_RESULTS"):
        record(Path(out), name, loop)


def disk(fault: Fault, folder: Path) -> AbstractContextManager[None]:
    if not fault.disk:
        return nullcontext()
    stack = ExitStack()
    try:
        stack.enter_context(small_disk(folder / "wandb"))
    except PermissionError as error:
        pytest.skip(f"needs a small disk ({error})")
    return stack


def assert_survived(loop: Loop, fault: Fault) -> None:
    assert [row["step"] for row in loop.written()] == list(range(1, loop._step + 1))
    assert loop.delay <= min(30, wandb_tracker.FINISH_SECONDS + 3)
    assert loop.longest <= wandb_tracker.COPY_SECONDS + wandb_tracker.KILL_SECONDS
    if fault.said is not None:
        [message] = loop.said
        assert message.startswith("W&B: ")
        assert fault.said in message
        assert message.endswith(f"upload later with: offload-jax sync {loop.folder}")
    else:
        assert loop.said == []


def assert_recovered(loop: Loop, server: Server) -> None:
    """All rows are at the server, once; those that were not there by `sync`."""
    server.mood = "good"
    server.start()
    if loop.said:
        assert cli.main(["sync", str(loop.folder)]) == 0
    assert [row["step"] for row in server.runs["run"].history] == list(range(1, loop._step + 1))


def record(path: Path, name: str, loop: Loop) -> None:
    """Keeps what the mirror took of a run's time, in seconds."""
    try:
        found = json.loads(path.read_text())
    except OSError:
        found = {"faults": {}}
    found |= {**run_folder.provenance(), "wandb": metadata.version("wandb")}
    said = [text.partition(". metrics")[0].replace(str(loop.folder), "RUN") for text in loop.said]
    found["faults"][name] = {
        "rows": loop._step,
        "delay_s": round(loop.delay, 3),
        "longest_call_s": round(loop.longest, 5),
        "load": round(os.getloadavg()[0], 1),  # of the machine at the end
        "said": said,
    }
    path.write_text(json.dumps(found, indent=1) + "\n")


def kill_a_run(folder: Path) -> None:
    """Leaves a run of two rows behind, and the process that mirrors it."""
    program = f"""
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {str(HELPERS)!r})
from tracked import Loop
loop = Loop(Path({str(folder)!r}))
loop.rows(2)
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", program], timeout=60)


def test_a_killed_run_has_its_rows_and_is_marked(server, tmp_path) -> None:
    """The mirror outlives the process that trains."""
    kill_a_run(tmp_path / "killed")
    run = server.wait_for("killed", lambda run: run.complete)
    assert ([row["step"] for row in run.history], run.exit_code) == ([1, 2], 255)


@pytest.mark.slow
def test_a_killed_run_goes_on_at_once(server, tmp_path) -> None:
    """Whichever process comes first: the one of the killed start, or the one of the next."""
    for count in range(2, 22, 4):
        kill_a_run(tmp_path / "killed")
        loop = Loop(tmp_path / "killed")
        loop.rows(2)
        loop.finish()
        run = server.runs["killed"]
        assert loop.said == []
        assert [row["step"] for row in run.history] == list(range(1, count + 3))
        time.sleep(5)
        assert run.exit_code == 0


@pytest.mark.fast
def test_checkpoints_that_are_overtaken_while_they_wait_are_left_out(tmp_path) -> None:
    """One is on its way over a slow network while the others come."""
    upload, slow, sent = object.__new__(Upload), threading.Event(), []
    upload.online, upload._checkpoints, upload._thread = True, [], ThreadPoolExecutor(1)
    upload._send = lambda path, step, aliases: (slow.wait(60), sent.append(step))
    for step in range(1, 6):
        (tmp_path / str(step)).mkdir()
        aliases = ["latest", f"step-{step}"] + ["best"] * (step in (1, 3))
        upload.checkpoint(str(tmp_path / str(step)), step, aliases)
        time.sleep(0.05)  # the first one has to be on its way
    slow.set()
    upload._thread.shutdown()
    assert sent == [1, 3, 5]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "3", "5"]


def test_without_wandb_installed(tmp_path, monkeypatch) -> None:
    (tmp_path / "wandb.py").write_text("raise ModuleNotFoundError('No module named wandb')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    loop = Loop(tmp_path / "alone", OFFLINE)
    loop.rows(1)
    loop.finish()
    assert_survived(loop, Fault(said="stopped (ModuleNotFoundError"))


def test_sync_of_a_run_that_was_never_online(server, tmp_path, capsys) -> None:
    loop = Loop(tmp_path / "late", TrackingConfig(wandb="off"))
    loop.rows(6)
    loop.finish()
    for step in (2, 4, 6):
        folder = loop.folder / "checkpoints" / str(step)
        about = json.dumps({"gap": 1 / step}).encode()
        for part, content in (("state", bytes(step)), ("about", about)):
            (folder / part).mkdir(parents=True)
            (folder / part / "metadata").write_bytes(content)
        seal(folder)
    (loop.folder / "checkpoints" / "8.being-written").mkdir()
    before = sorted(loop.folder.rglob("*"))
    words = ["sync", str(loop.folder), "--project", "elsewhere"]
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert "6 of 6 rows are new there, all are there now" in said
    assert f"see {server.url}/tester/elsewhere/runs/late" in said
    [artifact] = [a for a in server.artifacts if a["artifactTypeName"] == "checkpoint"]
    assert set(artifact["aliases"]) == {"best", "latest", "step-6"}
    sizes = {name: server.uploads[path] for name, path in artifact["files"].items()}
    assert sizes["state/metadata"] == 6
    assert set(sizes) == {"state/metadata", "about/metadata", NAME}
    assert cli.main(words) == 0
    assert "0 of 6 rows are new there, all are there now" in capsys.readouterr().out
    assert [row["step"] for row in server.runs["late"].history] == [1, 2, 3, 4, 5, 6]
    assert sorted({*loop.folder.rglob("*")} - {loop.folder / ".upload.lock"}) == before


@pytest.mark.slow
@pytest.mark.parametrize("wandb", ["offline", "online"])
def test_a_trained_run(server, tmp_path, wandb) -> None:
    """All of it is at the server, live or by a sync: rows, settings, pictures, checkpoints."""
    said: list[str] = []
    run = train(tiny(4, wandb), folder=tmp_path / "run", warn=said.append)
    run_id = json.loads((run.folder / "run.json").read_text())["id"]
    assert (run_id in server.runs) == (wandb == "online")
    assert cli.main(["sync", str(run.folder)]) == 0
    found = server.runs[run_id]
    for row, there in zip(run.rows, found.history, strict=True):
        assert {key: there[key] for key in row} == pytest.approx(row)
    assert found.config["learner"]["value"]["updates"] == 4
    assert found.history[-1]["learning_curve"]["_type"] == "image-file"
    assert found.history[-1]["evaluations"]["nrows"] == sum("gap" in row for row in run.rows)
    checkpoints = [a for a in server.artifacts if a["artifactTypeName"] == "checkpoint"]
    assert {"latest", "step-4"} <= set(checkpoints[-1]["aliases"])
    assert "best" in {alias for a in checkpoints for alias in a["aliases"]}
    there = [server.uploads[path] for path in checkpoints[-1]["files"].values()]
    files = [p for p in (run.folder / "checkpoints" / "4").rglob("*") if p.is_file()]
    assert sorted(there) == sorted(path.stat().st_size for path in files)
    assert said == []


def test_a_port_is_no_refused_key() -> None:
    late = "CommError: Post http://127.0.0.1:34015/graphql: context deadline exceeded"
    assert "cannot be reached" in cure(late)
    assert "WANDB_API_KEY" in cure("CommError: returned error 401: user is not logged in")


def test_sync_refuses(server, tmp_path, monkeypatch, capsys) -> None:
    loop = Loop(tmp_path / "refused", TrackingConfig(wandb="off"))
    words = ["sync", str(loop.folder)]
    assert cli.main(["sync", str(tmp_path)]) == 1
    assert cli.main(words) == 1
    said = capsys.readouterr().err
    assert "must be a run directory (with a config.yaml)" in said
    assert "has no rows yet" in said
    loop.rows()
    loop.finish()
    monkeypatch.setattr(wandb_tracker, "INIT_SECONDS", 2.0)
    server.mood = "strange"
    assert cli.main(words) == 1
    assert "set WANDB_API_KEY, or call: wandb login" in capsys.readouterr().err
    server.mood = "silent"
    assert cli.main([*words, "--timeout-s", "0.5"]) == 1
    late = "not everything was uploaded in 0.5 s; the same command goes on"
    assert late in capsys.readouterr().err
    server.stop()
    assert cli.main(words) == 1
    assert "the W&B server cannot be reached" in capsys.readouterr().err
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cli.main(words) == 1
    assert "set WANDB_API_KEY, or call: wandb login" in capsys.readouterr().err
    assert {path.name for path in loop.folder.iterdir()} == {
        "config.yaml",
        "run.json",
        "metrics.jsonl",
        ".upload.lock",
    }
