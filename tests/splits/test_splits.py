"""The native solver: optimal on a zoo of problems, honest about bad input, the same everywhere."""

from __future__ import annotations

import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from episodes import one
from problems import (
    SOLVE,
    as_problem,
    closed_form,
    conforms,
    herd,
    kkt,
    sigmoid,
    use,
    value,
    zoo,
)
from scipy.optimize import minimize

from offload_jax.problem.types import STATUS_TEXT, Status
from offload_jax.splits import Solution, SplitsConfig, solve_splits, solver_named
from offload_jax.splits.problem import SplitProblem, with_status

HERDS = [pytest.param("small", marks=pytest.mark.fast), "long"]  # 2,100 problems in all


def numbers(problem: SplitProblem) -> dict[str, np.ndarray]:
    """The problem as the solver saw it (rounded to float32 or not), in float64."""
    arrays = {name: np.asarray(leaf) for name, leaf in vars(problem).items()}
    return {k: v.astype(np.float64) if v.dtype.kind == "f" else v for k, v in arrays.items()}


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("name", HERDS)
def test_every_problem_is_solved(name, bits) -> None:
    with jax.enable_x64(bits == 64):
        problem = as_problem(herd(name))
        solution = SOLVE(problem)
        assert conforms(solution)
        residual = np.asarray(solution.residual)
        p, n, price = (
            numbers(problem),
            np.asarray(solution.split, float),
            np.asarray(solution.price),
        )
    limit, rounding = (1e-8, 1e-12) if bits == 64 else (1e-4, 4e-6)
    assert np.all(np.asarray(solution.status) == Status.SOLVED)
    assert residual.max() <= limit
    assert kkt(p, n, price.astype(float)).max() <= limit  # judged apart from the package
    # Bounds hold exactly, budgets up to the rounding of a sum; rows not granted stay at T.
    assert np.all((n >= p["lower"])[p["granted"]])
    assert np.all(n <= p["steps"])
    assert np.all((n == p["steps"])[~p["granted"]])
    free = closed_form(p, np.zeros_like(p["budget"]))
    scale = np.maximum(1, use(p, free, len(price)))
    assert np.all(use(p, n, len(price)) <= p["budget"] + rounding * scale)
    # The zoo is not tame: many budgets bind, many rows lie strictly inside.
    assert np.mean(price > 0) > 0.15
    assert np.mean(p["granted"] & (n > p["lower"]) & (n < p["steps"])) > 0.1


def test_bounds_just_above_the_inflection() -> None:
    """Problem 563: rows held at such a bound, whose logarithm is 1e-4 off in float32."""
    problem = as_problem({k: v[..., 500:1600] for k, v in zoo(141, 2000, 64, 8).items()})
    solution = SOLVE(problem)
    p, n = numbers(problem), np.asarray(solution.split, float)
    assert np.all(np.asarray(solution.status) == Status.SOLVED)
    assert kkt(p, n, np.asarray(solution.price, float)).max() <= 1e-4


def by_slsqp(p: dict[str, np.ndarray]) -> np.ndarray:
    """Splits of one problem by SciPy, which works in shares of [lo, T]."""
    on = np.flatnonzero(p["granted"])
    lower, wide = p["lower"][on], (p["steps"] - p["lower"])[on]
    weight, saving, amplitude = p["weight"][on], p["saving"][on], p["amplitude"][on]
    slope, centre, drain = p["slope"][on], p["centre"][on], (p["weight"] * p["rate"])[on]

    def loss(x):
        sig = sigmoid(slope * (lower + wide * x - centre))
        rise = amplitude * slope * sig * (1 - sig) - saving
        return -np.sum(
            weight * (amplitude * sig - saving * (lower + wide * x))
        ), -weight * rise * wide

    rules = []
    for g in np.flatnonzero(np.isfinite(p["budget"])):
        row = np.where(p["server"][on] == g, drain * wide, 0)
        size = max(p["budget"][g], row.sum(), 1e-9)
        spare = (p["budget"][g] - row.sum()) / size
        rules.append({"type": "ineq", "fun": lambda x, r=row / size, s=spare: s + r @ x,
                      "jac": lambda x, r=row / size: r})  # fmt: skip
    found = minimize(loss, np.ones(len(on)), jac=True, method="SLSQP", bounds=[(0, 1)] * len(on),
                     constraints=rules, options={"ftol": 1e-13, "maxiter": 500})  # fmt: skip
    split = p["steps"].repeat(len(p["saving"]))
    split[on] = lower + wide * np.clip(found.x, 0, 1)
    return split


def test_another_solver_finds_the_same(x64) -> None:
    p = zoo(11, 60, 12, 3, granted=np.ones((12, 60), bool))
    ours = value(p, np.asarray(SOLVE(as_problem(p)).split))
    split = [by_slsqp({k: v[..., i] for k, v in p.items()}) for i in range(60)]
    split = np.stack(split, axis=1)
    assert np.all(use(p, split, 3) <= p["budget"] + 1e-7 * np.maximum(1, p["budget"]))
    np.testing.assert_allclose(ours, value(p, split), rtol=1e-6, atol=1e-6)


