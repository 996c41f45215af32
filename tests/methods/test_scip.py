"""Branch and bound against enumeration and the golden optima."""

from __future__ import annotations

import time
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import feasible_gain
from episodes import one, world
from paths import GOLDEN
from test_search import degenerate

from offload_jax.files.records import read_instances
from offload_jax.methods import solve
from offload_jax.methods.enumeration import enumerate_all
from offload_jax.methods.scip import branch_and_bound, refuse_scip
from offload_jax.problem.instance import from_record, toy
from offload_jax.problem.scenario import EdgeScenario
from offload_jax.splits import SplitsConfig

pytest.importorskip("pyscipopt", reason="the extra scip is not installed")
FILE = GOLDEN / "edge.json"
gain_at = jax.jit(feasible_gain)


def test_golden_optima_are_found_and_proven(x64) -> None:
    records = read_instances(FILE)
    for record in records[:4]:
        instance, best = from_record(record), record.optimum.objective - record.optimum.deny_all
        proof = branch_and_bound(instance, 120.0)
        assert proof.closed, record.name
        assert proof.bound >= best - 1e-9
        assert proof.bound <= best * (1 + 1e-5)
        np.testing.assert_allclose(gain_at(instance, proof.assignment), best, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_equals_enumeration_on_many_instances(x64) -> None:
    """24 instances of N <= 6 and M <= 3, 120 s each."""
    for seed in range(24):
        scenario = EdgeScenario(
            num_users=((4, 5, 6)[seed % 3],), batches=3, servers=(1, 2, 3)[seed // 3 % 3],
            models=3, budget=(1.0, 2.5, 3.0)[seed % 3],
        )  # fmt: skip
        instance = scenario.sample(jax.random.key(seed))
        proof = branch_and_bound(instance, 120.0)
        best = float(gain_at(instance, enumerate_all(instance)))
        assert proof.bound >= best
        np.testing.assert_allclose(gain_at(instance, proof.assignment), best, rtol=0, atol=1e-6)
        assert proof.closed


@pytest.mark.parametrize("levels", [0, 40])
def test_any_interference_and_demand(x64, monkeypatch, levels) -> None:
    """Also between servers, with so many step times that they are not levels, or made to be few."""
    monkeypatch.setattr("offload_jax.methods.levels.LEVELS", levels)
    random = np.random.default_rng(0)
    for number in range(1, 3):
        instance = one(world("edge", 4), number)
        users, batches = instance.accuracy_floor.shape
        more = jnp.asarray(random.uniform(0, 0.05, (batches, batches)))
        instance = replace(instance, interference=instance.interference + more)
        if number:
            instance = replace(instance, demand=jnp.asarray(random.uniform(0.5, 2, users)))
        if number == 2:
            instance = replace(instance, alpha=0 * instance.alpha)
        best = float(gain_at(instance, enumerate_all(instance)))
        proof = branch_and_bound(instance, 60.0)
        assert proof.closed
        assert best <= proof.bound <= best * (1 + 1e-5)
        np.testing.assert_allclose(gain_at(instance, proof.assignment), best, rtol=0, atol=1e-6)


def test_demands_that_fill_a_batch_up_to_rounding() -> None:
    """In float32 three times 0.3 is more than 0.9, and fits."""
    instance = replace(
        toy()[0],
        demand=jnp.full(3, 0.3),
        capacity=jnp.array([0.9, 0.0]),
        interference=0.1 * jnp.eye(2),
        local_step=jnp.array([1.0, 0.9, 0.8]),
    )
    proof = branch_and_bound(instance, 60.0)
    assert proof.closed
    np.testing.assert_array_equal(proof.assignment, enumerate_all(instance))
    np.testing.assert_array_equal(proof.assignment, [1, 1, 1])


def test_nothing_is_lost_without_time() -> None:
    """A good plan told at the start comes back, with a bound that holds."""
    instance = one(world("edge", 2), 1)
    best = enumerate_all(instance)
    proof = branch_and_bound(instance, 1e-3, np.asarray(best))
    gain = float(gain_at(instance, best))
    assert float(gain_at(instance, proof.assignment)) >= gain * (1 - 1e-6)
    assert proof.bound >= gain * (1 - 1e-6)
    instance = EdgeScenario(num_users=(24,)).sample(jax.random.key(0))
    began = time.perf_counter()
    proof = branch_and_bound(instance, 0.5)
    assert time.perf_counter() - began < 10  # compiling included
    assert not proof.closed
    assert proof.bound >= float(gain_at(instance, proof.assignment)) >= 0


def test_as_a_method() -> None:
    plan = solve(one(world("edge", 2), 0), "scip", budget_s=60.0)
    assert plan.status == "optimal"
    assert plan.bound == plan.objective


def test_degenerate_instances() -> None:
    for case, instances in degenerate(1).items():
        instance = one(instances, 0)
        proof = branch_and_bound(instance, 30.0)
        assert proof.closed, case
        best = float(gain_at(instance, enumerate_all(instance)))
        np.testing.assert_allclose(gain_at(instance, proof.assignment), best, rtol=1e-5, atol=1e-5)
        assert not proof.assignment[~np.asarray(instance.mask)].any()


@pytest.mark.fast
def test_refusals(monkeypatch) -> None:
    instance = one(world("edge", 2), 0)
    ruled = SplitsConfig("cvxpylayers-moreau", terms=("-1 * max(latency)",)).to_solver()
    assert refuse_scip(instance) is None
    assert refuse_scip(instance, ruled).startswith("scip solves the plain problem")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'offload-jax[scip]'" in refuse_scip(instance)
    assert jnp.ndim(instance.steps) == 0
