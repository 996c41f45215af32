"""Gains: exact ones are differences of values, reduced ones their first order in closed form."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import evaluate, gain_of, reset
from episodes import numpy, one, play, sample, world

from offload_jax.plans.candidates import exact_gains
from offload_jax.plans.outcome import fits
from offload_jax.plans.reduced_gains import move_gains, reduced_gains
from offload_jax.problem import equations
from offload_jax.problem.scenario import EdgeScenario

exact = jax.jit(exact_gains)


@jax.jit
def reduced(instances, assignment):
    solved = evaluate(instances, assignment)
    return reduced_gains(
        instances, equations.place(instances, assignment), solved.split, solved.price
    )


def partial_plans(instances):
    """Assignments in the middle of random episodes."""
    turns = play(instances, jax.random.key(1), "adaptive", True)
    return turns.before.assignment[instances.num_users // 2]


def roomy(instances, assignment):
    """Where a denied real user fits: (users, batches, *batch), in NumPy."""
    instances, assignment = numpy(instances), np.asarray(assignment)
    load = [
        np.sum(np.where(assignment == k + 1, instances.demand, 0), axis=0)
        for k in range(instances.num_batches)
    ]
    free = instances.mask & (assignment == 0)
    return free[:, None] & (np.stack(load) + instances.demand[:, None] <= instances.capacity)


def test_exact_gains_are_differences_of_values(x64):
    instances = world("edge")
    assignment = partial_plans(instances)
    gains = np.asarray(exact(instances, assignment))
    open_ = roomy(instances, assignment)
    np.testing.assert_array_equal(np.isfinite(gains), open_)
    assert np.all(gains[~open_] == -np.inf)
    assert 0.1 < open_.mean() < 0.6
    now = evaluate(instances, assignment)
    assert np.mean(np.asarray(now.price) > 0) > 0.3
    for user in range(instances.num_users):
        for batch in range(instances.num_batches):
            changed = evaluate(instances, assignment.at[user].set(batch + 1))
            wanted = np.asarray(changed.objective - now.objective)
            where = open_[user, batch]
            np.testing.assert_allclose(gains[user, batch][where], wanted[where], atol=1e-9)
            np.testing.assert_array_equal(np.asarray(changed.feasible)[where], True)


@pytest.mark.fast
def test_one_instance_is_a_column_of_many():
    instances = world("edge")
    assignment = partial_plans(instances)
    many = np.asarray(reduced(instances, assignment))
    np.testing.assert_array_equal(
        np.isfinite(many),
        np.asarray(fits(instances, equations.place(instances, assignment).load
                        + instances.demand[:, None])),
    )  # fmt: skip
    np.testing.assert_array_equal(np.isfinite(many)[roomy(instances, assignment)], True)
    for index in range(3):
        single = np.asarray(reduced(one(instances, index), assignment[:, index]))
        np.testing.assert_allclose(many[..., index], single, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["paper", "edge"])
def test_at_the_empty_plan_reduced_is_exact(x64, name):
    """Nobody is there to be hurt. Exact too where a single grant keeps within its budget."""
    instances = world(name)
    if name == "edge":
        instances = replace(instances, budget=8 * instances.budget)
    empty = jnp.zeros(instances.alpha.shape, jnp.int32)
    mine, gains = np.asarray(reduced(instances, empty)), np.asarray(exact(instances, empty))
    open_ = roomy(instances, empty)
    within = np.ones_like(open_)
    if name == "edge":  # the largest use of a single grant: every step it may run
        lower = np.maximum(instances.split_min[:, None], instances.accuracy_centre)
        own = np.asarray(equations.own_slope(instances))
        use = own * np.asarray(instances.demand)[:, None] * np.asarray(instances.steps - lower)
        within = use <= np.asarray(instances.budget)[np.asarray(instances.server)[:, 0]]
        assert 0.5 < within.mean() < 1
    np.testing.assert_allclose(mine[open_ & within], gains[open_ & within], rtol=1e-9, atol=1e-9)
    assert np.all(mine[open_] >= gains[open_] - 1e-9)  # a budget only takes


def test_reduced_gains_follow_the_exact_ones_at_the_empty_plan():
    """Section 10: correlation 0.995 on 30 edge instances with N = 20, M = 6, G = 3."""
    instances = sample(EdgeScenario(num_users=(20,)), jax.random.key(0), 30)
    empty = jnp.zeros(instances.alpha.shape, jnp.int32)
    mine, gains = np.asarray(reduced(instances, empty)), np.asarray(exact(instances, empty))
    open_ = np.isfinite(gains)
    assert open_.mean() > 0.9
    assert np.corrcoef(mine[open_], gains[open_])[0, 1] >= 0.99


@partial(jax.jit, static_argnums=2)
def best_with_others_fixed(instances, assignment, pair):
    """Gain of granting a pair, the best of 4001 splits for it and every other split kept."""
    user, batch = pair
    now = evaluate(instances, assignment)
    changed = assignment.at[user].set(batch + 1)
    placed = equations.place(instances, changed)
    lower = jnp.maximum(instances.split_min[user], instances.accuracy_centre[user, batch])

    def value(share):
        own = lower + share * (instances.steps - lower)
        return equations.gain(instances, placed, now.split.at[user].set(own))

    return jnp.max(jax.lax.map(value, jnp.linspace(0, 1, 4001)), axis=0) - now.gain


@pytest.mark.parametrize("pair", [(0, 0), (1, 2), (2, 3)])
def test_without_budgets_only_the_replies_of_others_are_missing(x64, pair):
    """Then r is the gain at the others' present splits; solving again can only add to it."""
    instances = world("edge")
    instances = replace(instances, budget=jnp.full_like(instances.budget, jnp.inf))
    assignment = partial_plans(instances).at[pair[0]].set(0)
    where = roomy(instances, assignment)[pair]
    assert where.sum() > 10
    assert np.mean(np.asarray(assignment) > 0) > 0.2
    mine = np.asarray(reduced(instances, assignment))[pair]
    fixed = np.asarray(best_with_others_fixed(instances, assignment, pair))
    np.testing.assert_allclose(mine[where], fixed[where], atol=1e-4)  # s, of about 5
    gains = np.asarray(exact(instances, assignment))[pair]
    assert np.all(gains[where] >= mine[where] - 1e-9)
    assert np.max(gains[where] - mine[where]) > 1e-4