@pytest.mark.fast
def test_no_feasible_point_is_better(x64) -> None:
    p = herd("small")
    best = np.asarray(SOLVE(as_problem(p)).split)
    draw = np.random.default_rng(0)
    for _ in range(20):  # towards random points: concave, so local is global
        other = np.where(p["granted"], draw.uniform(p["lower"], p["steps"]), p["steps"])
        near = best + draw.choice([1e-4, 1e-2, 1.0]) * (other - best)
        feasible = np.all(use(p, near, 3) <= p["budget"] + 1e-12, axis=0)
        assert feasible.mean() > 0.3
        better = value(p, near) - value(p, best)
        assert np.all(better[feasible] <= 1e-9 * (1 + np.abs(value(p, best)[feasible])))


@pytest.mark.fast
@pytest.mark.parametrize("bits", [32, 64])
def test_closed_form_at_extreme_scales(bits) -> None:
    """Slopes a T and amplitudes over 11 decades, lo from b to T, marginals at and near 0 and 1."""
    v = [-1.0, 0.0, 1e-30, 1e-9, 1e-3, 0.5, 1 - 1e-6, 1 - 1e-9, 1.0, 1 + 1e-9, 2.0]
    axes = (v, 10.0 ** np.arange(-8, 4), 10.0 ** np.arange(-6, 6), [0, 1e-6, 0.3, 1], [-0.5, 0.6])
    v, a, c, lower, centre = (x.ravel() for x in np.meshgrid(*axes))
    steps = np.resize([1.0, 50.0, 1000.0], v.size)
    a, b = a / steps, centre * steps
    low = np.where(lower < 1, b + lower * (steps - b), steps)
    one_row = {"saving": v * c * a / 4, "rate": np.ones(v.size), "amplitude": c, "slope": a,
               "centre": b, "lower": np.maximum(low, b), "weight": np.ones(v.size),
               "granted": np.ones(v.size, bool), "server": np.zeros(v.size, int)}  # fmt: skip
    values = {name: x[None] for name, x in one_row.items()}
    with jax.enable_x64(bits == 64):
        problem = as_problem(values, steps=steps, budget=np.full((1, v.size), np.inf))
        solution = SOLVE(problem)
        p, n = numbers(problem), np.asarray(solution.split, float)
    assert np.all(np.asarray(solution.status) == Status.SOLVED)
    assert kkt(p, n, np.zeros_like(n)).max() <= (1e-9 if bits == 64 else 1e-5)
    assert np.all(n[0, v <= 0] == p["steps"][v <= 0])
    assert np.all(n[0, v == 2] == p["lower"][0, v == 2])


@pytest.mark.fast
def test_certificates_do_not_depend_on_what_a_budget_is_worth() -> None:
    """In milliseconds prices are a thousand times as high, and plans as good."""
    p = herd("small")
    found = []
    for unit in (1, 1e3, 1e5):
        solution = SOLVE(as_problem(p, saving=unit * p["saving"], amplitude=unit * p["amplitude"]))
        assert np.all(np.asarray(solution.status) == Status.SOLVED)
        found.append(np.asarray(solution.residual))
    assert np.max(solution.price) > 1e4
    np.testing.assert_allclose(found[1], found[0], atol=1e-5)
    np.testing.assert_allclose(found[2], found[0], atol=1e-5)


@pytest.mark.fast
def test_no_certificate_for_a_server_that_would_pay_its_users(x64) -> None:
    """A negative price, even where it moves no split: rows at their bounds, or none on a server."""
    one_row = zoo(1, 1, 1, 1, granted=np.ones((1, 1), bool), steps=np.full(1, 50.0),
                  lower=np.full((1, 1), 40.0), centre=np.full((1, 1), 20.0),
                  saving=np.full((1, 1), 1.0), amplitude=np.zeros((1, 1)))  # fmt: skip
    problem = as_problem(one_row, budget=[[np.inf], [100.0]])  # nobody on the second
    split = jnp.full((1, 1), 40.0)
    assert with_status(problem, split, jnp.zeros((2, 1))).status == Status.SOLVED
    for price in ([[-0.5], [0.0]], [[0.0], [-0.5]]):
        found = with_status(problem, split, jnp.array(price))
        assert found.status == Status.UNCONVERGED, price
        assert found.residual > 1e-3


BAD = {
    **{name: [np.nan, np.inf, -np.inf] for name in ("saving", "rate", "amplitude", "slope")},
    **{name: [np.nan, np.inf, -np.inf] for name in ("centre", "lower", "weight", "steps")},
    "budget": [np.nan, -np.inf, -1.0],
    "server": [-1, 3],
}
for _name in ("rate", "amplitude", "weight"):
    BAD[_name] = [*BAD[_name], -0.1]
BAD["slope"] = [*BAD["slope"], 0.0, -1.0]
BAD["lower"] = [*BAD["lower"], 1e3, -1e3]  # above T; below the centre
CASES = [(name, bad) for name, bads in BAD.items() for bad in bads]


