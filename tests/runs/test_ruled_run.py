"""A whole run with rules of one's own: a file of its own, as it compiles for half a minute."""

from __future__ import annotations

import json

from offload_jax import cli


def test_rules_and_solvers_of_a_run(tmp_path, capsys, monkeypatch) -> None:
    """A scenario file with rules: trained on, evaluated and certified through the same options."""
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
    assert cli.main(["train", "--config", "site.yaml", "--run", "run"]) == 0
    words = ["eval", "--run", "run", "--per-cell", "3", "--samples", "1", "--certify"]
    assert cli.main([*words, "--certified", "4", "--methods", "deny", "reduced-greedy"]) == 0
    said = capsys.readouterr().out
    assert "certified, policy, greedy: 4 of 4 plans by cvxpylayers-diffcp: splits" in said
    found = json.loads((tmp_path / "run" / "eval" / "eval.json").read_text())
    assert found["source"]["splits"]["terms"] == ["-max(latency)"]
    [certificate] = found["certificates"]
    assert certificate["solved"] == certificate["plans"] == 4
    assert certificate["split_deviation"] <= 1e-3
    assert certificate["residual"] <= 1e-4
    assert cli.main([*words, "--splits.solver", "native"]) == 1
    assert "takes no constraints or terms" in capsys.readouterr().err
