"""Metrics are on disk when they are said to be."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from offload_jax.runs.tracking.metrics import MetricsFile, read_rows
from offload_jax.runs.tracking.wandb_process import new_rows


@pytest.mark.fast
def test_torn_rows_and_later_ones_are_dropped(tmp_path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"ste\n{"step": 2}\n{"step": 3}\n{"st')
    metrics = MetricsFile(path, up_to_step=2)
    metrics.row({"step": 3, "again": 1.0})
    metrics.finish()
    assert read_rows(path) == [{"step": 1}, {"step": 2}, {"step": 3, "again": 1.0}]


@pytest.mark.fast
def test_rows_are_on_disk_at_once(tmp_path) -> None:
    """Read by another process while the file is still open."""
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path)
    metrics.row({"step": 1, "gap": 0.5})
    assert subprocess.run(["cat", path], capture_output=True, text=True).stdout == (
        '{"step": 1, "gap": 0.5}\n'
    )
    metrics.finish()


@pytest.mark.fast
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a full device")
def test_a_full_disk_is_an_error_not_a_lost_row(tmp_path) -> None:
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    metrics.finish()
    with Path("/dev/full").open("ab", buffering=0) as full:
        metrics._file = full
        with pytest.raises(OSError, match="No space left"):
            metrics.row({"step": 1})


@pytest.mark.fast
def test_new_rows_come_once_and_whole(tmp_path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    with path.open("rb") as reader:
        assert list(new_rows(reader)) == [{"step": 1}, {"step": 2}]
        with path.open("a") as file:
            file.write('ep": 3}\n')
        assert list(new_rows(reader)) == [{"step": 3}]
        assert list(new_rows(reader)) == []
        MetricsFile(path, up_to_step=1).finish()  # as a run does that goes on: another file
        assert list(new_rows(reader)) == []


@pytest.mark.fast
def test_rows_are_plain_json(tmp_path) -> None:
    metrics = MetricsFile(tmp_path / "m.jsonl")
    metrics.row({"step": 1, "gap": 1e-9})
    metrics.finish()
    [line] = (tmp_path / "m.jsonl").read_text().splitlines()
    assert json.loads(line) == {"step": 1, "gap": 1e-9}