def spoiled() -> tuple[SplitProblem, SplitProblem]:
    """A good batch, one problem per case, and the same with every second problem broken."""
    good = zoo(5, 2 * len(CASES), 8, 3, granted=np.ones((8, 2 * len(CASES)), bool))
    broken = {name: array.copy() for name, array in good.items()}
    for i, (name, bad) in enumerate(CASES):
        broken[name][(..., 2 * i) if name == "steps" else (1, 2 * i)] = bad
    return as_problem(good), as_problem(broken)


@pytest.mark.fast
@pytest.mark.parametrize("bits", [32, 64])
def test_invalid_problems_are_told_and_harm_no_other(bits) -> None:
    with jax.enable_x64(bits == 64):
        good, broken = spoiled()
        expected, found = SOLVE(good), SOLVE(broken)
        for i, case in enumerate(CASES):
            assert found.status[2 * i] == Status.INVALID, case
        assert np.all(np.isnan(found.split[:, ::2]))
        assert np.all(np.isnan(found.price[:, ::2]))
        assert np.all(expected.status == Status.SOLVED)
        np.testing.assert_array_equal(found.status[1::2], Status.SOLVED)
        np.testing.assert_allclose(found.split[:, 1::2], expected.split[:, 1::2], rtol=1e-5)
        np.testing.assert_allclose(
            found.price[:, 1::2], expected.price[:, 1::2], rtol=1e-4, atol=1e-9
        )


@pytest.mark.fast
def test_gradients_of_invalid_problems_are_zero(x64) -> None:
    def total(problem: SplitProblem, valid) -> jax.Array:
        solution = solve_splits(problem)
        return jnp.sum(jnp.where(valid, solution.split, 0)) + jnp.sum(
            jnp.where(valid, solution.price, 0)
        )

    good, broken = spoiled()
    valid = jnp.arange(2 * len(CASES)) % 2 == 1
    grad = jax.jit(jax.grad(total, allow_int=True))
    expected, found = grad(good, valid), grad(broken, valid)
    for name in ("saving", "rate", "amplitude", "slope", "centre", "lower", "steps", "budget"):
        mine = np.asarray(getattr(found, name))
        assert np.all(mine[..., ::2] == 0), name
        np.testing.assert_allclose(mine[..., 1::2], getattr(expected, name)[..., 1::2], rtol=1e-9)


@pytest.mark.fast
def test_rows_that_are_not_granted_may_hold_anything(x64) -> None:
    p = herd("small")
    noise = {k: np.where(p["granted"], p[k], np.nan) for k in ("saving", "rate", "slope", "weight")}
    noise["lower"] = np.where(p["granted"], p["lower"], 2 * p["steps"])
    clean, noisy = SOLVE(as_problem(p)), SOLVE(as_problem(p, **noise))
    chex.assert_trees_all_close(clean, noisy, rtol=1e-12)


@pytest.mark.fast
def test_every_status_has_a_text() -> None:
    assert set(STATUS_TEXT) == set(Status)
    assert all(len(text) > 5 for text in STATUS_TEXT.values())
    with pytest.raises(ValueError, match="solver is 'cplex'; must be one of native"):
        solve_splits(one(as_problem(zoo(0, 2, 3, 1)), 0), "cplex")
    unchecked = inspect.unwrap(solver_named)  # a user has no type checks
    with pytest.raises(ValueError, match=r"solver is a SplitsConfig; must be a name or a Solver"):
        unchecked(SplitsConfig())


def test_vmap_jit_scan_and_batch_last_agree(x64) -> None:
    problem = as_problem(zoo(2, 6, 8, 3))
    pairs = jax.tree.map(lambda x: x.reshape(*x.shape[:-1], 2, 3), problem)
    first = jax.tree.map(lambda x: jnp.moveaxis(x, -1, 0), problem)

    def last(solution: Solution) -> Solution:
        return jax.tree.map(lambda x: jnp.moveaxis(x, 0, -1), solution)

    chex.clear_trace_counter()
    traced_once = jax.jit(chex.assert_max_traces(solve_splits, 1))
    base = traced_once(problem)
    traced_once(as_problem(zoo(3, 6, 8, 3)))
    flat = lambda x: jnp.moveaxis(x.reshape(6, *x.shape[2:]), 0, -1)  # noqa: E731
    ways = {
        "vmap": last(jax.jit(jax.vmap(solve_splits))(first)),
        "vmap of vmap": jax.tree.map(
            flat, jax.jit(jax.vmap(jax.vmap(solve_splits, in_axes=-1), in_axes=-2))(pairs)
        ),
        "scan of vmap": jax.tree.map(
            flat,
            jax.lax.scan(
                lambda _, p: (None, jax.vmap(solve_splits, in_axes=-1)(p)),
                None,
                jax.tree.map(lambda x: jnp.moveaxis(x, -2, 0), pairs),
            )[1],
        ),
    }
    for found in ways.values():
        chex.assert_trees_all_close(found.split, base.split, atol=1e-11, rtol=1e-12)
        chex.assert_trees_all_close(found.price, base.price, atol=1e-12, rtol=1e-12)
