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
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from offload_jax import loop, runs
from offload_jax.checkpoint import CheckpointError, Checkpoints
from offload_jax.config import ConfigError, RunConfig, TrainConfig, to_yaml
from offload_jax.learner import LearnerConfig
from offload_jax.loop import RunError
from offload_jax.networks import NetworkConfig
from offload_jax.scenario import PaperScenario
from offload_jax.tracking import MetricsFile, TrackingConfig

pytestmark = pytest.mark.usefixtures("quick_compiler")
ROOT = Path(__file__).resolve().parents[1]


def tiny(updates: int, wandb: str = "off") -> TrainConfig:
    return TrainConfig(
        scenario=PaperScenario(num_users=(4,)),
        network=NetworkConfig(width=16, layers=1, heads=2),
        learner=LearnerConfig(updates=updates, instances=8, samples=4),
        run=RunConfig(log_every=1, eval_every=2, eval_instances=16),
        tracking=TrackingConfig(wandb=wandb),
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> runs.RunResult:
    return runs.train(tiny(4, "offline"), folder=tmp_path_factory.mktemp("runs") / "four")


@pytest.fixture
def copied(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained.folder, tmp_path / "copy"))


def assert_goes_on_to_the_same(trained: runs.RunResult, folder: Path) -> None:
    """The run in `folder` ends as the one never interrupted: every row once, bit for bit."""
    whole = runs.train(tiny(4), folder=folder)
    assert whole.finished
    assert [row["step"] for row in whole.rows] == [1, 2, 3, 4]
    mine, theirs = (runs.load_policy(f, "latest").params for f in (folder, trained.folder))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, mine, theirs)))


def test_a_run_leaves_everything(trained) -> None:
    names = {path.name for path in trained.folder.iterdir()}
    wanted = {"config.yaml", "run.json", "metrics.jsonl", "checkpoints", "wandb"}
    assert wanted | {"learning_curve.png"} <= names
    assert list((trained.folder / "wandb").glob("offline-run-*/*.wandb"))
    assert [row["step"] for row in trained.rows] == [1, 2, 3, 4]
    assert all(np.isfinite(row["score"]) for row in trained.rows)
    assert trained.finished
    assert runs.read_config(trained.folder) == tiny(4, "offline")
    about = json.loads((trained.folder / "run.json").read_text())
    [start] = about["starts"]
    assert {"commit", "python", "versions", "device"} <= set(start)
    assert start["step"] == 4
    assert start["seconds"] > 0
    assert start["peak_memory_mb"] > 100


def test_resumed_equals_uninterrupted(trained, tmp_path) -> None:
    """Stopped after two updates by SIGTERM, and gone on with."""

    def stop_after_two(row: loop.Row) -> None:
        if row["step"] == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    folder = tmp_path / "half"
    half = runs.train(tiny(4), [stop_after_two], folder)
    assert (half.step, half.finished) == (2, False)
    assert_goes_on_to_the_same(trained, folder)


def test_killed_and_gone_on_with(trained, tmp_path) -> None:
    """kill -9 in the middle: from the last checkpoint on."""
    folder, config = tmp_path / "killed", tmp_path / "config.yaml"
    config.write_text(to_yaml(tiny(4)))
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
    saved = runs.read_config(trained.folder)
    assert runs.resumed(saved, replace(saved, learner=replace(saved.learner, updates=9)))
    with pytest.raises(ConfigError, match="seed is 5; must stay 0"):
        runs.resumed(saved, replace(saved, seed=5))
    with pytest.raises(ConfigError, match=r"network\.width is 32; must stay 16"):
        runs.resumed(saved, replace(saved, network=replace(saved.network, width=32)))
    with pytest.raises(ConfigError, match=r"run\.eval_instances is 9; must stay 16"):
        runs.resumed(saved, replace(saved, run=replace(saved.run, eval_instances=9)))


def test_a_full_disk_stops_the_run_and_loses_nothing(copied, monkeypatch) -> None:
    append = MetricsFile.append

    def full_at_six(self: MetricsFile, row) -> None:
        if row["step"] == 6:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        append(self, row)

    longer = replace(tiny(6), tracking=TrackingConfig(wandb="off"))
    monkeypatch.setattr(MetricsFile, "append", full_at_six)
    with pytest.raises(RunError, match=r"cannot be written: No space left.*go on with the run"):
        runs.train(longer, folder=copied)
    monkeypatch.undo()
    assert [row["step"] for row in runs.train(longer, folder=copied).rows] == [1, 2, 3, 4, 5, 6]


def test_divergence_is_named(copied, monkeypatch) -> None:
    update = loop._update

    def nan_loss(learner, state):
        state, metrics = update(learner, state)
        return state, replace(metrics, loss=metrics.loss * np.nan)

    monkeypatch.setattr(loop, "_update", jax.jit(nan_loss, static_argnums=0))
    with pytest.raises(RunError, match=r"diverged before update 5: loss is nan.*lower learner\.lr"):
        runs.train(tiny(6), folder=copied)
    assert runs.load_policy(copied, "latest").source.endswith("update 4")


def test_a_damaged_checkpoint_is_refused(copied) -> None:
    files = [path for path in (copied / "checkpoints" / "4").rglob("*") if path.is_file()]
    for path in (path for path in files if "default" in path.parts):
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"checkpoints/4 cannot be restored .*Remove"):
        runs.load_policy(copied, "latest")
    for path in files:
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"cannot be read .*Remove the newest"):
        runs.load_policy(copied, "latest")
    shutil.rmtree(copied / "checkpoints" / "4")
    assert runs.load_policy(copied, "latest").source.endswith("update 2")


def test_a_run_without_checkpoint(copied) -> None:
    shutil.rmtree(copied / "checkpoints")
    with pytest.raises(CheckpointError, match="has no checkpoint yet; train on with"):
        runs.load_policy(copied)
    with pytest.raises(ValueError, match="which is 'newest'; must be one of best, latest"):
        runs.load_policy(copied, "newest")


def test_best_and_newest_checkpoints_stay(trained, tmp_path) -> None:
    state = runs._init(tiny(4).to_learner(), jax.random.key(0))
    with Checkpoints(tmp_path / "kept", keep=2) as checkpoints:
        for step, gap in enumerate((0.5, 0.1, 0.3, 0.2, 0.4)):
            checkpoints.save(replace(state, step=np.int32(step)), gap)
        checkpoints.wait()
        assert (checkpoints.best(), checkpoints.latest()) == (1, 4)
    kept = {path.name for path in (tmp_path / "kept").iterdir() if path.name.isdigit()}
    assert kept == {"1", "3", "4"}


def test_a_folder_in_use_is_refused(copied) -> None:
    with runs._claimed(copied), pytest.raises(ConfigError, match="is in use by another process"):
        runs.train(tiny(6), folder=copied)


@pytest.mark.fast
def test_foreign_folders_are_refused(tmp_path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ConfigError, match=r"holds other files \(thesis.tex\) and is no run"):
        runs.train(tiny(4), folder=tmp_path)
    with pytest.raises(ConfigError, match="is a file; must be a run, empty or new"):
        runs.train(tiny(4), folder=tmp_path / "thesis.tex")
    with pytest.raises(ConfigError, match="cannot be written: Not a directory"):
        runs.train(tiny(4), folder=tmp_path / "thesis.tex" / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(ConfigError, match="no run under"):
        runs.newest_run(tmp_path)