def test_first_order_in_the_size_of_the_newcomer(x64):
    """Budgets bind: the error of r falls with the square of the newcomer's demand.

    Nobody sends anything over the radio, whose share would not shrink with the newcomer.
    """
    instances = world("edge")
    newcomer = jnp.arange(instances.num_users)[:, None] == 0
    assignment = jnp.where(newcomer, 0, partial_plans(instances))
    where = roomy(instances, assignment)[0]

    def error(size):
        demand = jnp.where(newcomer, size, instances.demand)
        tiny = replace(instances, payload=jnp.zeros_like(instances.payload), demand=demand)
        assert np.mean(np.asarray(evaluate(tiny, assignment).price) > 0) > 0.3
        mine, gains = (np.asarray(f(tiny, assignment))[0][where] for f in (reduced, exact))
        return np.abs(mine - gains)

    coarse, fine = error(1e-2), error(1e-3)
    kept = coarse > 1e-9  # elsewhere rounding is all there is
    assert kept.mean() > 0.5
    # 0.01 but for changes of active sets
    assert np.quantile(fine[kept] / coarse[kept], 0.9) < 0.02
    assert np.median(fine[kept] / coarse[kept]) == pytest.approx(0.01, rel=0.02)


@pytest.mark.fast
def test_a_granted_user_moves_as_if_it_had_been_denied():
    """What it does to itself in its batch now is gone when it moves, so it counts for nothing."""
    instances = world("edge")
    assignment = partial_plans(instances)
    solved = evaluate(instances, assignment)

    @jax.jit
    def moves(plan):
        """The others keep their splits and prices."""
        split = jnp.where(plan > 0, solved.split, instances.steps)
        return move_gains(instances, equations.place(instances, plan), split, solved.price)

    together, granted = np.asarray(moves(assignment)), np.asarray(assignment) > 0
    assert granted.any(axis=1).all()
    for user in range(instances.num_users):
        alone, where = np.asarray(moves(assignment.at[user].set(0)))[user], granted[user]
        np.testing.assert_allclose(together[user][:, where], alone[:, where], atol=1e-4)


@pytest.mark.fast
def test_the_gain_of_a_plan_is_that_of_its_outcome():
    instances = world("edge")
    assignment = partial_plans(instances)
    gains = np.asarray(gain_of(instances, assignment))
    np.testing.assert_allclose(gains, np.asarray(evaluate(instances, assignment).gain), rtol=1e-4)
    assert not np.asarray(gain_of(instances, reset(instances).assignment)).any()
