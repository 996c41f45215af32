"""The comparison: the same instances for all, gaps and intervals as defined, and its pictures."""

from __future__ import annotations

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import evaluate, gain_of
from episodes import world
from scipy import stats

from offload_jax.evaluation import figures, report, timeline
from offload_jax.evaluation.compare import Known, compare, deciders, sample_cells
from offload_jax.evaluation.comparison import ALL, HARD
from offload_jax.evaluation.figures import gap_figure, learning_curve
from offload_jax.methods import METHODS, solve
from offload_jax.plans import plan
from offload_jax.plans.plan import PROVEN, Decision
from offload_jax.problem.instance import taken, toy
from offload_jax.problem.scenario import PaperScenario

SMALL = PaperScenario(num_users=(2, 5), edge_gpus=(4, 16))


@pytest.fixture(scope="module")
def compared():
    cells = sample_cells(SMALL, 12, jax.random.key(3))
    methods = deciders(None, (), jax.random.key(0), ["deny", "grant", "top-b"])
    hard = [name for name in cells if "E4" in name]
    return cells, compare(cells, methods, hard)


def test_gaps_by_hand(compared) -> None:
    cells, comparison = compared
    assert len(cells) == 4
    everything = []
    for name, instances in cells.items():
        gains, best = (
            np.asarray(gain_of(instances, jax.jit(METHODS[name].assign)(instances)))
            for name in ("grant", "top-b")
        )
        gaps = np.where(best > 0, (best - gains) / np.where(best > 0, best, 1), 0)
        everything.append(gaps)
        row = comparison.row("grant", name)
        assert row.instances == 12
        assert row.gap_mean == pytest.approx(gaps.mean(), abs=1e-5)
        assert row.gap_max == pytest.approx(gaps.max(), abs=1e-5)
        assert row.gap_p95 == pytest.approx(np.percentile(gaps, 95), abs=1e-5)
        assert comparison.row("top-b", name).gap_max == 0
    gaps = np.concatenate(everything)
    row = comparison.row("grant")
    low, _ = stats.t.interval(0.95, len(gaps) - 1, gaps.mean(), stats.sem(gaps))
    assert row.gap_ci95 == pytest.approx(gaps.mean() - low, rel=1e-3)
    assert comparison.row("deny").gap_mean == pytest.approx(1)
    assert comparison.reference == "optimum (top-b)"
    assert comparison.row("grant", HARD).instances == 24


def test_as_json_and_table(compared) -> None:
    _, comparison = compared
    found = json.loads(json.dumps(comparison.to_json()))
    wanted = {"gap_mean", "gap_ci95", "gap_p95", "gap_max", "seconds_per_plan", "score_mean"}
    assert wanted <= set(found["cells"][ALL]["grant"])
    table = report.markdown(comparison).splitlines()
    assert table[2].startswith("| deny | 100.000 | ±0.000 | 100.00 | 100.00 | 100 |")
    assert {len(gaps) for gaps in found["instances"]["gaps"].values()} == {48}
    assert len({line.count("|") for line in table}) == 1
    with pytest.raises(KeyError, match="no row for method 'magic'"):
        comparison.row("magic")


def test_methods_that_do_not_apply_are_left_out_and_said() -> None:
    cells = {"edge": world("edge", 4)}
    methods = deciders(None, (), jax.random.key(0), ["deny", "grant", "top-b"])
    comparison = compare(cells, methods)
    assert comparison.methods() == ["deny", "grant"]
    assert "exactly one batch" in comparison.left_out["top-b"]
    assert comparison.reference == "best of the methods compared"
    with pytest.raises(ValueError, match="methods holds none that applies"):
        compare(cells, {"top-b": methods["top-b"]})
    with pytest.raises(ValueError, match="method is 'magic'; must be one of"):
        deciders(None, (), jax.random.key(0), ["magic"])


def test_methods_of_one_name_are_refused(tmp_path) -> None:
    text = "from offload_jax.methods import METHODS\nX = METHODS['deny']\n"
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "m.py").write_text(text)
    names = [f"{tmp_path / folder / 'm.py'}:X" for folder in ("a", "b")]
    assert list(deciders(None, (), jax.random.key(0), names[:1] * 2)) == ["m.py:X"]
    with pytest.raises(ValueError, match=r"methods has two named m\.py:X; must have another name"):
        deciders(None, (), jax.random.key(0), names)


def test_known_optima_are_the_reference() -> None:
    instances = world("edge", 4)
    methods = deciders(None, (), jax.random.key(0), ["deny", "grant"])
    known = Known("optimum in the file", {"edge": np.full(4, 100.0)})
    comparison = compare({"edge": instances}, methods, known=known)
    assert comparison.reference == "optimum in the file"
    gains = np.asarray(gain_of(instances, METHODS["grant"].assign(instances)))
    row = comparison.row("grant", "edge")
    assert row.gap_mean == pytest.approx(np.mean(1 - gains / 100), rel=1e-5)
    assert comparison.row("deny", "edge").gap_mean == pytest.approx(1)


