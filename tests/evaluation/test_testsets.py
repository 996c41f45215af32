"""Frozen test sets: what is shipped holds what it says, and better plans replace known ones."""

from __future__ import annotations

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import evaluate
from episodes import WORLDS

from offload_jax import cli
from offload_jax.commands import sources
from offload_jax.evaluation import testsets
from offload_jax.files.checks import TestSetError
from offload_jax.methods import METHODS
from offload_jax.plans.plan import PROVEN, Decision
from offload_jax.problem.scenario import PRESETS


@pytest.fixture(scope="module")
def small() -> testsets.TestSet:
    return testsets.create(WORLDS["edge"], "small", 4)


@pytest.mark.parametrize("name", testsets.SHIPPED)
def test_shipped_sets_hold_what_they_say(name) -> None:
    there = {path.name for path in testsets.FOLDER.iterdir()}
    assert there == {f"{n}.{kind}" for n in testsets.SHIPPED for kind in ("json", "npz")}
    testset = testsets.load(name)  # its checksum, too
    preset, count = testsets.SHIPPED[name]
    assert testset.instances.alpha.dtype == np.float64
    assert len(testset.best) == testset.instances.mask.shape[1] == count
    users = np.asarray(testset.instances.mask).sum(axis=0)
    assert set(users.tolist()) <= set(PRESETS[preset].num_users)
    some = np.arange(0, count, max(1, count // 32))
    with jax.enable_x64(True):
        part = jax.tree.map(lambda x: jnp.asarray(x[..., some]), testset.instances)
        outcome = evaluate(part, jnp.asarray(testset.assignments()[:, some]))
        assert np.all(np.asarray(outcome.feasible))
        np.testing.assert_allclose(outcome.gain, testset.gains[some], rtol=1e-9)
        objectives = [testset.best[i].objective for i in some]
        np.testing.assert_allclose(outcome.objective, objectives, rtol=1e-9)
    assert np.all(testset.bounds >= testset.gains)
    assert all(best.searches >= 32 for best in testset.best)
    if name == "edge":
        assert all(best.bound <= best.gain * (1 + PROVEN) for best in testset.best)


def test_better_plans_replace_known_ones(small, tmp_path) -> None:
    assert small.gains.max() == 0
    plans = jax.jit(METHODS["greedy"].assign)(small.on_device())
    better, count = testsets.improved(small, {"greedy": plans, "deny": 0 * plans})
    assert count == 4
    assert {best.method for best in better.best} == {"greedy"}
    again, count = testsets.improved(better, {"greedy": plans})
    assert (again, count) == (better, 0)
    full = np.ones_like(plans)  # everybody in batch 1 does not fit
    assert np.all(testsets.values_of(small, full)[np.asarray(small.instances.mask).sum(0) > 4] < 0)
    assert testsets.improved(better, {"full": full})[1] == 0
    known = testsets.searched(testsets.searched(better, plans), 0 * plans)
    assert {(best.searches, best.reached) for best in known.best} == {(2, 1)}
    proven = testsets.bounded(known, np.append(known.gains[:1], known.gains[1:] + 1), "test")
    assert [best.proof for best in proven.best] == ["test", None, None, None]
    testsets.save(proven, tmp_path)
    loaded = testsets.load("small", tmp_path)
    assert loaded.best == proven.best
    assert testsets.save(small, tmp_path).best == proven.best  # nothing good is overwritten
    for mine, theirs in zip(jax.tree.leaves(loaded.instances), jax.tree.leaves(small.instances),
                            strict=True):  # fmt: skip
        np.testing.assert_array_equal(mine, theirs)


def test_wrong_bounds_are_left_out(small) -> None:
    plans = jax.jit(METHODS["greedy"].assign)(small.on_device())
    known = testsets.bounded(small, np.array([1e-3, np.inf, np.inf, np.inf]), "magic")
    assert [best.bound_by for best in known.best] == ["magic", None, None, None]
    with pytest.warns(UserWarning, match="1 of 4 upper bounds of test set small are wrong"):
        better, _ = testsets.improved(known, {"greedy": plans})
    assert {best.bound for best in better.best} == {None}
    with pytest.warns(UserWarning, match="4 of 4 upper bounds by magic are wrong and left out"):
        again = testsets.bounded(better, np.full(4, 1e-3), "magic")
    assert again == better


def test_damage_is_noticed(small, tmp_path) -> None:
    testsets.save(small, tmp_path)
    known = json.loads((tmp_path / "small.json").read_text())
    other = replace(small, instances=replace(small.instances, alpha=small.instances.alpha + 1))
    with pytest.raises(TestSetError, match="is there with other instances"):
        testsets.save(other, tmp_path)
    refused = {
        "{": "cannot be read",
        "[]": "cannot be read",
        json.dumps({**known, "version": 7}): "version 7; must be",
        json.dumps({**known, "checksum": "0"}): "is damaged",
        json.dumps({k: v for k, v in known.items() if k != "best"}): "cannot be read",
        json.dumps({**known, "best": [{**known["best"][0], "luck": 1}]}): "cannot be read",
        json.dumps({**known, "scenario": {"kind": "moon"}}): "cannot be read",
    }
    for text, message in refused.items():
        (tmp_path / "small.json").write_text(text)
        with pytest.raises(TestSetError, match=message):
            testsets.load("small", tmp_path)
    (tmp_path / "small.json").write_text(json.dumps(known))
    arrays = (tmp_path / "small.npz").read_bytes()
    for kept in (0, 10, len(arrays) // 2, len(arrays) - 5):
        (tmp_path / "small.npz").write_bytes(arrays[:kept])
        with pytest.raises(TestSetError, match="cannot be read"):
            testsets.load("small", tmp_path)
    with pytest.raises(TestSetError, match="testset is 'magic'; must be one of small"):
        testsets.load("magic", tmp_path)


def test_eval_updates_the_reference(small, tmp_path, monkeypatch, capsys) -> None:
    """The gap of the plan that is the new best is 0, not negative."""
    monkeypatch.setattr(testsets, "FOLDER", tmp_path)
    testsets.save(small)
    words = ["eval", "--no-policy", "--testset", "small", "--methods", "deny", "myopic"]
    assert cli.main([*words, "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "reference: 4 of 4 best known plans improved, written" in said
    found = json.loads((tmp_path / "out" / "eval.json").read_text())
    assert found["cells"]["small"]["myopic"]["gap_max"] == 0
    assert found["cells"]["small"]["deny"]["gap_mean"] == pytest.approx(1)
    assert found["cells"]["small"]["myopic"]["feasible"] == 1
    assert testsets.load("small").best[0].method == "myopic"
    page = (tmp_path / "out" / "report.html").read_text()
    assert "All methods side by side" in page
    source = sources.of_testset("small")
    source.keep_better(
        {("myopic", "small"): Decision(jnp.asarray(source.testset.assignments()), 0.0)}
    )
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_the_command_builds_and_improves(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(testsets.SHIPPED, "small", ("small", 3))
    monkeypatch.setitem(PRESETS, "small", WORLDS["edge"])
    words = ["testset", "small", "--folder", str(tmp_path), "--restarts", "2", "--repeats", "1"]
    words += ["--seconds", "0.01", "--bound-rounds", "50"]
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert "enumeration: instance 2 optimal" in said
    assert "small: 3 instances, 3 proven optimal" in said
    first = testsets.load("small", tmp_path)
    assert {best.proof for best in first.best} == {"enumeration"}
    assert cli.main(["testset", "nowhere"]) == 1
    assert "name is 'nowhere'; must be one of edge" in capsys.readouterr().err
