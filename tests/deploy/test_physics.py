"""Plans in plain NumPy: worth what the package says, and every broken constraint is named."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from compiled import evaluate
from paths import GOLDEN

from offload_jax.deploy.physics import effect
from offload_jax.files.records import InstanceRecord, read_instances
from offload_jax.problem.instance import from_record

pytestmark = pytest.mark.fast

RECORDS = [record for record in read_instances(GOLDEN / "edge.json") if len(record.alpha) == 8]


@pytest.fixture
def record() -> InstanceRecord:
    """One whose optimum grants some users, denies others, and uses up its only budget."""
    return next(record for record in RECORDS if record.name == "edge-N8-M2-G1-s182")


def flaws(record: InstanceRecord, split=None, assignment=None) -> str:
    """Of the optimum, or what is put in its place, in one text."""
    best = record.optimum
    assignment = best.assignment if assignment is None else np.asarray(assignment)
    return "; ".join(effect(record, assignment, best.split if split is None else split).flaws)


def test_numpy_values_a_plan_as_the_package_does(x64) -> None:
    rng, found = np.random.default_rng(0), []
    for record in RECORDS * 5:
        batches = len(record.intercept)
        assignment = rng.integers(0, batches + 1, len(record.alpha))
        outcome = evaluate(from_record(record), assignment)
        done = effect(record, assignment, np.asarray(outcome.split, float))
        np.testing.assert_allclose(done.objective, outcome.objective, rtol=1e-9)
        np.testing.assert_allclose(done.latency, outcome.latency, rtol=1e-9)
        np.testing.assert_allclose(done.accuracy, outcome.accuracy, rtol=1e-9)
        assert bool(outcome.feasible) == (done.flaws == ())
        found.append(done.flaws == ())
    assert 0.1 < np.mean(found) < 0.9


def test_every_broken_constraint_is_named(record) -> None:
    everybody, nothing = np.ones(8, int), np.zeros(8, int)
    low = np.ceil(np.maximum(record.split_min, record.accuracy_centre[:, 0])).astype(int)
    none_left = replace(record, capacity=np.zeros(2), budget=np.zeros(1))
    said = flaws(none_left, low, everybody)
    assert "batch 1 holds 16 of 0 images" in said
    assert "server 0 spends" in said
    for assignment in (everybody, nothing):  # whoever is denied runs every step
        assert "split[0] is 0, below" in flaws(record, nothing, assignment)
    assert "finite" in flaws(record, np.full(8, np.nan))


@pytest.mark.parametrize("wrong", [-1, 3])
def test_a_batch_that_does_not_exist(record, wrong) -> None:
    assignment = record.optimum.assignment.copy()
    assignment[0] = wrong
    done = effect(record, assignment, record.optimum.split)
    assert done.flaws == ("assignment must be 8 of 0..2",)
    assert np.isnan(done.objective)


def test_nobody_runs_more_steps_than_there_are(record) -> None:
    """Granted or denied: a step more is a flaw, though it would save a budget."""
    assert flaws(record) == ""
    for user in (0, 1):
        split = record.optimum.split.copy()
        split[user] = record.steps + 1
        assert f"split[{user}] is 51, below" in flaws(record, split)
    assert list(record.optimum.assignment[:2] > 0) == [True, False]


def test_budgets_and_capacities_hold_up_to_rounding(record) -> None:
    """A share of 1e-4 more than there is cannot be executed; what float32 rounds can."""
    budget, load = record.budget, np.array([1.0, 4.0])
    for more, said in ((1e-4, "server 0 spends 2.5 of 2.49975 GPU-seconds"), (1e-6, "")):
        assert flaws(replace(record, budget=budget / (1 + more))) == said
    for more, said in ((1e-4, "batch 2 holds 4 of 3.9996 images"), (1e-8, "")):
        assert flaws(replace(record, capacity=load / (1 + np.array([0, more])))) == said
