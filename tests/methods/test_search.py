"""Searches: feasible, never worse with time, locally optimal where so said, near the optimum."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import evaluate, feasible_gain, gain_of
from episodes import one, spoil_padding, world

from offload_jax.learning.soft_value import soft_evaluate
from offload_jax.methods import METHODS, apply_method, solve
from offload_jax.methods.enumeration import enumerate_all
from offload_jax.methods.moves import Moves
from offload_jax.methods.search import Trace, repaired, someone
from offload_jax.plans.outcome import solve_assignment
from offload_jax.plans.reduced_gains import move_gains
from offload_jax.splits import NATIVE

SEARCHES = [name for name, method in METHODS.items() if method.search is not None]
COUNT = 8


@cache
def optima() -> np.ndarray:
    instances = world("edge", COUNT)
    plans = [enumerate_all(one(instances, i)) for i in range(COUNT)]
    return np.asarray(feasible_gain(instances, jnp.stack(plans, axis=-1)))


@cache
def decided(name: str) -> tuple[np.ndarray, Trace]:
    trace = Trace()
    decision = apply_method(name, world("edge", COUNT), trace=trace)
    return np.asarray(decision.assignment), trace


@pytest.mark.parametrize("name", SEARCHES)
def test_plans_are_feasible_and_near_the_optimum(name) -> None:
    instances = world("edge", COUNT)
    plan, trace = decided(name)
    outcome = evaluate(instances, plan)
    assert np.all(np.asarray(outcome.feasible))
    assert not plan[~np.asarray(instances.mask)].any()
    np.testing.assert_allclose(outcome.gain, trace.gains[-1], rtol=1e-5)
    assert np.all(np.diff(np.stack(trace.gains), axis=0) >= 0)  # never worse with time
    assert np.all(np.diff(trace.seconds) >= 0)
    gaps = 1 - np.asarray(outcome.gain) / optima()
    assert gaps.min() >= -1e-5
    assert gaps.mean() <= 0.01


def test_local_search_ends_where_nothing_improves() -> None:
    """Every move and every exchange, one by one in Python."""
    instances = world("edge", COUNT)
    plan, _ = decided("local-search")
    for i in range(2):
        instance, mine = one(instances, i), plan[:, i]
        users = np.flatnonzero(np.asarray(instance.mask))
        near = []
        for user in users:
            for batch in range(instance.num_batches + 1):
                near.append(mine.copy())
                near[-1][user] = batch
        for a, b in combinations(users, 2):
            near.append(mine.copy())
            near[-1][[a, b]] = mine[[b, a]]
        count = len(near)
        many = jax.tree.map(lambda x, n=count: jnp.repeat(x[..., None], n, -1), instance)
        gains = np.asarray(feasible_gain(many, jnp.array(near).T))
        assert gains.max() <= float(gain_of(instance, jnp.array(mine))) * (1 + 1e-5)


def test_what_is_found_does_not_depend_on_who_else_is_searched_for() -> None:
    instances = world("edge", COUNT)
    some = jax.tree.map(lambda x: x[..., 2:4], instances)
    plan = apply_method("local-search", some).assignment
    np.testing.assert_array_equal(plan, decided("local-search")[0][:, 2:4])


def test_estimates_are_exact_where_all_is_linear(x64) -> None:
    """Fixed splits, no prices: only step times and the radio change, and those are linear."""
    instances = jax.tree.map(
        lambda x: x.astype(float) if jnp.issubdtype(x.dtype, jnp.floating) else x,
        world("edge", COUNT),
    )
    linear = replace(
        instances,
        alpha=jnp.zeros_like(instances.alpha),
        budget=jnp.full_like(instances.budget, jnp.inf),
        local_step=instances.local_step + 10,  # s; everybody leaves as few steps as allowed
        split_min=jnp.full_like(instances.split_min, 20),
        accuracy_centre=jnp.full_like(instances.accuracy_centre, 20),
    )
    plan = jax.jit(METHODS["myopic"].assign)(linear)
    moves = Moves(linear.num_users, linear.num_batches)
    found = np.asarray(jax.jit(lambda i, a: moves.estimates(i, a, NATIVE))(linear, plan))
    after = jax.jit(lambda i, a: moves.gains(i, a, moves.all(a), NATIVE))(linear, plan)
    wanted = np.asarray(after) - np.asarray(feasible_gain(linear, plan))
    np.testing.assert_array_equal(np.isfinite(found), np.isfinite(wanted))
    assert np.isfinite(found[moves.singles :]).any()
    np.testing.assert_allclose(found, wanted, atol=1e-8)


def test_moves_are_numbered_as_they_say() -> None:
    moves, plan = Moves(3, 2), np.array([0, 1, 2])
    assert moves.count == 9 + 3
    found = np.asarray(moves.apply(jnp.array(plan), moves.all(jnp.array(plan)))).T
    wanted = [np.where(np.arange(3) == user, to, plan) for user in range(3) for to in range(3)]
    wanted += [[1, 0, 2], [2, 1, 0], [0, 2, 1]]
    np.testing.assert_array_equal(found, wanted)


def test_move_gains_are_derivatives_of_the_soft_value(x64) -> None:
    """d V / d p_ik - d V / d p_i0 at a plan, for users granted and denied."""
    instances = jax.tree.map(
        lambda x: x.astype(float) if jnp.issubdtype(x.dtype, jnp.floating) else x,
        world("edge", COUNT),
    )
    plan = jax.jit(METHODS["myopic"].assign)(instances)
    choices = jnp.arange(instances.num_batches + 1).reshape(1, -1, 1)
    certain = (plan[:, None] == choices).astype(float)

    @jax.jit
    def all_of_them(plan, certain):
        now = solve_assignment(instances, plan, NATIVE)
        facts = instances, now.placed, now.splits.split, now.splits.price
        slope = jax.grad(lambda p: jnp.sum(soft_evaluate(instances, p).objective))(certain)
        return move_gains(*facts), slope

    found, slope = (np.asarray(x) for x in all_of_them(plan, certain))
    real = np.broadcast_to(np.asarray(instances.mask)[:, None], found.shape)
    wanted = slope[:, 1:] - slope[:, :1]
    np.testing.assert_allclose(found[real], wanted[real], atol=1e-9)


def test_more_time_is_used_and_never_hurts() -> None:
    instance = one(world("edge", COUNT), 0)
    short = solve(instance, "local-search")
    long = solve(instance, "local-search", budget_s=0.3)
    assert long.objective >= short.objective - 1e-4
    assert 0.3 <= long.seconds < 5
    assert long.bound is None
    certified = solve(instance, "local-search", bound=True)
    assert certified.objective <= certified.bound
    assert certified.bound <= certified.objective + 0.2 * abs(certified.objective)


def test_someone_is_any_real_user(x64) -> None:
    mask = jnp.array([False, True, False, True, True, False])
    many = jnp.repeat(mask[:, None], 3000, axis=1)
    chosen = np.asarray(someone(many, jax.random.key(0)))
    np.testing.assert_array_equal(chosen.sum(axis=0), 1)
    shares = chosen.mean(axis=1)
    np.testing.assert_allclose(shares, np.where(mask, 1 / 3, 0), atol=0.04)


def test_repair_denies_only_what_does_not_fit() -> None:
    instances = world("edge", COUNT)
    anything = jax.random.randint(jax.random.key(0), instances.mask.shape, 0, 5)
    fixed = np.asarray(repaired(instances, anything))
    real = np.asarray(instances.mask)
    assert not fixed[~real].any()
    assert np.all((fixed == np.asarray(anything)) | (fixed == 0))
    assert np.all(np.isfinite(np.asarray(feasible_gain(instances, fixed))))
    np.testing.assert_array_equal(repaired(instances, jnp.array(fixed)), fixed)


def degenerate(count: int) -> dict[str, object]:
    """Instances that leave little or nothing to decide."""
    plain = world("edge", count)
    alone = plain.mask & (jnp.arange(plain.num_users)[:, None] == 0)
    same = {
        name: jnp.broadcast_to(getattr(plain, name)[:1], getattr(plain, name).shape)
        for name in ("local_step", "alpha", "demand", "payload", "spectral_efficiency",
                     "accuracy_floor", "accuracy_centre", "wait")
    }  # fmt: skip
    return {
        "plain": plain,
        "no capacity": replace(plain, capacity=jnp.zeros_like(plain.capacity)),
        "zero budget": replace(plain, budget=jnp.zeros_like(plain.budget)),
        "no budget": replace(plain, budget=jnp.full_like(plain.budget, jnp.inf)),
        "one user": replace(plain, mask=alone),
        "identical users": replace(plain, **same),
        "useless servers": replace(plain, intercept=plain.intercept + 1e3),
        "spoilt padding": spoil_padding(plain, 1e30),
        "no worth of accuracy": replace(plain, alpha=jnp.zeros_like(plain.alpha)),
    }


def check_feasible(name: str, count: int) -> int:
    """Applies a method to all of them; the number of instances."""
    cases = degenerate(count)
    for case, instances in cases.items():
        plan = apply_method(name, instances).assignment
        outcome = evaluate(instances, plan)
        assert np.all(np.asarray(outcome.feasible)), case
        assert np.all(np.asarray(outcome.gain) >= -1e-4) or name == "grant", case
        assert not np.asarray(plan)[~np.asarray(instances.mask)].any(), case
        if case in ("no capacity", "useless servers") and name != "grant":
            assert not np.asarray(plan).any(), case
    return count * len(cases)


HEURISTICS = [name for name, method in METHODS.items() if method.assign or method.search]


@pytest.mark.parametrize("name", [name for name in HEURISTICS if name != "top-b"])
def test_degenerate_instances(name) -> None:
    check_feasible(name, COUNT)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", [name for name in HEURISTICS if name != "top-b"])
def test_ten_thousand_instances(name) -> None:
    assert check_feasible(name, 1200) >= 10_000
