"""Whole split points: every bound and budget kept, never worse than rounding up."""

from __future__ import annotations

import itertools

import jax
import numpy as np
import pytest
from problems import ROUND, SOLVE, as_problem, herd, use, value, zoo

pytestmark = pytest.mark.fast


def whole(p: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(real, rounded) splits."""
    problem = as_problem(p)
    split = SOLVE(problem).split
    return np.asarray(split, float), np.asarray(ROUND(problem, split))


@pytest.mark.parametrize("bits", [32, 64])
def test_bounds_budgets_and_loss(bits) -> None:
    p = herd("small")
    with jax.enable_x64(bits == 64):
        real, n = whole(p)
    slack = 1e-12 if bits == 64 else 4e-6
    granted = p["granted"]
    assert n.dtype == np.int32
    lower = np.asarray(p["lower"], np.float32 if bits == 32 else np.float64)
    assert np.all((n >= lower)[granted])
    assert np.all(n <= p["steps"])
    assert np.all((n == p["steps"])[~granted])
    assert np.all(use(p, n, 3) <= p["budget"] + slack * np.maximum(1, use(p, real, 3)))
    up = np.where(granted, np.minimum(np.ceil(real), p["steps"]), p["steps"])
    assert np.all(value(p, n) >= value(p, up) - 1e-6 * (1 + np.abs(value(p, up))))
    # Each row moves by a step or so; the loss is that of less than one step per row.
    loss = value(p, real) - value(p, n)
    worst = np.sum(np.where(granted, p["weight"] * np.abs(p["saving"]), 0), axis=0)
    assert np.all(loss >= -1e-4 * (1 + np.abs(worst)))
    assert np.all(loss <= worst + 1e-6)
    assert np.median(loss[worst > 0] / worst[worst > 0]) < 0.2


def test_small_problems_against_brute_force(x64) -> None:
    p = zoo(21, 40, 3, 1, granted=np.ones((3, 40), bool), steps=np.full(40, 20.0))
    _, n = whole(p)
    shares = []
    for i in range(40):
        q = {name: x[..., i : i + 1] for name, x in p.items()}
        grid = np.array(list(itertools.product(range(21), repeat=3))).T
        kept = np.all(grid >= q["lower"], axis=0) & (use(q, grid, 1) <= q["budget"] + 1e-12)[0]
        best, nobody = value(q, grid)[kept].max(), value(q, np.full((3, 1), 20.0))[0]
        mine = value(q, n[:, i : i + 1])[0]
        assert nobody - 1e-9 <= mine <= best + 1e-9
        shares.append((mine - nobody) / (best - nobody) if best > nobody + 1e-9 else 1.0)
    assert np.mean(shares) > 0.97
    assert np.median(shares) > 0.999


def test_a_split_just_above_a_whole_number_is_that_number(x64) -> None:
    p = zoo(1, 1, 2, 1, granted=np.ones((2, 1), bool), steps=np.full(1, 50.0),
            lower=np.full((2, 1), 10.0), centre=np.full((2, 1), 10.0))  # fmt: skip
    wanted = np.array([[30.00005], [30.4]])
    loose = as_problem(p, budget=np.full((1, 1), np.inf), saving=np.zeros((2, 1)))
    np.testing.assert_array_equal(ROUND(loose, wanted), [[30], [31]])
    exact = use(p, wanted, 1)  # the budget allows no snapping down
    tight = as_problem(p, budget=exact, saving=np.zeros((2, 1)), weight=np.ones((2, 1)))
    assert np.all(np.asarray(ROUND(tight, wanted)) >= np.floor(wanted))
    assert np.all(use(p, np.asarray(ROUND(tight, wanted)), 1) <= exact)


def test_nobody_goes_below_a_bound_just_above_a_whole_number(x64) -> None:
    p = zoo(1, 1, 1, 1, granted=np.ones((1, 1), bool), steps=np.full(1, 50.0),
            lower=np.full((1, 1), 30.00002), centre=np.full((1, 1), 10.0))  # fmt: skip
    problem = as_problem(p, budget=np.full((1, 1), np.inf), saving=np.zeros((1, 1)))
    np.testing.assert_array_equal(ROUND(problem, np.array([[30.00005]])), [[31]])


def test_what_a_budget_has_left_goes_where_it_gains_most(x64) -> None:
    """Per GPU-second: two small users that gain 0.6 s each, not a large one that gains 1 s."""
    column = lambda *numbers: np.array(numbers)[:, None]  # noqa: E731
    p = zoo(1, 1, 3, 1, granted=np.ones((3, 1), bool), steps=np.full(1, 50.0),
            saving=column(1.0, 0.6, 0.6), rate=column(1.0, 0.5, 0.5),
            amplitude=np.zeros((3, 1)), centre=np.zeros((3, 1)), lower=np.full((3, 1), 29.0),
            weight=np.ones((3, 1)))  # fmt: skip
    now = np.full((3, 1), 30.0)
    problem = as_problem(p, budget=use(p, now, 1) + 1)
    np.testing.assert_array_equal(ROUND(problem, now), column(30, 29, 29))
