"""Train, resume, evaluate and be refused, as a user does it: real files, real orbax, real wandb."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from offload_jax import cli, runs, schema
from offload_jax.config import ConfigError, load_config, parse_config, presets, to_yaml
from offload_jax.learner import LearnerConfig
from offload_jax.networks import NetworkConfig
from offload_jax.scenario import PaperScenario
from offload_jax.tracking import MetricsFile, TrackingConfig, read_rows

GOLDEN = Path(__file__).parent / "golden"


def tiny(updates: int, wandb: str = "off") -> runs.TrainConfig:
    return runs.TrainConfig(
        scenario=PaperScenario(num_users=(4,)),
        network=NetworkConfig(width=16, layers=1, heads=2),
        learner=LearnerConfig(updates=updates, instances=8, samples=4),
        run=runs_config(),
        tracking=TrackingConfig(wandb=wandb),
    )


def runs_config():
    from offload_jax.config import RunConfig

    return RunConfig(log_every=1, eval_every=2, eval_instances=16)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> runs.RunResult:
    return runs.train(tiny(4, "offline"), folder=tmp_path_factory.mktemp("runs") / "four")


def test_a_run_leaves_everything(trained) -> None:
    names = {path.name for path in trained.folder.iterdir()}
    wanted = {"config.yaml", "run.json", "metrics.jsonl", "checkpoints", "wandb"}
    assert wanted | {"learning_curve.png"} <= names
    assert list((trained.folder / "wandb").glob("offline-run-*/*.wandb"))
    assert [row["step"] for row in trained.rows] == [1, 2, 3, 4]
    assert all(np.isfinite(row["score"]) for row in trained.rows)
    assert trained.finished
    assert runs.read_config(trained.folder) == tiny(4, "offline")


def test_resumed_equals_uninterrupted(trained, tmp_path, monkeypatch) -> None:
    """Stopped after two updates and gone on with: the same parameters bit for bit."""
    folder, seen = tmp_path / "half", []

    def stop_after_two(row: runs.Row) -> None:
        seen.append(row["step"])
        if row["step"] == 2:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGTERM)

    config = tiny(4)
    half = runs.train(config, [stop_after_two], folder)
    assert (half.step, half.finished) == (2, False)
    whole = runs.train(config, folder=folder)
    assert whole.finished
    assert [row["step"] for row in whole.rows] == [1, 2, 3, 4]
    last = runs.load_policy(folder, "latest").params
    other = runs.load_policy(trained.folder, "latest").params
    same = jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), last, other)
    assert all(jax.tree.leaves(same))


def test_what_may_not_change_within_a_run(trained) -> None:
    saved = runs.read_config(trained.folder)
    assert runs.resumed(saved, replace(saved, learner=replace(saved.learner, updates=9)))
    with pytest.raises(ConfigError, match="seed is 5; must stay 0"):
        runs.resumed(saved, replace(saved, seed=5))


def test_eval_on_a_file(trained, capsys) -> None:
    words = ["eval", "--run", str(trained.folder), "--instances", str(GOLDEN / "paper.json")]
    assert cli.main([*words, "--samples", "1", "4"]) == 0
    assert "optimum (top-b)" in capsys.readouterr().out
    out = trained.folder / "eval"
    found = json.loads((out / "eval.json").read_text())["cells"]["paper"]
    assert found["deny"]["gap_mean"] == 1.0
    assert found["top-b"]["gap_max"] == 0.0
    assert found["greedy"]["gap_max"] <= 1e-5
    assert 0 <= found["policy, best of 4"]["gap_mean"] <= found["policy, greedy"]["gap_mean"] + 1e-9
    assert {"gap_mean", "gap_ci95", "gap_p95", "gap_max", "seconds_per_plan"} <= set(found["grant"])
    plans = schema.read_plans(out / "plans.json")
    assert len(plans) == 20
    for name in ("gaps.png", "plan.png"):
        assert (out / name).read_bytes()[:4] == b"\x89PNG"


@pytest.mark.fast
@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("learner: {lrr: 1}", "learner.lrr is unknown.*did you mean lr"),
        ("learner: {updates: many}", "learner.updates is 'many'"),
        ("learner: {samples: 1}", "at least 2"),
        ("scenario: {kind: papr}", "scenario.kind is 'papr'; must be one of paper, edge"),
        ("scenario: {num_users: []}", "scenario.num_users"),
        ("env: {order: sort}", "env.order is 'sort'.*'arrival', 'sorted' or 'adaptive'"),
        ("network: {heads: 3}", "must divide network.width"),
        ("seed: -1", "seed is -1; must be in 0"),
        ("seed: 1\nseed: 2", "appears twice"),
        ("learner: 3", "must be a mapping"),
        ("a: [", "not valid YAML"),
    ],
)
def test_bad_settings_are_named(text, phrase) -> None:
    with pytest.raises(ConfigError, match=phrase):
        parse_config(text)


@pytest.mark.fast
def test_shipped_configurations() -> None:
    assert {"paper", "edge", "smoke"} <= set(presets())
    for name in presets():
        config = load_config(name)
        assert parse_config(to_yaml(config)) == config
    with pytest.raises(ConfigError, match="did you mean paper"):
        load_config("papr")


@pytest.mark.fast
@pytest.mark.parametrize(
    ("words", "phrase"),
    [
        (["train", "--config", "nope"], "config is 'nope'"),
        (["train", "--learner.samples", "1", "--dry-run"], "learner.samples is 1"),
        (["eval", "--run", "nowhere"], "must be a run directory"),
        (["eval", "--methods", "magic", "--no-policy"], "methods has 'magic'"),
        (["eval", "--no-policy", "--instances", "missing.json"], "missing.json"),
        (["info", "--run", "nowhere"], "must be a run directory"),
    ],
)
def test_refusals_are_one_line(words, phrase, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert phrase in error
    assert "Traceback" not in error


@pytest.mark.fast
def test_bad_instance_file_names_the_field(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    document = json.loads((GOLDEN / "paper.json").read_text())[:1]
    document[0]["users"][1]["local_step"] = -1
    (tmp_path / "bad.json").write_text(json.dumps(document))
    assert cli.main(["eval", "--no-policy", "--instances", "bad.json"]) == 1
    assert "users[1].local_step" in capsys.readouterr().err


@pytest.mark.fast
def test_both_ways_to_override(capsys) -> None:
    for words in (["--learner.lr", "3e-4"], ["--learner.lr=3e-4"]):
        assert cli.main(["info", "--config", "smoke"]) == 0
        assert cli.main(["train", "--learner.samples=1", "--dry-run", *words]) == 1
    assert "lr: 0.001" in capsys.readouterr().out


@pytest.mark.fast
def test_metrics_survive_a_torn_row(tmp_path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    metrics = MetricsFile(path, up_to_step=2)
    metrics.append({"step": 3, "again": 1.0})
    metrics.close()
    assert read_rows(path) == [{"step": 1}, {"step": 2}, {"step": 3, "again": 1.0}]
