"""Metrics are on disk when they are said to be; W&B can fail in any way and nothing else does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from offload_jax import tracking
from offload_jax.tracking import MetricsFile, Mirror, TrackingConfig, read_rows


@pytest.mark.fast
def test_torn_rows_and_later_ones_are_dropped(tmp_path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"ste\n{"step": 2}\n{"step": 3}\n{"st')
    metrics = MetricsFile(path, up_to_step=2)
    metrics.append({"step": 3, "again": 1.0})
    metrics.close()
    assert read_rows(path) == [{"step": 1}, {"step": 2}, {"step": 3, "again": 1.0}]


@pytest.mark.fast
def test_rows_are_on_disk_at_once(tmp_path) -> None:
    """Read by another process while the file is still open."""
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path)
    metrics.append({"step": 1, "gap": 0.5})
    assert subprocess.run(["cat", path], capture_output=True, text=True).stdout == (
        '{"step": 1, "gap": 0.5}\n'
    )
    metrics.close()


@pytest.mark.fast
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a full device")
def test_a_full_disk_is_an_error_not_a_lost_row(tmp_path) -> None:
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    metrics.close()
    with Path("/dev/full").open("ab", buffering=0) as full:
        metrics._file = full
        with pytest.raises(OSError, match="No space left"):
            metrics.append({"step": 1})


OFFLINE = TrackingConfig(wandb="offline", project="tests", tags=("a",))


def test_offline_needs_nothing(tmp_path) -> None:
    said: list[str] = []
    with Mirror(OFFLINE, tmp_path, "id1", asdict(OFFLINE), said.append) as mirror:
        mirror.log({"step": 1, "gap": 0.5})
    assert list((tmp_path / "wandb").glob("offline-run-*-id1/run-id1.wandb"))
    assert said == []
    assert "WANDB_CACHE_DIR" not in os.environ


def test_online_without_network_goes_offline(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr(tracking, "INIT_SECONDS", 3)
    said: list[str] = []
    start = time.monotonic()
    online = TrackingConfig(wandb="online")
    with Mirror(online, tmp_path, "id2", {}, said.append) as mirror:
        mirror.log({"step": 1, "gap": 0.5})
    assert time.monotonic() - start < 45
    [message] = said
    assert message.startswith("W&B: could not connect; logging offline (")
    assert f"wandb sync {tmp_path / 'wandb'}" in message
    assert list((tmp_path / "wandb").glob("offline-run-*-id2/run-id2.wandb"))


class Broken:
    """A W&B run whose service has died."""

    def log(self, *_: object, **__: object) -> None:
        raise BrokenPipeError("the service is gone")

    finish = log


@pytest.mark.fast
def test_a_dead_service_is_told_once_and_harms_nothing(tmp_path) -> None:
    said: list[str] = []
    with Mirror(TrackingConfig(wandb="off"), tmp_path, "id3", {}, said.append) as mirror:
        mirror._run = Broken()
        for step in range(3):
            mirror.log({"step": step})
    assert len(said) == 1
    assert "switched off (BrokenPipeError: the service is gone)" in said[0]


def test_without_wandb_installed(tmp_path) -> None:
    """The import itself fails: training would go on all the same."""
    probe = f"""
import sys
sys.modules["wandb"] = None
from pathlib import Path
from offload_jax.tracking import Mirror, TrackingConfig
with Mirror(TrackingConfig(), Path({str(tmp_path)!r}), "id", {{}}) as mirror:
    mirror.log({{"step": 1}})
"""
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "W&B: switched off (ModuleNotFoundError" in done.stdout


@pytest.mark.fast
def test_rows_are_plain_json(tmp_path) -> None:
    metrics = MetricsFile(tmp_path / "m.jsonl")
    metrics.append({"step": 1, "gap": 1e-9})
    metrics.close()
    [line] = (tmp_path / "m.jsonl").read_text().splitlines()
    assert json.loads(line) == {"step": 1, "gap": 1e-9}