def test_a_picture_of_deny_alone(tmp_path) -> None:
    methods = deciders(None, (), jax.random.key(0), ["deny"])
    comparison = compare({"edge": world("edge", 4)}, methods)
    figures.save(gap_figure(comparison), tmp_path / "gaps.png")
    assert (tmp_path / "gaps.png").exists()


def test_fresh_instances_are_reproducible_and_differ_by_seed() -> None:
    first, again, other = (sample_cells(SMALL, 3, jax.random.key(k)) for k in (1, 1, 2))
    for name in first:
        assert jnp.array_equal(first[name].alpha, again[name].alpha)
        assert not jnp.array_equal(first[name].alpha, other[name].alpha)


def test_pictures(compared, tmp_path) -> None:
    _, comparison = compared
    rows = [
        {"step": s, "best_of_samples": 0.3, "gain": 0.2, **({"gap": 0.1 / s} if s % 2 else {})}
        for s in range(1, 6)
    ]
    instance, _, _ = toy()
    drawn = {
        "gaps": gap_figure(comparison),
        "curve": learning_curve(rows, "optimum"),
        "flat": learning_curve([{**row, "gap": 0.0} for row in rows], "optimum"),
        "empty": learning_curve([], "optimum"),
        "deny": timeline.plan_figure(instance, solve(instance, "deny")),
        "greedy": timeline.plan_figure(instance, solve(instance, "greedy")),
    }
    for name, figure in drawn.items():
        figures.save(figure, tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").read_bytes()[:4] == b"\x89PNG", name


def test_a_page_with_a_method_that_was_left_out(compared) -> None:
    _, comparison = compared
    rows = [("deny", 2, 1e-3), ("enumeration", 2, 0.1), ("enumeration", 4, 0.3)]
    traces = {"grant": (np.array([0.1, 0.2]), np.array([0.2, 0.1]))}
    study = report.Study("T", "t", comparison, traces, rows)
    page = report.html(study)
    assert "Time against users" in page
    assert "enumeration" in page
    assert "Gap by load" in page


def test_plans_that_are_not_feasible_set_no_standard() -> None:
    instances = world("edge", 4)
    over = jnp.ones_like(instances.mask, jnp.int32)
    methods = {
        **deciders(None, (), jax.random.key(0), ["deny", "grant"]),
        "over": lambda _: Decision(over, 0.0),
    }
    comparison = compare({"edge": instances}, methods)
    good = np.asarray(evaluate(instances, over).feasible)
    assert not good.all()
    np.testing.assert_array_equal(comparison.detail.gaps["over"][~good], 1)
    assert comparison.row("over", "edge").feasible == good.mean()
    assert comparison.detail.gaps["grant"][~good].max() == 0


def test_wrong_bounds_are_told_and_prove_nothing() -> None:
    methods = deciders(None, (), jax.random.key(0), ["greedy"])
    greedy = methods["greedy"]
    methods["prover"] = lambda i: replace(greedy(i), bound=np.full(4, 1e-3))
    with pytest.warns(UserWarning, match=r"4 of 4 upper bounds by prover are wrong and left out"):
        comparison = compare({"edge": world("edge", 4)}, methods)
    assert comparison.detail.bound_gap is None  # nothing is proven
    assert "proven" not in report.html(report.Study("T", "t", comparison))


def test_one_instance_has_no_interval() -> None:
    comparison = compare({"one": world("edge", 1)}, deciders(None, (), jax.random.key(0), ["deny"]))
    assert report.table(comparison).rows[0][2] == "-"
    assert comparison.to_json()["cells"]["one"]["deny"]["gap_ci95"] is None


def test_bounds_are_above_the_best(compared) -> None:
    methods = deciders(None, (), jax.random.key(0), ["deny", "greedy", "enumeration"])
    quick = {name: methods[name] for name in ("deny", "greedy")}
    bounded = compare({"edge": world("edge", 8)}, quick, bounds=True).detail
    assert np.all(bounded.bound_gap >= 0)
    assert np.all(np.isfinite(bounded.bound_gap))
    proven = compare({"edge": world("edge", 8)}, {"enumeration": methods["enumeration"]})
    assert proven.detail.bound_gap.max() <= PROVEN
    page = report.html(report.Study("T", "t", proven))
    assert "All 8 best known plans are proven optimal" in page
    assert compare({"edge": world("edge", 8)}, quick).detail.bound_gap is None


def test_forgotten_programs_are_warmed_up_again() -> None:
    """Else the next measurement would count compiling."""
    calls, few = [], taken(world("paper"), slice(2))

    def assign() -> jax.Array:
        calls.append(1)
        return jnp.zeros(2, jnp.int32)

    for forget, wanted in ((False, 2), (False, 1), (True, 2)):
        if forget:
            plan.forget_programs()
        calls.clear()
        plan.timed("a test", few, assign)
        assert len(calls) == wanted
