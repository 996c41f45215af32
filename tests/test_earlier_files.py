"""Files of an earlier version load, and mean what they meant: what moves in the code must not show.

golden/earlier.tar.xz holds one of each kind, made with small settings: a configuration, a run, a
policy folder, a bundle and a sweep; and what that version decided (answers.json). The names of Flax
submodules are part of these formats: layers of one shape in another order load, and decide wrongly.
"""

from __future__ import annotations

import json
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from paths import GOLDEN, ROOT

from offload_jax import cli, deploy
from offload_jax.deploy.verify import replay
from offload_jax.learning.trajectories import sample_instances
from offload_jax.policy.decoding import greedy_plan
from offload_jax.policy.policy import Policy
from offload_jax.runs.config_file import load_config
from offload_jax.runs.restore import examine
from offload_jax.runs.run_folder import read_config
from offload_jax.runs.tracking.metrics import read_rows
from offload_jax.runs.train import load_policy, train


@pytest.fixture(scope="module")
def earlier(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("earlier")
    with tarfile.open(GOLDEN / "earlier.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.mark.fast
def test_configurations(earlier) -> None:
    assert read_config(earlier / "run") == load_config(earlier / "edge.yaml")


@pytest.mark.parametrize("kind", ["run", "policy"])
def test_policies_decide_as_they_did(kind, earlier) -> None:
    answers = json.loads((earlier / "answers.json").read_text())
    scenario = load_config(earlier / "edge.yaml").scenario
    policy = load_policy(earlier / kind)
    instances = jax.jit(sample_instances, static_argnums=(0, 2))(scenario, jax.random.key(0), 8)
    encoding = jax.jit(Policy.encode)(policy, instances)
    np.testing.assert_allclose(encoding.overall, answers["encoding"], 1e-4, 1e-5)
    plans, _ = jax.jit(greedy_plan)(policy, instances)
    np.testing.assert_array_equal(plans, answers["assignment"])
    assert float(policy.temperature) == {"run": 1.0, "policy": 2.0}[kind]


def test_a_run_goes_on(earlier, tmp_path) -> None:
    folder = Path(shutil.copytree(earlier / "run", tmp_path / "run"))
    good, bad = examine(folder / "checkpoints")
    assert [saved.step for saved in good] == [2, 4]
    assert not bad
    before, config = read_rows(folder / "metrics.jsonl"), read_config(folder)
    result = train(replace(config, learner=replace(config.learner, updates=5)), folder=folder)
    assert result.finished
    assert result.rows[:4] == before
    assert [row["step"] for row in result.rows[4:]] == [5]


def test_bundles_answer_as_they_did(earlier) -> None:
    bundle = deploy.open_bundle(earlier / "bundle")
    found = replay(bundle, deploy.open_runtime(bundle, "jax"), "greedy", batch=8)
    assert found.good  # ties may be decided in another way


def test_a_sweep_knows_its_trials(earlier, tmp_path, monkeypatch) -> None:
    folder = Path(shutil.copytree(earlier / "sweep", tmp_path / "sweep"))
    monkeypatch.chdir(ROOT)
    found = json.loads((folder / "sweep.json").read_text())
    assert cli.main(["sweep", str(earlier / "sweep.yaml"), "--out", str(folder)]) == 0
    assert json.loads((folder / "sweep.json").read_text())["trials"] == found["trials"]
