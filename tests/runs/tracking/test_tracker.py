"""Trackers: the file hears of a row first, and nothing that others do reaches the training."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from offload_jax.files.checks import ConfigError, RunError
from offload_jax.runs.config import RunConfig
from offload_jax.runs.recorder import Period, Reporter
from offload_jax.runs.tracking.metrics import MetricsFile, TrackingConfig, read_rows
from offload_jax.runs.tracking.registry import TRACKERS, find_makers, make_trackers, tracked
from offload_jax.runs.tracking.tracker import Noop, RunStart, Tracker

pytestmark = pytest.mark.fast
OFF = TrackingConfig(wandb="off")


class Listener(Noop):
    """Notes what it hears, and what metrics.jsonl had then."""

    def __init__(self, config: TrackingConfig, start: RunStart) -> None:
        self.path, self.heard = start.folder / "metrics.jsonl", []

    def row(self, row) -> None:
        assert read_rows(self.path)[-1] == row
        self.heard.append(row["step"])

    def finish(self, failed: bool = False) -> None:
        self.heard.append("failed" if failed else "finished")


class Broken(Noop):
    def __init__(self, *_: object) -> None:
        pass

    def row(self, row) -> None:
        raise KeyError("no such thing")


@pytest.fixture
def made(monkeypatch) -> list[Listener]:
    """The listeners that were made; their name is `listener`, and there is one named `broken`."""
    made: list[Listener] = []
    monkeypatch.setitem(
        TRACKERS, "listener", lambda *about: made.append(Listener(*about)) or made[-1]
    )
    monkeypatch.setitem(TRACKERS, "broken", Broken)
    return made


def start_in(folder: Path, said: list[str]) -> RunStart:
    return RunStart(folder, "one", {}, 0, said.append)


def test_a_row_is_on_disk_before_anybody_hears_of_it(tmp_path, made, monkeypatch) -> None:
    said: list[str] = []
    config = TrackingConfig(wandb="off", also=("listener",))
    with tracked(config, start_in(tmp_path, said)) as tracker:
        report = Reporter(tracker, (), RunConfig(failed_save="go-on"), said.append)
        report.write({"step": 1})
        with monkeypatch.context() as disk:
            disk.setattr("os.fsync", full)
            report.write({"step": 2})
            assert report.behind()
            with pytest.raises(RunError, match=r"metrics.jsonl cannot be written: No space left"):
                report.finish()
            assert made[0].heard == [1]
        report.write({"step": 3})
    assert made[0].heard == [1, 2, 3, "finished"]
    assert read_rows(tmp_path / "metrics.jsonl") == [{"step": 1}, {"step": 2}, {"step": 3}]
    [message] = said
    assert message.endswith("Training goes on; 1 rows wait.")


def full(handle: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_one_that_raises_is_switched_off_alone(tmp_path, made) -> None:
    said: list[str] = []
    config = TrackingConfig(wandb="off", also=("broken", "listener"))

    def diverge() -> None:
        with tracked(config, start_in(tmp_path, said)) as tracker:
            tracker.row({"step": 1})
            tracker.row({"step": 2})
            raise RunError("diverged")

    with pytest.raises(RunError):
        diverge()
    assert made[0].heard == [1, 2, "failed"]
    [message] = said
    assert message == (
        "tracker Broken is switched off (KeyError: 'no such thing'); metrics.jsonl has every row"
    )


def test_one_that_cannot_be_made_is_none(tmp_path, made, monkeypatch) -> None:
    said: list[str] = []
    monkeypatch.setitem(TRACKERS, "broken", lambda config, start: config.no_such_setting)
    with tracked(
        TrackingConfig(wandb="off", also=("broken", "listener")), start_in(tmp_path, said)
    ) as all_of_them:
        all_of_them.row({"step": 1})
    assert made[0].heard == [1, "finished"]
    assert "is switched off (AttributeError: " in said[0]


def test_a_period_that_an_earlier_version_began() -> None:
    """Its updates may have metrics by other names: each is averaged where it is there."""
    period = Period([{"loss": 1.0, "earlier": 2.0}, {"loss": 3.0}, {"loss": 5.0, "later": 4.0}])
    row = period.row(3, 10)
    assert (row["loss"], row["earlier"], row["later"]) == (3.0, 2.0, 4.0)


def test_names_are_checked_and_each_is_made_once(tmp_path, made) -> None:
    config = TrackingConfig(wandb="off", also=("listener", "wandb", "listener"))
    make_trackers(config, start_in(tmp_path, [])).finish()
    assert len(made) == 1
    assert not (tmp_path / "wandb").exists()
    with pytest.raises(ConfigError, match=r"tracking.also is 'lissener'; must be one of metrics, "):
        find_makers(TrackingConfig(also=("lissener",)))


def test_what_is_made_is_a_tracker(tmp_path) -> None:
    start = start_in(tmp_path, [])
    made = [make(OFF, start) for make in TRACKERS.values()]
    assert all(isinstance(one, Tracker) for one in made)
    assert isinstance(made[0], MetricsFile)
    for one in made:
        one.figure("curve", tmp_path / "curve.png")
        one.artifact(tmp_path, 1, ["latest"])
        one.finish()
