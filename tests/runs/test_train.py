"""Runs: resume bit for bit however they stop; damaged, full or foreign folders are refused."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from paths import ROOT
from small_runs import tiny

from offload_jax.files.checks import CheckpointError, ConfigError, RunError
from offload_jax.learning import updates
from offload_jax.learning.devices import ONE_DEVICE
from offload_jax.runs import checkpoint, run_folder, task
from offload_jax.runs.checkpoint import Checkpoints
from offload_jax.runs.config import TrainConfig
from offload_jax.runs.config_file import to_yaml
from offload_jax.runs.recorder import Row
from offload_jax.runs.tracking.metrics import MetricsFile
from offload_jax.runs.tracking.registry import TRACKERS
from offload_jax.runs.train import RunResult, _start_state, load_policy, settings_of, train


@pytest.fixture(scope="module")
def traces() -> Iterator[list[int]]:
    """The number of updates of each learner that was traced in this module."""
    found, update = [], updates.update

    def counted(learner, state):
        found.append(learner.config.updates)
        return update(learner, state)

    task._update.clear_cache()  # of what other modules have run
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(updates, "update", counted)
        yield found


@pytest.fixture(scope="module")
def trained(tmp_path_factory, traces) -> RunResult:
    """Six updates, checkpoints of 2, 4 and 6. All runs of six updates share compiled programs."""
    return train(tiny(6, "offline"), folder=tmp_path_factory.mktemp("runs") / "six")


@pytest.fixture
def copied(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained.folder, tmp_path / "copy"))


@pytest.fixture
def half(copied) -> Path:
    """As it was after four updates."""
    shutil.rmtree(copied / "checkpoints" / "6")
    return copied


def assert_goes_on_to_the_same(trained: RunResult, folder: Path) -> None:
    """The run in `folder` ends as the one never interrupted: every row once, bit for bit."""
    whole = train(tiny(6), folder=folder)
    assert whole.finished
    assert [row["step"] for row in whole.rows] == [1, 2, 3, 4, 5, 6]
    mine, theirs = (load_policy(f, "latest").params for f in (folder, trained.folder))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, mine, theirs)))


def test_a_run_leaves_everything(trained) -> None:
    names = {path.name for path in trained.folder.iterdir()}
    wanted = {"config.yaml", "run.json", "metrics.jsonl", "checkpoints", "wandb"}
    assert wanted | {"learning_curve.png"} <= names
    assert list((trained.folder / "wandb").glob("offline-run-*/*.wandb"))
    assert [row["step"] for row in trained.rows] == [1, 2, 3, 4, 5, 6]
    assert all(np.isfinite(row["score"]) for row in trained.rows)
    assert trained.finished
    assert run_folder.read_config(trained.folder) == tiny(6, "offline")
    about = json.loads((trained.folder / "run.json").read_text())
    [start] = about["starts"]
    assert {"commit", "python", "versions", "device"} <= set(start)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    assert start["commit"] == (head.stdout.strip() or None)  # a copy may be without its history
    assert start["step"] == 6
    assert start["seconds"] > 0
    assert start["peak_memory_mb"] > 100


def test_resumed_equals_uninterrupted(trained, tmp_path) -> None:
    """Stopped after two updates by SIGTERM, and gone on with."""

    def stop_after_two(row: Row) -> None:
        if row["step"] == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    folder = tmp_path / "half"
    half = train(tiny(6), [stop_after_two], folder)
    assert (half.step, half.finished) == (2, False)
    assert_goes_on_to_the_same(trained, folder)


def test_the_update_is_traced_once(half, traces) -> None:
    """By the training loop, and never again by one that goes on."""
    assert train(tiny(6), folder=half).finished
    assert traces.count(6) == 1


def test_killed_and_gone_on_with(trained, tmp_path) -> None:
    """kill -9 in the middle: from the last checkpoint on."""
    folder, config = tmp_path / "killed", tmp_path / "config.yaml"
    config.write_text(to_yaml(tiny(6)))
    words = [sys.executable, str(ROOT / "train.py"), "--config", str(config), "--run", str(folder)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    metrics, deadline = folder / "metrics.jsonl", time.monotonic() + 120
    while not (metrics.exists() and metrics.read_text().count("\n")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert_goes_on_to_the_same(trained, folder)


def test_what_may_not_change_within_a_run(trained) -> None:
    saved = run_folder.read_config(trained.folder)
    assert run_folder.resumed(saved, replace(saved, learner=replace(saved.learner, updates=9)))
    with pytest.raises(ConfigError, match="seed is 5; must stay 0"):
        run_folder.resumed(saved, replace(saved, seed=5))
    with pytest.raises(ConfigError, match=r"network\.width is 32; must stay 16"):
        run_folder.resumed(saved, replace(saved, network=replace(saved.network, width=32)))
    with pytest.raises(ConfigError, match=r"run\.eval_instances is 9; must stay 16"):
        run_folder.resumed(saved, replace(saved, run=replace(saved.run, eval_instances=9)))


def test_an_own_tracker_hears_of_all(half, monkeypatch) -> None:
    heard: list[tuple] = []

    class Own:
        def __init__(self, config, start) -> None:
            heard.append(("start", start.step, start.settings["seed"]))

        def row(self, row) -> None:
            heard.append(("row", row["step"]))

        def figure(self, name, path) -> None:
            heard.append(("figure", name, path.is_file()))

        def artifact(self, path, step, aliases) -> None:
            heard.append(("artifact", step, (path / "state").is_dir(), "latest" in aliases))

        def finish(self, failed=False) -> None:
            heard.append(("finish", failed))

    monkeypatch.setitem(TRACKERS, "own", Own)
    config = tiny(6)
    train(replace(config, tracking=replace(config.tracking, also=("own",))), folder=half)
    assert heard == [
        ("start", 4, 0),
        ("row", 5),
        ("row", 6),
        ("artifact", 6, True, True),
        ("figure", "learning_curve", True),
        ("finish", False),
    ]


def test_a_start_that_fails_leaves_the_rows(half, monkeypatch) -> None:
    before = (half / "metrics.jsonl").read_bytes()

    def fail(*_: object) -> None:
        raise MemoryError("no room to compile")

    monkeypatch.setattr("offload_jax.runs.train.prepare", fail)
    with pytest.raises(MemoryError):
        train(tiny(6), folder=half)
    assert (half / "metrics.jsonl").read_bytes() == before


def full_at(step: int, times: int, monkeypatch) -> None:
    """The disk is full when the row of `step` is written, so many times."""
    write, left = MetricsFile.row, [times]

    def full(self: MetricsFile, row) -> None:
        if row["step"] == step and left[0]:
            left[0] -= 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        write(self, row)

    monkeypatch.setattr(MetricsFile, "row", full)


def test_a_full_disk_stops_the_run_and_loses_nothing(half, monkeypatch) -> None:
    full_at(6, 1, monkeypatch)
    with pytest.raises(RunError, match=r"cannot be written: No space left.*go on with the run"):
        train(tiny(6), folder=half)
    assert [row["step"] for row in train(tiny(6), folder=half).rows] == [1, 2, 3, 4, 5, 6]


def test_or_training_goes_on_and_the_rows_are_written_later(half, monkeypatch) -> None:
    said: list[str] = []
    full_at(5, 1, monkeypatch)
    result = train(changed(tiny(6), failed_save="go-on"), folder=half, warn=said.append)
    assert [row["step"] for row in result.rows] == [1, 2, 3, 4, 5, 6]
    [message] = said
    assert message.endswith("go on with the run. Training goes on; 1 rows wait.")
    assert load_policy(half, "latest").source.endswith("update 6")


def test_the_last_state_is_saved_once_its_row_could_be(half, monkeypatch) -> None:
    full_at(6, 1, monkeypatch)
    config = changed(tiny(6), failed_save="go-on")
    assert train(config, folder=half, warn=lambda _: None).rows[-1]["step"] == 6
    assert load_policy(half, "latest").source.endswith("update 6")


def failing_once(f):
    """`f`, but the first call meets a full disk."""
    calls = []

    def call(*arguments):
        calls.append(arguments)
        if len(calls) == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return f(*arguments)

    return call


def test_a_failed_save_stops_the_run_or_not(half, monkeypatch) -> None:
    seal, said = checkpoint.disk.seal, []
    monkeypatch.setattr(checkpoint.disk, "seal", failing_once(seal))
    with pytest.raises(CheckpointError, match=r"cannot be written .*No space left.*go on with"):
        train(tiny(6), folder=half)
    assert load_policy(half, "latest").source.endswith("update 4")
    monkeypatch.setattr(checkpoint.disk, "seal", failing_once(seal))
    config = changed(tiny(6), failed_save="go-on", save_s=1e-6)
    assert train(config, folder=half, warn=said.append).finished
    [message] = said
    assert message.endswith("go on with the run. Training goes on.")
    assert load_policy(half, "latest").source.endswith("update 6")


def test_rows_are_the_same_however_often_it_is_saved(tmp_path) -> None:
    """Checkpoint between two rows: the metrics since the last row are part of the checkpoint."""
    config = changed(tiny(6), log_every=4, eval_every=6, save_s=1e-6)
    whole = train(config, folder=tmp_path / "whole")
    assert [row["step"] for row in whole.rows] == [4, 6]
    for step in (5, 6):
        shutil.rmtree(whole.folder / "checkpoints" / str(step))
    again = train(config, folder=whole.folder)
    for mine, theirs in zip(again.rows, whole.rows, strict=True):
        assert mine | {"seconds": 0, "decisions_per_s": 0} == theirs | {
            "seconds": 0,
            "decisions_per_s": 0,
        }


def changed(config: TrainConfig, **run) -> TrainConfig:
    return replace(config, run=replace(config.run, **run))


def test_a_damaged_checkpoint_is_put_aside(trained, half) -> None:
    for path in (half / "checkpoints" / "4" / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    with pytest.warns(UserWarning, match=r"checkpoints/4 is damaged \(state/.* and left out"):
        assert load_policy(half, "latest").source.endswith("update 2")
    said: list[str] = []
    whole = train(tiny(6), folder=half, warn=said.append)
    assert "the newest good one is of update 2" in said[0]
    assert (half / "quarantine" / "4").is_dir()
    assert [row["step"] for row in whole.rows] == [1, 2, 3, 4, 5, 6]
    mine, theirs = (load_policy(f, "latest").params for f in (half, trained.folder))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, mine, theirs)))


def test_starting_from_another_run(trained, tmp_path) -> None:
    config = replace(tiny(6), seed=1, init_from=str(trained.folder))
    state, saved = _start_state(config, Checkpoints(tmp_path / "c"), ONE_DEVICE, print)
    best = load_policy(trained.folder).params
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, state.params, best)))
    assert (int(state.step), saved) == (0, {})
    other = replace(config, network=replace(config.network, width=32))
    with pytest.raises(ConfigError, match=r"network\.width is 32; must be 16, as in"):
        train(other, folder=tmp_path / "other")
    with pytest.raises(ConfigError, match=r"init_from is .*must be a run directory"):
        train(replace(config, init_from="nowhere"), folder=tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_run_without_checkpoint(copied) -> None:
    shutil.rmtree(copied / "checkpoints")
    with pytest.raises(CheckpointError, match="has no checkpoint yet; train on with"):
        load_policy(copied)
    with pytest.raises(ValueError, match="which is 'newest'; must be one of best, latest"):
        load_policy(copied, "newest")


def test_a_folder_in_use_is_refused(copied) -> None:
    with (
        run_folder._claimed(copied),
        pytest.raises(ConfigError, match="is in use by another process"),
    ):
        train(tiny(6), folder=copied)


def test_a_run_may_have_the_name_of_a_shipped_policy(copied, tmp_path, monkeypatch) -> None:
    copied.rename(tmp_path / "edge")
    monkeypatch.chdir(tmp_path)
    for source in (Path("edge"), "./edge"):
        assert settings_of(source).scenario.kind == "paper"
        assert load_policy(source).source.startswith("edge at update")
    assert settings_of("edge").scenario.kind == "edge"


@pytest.mark.fast
def test_what_a_killed_start_leaves_is_no_obstacle(tmp_path) -> None:
    for name in ("config.yaml", "run.json"):
        (tmp_path / f"{name}.{'a1' * 16}.tmp").write_text("half")
    (tmp_path / "run.json").write_text('{"id": "x", "starts": []}')
    with run_folder.claimed(tmp_path, tiny(6)):
        names = {path.name for path in tmp_path.iterdir()}
    assert names == {".lock", "config.yaml", "run.json"}


@pytest.mark.fast
def test_foreign_folders_are_refused(tmp_path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ConfigError, match=r"holds other files \(thesis.tex\) and is no run"):
        train(tiny(6), folder=tmp_path)
    with pytest.raises(ConfigError, match="is a file; must be a run, empty or new"):
        train(tiny(6), folder=tmp_path / "thesis.tex")
    with pytest.raises(ConfigError, match="cannot be written: Not a directory"):
        train(tiny(6), folder=tmp_path / "thesis.tex" / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(ConfigError, match="no run under"):
        run_folder.newest_run(tmp_path)
