"""The benchmarks that compare learners, policies and the paper's agent: their bookkeeping."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.learners import per_dqn_tables, side_by_side, tables
from benchmarks.quality import generalisation
from offload_jax.learning.algorithms.ppo import PPOCritic


def document() -> dict:
    """Two variants, the first one with two seeds."""

    def run(variant, seed, greedy):
        curve = [{"update": u, "gap": g} for u, g in ((10, 0.02), (20, 0.01 + seed / 1000))]
        return {"variant": variant, "seed": seed, "updates": 20, "trajectories": 10_240,
                "curve": curve, "greedy": greedy, "sampled": greedy / 2}  # fmt: skip

    runs = [run("shared", 0, 0.012), run("shared", 1, 0.016), run("critic", 0, 0.03)]
    return {
        "minutes": 1.0,
        "common": list(side_by_side.COMMON),
        "update_s": {"shared": 3.0, "critic": 2.5},
        "runs": runs,
    }


@pytest.mark.fast
def test_tables_of_learners_by_hand(tmp_path) -> None:
    tables.write_pages(document(), tmp_path / "learners.json")
    text = (tmp_path / "learners-learners.md").read_text()
    line = "| shared | 2 | 10,240 | 1.400 (1.200 to 1.600) | 0.700 (0.600 to 0.800) | 3,000 |"
    assert line in text
    assert "| critic | 1 | 10,240 | 3.000 | 1.500 | 2,500 |" in text
    assert (tmp_path / "learners-learners.png").stat().st_size > 10_000
    assert not (tmp_path / "learners-layer.md").exists()  # one variant is no comparison
    assert {name for names in tables.GROUPS.values() for name in names} == set(
        side_by_side.VARIANTS
    )


@pytest.mark.fast
def test_variants_are_settings_that_exist() -> None:
    for name in side_by_side.VARIANTS:
        side_by_side.config_of(name).validate()
    assert side_by_side.config_of("critic").algorithm == PPOCritic()
    assert side_by_side.config_of("without reduced gains").env.candidates == 0


@pytest.mark.fast
def test_runs_of_another_length_are_refused(tmp_path, monkeypatch, capsys) -> None:
    out = tmp_path / "learners.json"
    out.write_text(json.dumps(document()))
    assert side_by_side.main(["--out", str(out)]) == 2
    assert "minutes is 10.0; must be 1.0, as in" in capsys.readouterr().err
    assert side_by_side.main(["best", "--out", str(out)]) == 2
    assert "variants has 'best'; must be among shared, critic" in capsys.readouterr().err
    many = len(side_by_side._cores()) + 1
    for word, value, wanted in (
        ("workers", many, f"must be in 1..{many - 1}"),
        ("minutes", 0, "must be positive"),
    ):
        assert side_by_side.main([f"--{word}", str(value), "--out", str(out)]) == 2
        assert (
            f"{word} is {float(value) if value == 0 else value}; {wanted}"
            in capsys.readouterr().err
        )
    book = side_by_side.Book(out, 1.0)
    took = {"shared": 1.5, "critic": 1.0, "self-labelling": 1.0, "self-labelling + layer": 1.1}
    monkeypatch.setattr(
        side_by_side, "seconds_of_updates", lambda names: {n: took[n] for n in names}
    )
    book.time_updates(["self-labelling + layer", "critic"])
    known = {"shared": 3.0, "critic": 2.5, "self-labelling": 2.0, "self-labelling + layer": 2.2}
    assert book.document["update_s"] == pytest.approx(known)  # what was known stays
    with pytest.raises(subprocess.CalledProcessError):  # the run's own error ends all of them
        list(side_by_side.trained(book, [("critic", 1), ("critic", 2)], out, 1))
    assert book.run_of("critic", 2) is None
    assert book.updates_of("shared") == 20
    assert book.run_of("critic", 0)["greedy"] == 0.03
    assert book.run_of("critic", 1) is None


@pytest.mark.fast
def test_axes_of_generalisation(tmp_path, capsys, monkeypatch) -> None:
    """Sites that exist, a table and a picture of what was measured, and refusals before that."""
    for axis in generalisation.AXES.values():
        for value in axis.values:
            axis.scenario(value).validate()
    rows = [
        {"users": v, "gap_edge, greedy": v / 1000, "gap_new, greedy": [v / 1000, v / 500]}
        for v in (4, 16)
    ]
    monkeypatch.setattr(generalisation, "measured", lambda name, deciders: iter(rows))
    out = tmp_path / "sites.json"
    words = ["--policies", "edge", "--out", str(out)]
    assert generalisation.main(["users", *words]) == 0
    assert "| 16 | 1.6 | 2.4 (1.6 to 3.2) |" in out.with_suffix(".md").read_text()
    assert "Trained with: edge 8 to 24, edge_sites 8 to 24." in out.with_suffix(".md").read_text()
    assert out.with_suffix(".png").stat().st_size > 10_000
    assert generalisation.ranges_of("budget") == {"edge": (3, 3), "edge_sites": (0.5, 6)}

    named = generalisation.deciders_of(["edge", "both=edge,edge_sites"])
    greedy = [name for name in named if "greedy #" in name]
    assert greedy == ["edge, greedy #0", "both, greedy #0", "both, greedy #1"]
    gaps = dict(zip([*greedy, "tabu"], (0.1, 0.2, 0.4, 0.3), strict=True))
    found = [SimpleNamespace(method=name, gap_mean=gap) for name, gap in gaps.items()]
    shown = {"gap_edge, greedy": 0.1, "gap_both, greedy": [0.2, 0.4]}
    assert generalisation.by_method(found) == shown

    def stop(name, deciders):
        raise KeyboardInterrupt

    monkeypatch.setattr(generalisation, "measured", stop)
    assert generalisation.main(["budget", *words]) == 130
    assert "finished parts stay" in capsys.readouterr().err
    assert "| 16 | 1.6 | 2.4 (1.6 to 3.2) |" in out.with_suffix(".md").read_text()
    assert generalisation.main(["weather", *words]) == 2
    assert "parts has 'weather'; must be among users, budget" in capsys.readouterr().err
    assert generalisation.main(["--policies", "nobody", "--out", str(out)]) == 2
    assert "nobody" in capsys.readouterr().err
    assert generalisation.main(["--policies", "edge", "edge=paper", "--out", str(out)]) == 2
    assert "policies has 'edge' twice" in capsys.readouterr().err


@pytest.mark.fast
def test_tables_of_the_agent_by_hand(tmp_path) -> None:
    """As good means as good as each agent at its end, the first time and for good."""
    common = {"seed": 0, "data": "fixed", "plan_ms": 0.5, "gap_played": 0.0}
    rows = [
        common | {"users": 8, "gpus": 4, "curve": [
            [0, 0.0, 0.9, 0.9], [250, 50.0, 0.01, 0.5], [500, 100.0, 0.03, 0.4],
            [750, 150.0, 0.02, 0.4], [1000, 200.0, 0.02, 0.3]]},
        common | {"users": 8, "gpus": 8, "curve": [
            [0, 0.0, 0.9, 0.9], [250, 50.0, 0.5, 0.5], [500, 100.0, 0.3, 0.4],
            [750, 150.0, 0.1, 0.4], [1000, 200.0, 0.0, 0.1]]},
    ]  # fmt: skip
    curve = [
        {"updates": 0, "train_s": 0.0, "gaps": [[0.4, 0.4], [0.3, 0.05]]},
        {"updates": 1, "train_s": 1.0, "gaps": [[0.02, 0.4], [0.0, 0.05]]},
        {"updates": 2, "train_s": 1.5, "gaps": [[0.03, 0.4], [0.3, 0.05]]},
        {"updates": 3, "train_s": 2.0, "gaps": [[0.01, 0.02], [0.1, 0.01]]},
    ]
    ours = {"cells": [[8, 4], [8, 8]], "runs": [{"seed": 0, "curve": curve}], "plan_ms": 0.1}
    alone = [
        common | {"users": 8, "gpus": 4, "curve": [
            [0, 0.0, 0.4, 0.4], [5, 0.5, 0.01, 0.4], [10, 1.0, 0.4, 0.4], [15, 1.5, 0.0, 0.2]]},
        common | {"users": 8, "gpus": 8, "curve": [
            [0, 0.0, 0.0, 0.1], [5, 0.5, 0.0, 0.1], [10, 1.0, 0.0, 0.1], [15, 1.5, 0.0, 0.1]]},
    ]  # fmt: skip
    found = {"rows": rows, "alone": alone, "ours": ours}
    per_dqn_tables.write_pages(found, tmp_path / "dqn.json")
    text = (tmp_path / "dqn.md").read_text()
    assert (
        "PER-DQN, a network per cell, its one instance | 2 | 1 | 1.000 | 20.000 | 400 | 0.5 |"
        in text
    )
    assert "ours, a network per cell, its one instance | 2 | 1 | 0.000 | 15.000 | 3 | 0.1 |" in text
    assert (
        "ours, one network for all cells, fresh instances | 2 | 1 | 5.500 | 1.500 | 2 | 0.1 |"
        in text
    )
    assert "| PER-DQN trained on | mean of the last 20 checks % | at its end % |" in text
    assert "| fixed instances | 27.80 | 1.00 |" in text
    times = "{0}x ({0} to {0}; 1 cells)"
    for name, counts, first, kept in (
        ("a network per cell", "2 | 1 | 0", 100, 100),
        ("one network for all cells", "2 | 0 | 1", 50, 75),
    ):
        ratios = f"{times.format(first)} | {times.format(kept)}"
        assert f"| {name} | fixed instances | {counts} | {ratios} |" in text
    text = (tmp_path / "dqn-cells.md").read_text()
    theirs = "| fixed | 8 | 4 | 1 | 0.000 | 2.000 | 30.000 | 200 | 50 / 150 |"
    assert f"{theirs} 0.000 | 20.000 | 1.5 | 0.5 / 1.5 | 1.000 | 2.000 | 2.0 | 1.0 / 2.0 |" in text
    theirs = "| fixed | 8 | 8 | 1 | 0.000 | 0.000 | 10.000 | 200 | 200 / 200 |"
    assert (
        f"{theirs} 0.000 | 10.000 | 1.5 | 0.0 / 0.0 | 10.000 | 1.000 | 2.0 | 1.0 / never |" in text
    )
    assert (tmp_path / "dqn.png").stat().st_size > 10_000
    # A second seed of one cell: shown there, and left out where not every cell has it.
    again = rows[0] | {
        "seed": 1,
        "curve": [[n, 1.5 * s, 0.06, 0.5] for n, s, *_ in rows[0]["curve"]],
    }
    per_dqn_tables.write_pages(found | {"rows": [again, *rows]}, tmp_path / "dqn.json")
    theirs = (
        "| fixed | 8 | 4 | 2 | 0.000 | 4.000 (2.000 to 6.000) | 40.000 (30.000 to 50.000) | 250"
    )
    assert theirs in (tmp_path / "dqn-cells.md").read_text()
    assert "its one instance | 2 | 1 | 1.000 | 20.000 | 450" in (tmp_path / "dqn.md").read_text()


def test_an_update_of_the_agent_by_hand(monkeypatch) -> None:
    """Targets from what really followed in the episode, none after a last decision."""
    pytest.importorskip("flashbax", reason="needs pip install 'offload-jax[bench]'")
    from benchmarks.learners import per_dqn_agent as dqn
    from benchmarks.learners import per_dqn_cells

    pool, zero = per_dqn_cells.Cell(4, 8).fixed, jnp.int32(0)
    agent = dqn.begin(pool, jax.random.key(0))
    agent = replace(agent, params=jax.tree.map(lambda x: 1.1 * x, agent.params))
    following = {}  # (user, granted, action, reward) -> (next user, next granted), or None

    def known(one, n):
        return (
            int(one.user[n]),
            *map(bool, one.granted[n]),
            int(one.action[n]),
            float(one.reward[n]),
        )

    for seed in range(3):
        _, items = dqn.play(agent.params, pool, zero, 4.0, jax.random.key(seed))
        inner, last = dqn._split(items)
        agent = replace(
            agent, inner=dqn._INNER.add(agent.inner, inner), last=dqn._LAST.add(agent.last, last)
        )
        for t in range(4):
            after = None if t == 3 else (items.user[t + 1], items.granted[t + 1])
            following[known(items, t)] = after

    _, *keys = jax.random.split(agent.key, 3)
    drawn = dqn._INNER.sample(agent.inner, keys[0]), dqn._LAST.sample(agent.last, keys[1])
    assert [len(one.probabilities) for one in drawn] == [112, 16]  # of 128, an eighth are last
    wanted, weights = [], []
    for one in drawn:
        chance = np.asarray(one.probabilities, float)
        weights.append((chance / chance.min()) ** -0.4)
        for n in range(len(chance)):
            after = following[known(one.experience, n)]
            assert (after is None) == (one is drawn[1])
            later = 0.0 if after is None else max(dqn.values(agent.target, pool, zero, *after))
            wanted.append(float(one.experience.reward[n]) + float(later))
    items = jax.tree.map(lambda *x: jnp.concatenate(x), *(one.experience for one in drawn))
    weight, wanted = jnp.concatenate([jnp.asarray(w) for w in weights]), jnp.asarray(wanted)

    def loss(params):
        look = jax.vmap(lambda user, granted: dqn.values(params, pool, zero, user, granted))
        found = look(items.user, items.granted)[jnp.arange(128), items.action]
        return jnp.mean(weight * (found - wanted) ** 2)

    _, moved = dqn._OPTIMIZER.update(jax.grad(loss)(agent.params), agent.optimizer, agent.params)
    learned = dqn.learn(agent, pool)
    assert int(learned.updates) == 1
    # Moments, for a first step of Adam has one length whatever the gradient is.
    for got, due in zip(*map(jax.tree.leaves, (learned.optimizer, moved)), strict=True):
        np.testing.assert_allclose(got, due, rtol=1e-3, atol=1e-5 * np.abs(due).max())
    flat = jax.flatten_util.ravel_pytree
    np.testing.assert_array_equal(flat(learned.target)[0], flat(agent.target)[0])
    monkeypatch.setattr(dqn, "TARGET_EVERY", 1)
    learned = dqn.learn(agent, pool)
    np.testing.assert_array_equal(flat(learned.target)[0], flat(learned.params)[0])


def test_the_agent_of_the_paper(tmp_path, monkeypatch, capsys) -> None:
    """A short training: rewards, memories, a value that a full batch cannot have, and its rows."""
    pytest.importorskip("flashbax", reason="needs pip install 'offload-jax[bench]'")
    from benchmarks.learners import per_dqn, per_dqn_agent, per_dqn_cells, per_dqn_ours
    from offload_jax.plans.outcome import evaluate
    from offload_jax.problem.scenario import PaperScenario

    pool = per_dqn_cells.Cell(4, 8).fixed
    agent = per_dqn_agent.begin(pool, jax.random.key(0))
    outcome, items = per_dqn_agent.play(agent.params, pool, jnp.int32(0), 1.0, jax.random.key(1))
    alone = jax.tree.map(lambda x: x[..., 0], pool)
    worth = float(evaluate(alone, items.action).objective)
    assert float(outcome.objective) == pytest.approx(worth, rel=1e-5)
    assert float(jnp.sum(items.reward)) == pytest.approx(0.1 * worth, rel=1e-5)
    np.testing.assert_array_equal(items.user, np.arange(4))
    small = PaperScenario(num_users=(4,), edge_gpus=(8,), capacity=2)
    full = jax.vmap(small.sample, out_axes=-1)(jax.random.key(0)[None])
    granted = jnp.array([True, True, False, False])
    found = per_dqn_agent.values(agent.params, full, jnp.int32(0), jnp.int32(2), granted)
    assert np.isfinite(found[0])
    assert found[1] == -np.inf

    monkeypatch.setattr(per_dqn_agent, "WARM_UP", 20)
    monkeypatch.setattr(per_dqn_agent, "CHUNK", 10)
    monkeypatch.setattr(per_dqn_cells, "FRESH", 8)
    for name, updates in (("TOGETHER", 1), ("ALONE", 5)):
        fewer = replace(getattr(per_dqn_ours, name), updates=updates)
        monkeypatch.setattr(per_dqn_ours, name, fewer)
    monkeypatch.setattr(per_dqn, "OURS", (0,))
    some = [per_dqn_cells.Cell(4, 4), per_dqn_cells.Cell(4, 16)]
    monkeypatch.setattr(per_dqn, "cells_of", lambda _: some)
    out = tmp_path / "per_dqn.json"
    words = ["--users", "4", "--episodes", "20", "--out", str(out)]
    assert per_dqn.main(words) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [(row["users"], row["gpus"]) for row in rows] == [(4, 4), (4, 16)]
    assert all(len(row["curve"]) == 3 and row["curve"][-1][1] > 0 for row in rows)
    assert all(row["gap_played"] <= row["curve"][0][2] + 1e-6 for row in rows)
    assert (tmp_path / "per_dqn-cells.md").read_text().count("| fixed | 4 |") == 2
    alone = json.loads(out.read_text())["alone"]
    assert [row["gpus"] for row in alone] == [4, 16]
    assert all(len(row["curve"]) == 2 and row["curve"][-1][1] > 0 for row in alone)
    capsys.readouterr()
    assert per_dqn.main(words) == 0  # nothing is trained again
    assert "episode" not in capsys.readouterr().out
    assert per_dqn.main(["--seeds"]) == 2
    assert "seeds is empty; must have at least one" in capsys.readouterr().err
    assert per_dqn.main(["--users", "5"]) == 2
    assert "users is (5,); must be among (4, 8, 12, 16, 20)" in capsys.readouterr().err
    assert per_dqn.main(["--episodes", "15"]) == 2
    assert "episodes is 15; must be a multiple of 10" in capsys.readouterr().err
    assert per_dqn.main(["--episodes", "30", "--out", str(out)]) == 2
    assert "episodes is 30; must be 20, as in" in capsys.readouterr().err
    out.write_text('{"rows": []}')
    assert per_dqn.main(words) == 2
    assert "has no alone, ours; must be a file of this benchmark" in capsys.readouterr().err
    out.write_text("{")
    assert per_dqn.main(words) == 2
    assert "must be a benchmark's JSON file" in capsys.readouterr().err
