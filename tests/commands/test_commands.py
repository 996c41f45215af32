"""The commands as a user types them: what they write, what they say, and how they refuse."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from paths import GOLDEN, ROOT

from offload_jax import cli
from offload_jax.export.card import card_of
from offload_jax.files import records
from offload_jax.runs.config_file import load_config


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "one"
    words = ["--learner.updates", "4", "--run.log_every", "2", "--tracking.wandb", "off"]
    assert cli.main(["train", "--config", "smoke", "--run", str(folder), *words]) == 0
    return folder


def test_eval_on_a_file(trained, capsys) -> None:
    words = ["eval", "--run", str(trained), "--instances", str(GOLDEN / "paper.json")]
    assert cli.main([*words, "--samples", "1", "4"]) == 0
    assert "gap to the optimum in the file" in capsys.readouterr().out
    out = trained / "eval-paper"
    found = json.loads((out / "eval.json").read_text())["cells"]["paper"]
    assert found["deny"]["gap_mean"] == pytest.approx(1)
    assert abs(found["top-b"]["gap_max"]) <= 1e-5
    assert found["greedy"]["gap_max"] <= 1e-5
    assert 0 <= found["policy, best of 4"]["gap_mean"] <= found["policy, greedy"]["gap_mean"] + 1e-9
    assert {"gap_mean", "gap_ci95", "gap_p95", "gap_max", "seconds_per_plan"} <= set(found["grant"])
    plans = records.read_plans(out / "plans.json")
    assert len(plans) == 20
    assert {plan.method for plan in plans} == {"policy, best of 4"}
    for name in ("gaps.png", "plan.png"):
        assert (out / name).read_bytes()[:4] == b"\x89PNG"


def test_a_packed_policy_is_evaluated_without_its_run(trained, tmp_path, capsys) -> None:
    folder, out = tmp_path / "mine", tmp_path / "eval"
    table = tmp_path / "table.md"
    table.write_text("| a | table |\n")
    words = ["--run", str(trained), "--table", str(table), "--note", "Only a test."]
    assert cli.main(["pack", *words, "--out", str(folder)]) == 0
    card = (folder / "README.md").read_text()
    assert "| a | table |" in card
    assert "Only a test." in card
    words = ["--per-cell", "2", "--methods", "deny", "--samples", "4", "--refine", "local-search"]
    assert cli.main(["eval", "--policy", str(folder), *words, "--out", str(out)]) == 0
    assert "policy, best of 4 + local-search" in capsys.readouterr().out
    assert json.loads((out / "eval.json").read_text())["source"]["policy"] == str(folder)
    assert cli.main(["pack", "--run", str(trained), "--out", str(folder)]) == 1
    assert "must be a new or empty folder" in capsys.readouterr().err


@pytest.mark.fast
def test_a_card_says_whether_its_settings_are_all_there_was(tmp_path) -> None:
    config, about = load_config("smoke"), {"update": 1, "device": "x", "commit": "y"}
    assert "`python train.py --config FILE`, with this FILE:" in card_of(
        tmp_path, "mine", config, about
    )
    tuned = card_of(tmp_path, "mine", replace(config, init_from="other"), about)
    assert "with this FILE" not in tuned
    assert "`init_from` is what training began with" in tuned


@pytest.mark.fast
@pytest.mark.parametrize(
    ("words", "phrase"),
    [
        (["train", "--config", "nope"], "config is 'nope'"),
        (["train", "--learner.samples", "1", "--dry-run"], "learner.samples is 1"),
        (["eval", "--run", "nowhere"], "must be a run directory"),
        (["eval", "--methods", "magic", "--no-policy"], "methods is 'magic'; must be one of deny"),
        (["eval", "--config", "edge"], "config is 'edge'; must be left out"),
        (["train", "--config", "smoke", "--config", "nope"], "config is 'nope'"),
        (["eval", "--no-policy", "--instances", "missing.json"], "missing.json"),
        (["eval", "--no-policy", "--testset", "edges"], "testset is 'edges'; must be one of edge"),
        (["eval", "--no-policy", "--testset", "edge", "--config", "edge"], "config is 'edge'"),
        (
            ["eval", "--no-policy", "--testset", "edge", "--instances", "a.json"],
            "must be one of them",
        ),
        (["eval", "--no-policy", "--budget-s", "0"], "budget-s is 0.0; must be above 0"),
        (["eval", "--no-policy", "--anytime", "-1"], "anytime is -1.0; must be at least 0"),
        (["eval", "--no-policy", "--scaling", "0"], "scaling is (0,); must be numbers of users"),
        (
            ["eval", "--no-policy", "--instances", "a.json", "--scaling", "4"],
            "a file tells no scenario",
        ),
        (
            ["testset", "edge", "--folder", "/proc/nowhere"],
            "folder is '/proc/nowhere'; must be a folder that can be written",
        ),
        (["testset", "nowhere"], "name is 'nowhere'; must be one of edge"),
        (
            ["eval", "--no-policy", "--budget-s", "inf"],
            "budget-s is inf; must be above 0 and finite",
        ),
        (
            ["eval", "--no-policy", "--anytime", "nan"],
            "anytime is nan; must be at least 0 and finite",
        ),
        (["testset", "edge", "--seconds", "0"], "seconds is 0.0; must be above 0"),
        (["testset", "edge", "--scip-s", "inf"], "scip-s is inf; must be at least 0 and finite"),
        (["info", "--run", "nowhere"], "must be a run directory"),
        (
            ["eval", "--policy", "edges"],
            "must be a policy folder or one of edge, edge_a",
        ),
        (
            ["eval", "--policy", "edge", "--run", "a"],
            "run, policy and no-policy exclude",
        ),
        (["eval", "--policy", "edge", "--temperature", "0"], "temperature is 0.0; must be above 0"),
        (["eval", "--policy", "edge", "--refine", "orders"], "the policy's order is adaptive"),
        (["eval", "--no-policy", "--refine", "orders"], "refine is given, but no-policy"),
        (["pack", "--run", "nowhere", "--out", "p"], "must be a run directory"),
        (["pack", "--run", "a", "--out", "p", "--temperature", "-1"], "temperature is -1.0"),
    ],
)
def test_refusals_are_one_line(words, phrase, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert phrase in error
    assert "Traceback" not in error


def test_eval_writes_nothing_where_it_cannot(trained, tmp_path, capsys) -> None:
    (tmp_path / "file").write_text("")
    words = ["eval", "--run", str(trained), "--out", str(tmp_path / "file" / "out")]
    assert cli.main(words) == 1
    assert "must be a folder that can be written" in capsys.readouterr().err


def test_eval_keeps_its_numbers_when_it_is_interrupted(tmp_path, capsys, monkeypatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("offload_jax.evaluation.curves.anytime", interrupt)
    words = ["eval", "--no-policy", "--config", "smoke", "--per-cell", "3", "--methods", "deny"]
    assert cli.main([*words, "--anytime", "0.01", "--out", str(tmp_path)]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"eval.json", "table.md"}
    assert json.loads((tmp_path / "eval.json").read_text())["cells"]["all"]["deny"]


def test_certifying_needs_another_solver(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("offload_jax.splits.layer.find_spec", lambda name: None)
    words = ["eval", "--no-policy", "--config", "smoke", "--per-cell", "3", "--methods", "deny"]
    assert cli.main([*words, "--certify", "--out", str(tmp_path)]) == 1
    assert "certify is given, but no other solver is there" in capsys.readouterr().err


def test_eval_on_fresh_instances_without_a_policy(tmp_path, capsys) -> None:
    words = ["eval", "--no-policy", "--config", "smoke", "--per-cell", "3"]
    assert cli.main([*words, "--methods", "deny", "top-b", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "24 instances; gap to the optimum (top-b)" in said
    cells = json.loads((tmp_path / "eval.json").read_text())["cells"]
    assert cells["all"]["deny"]["instances"] == 24
    assert (tmp_path / "table.md").read_text().splitlines()[0] in said


def test_info_describes_a_run(trained, capsys) -> None:
    assert cli.main(["info", "--run", str(trained)]) == 0
    said = capsys.readouterr().out
    assert "update: 4 of 4" in said
    assert "best gap: " in said
    assert cli.main(["info"]) == 0
    assert "methods: deny, grant, myopic, greedy, reduced-greedy, local" in capsys.readouterr().out


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path) -> None:
    folder = tmp_path / "run"
    words = [sys.executable, str(ROOT / "train.py"), "--run", str(folder)]
    first = [*words, "--config", "smoke", "--run.log_every", "1", "--learner.updates", "100000"]
    process = subprocess.Popen(first, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not ((folder / "metrics.jsonl").exists() and (folder / "metrics.jsonl").stat().st_size):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "stopping after this update; once more to stop at once" in err
    assert f"go on with: python train.py --run {folder}" in out
    assert "Traceback" not in err
    assert list((folder / "checkpoints").iterdir())


@pytest.mark.fast
def test_dry_run_writes_nothing(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "--config", "smoke", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "everything fits and compiles; nothing was written" in said
    assert "updates: 20" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fast
@pytest.mark.parametrize("command", ["train", "eval", "info"])
def test_help(command, capsys) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([command, "--help"])
    assert caught.value.code == 0
    said = capsys.readouterr().out
    assert f"usage: offload-jax {command}" in said
    assert "--run" in said


@pytest.mark.fast
def test_commands_that_do_not_exist(capsys) -> None:
    assert cli.main(["trian"]) == 2
    assert "no command 'trian' (did you mean train?)" in capsys.readouterr().err
    assert cli.main([]) == 0
    assert "usage: offload-jax COMMAND" in capsys.readouterr().out
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("offload-jax 0.")


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


def test_a_run_can_be_certified_and_solved_again(trained, capsys) -> None:
    words = ["eval", "--run", str(trained), "--per-cell", "2", "--methods", "top-b"]
    gaps = []
    for more in (["--certify", "--certified", "8"], ["--splits.solver", "cvxpylayers-moreau"]):
        assert cli.main([*words, "--samples", "1", *more]) == 0
        found = json.loads((trained / "eval" / "eval.json").read_text())
        gaps.append(found["cells"]["all"]["policy, greedy"]["gap_mean"])
        said = capsys.readouterr().out
        if "--certify" in more:
            assert said.count("certified, policy, greedy: 8 of 8 plans by cvxpylayers-") == 2
            worst = max(c["split_deviation"] for c in found["certificates"])
            assert worst <= 1e-3
    assert gaps[0] == pytest.approx(gaps[1], abs=1e-4)


@pytest.mark.fast
@pytest.mark.parametrize(
    ("words", "phrase"),
    [
        (["--splits.solver", "moreau"], "splits.solver is 'moreau'; must be one of native, cvx"),
        (["--splits.terms", "0 - max(latency)"], "splits.solver is 'native', which takes no"),
        (
            ["--splits.solver", "cvxpylayers-moreau", "--splits.constraints", "latency <= 1"],
            "splits.constraints has 'latency <= 1', which the all-local plan breaks",
        ),
        (
            ["--splits.solver", "cvxpylayers-moreau", "--splits.constraints", "split^2 <= 1"],
            "'split^2 <= 1' has 'split ^ 2'",
        ),
    ],
)
def test_bad_rules_are_refused_before_compiling(words, phrase, capsys, tmp_path) -> None:
    folder = tmp_path / "run"
    assert cli.main(["train", "--config", "smoke", "--run", str(folder), *words]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert phrase in error
    assert not folder.exists()
