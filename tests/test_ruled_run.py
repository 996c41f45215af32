"""Commands with rules of one's own: a file of its own, as it compiles for half a minute."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from offload_jax import cli

pytestmark = pytest.mark.usefixtures("quick_compiler")
CERTIFY = [
    "--per-cell",
    "3",
    "--certify",
    "--certified",
    "4",
    "--methods",
    "deny",
    "reduced-greedy",
]


@pytest.fixture
def site(tmp_path, monkeypatch) -> Path:
    """A directory to work in, with a scenario file that has rules."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "site.yaml").write_text(
        "scenario: {kind: edge, num_users: [3, 4], batches: 2, servers: 1, models: 1}\n"
        "splits:\n"
        "  solver: cvxpylayers-moreau\n"
        "  constraints: ['granted * latency <= 0.95 * local_latency']\n"
        "  terms: ['-max(latency)']\n"
        "network: {width: 16, layers: 1}\n"
        "learner: {updates: 2, instances: 4, samples: 4}\n"
        "run: {log_every: 1, eval_every: 2, eval_instances: 4}\n"
        "tracking: {wandb: 'off'}\n"
    )
    return tmp_path


def certified(folder: Path, method: str, said: str) -> None:
    """Another solver agrees with what is written in the folder."""
    assert f"certified, {method}: 4 of 4 plans by cvxpylayers-diffcp: splits" in said
    found = json.loads((folder / "eval.json").read_text())
    assert found["source"]["splits"]["terms"] == ["-max(latency)"]
    [certificate] = found["certificates"]
    assert certificate["solved"] == certificate["plans"] == 4
    assert certificate["split_deviation"] <= 1e-3
    assert certificate["residual"] <= 1e-4


def test_methods_are_compared_and_certified_under_rules(site, capsys) -> None:
    words = ["eval", "--no-policy", "--config", "site.yaml", *CERTIFY]
    assert cli.main([*words, "--out", "found"]) == 0
    certified(site / "found", "reduced-greedy", capsys.readouterr().out)
    assert cli.main([*words, "--splits.solver", "native"]) == 1
    assert "takes no constraints or terms" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_keeps_its_rules(site, capsys) -> None:
    """Trained on, evaluated and certified through the same options."""
    assert cli.main(["train", "--config", "site.yaml", "--run", "run"]) == 0
    assert cli.main(["eval", "--run", "run", "--samples", "1", *CERTIFY]) == 0
    certified(site / "run" / "eval", "policy, greedy", capsys.readouterr().out)
