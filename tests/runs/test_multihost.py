"""Many devices and processes: the same learning curve as on one, on virtual devices.

The plain tests make single updates, the slow ones whole runs:
`pytest -m slow tests/runs/test_multihost.py`.
"""

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
from typing import Any

import jax
import numpy as np
import pytest
from paths import ROOT
from small_runs import tiny

from offload_jax.files.checks import ConfigError
from offload_jax.learning import updates
from offload_jax.learning.devices import ONE_DEVICE
from offload_jax.policy.policy import Policy
from offload_jax.runs import loop, multihost, policy_folder
from offload_jax.runs.config_file import to_yaml
from offload_jax.runs.multihost import DistributedConfig
from offload_jax.runs.task import PolicyLearning
from offload_jax.runs.tracking.metrics import read_rows
from offload_jax.runs.train import initial_state, load_policy, train

TINY = tiny(4)
WIDE = replace(TINY, learner=replace(TINY.learner, instances=16))  # for eight devices
# Of the metrics, after some updates: only the order of sums differs, and it is float32.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}
EXACT = ("score", "gain", "best_of_samples", "entropy", "loss", "grad_norm")


def child(words: list[str], devices: int) -> subprocess.Popen[str]:
    """A process with some virtual devices; jax only makes them when it starts."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
    command, pipe = [sys.executable, *words], subprocess.PIPE
    return subprocess.Popen(command, env=environment, cwd=ROOT, stdout=pipe, stderr=pipe, text=True)


def ends(*children: subprocess.Popen[str], seconds: float = 250) -> list[tuple[int, str, str]]:
    """(status, output, errors) of each; gloo's own lines are left out of the output."""
    try:
        texts = [process.communicate(timeout=seconds) for process in children]
    finally:
        for process in children:
            process.kill()
    said = ["".join(x for x in out.splitlines(True) if "[Gloo]" not in x) for out, _ in texts]
    pairs = zip(children, said, texts, strict=True)
    return [(process.returncode, out, error) for process, out, (_, error) in pairs]


def findings(*children: subprocess.Popen[str]) -> list[dict[str, Any]]:
    """The JSON that each printed last."""
    found = ends(*children)
    assert [status for status, _, _ in found] == [0] * len(children), found
    return [json.loads(out.splitlines()[-1]) for _, out, _ in found]


def free_address() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def written(config, folder: Path) -> str:
    path = folder / "config.yaml"
    path.write_text(to_yaml(config))
    return str(path)


def assert_same_curve(mine: list[dict], theirs: list[dict]) -> None:
    assert len(mine) == len(theirs)
    for row, other in zip(mine, theirs, strict=True):
        for name in EXACT:
            np.testing.assert_allclose(row[name], other[name], **TOLERANCE, err_msg=name)


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> list[dict[str, Any]]:
    """Two processes of two devices each."""
    source, address = written(TINY, tmp_path_factory.mktemp("pair")), free_address()
    words = ["tests/helpers/spread.py", "updates", source, address]
    return findings(*(child([*words, str(i)], 2) for i in range(2)))


def test_two_processes_learn_as_one(pair) -> None:
    task, state, rows = PolicyLearning(TINY, ONE_DEVICE), initial_state(TINY), []
    for _ in range(TINY.learner.updates):
        state, metrics = task.update(state)
        rows.append(jax.device_get(metrics))
    assert_same_curve(pair[0]["rows"], rows)
    assert pair[0]["rows"] == pair[1]["rows"]
    assert pair[0]["whole"] == pair[1]["whole"]
    assert pair[0]["whole"]["step"] == TINY.learner.updates
    assert pair[0]["needs"]["memory_mb_per_device"] > 0
    text = loop.describe_needs(pair[0]["needs"])
    assert text.startswith("4 devices (cpu) in 2 processes; an update needs ")


def test_two_processes_agree(pair) -> None:
    for found in pair:
        assert found["stops"] == [False, True]
        assert found["text"] == "said by 0"
        assert "config is 'nowhere'; must be a YAML file" in found["refused"]


@pytest.mark.slow
def test_only_sums_travel(tmp_path) -> None:
    """No array of the batch is gathered: a gradient, a count and the metrics are summed."""
    [found] = findings(child(["tests/helpers/spread.py", "trace", written(WIDE, tmp_path)], 8))
    assert found["devices"] == 8
    assert found["collectives"] == ["all_reduce"] * 3
    assert "learner.instances is 8; must be divisible by" in found["few"]
    assert "minibatches x devices (2 x 8)" in found["few"]
    assert found["many"] == "run.devices is 9; must be in 1..8, the cpu devices found"


