"""Populations: each member learns as it would alone, in a run directory of its own."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from small_runs import tiny

from offload_jax import cli
from offload_jax.files.checks import ConfigError
from offload_jax.learning.algorithms import ALGORITHMS
from offload_jax.learning.devices import Devices
from offload_jax.runs import population, population_train, run_folder
from offload_jax.runs.config import TrainConfig
from offload_jax.runs.config_file import to_yaml
from offload_jax.runs.loop import Member
from offload_jax.runs.population import (
    PopulationConfig,
    check_alike,
    is_population,
    member_devices,
    read_members,
)
from offload_jax.runs.tracking.metrics import MetricsFile, read_rows
from offload_jax.runs.train import load_policy, train
from offload_jax.splits import SplitsConfig

TINY = tiny(4)
# The second rate throws parameters out of float32's range at the first step.
WORDS = ["--population.seeds", "2", "--population.lr", "1e-3", "1e38"]
GOOD = ("seed-0-lr-0.001", "seed-1-lr-0.001")
BAD = ("seed-0-lr-1e+38", "seed-1-lr-1e+38")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """By the command line."""
    folder = tmp_path_factory.mktemp("populations")
    (folder / "tiny.yaml").write_text(to_yaml(TINY))
    # A start that was killed before all members had their settings.
    (folder / "four" / GOOD[0]).mkdir(parents=True)
    (folder / "four" / GOOD[0] / f"config.yaml.{'a1' * 16}.tmp").write_text("half")
    words = ["train", "--config", str(folder / "tiny.yaml"), "--run", str(folder / "four"), *WORDS]
    assert cli.main(words) == 0
    return folder / "four"


@pytest.mark.slow
def test_a_member_learns_as_alone(trained, tmp_path) -> None:
    config = run_folder.read_config(trained / GOOD[1])
    assert config == replace(TINY, seed=1)
    alone = train(config, folder=tmp_path / "alone")
    rows = read_rows(trained / GOOD[1] / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    for row, reference in zip(rows, alone.rows, strict=True):
        assert set(row) == set(reference)
        for name in ("score", "gain", "best_of_samples", "entropy", "loss", "grad_norm"):
            np.testing.assert_allclose(row[name], reference[name], rtol=1e-4, atol=1e-5)
    assert rows[-1]["gap"] == pytest.approx(alone.rows[-1]["gap"], rel=1e-3)


def test_members_keep_apart(trained) -> None:
    assert is_population(trained)
    assert list(read_members(trained)) == [GOOD[0], BAD[0], GOOD[1], BAD[1]]
    scores = [read_rows(trained / name / "metrics.jsonl")[0]["score"] for name in GOOD]
    assert scores[0] != scores[1]
    for name in GOOD:
        assert load_policy(trained / name, "latest").source.endswith("update 4")
        about = json.loads((trained / name / "run.json").read_text())
        assert about["starts"][-1]["step"] == 4
        assert (trained / name / "learning_curve.png").exists()


@pytest.mark.slow
def test_a_member_that_diverges_leaves_the_others_alone(trained) -> None:
    for name in BAD:
        rows = read_rows(trained / name / "metrics.jsonl")
        assert len(rows) < 4
        assert all(np.isfinite(list(row.values())).all() for row in rows)
        about = json.loads((trained / name / "run.json").read_text())
        assert about["diverged"] == len(rows) + 1


@pytest.mark.slow
def test_a_population_goes_on(trained, tmp_path) -> None:
    """Stopped by SIGTERM after two updates, gone on with after one member lost its last save."""
    members, folder = read_members(trained), tmp_path / "again"

    def stop_after_two(rows: dict) -> None:
        if rows[GOOD[0]]["step"] == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    half = population_train.train_population(members, folder, [stop_after_two])
    assert {name: (run.step, run.finished) for name, run in half.items()} == dict.fromkeys(
        GOOD, (2, False)
    )
    shutil.rmtree(folder / GOOD[1] / "checkpoints" / "2")
    whole = population_train.train_population(members, folder)
    for name in GOOD:
        rows = read_rows(trained / name / "metrics.jsonl")
        assert [row["step"] for row in whole[name].rows] == [1, 2, 3, 4]
        assert [row["loss"] for row in whole[name].rows] == [row["loss"] for row in rows]


@pytest.mark.slow
def test_the_last_states_are_saved_once_their_rows_could_be(trained, tmp_path, monkeypatch) -> None:
    folder = shutil.copytree(trained, tmp_path / "again")
    members = {
        name: replace(config, run=replace(config.run, failed_save="go-on"))
        for name, config in read_members(trained).items()
    }
    write, full = MetricsFile.row, set()

    def once_full(self: MetricsFile, row) -> None:
        if row["step"] == 4 and self.path not in full:
            full.add(self.path)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        write(self, row)

    monkeypatch.setattr(MetricsFile, "row", once_full)
    for name in GOOD:
        shutil.rmtree(folder / name / "checkpoints" / "4")
    population_train.train_population(members, folder, warn=lambda _: None)
    assert len(full) == 2
    for name in GOOD:
        assert [row["step"] for row in read_rows(folder / name / "metrics.jsonl")] == [1, 2, 3, 4]
        assert load_policy(folder / name, "latest").source.endswith("update 4")


@pytest.mark.slow
def test_the_command_goes_on(trained, capsys) -> None:
    assert cli.main(["train", "--run", str(trained)]) == 0
    assert "best gap" in capsys.readouterr().out
    assert cli.main(["train", "--run", str(trained), "--population.seeds", "3"]) == 1
    assert "population cannot change" in capsys.readouterr().err
    assert cli.main(["train", "--run", str(trained), "--learner.lr", "1"]) == 1
    assert "learner.lr is 1.0; must stay" in capsys.readouterr().err
    assert cli.main(["eval", "--run", str(trained)]) == 1
    assert f"must be a run directory (with a config.yaml), such as {trained}" in (
        capsys.readouterr().err
    )


@pytest.mark.fast
def test_members_are_all_combinations() -> None:
    asked = PopulationConfig(seeds=2, entropy=(0.0, 0.1), clip=(0.2, 0.3))
    members = asked.members(replace(TINY, seed=5))
    assert len(members) == 8
    config = members["seed-6-clip-0.2-entropy-0.1"]
    assert (config.seed, config.algorithm.clip, config.learner.entropy) == (6, 0.2, 0.1)
    names = {field.name for field in fields(PopulationConfig)} - {"seeds"}
    known = [replace(TINY, algorithm=make()).to_learner().numbers() for make in ALGORITHMS.values()]
    assert names == {name.partition(".")[2] for numbers in known for name in numbers}


@pytest.mark.fast
@pytest.mark.parametrize(
    ("asked", "phrase"),
    [
        (PopulationConfig(seeds=0), r"population\.seeds is 0; must be at least 1"),
        (PopulationConfig(lr=(1e-3, -1.0)), r"learner\.lr is -1\.0; must be finite and above 0"),
        (
            PopulationConfig(sharpness=(1.0,)),
            "which this algorithm does not have",
        ),
        (PopulationConfig(lr=(1e-3, 1e-3)), r"population\.lr is \(0\.001, 0\.001\); must be"),
    ],
)
def test_impossible_populations_are_named(asked, phrase) -> None:
    with pytest.raises(ConfigError, match=phrase):
        asked.members(TINY)


def stub(config, *steps) -> population_train._Run:
    """A member that has such checkpoints, and no files."""
    member = object.__new__(population_train._Run)
    good = [SimpleNamespace(step=step) for step in steps]
    member.config, member.folder = config, Path(f"seed-{config.seed}")
    member.diverged, member.checkpoints, member.warn = False, SimpleNamespace(good=good), print
    return member


def test_members_start_from_another_run(trained) -> None:
    source = str(trained / GOOD[1])
    group = [stub(replace(TINY, seed=seed, init_from=source)) for seed in (3, 4)]
    params, wanted = population_train._start(group).params, load_policy(source).params
    for both, one in zip(*map(jax.tree.leaves, (params, wanted)), strict=True):
        np.testing.assert_array_equal(both, np.stack([one, one]))


@pytest.mark.fast
def test_a_member_that_diverged_makes_nobody_save() -> None:
    member = object.__new__(Member)
    member.recorder, member.diverged = SimpleNamespace(save_due=lambda: True), False
    assert member.save_due()
    member.diverged = True
    assert not member.save_due()


@pytest.mark.fast
def test_members_that_go_on_take_what_may_change() -> None:
    saved = {"a": TINY, "b": replace(TINY, seed=1)}
    tracking = replace(TINY.tracking, project="elsewhere")
    wanted = replace(TINY, tracking=tracking, learner=replace(TINY.learner, updates=9))
    for config in population.going_on(saved, TINY, wanted).values():
        assert (config.tracking, config.learner.updates) == (tracking, 9)


@pytest.mark.fast
def test_members_without_an_update_in_common_lose_nothing() -> None:
    group = [stub(replace(TINY, seed=0), 20, 40), stub(replace(TINY, seed=1), 10)]
    told = r"\(seed-0: 20, 40; seed-1: 10\).* Go on with each alone"
    with pytest.raises(ConfigError, match=told):
        population_train._start(group)


@pytest.mark.fast
def test_constraints_that_cannot_hold_are_refused(tmp_path) -> None:
    rules = SplitsConfig("cvxpylayers-moreau", constraints=("latency <= 1e-6",))
    members = PopulationConfig(seeds=2).members(replace(TINY, splits=rules))
    with pytest.raises(ConfigError, match="which the all-local plan breaks"):
        population_train.train_population(members, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.fast
def test_a_folder_may_hold_the_members_that_are_asked_for(tmp_path) -> None:
    (tmp_path / "seed-0").mkdir()
    run_folder.check_folder(tmp_path, ["seed-0", "seed-1"])
    with pytest.raises(ConfigError, match=r"holds other files \(seed-0\)"):
        run_folder.check_folder(tmp_path)


@pytest.mark.fast
def test_as_many_devices_as_have_equal_numbers_of_members(monkeypatch) -> None:
    def found(limit=None):
        return type("Some", (Devices,), {"count": limit or 6})()  # of six

    monkeypatch.setattr(population, "find_devices", found)
    for members, devices in ((1, 1), (5, 5), (7, 1), (8, 4), (18, 6)):
        together = {str(n): TrainConfig() for n in range(members)}
        assert member_devices(together).count == devices


@pytest.mark.fast
def test_members_share_what_is_static() -> None:
    wider = replace(TINY, network=replace(TINY.network, width=32))
    with pytest.raises(ConfigError, match="member b that differs from the first; must share"):
        check_alike({"a": TINY, "b": wider})
