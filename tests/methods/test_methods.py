"""Rules: optimal where they should be, each what its name says, and plans that run."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import evaluate, gain_of
from episodes import WORLDS, one, sample, world
from paths import GOLDEN

from offload_jax.files.records import Plan, read_instances
from offload_jax.methods import METHODS, solve
from offload_jax.plans.candidates import exact_gains
from offload_jax.problem.instance import from_record, stack, toy
from offload_jax.problem.scenario import EdgeScenario

FILE = GOLDEN / "paper.json"


def assigned(name: str, instances) -> jax.Array:
    return jax.jit(METHODS[name].assign)(instances)


def test_on_the_golden_instances(x64) -> None:
    records = read_instances(FILE)
    batch = stack([from_record(record) for record in records])
    best = np.array([record.optimum.objective - record.optimum.deny_all for record in records])
    for name in ("top-b", "greedy", "reduced-greedy"):
        gains = gain_of(batch, assigned(name, batch))
        np.testing.assert_allclose(gains, best, rtol=1e-9, err_msg=name)
    for name in ("deny", "grant", "myopic"):
        assert np.all(np.asarray(gain_of(batch, assigned(name, batch))) <= best + 1e-9), name


RULES = [name for name, method in METHODS.items() if method.assign is not None]


@pytest.mark.parametrize("name", RULES)
def test_every_plan_is_feasible(name) -> None:
    instances = world("paper" if METHODS[name].optimal else "edge")
    plan = assigned(name, instances)
    outcome = evaluate(instances, plan)
    assert np.all(np.asarray(outcome.feasible))
    assert not np.asarray(plan)[~np.asarray(instances.mask)].any()
    assert np.asarray(plan).any() == (name != "deny")


def test_grant_fills_what_there_is() -> None:
    """Whoever is denied fits nowhere; each is granted where most room was left."""
    instances = world("edge")
    plan = np.asarray(assigned("grant", instances))
    demand, mask, capacity = (
        np.asarray(x) for x in (instances.demand, instances.mask, instances.capacity)
    )
    for i in range(plan.shape[1]):
        left = capacity[:, i].astype(float)
        for user in np.flatnonzero(mask[:, i]):  # stored in order of arrival
            fits = left >= demand[user, i]
            wanted = np.argmax(np.where(fits, left, -np.inf)) + 1 if fits.any() else 0
            assert plan[user, i] == wanted
            if wanted:
                left[wanted - 1] -= demand[user, i]


def test_myopic_takes_the_best_of_each_moment() -> None:
    instances = world("edge", 16)
    plan = np.asarray(assigned("myopic", instances))
    sofar = jnp.zeros_like(plan)
    for user in range(instances.num_users):
        gains = jax.jit(exact_gains)(instances, sofar)[user]
        wanted = np.where(np.max(gains, axis=0) > 0, np.argmax(gains, axis=0) + 1, 0)
        np.testing.assert_array_equal(plan[user], wanted)
        sofar = sofar.at[user].set(wanted)


def test_greedy_leaves_nothing_to_gain() -> None:
    instances = world("edge", 16)
    final = assigned("greedy", instances)
    assert float(jnp.max(jax.jit(exact_gains)(instances, final))) <= 1e-6
    assert np.all(np.asarray(gain_of(instances, final)) > 0)


def test_reduced_gains_lead_to_what_exact_ones_find() -> None:
    instances = sample(EdgeScenario(num_users=(20,)), jax.random.key(2), 30)
    exact = gain_of(instances, assigned("greedy", instances))
    share = np.asarray(gain_of(instances, assigned("reduced-greedy", instances)) / exact)
    assert share.mean() >= 0.998
    assert share.min() >= 0.98


@pytest.mark.fast
def test_solve_gives_a_plan_that_runs() -> None:
    instance, assignment, best = toy()
    plan = solve(instance, "greedy")
    assert isinstance(plan, Plan)
    assert tuple(plan.assignment) == tuple(assignment)
    assert tuple(plan.integer_split) == (2, 2, 10)
    assert (plan.status, plan.bound) == ("feasible", None)
    assert 0 < plan.seconds < 10
    np.testing.assert_allclose([plan.objective, plan.integer_objective], best, rtol=1e-6)
    proven = solve(one(world("paper"), 0), "top-b", budget_s=1.0)
    assert proven.status == "optimal"
    assert proven.bound == proven.objective


@pytest.mark.fast
@pytest.mark.parametrize(
    ("method", "budget", "message"),
    [
        ("magic", None, "method is 'magic'; must be one of deny, grant"),
        ("top-b", None, "needs exactly one batch"),
        ("deny", 0.0, "budget_s is 0.0; must be above 0"),
        ("tabu", np.inf, "budget_s is inf; must be above 0 and finite"),
    ],
)
def test_solve_refuses(method, budget, message) -> None:
    with pytest.raises(ValueError, match=message):
        solve(toy()[0], method, budget)
    with pytest.raises(ValueError, match="must be one instance"):
        solve(sample(WORLDS["paper"], jax.random.key(0), 2), "deny")
