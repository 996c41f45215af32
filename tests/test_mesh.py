"""Many devices and processes: the same learning curve as on one, on virtual devices."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from offload_jax import learner as learning
from offload_jax import loop, processes, runs
from offload_jax.config import ConfigError, RunConfig, TrainConfig, to_yaml
from offload_jax.learner import LearnerConfig
from offload_jax.networks import NetworkConfig
from offload_jax.processes import DistributedConfig
from offload_jax.scenario import PaperScenario
from offload_jax.tracking import TrackingConfig, read_rows

pytestmark = pytest.mark.usefixtures("quick_compiler")
ROOT = Path(__file__).resolve().parents[1]
STOP = 4  # updates that every run makes, of many: all have one learning rate schedule
# Of the metrics, after some updates: only the order of sums differs, and it is float32.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}
EXACT = ("score", "gain", "best_of_samples", "entropy", "loss", "grad_norm", "gap")

TINY = TrainConfig(
    scenario=PaperScenario(num_users=(2, 3)),
    network=NetworkConfig(width=16, layers=1, heads=2),
    learner=LearnerConfig(updates=1000, instances=16, samples=4),
    run=RunConfig(log_every=1, eval_every=2, eval_instances=16),
    tracking=TrackingConfig(wandb="off"),
)


def child(words: list[str], devices: int) -> subprocess.Popen[str]:
    """A process with some virtual devices; jax only makes them when it starts."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *words]
    return subprocess.Popen(
        command,
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def until(done, process: subprocess.Popen[str], seconds: float = 200) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def stopping(row: loop.Row) -> None:
    if row["step"] == STOP:
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mesh")
    (folder / "tiny.yaml").write_text(to_yaml(TINY))
    return folder


@pytest.fixture(scope="module")
def one(folder) -> runs.RunResult:
    """One device, in this process."""
    return runs.train(TINY, [stopping], folder / "one")


@pytest.fixture(scope="module")
def eight(folder) -> dict:
    """Eight virtual devices of one process."""
    words = ["tests/eight_devices.py", str(folder / "tiny.yaml"), str(folder / "eight"), str(STOP)]
    process = child(words, 8)
    out, error = process.communicate(timeout=250)
    assert process.returncode == 0, error
    return json.loads(out.splitlines()[-1])


@pytest.fixture(scope="module")
def pair(folder) -> list[tuple[int, str, str]]:
    """Two processes of four devices each; the second one gets SIGTERM. (status, output, errors)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    words = ["train.py", "--config", str(folder / "tiny.yaml"), "--run", str(folder / "pair")]
    words += ["--distributed.coordinator", address, "--distributed.processes", "2"]
    both = [child([*words, "--distributed.process", str(i)], 4) for i in range(2)]
    try:
        until(lambda: len(read_rows(folder / "pair" / "metrics.jsonl")) >= STOP, both[0])
        both[1].send_signal(signal.SIGTERM)
        ends = [process.communicate(timeout=100) for process in both]
    finally:
        for process in both:
            process.kill()
    return [(process.returncode, *end) for process, end in zip(both, ends, strict=True)]


def assert_same_curve(mine: Path, other: Path) -> None:
    """The first rows of two runs, each step once."""
    left, right = (read_rows(path / "metrics.jsonl") for path in (mine, other))
    assert [row["step"] for row in left[:STOP]] == list(range(1, STOP + 1))
    for row, reference in zip(left[:STOP], right[:STOP], strict=True):
        for name in EXACT:
            assert (name in row) == (name in reference)
            if name in row:
                np.testing.assert_allclose(row[name], reference[name], **TOLERANCE, err_msg=name)


def test_eight_devices_learn_as_one(folder, one, eight) -> None:
    assert eight["devices"] == 8
    assert_same_curve(folder / "eight", folder / "one")
    policy = runs.load_policy(folder / "eight", "latest")  # on this process's one device
    pairs = zip(*map(jax.tree.leaves, (policy.params, one.policy.params)), strict=True)
    assert all(mine.shape == theirs.shape for mine, theirs in pairs)


def test_only_sums_travel(eight) -> None:
    """No array of the batch is gathered; a gradient, a count and the metrics are summed."""
    assert eight["collectives"] == ["all-reduce"] * 3


def test_what_a_run_needs_is_told(folder, eight) -> None:
    [line] = eight["told"]
    assert line.startswith("8 devices (cpu); an update needs ")
    [start] = json.loads((folder / "eight" / "run.json").read_text())["starts"]
    assert (start["devices"], start["processes"]) == (8, 1)
    assert start["memory_mb_per_device"] > 0


def test_what_cannot_be_spread_is_refused(eight) -> None:
    assert "learner.instances is 8; must be divisible by" in eight["few"]
    assert "minibatches x devices (2 x 8)" in eight["few"]
    assert eight["many"] == "run.devices is 9; must be in 1..8, the cpu devices found"


def test_a_run_goes_on_with_fewer_devices(folder, one, eight, tmp_path) -> None:
    """From update 2 of the eight devices, on one."""
    copy = Path(shutil.copytree(folder / "eight", tmp_path / "copy"))
    shutil.rmtree(copy / "checkpoints" / str(STOP))
    runs.train(TINY, [stopping], copy)
    assert_same_curve(copy, folder / "one")


def test_two_processes_are_one(folder, eight, pair) -> None:
    """The same curve as 1 x 8; one of them writes and talks; both stop at one update."""
    assert_same_curve(folder / "pair", folder / "eight")
    (first, out, _), (second, silent, _) = pair
    assert (first, second) == (130, 130)
    assert "8 devices (cpu) in 2 processes" in out
    assert silent == ""
    steps = [row["step"] for row in read_rows(folder / "pair" / "metrics.jsonl")]
    assert steps == list(range(1, len(steps) + 1))
    assert runs.load_policy(folder / "pair", "latest").source.endswith(f"update {steps[-1]}")


@pytest.mark.fast
def test_minibatches_take_one_of_every_row() -> None:
    order = np.asarray(learning.shuffle(jax.random.key(0), 24, 4))
    assert sorted(order.ravel()) == list(range(24))
    assert all(sorted(part // 4) == list(range(6)) for part in order)
    other = np.asarray(learning.shuffle(jax.random.key(1), 24, 4))
    assert not np.array_equal(order, other)


@pytest.mark.fast
@pytest.mark.parametrize(
    ("settings", "phrase"),
    [
        ({"coordinator": "host"}, "coordinator is 'host'; must be HOST:PORT of process 0"),
        ({"coordinator": "host:0"}, "coordinator is 'host:0'; must be HOST:PORT"),
        ({"processes": 2}, "coordinator is None; must be HOST:PORT"),
        ({"coordinator": "auto", "process": 1}, "coordinator is 'auto'; must be HOST:PORT"),
        ({"coordinator": "host:1"}, "distributed.processes is None; must be at least 1"),
        (
            {"coordinator": "host:1", "processes": 2, "process": 2},
            r"distributed.process is 2; must be in 0\.\.1",
        ),
    ],
)
def test_impossible_processes_are_named(settings, phrase) -> None:
    with pytest.raises(ConfigError, match=phrase):
        DistributedConfig(**settings).validate()


@pytest.mark.fast
def test_one_process_has_nobody_to_ask() -> None:
    assert processes.is_first()
    assert processes.from_first("text") == "text"
    assert processes.any_of_all(True)
    assert not processes.any_of_all(False)
    with pytest.raises(ConfigError, match=r"run\.devices is 0; must be at least 1"):
        replace(TINY, run=replace(TINY.run, devices=0)).validate()