@pytest.mark.slow
def test_two_processes_skip_what_is_not_finite(tmp_path) -> None:
    """Explained by the first one, and left out by both."""
    config = replace(TINY, run=replace(TINY.run, not_finite="skip"))
    words = ["tests/helpers/spread.py", "faulty", written(config, tmp_path), free_address()]
    words.append(str(tmp_path / "run"))
    first, second = findings(*(child([*words, str(i)], 2) for i in range(2)))
    assert first["steps"] == second["steps"] == [*range(1, TINY.learner.updates + 1)]
    assert first["skipped"] == len(first["said"]) > 0
    assert all(": instance.wait[" in text for text in first["said"])
    assert second["said"] == []


@pytest.mark.slow
def test_two_processes_start_from_a_policy(tmp_path) -> None:
    params = initial_state(TINY).params
    policy = Policy(params, TINY.network, TINY.to_env(), "tiny")
    policy_folder.save(tmp_path / "policy", policy, TINY, {}, "")
    words = ["train.py", "--config", written(TINY, tmp_path), "--dry-run"]
    words += ["--init-from", str(tmp_path / "policy")]
    words += ["--distributed.coordinator", free_address(), "--distributed.processes", "2"]
    both = [child([*words, "--distributed.process", str(i)], 2) for i in range(2)]
    (first, out, error), (second, _, _) = ends(*both)
    assert (first, second) == (0, 0), error
    assert "everything fits and compiles" in out


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_whole_runs_on_eight_devices(tmp_path) -> None:
    """1 x 8 and 2 x 4 devices: one curve, rows once; both stop at one update, and go on on one."""
    source, one = written(WIDE, tmp_path), train(WIDE, folder=tmp_path / "one")
    eight, four = tmp_path / "eight", tmp_path / "four"
    words = ["train.py", "--config", source, "--run"]
    [(status, out, error)] = ends(child([*words, str(eight)], 8))
    assert status == 0, error
    assert "8 devices (cpu); an update needs " in out
    assert_same_curve(read_rows(eight / "metrics.jsonl"), one.rows)
    load_policy(eight, "latest")  # on this process's one device
    together = ["--distributed.coordinator", free_address(), "--distributed.processes", "2"]
    words = [*words, str(four), *together, "--distributed.process"]
    both = [child([*words, str(i)], 4) for i in range(2)]
    deadline = time.monotonic() + 400
    while not read_rows(four / "metrics.jsonl"):
        assert both[0].poll() is None, both[0].communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    both[1].send_signal(signal.SIGTERM)
    (first, out, error), (second, silent, _) = ends(*both)
    rows = read_rows(four / "metrics.jsonl")
    assert (first, second) == ((130, 130) if len(rows) < 4 else (0, 0)), error
    assert "8 devices (cpu) in 2 processes" in out
    assert silent == ""
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    assert_same_curve(rows, one.rows[: len(rows)])
    for step in ("3", "4"):
        shutil.rmtree(four / "checkpoints" / step, ignore_errors=True)
    assert_same_curve(train(WIDE, folder=four).rows, one.rows)


@pytest.mark.fast
def test_minibatches_take_one_of_every_row() -> None:
    order = np.asarray(updates.shuffle(jax.random.key(0), 24, 4))
    assert sorted(order.ravel()) == list(range(24))
    assert all(sorted(part // 4) == list(range(6)) for part in order)
    other = np.asarray(updates.shuffle(jax.random.key(1), 24, 4))
    assert not np.array_equal(order, other)


@pytest.mark.fast
@pytest.mark.parametrize(
    ("settings", "phrase"),
    [
        ({"coordinator": "host"}, "coordinator is 'host'; must be HOST:PORT of process 0"),
        ({"coordinator": "host:0"}, "coordinator is 'host:0'; must be HOST:PORT"),
        ({"processes": 2}, "coordinator is None; must be HOST:PORT"),
        ({"coordinator": "auto", "process": 1}, "coordinator is 'auto'; must be HOST:PORT"),
        ({"timeout_s": -5}, "distributed.timeout_s is -5; must be at least 1"),
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
    assert multihost.is_first()
    assert multihost.from_first("text") == "text"
    assert multihost.any_of_all(True)
    assert not multihost.any_of_all(False)
    with pytest.raises(ConfigError, match=r"run\.devices is 0; must be at least 1"):
        replace(TINY, run=replace(TINY.run, devices=0)).validate()
