"""Derivatives of the split layer: implicit = differences, forward = reverse, always finite."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import evaluate
from problems import SOLVE, as_problem, float_fields, herd, value, zoo

from offload_jax.problem.instance import Instance
from offload_jax.problem.scenario import EdgeScenario
from offload_jax.splits import SplitProblem, solve_splits

Pytree = SplitProblem | Instance


def tangent(record: Pytree, name: str, direction: np.ndarray) -> Pytree:
    """A tangent of the record that moves one field; integers and booleans get float0."""

    def still(x):
        kind = x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else jax.dtypes.float0
        return np.zeros(x.shape, kind)

    return replace(jax.tree.map(still, record), **{name: direction})


def differences(f: Callable, record: Pytree, name: str, direction: np.ndarray, h: float):
    """Central differences of f, one per problem, and where they are smooth (steps h, h/2 agree)."""

    def slope(step: float) -> np.ndarray:
        ends = [
            f(replace(record, **{name: getattr(record, name) + s * direction}))
            for s in (step, -step)
        ]
        return (np.asarray(ends[0]) - np.asarray(ends[1])) / (2 * step)

    coarse, fine = slope(h), slope(h / 2)
    return fine, np.abs(coarse - fine) <= 1e-5 * (1 + np.abs(fine))


def direction_of(draw: np.random.Generator, x: jax.Array) -> np.ndarray:
    """A random direction, moving every number in proportion to itself."""
    x = np.asarray(x)
    return np.where(np.isfinite(x), draw.normal(size=x.shape) * np.maximum(np.abs(x), 1e-3), 0)


DRAW = np.random.default_rng(0)
OF_SPLIT, OF_PRICE = DRAW.normal(size=(8, 1000)), 0.1 * DRAW.normal(size=(3, 1000))


def functional(solve: Callable, problem: SplitProblem) -> jax.Array:
    """A random linear functional of splits and prices, one number per problem.

    Without the prices of empty budgets, which are not unique: by convention they do not move.
    """
    solution = solve(problem)
    price = jnp.where(problem.budget > 0, solution.price, 0)
    return jnp.sum(OF_SPLIT * solution.split, axis=0) + jnp.sum(OF_PRICE * price, axis=0)


@jax.jit
def reverse(problem: SplitProblem) -> SplitProblem:
    return jax.grad(lambda p: jnp.sum(functional(solve_splits, p)), allow_int=True)(problem)


@jax.jit
def forward(problem: SplitProblem, moved: SplitProblem) -> jax.Array:
    return jax.jvp(lambda p: functional(solve_splits, p), (problem,), (moved,))[1]


def inside(p: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Away from the domain's edges, so that both sides of a difference exist."""
    return p | {
        "lower": np.clip(p["lower"], p["centre"] + 0.01 * p["steps"], 0.99 * p["steps"]),
        "amplitude": np.maximum(p["amplitude"], 0.1),
        "weight": np.maximum(p["weight"], 0.05),
    }


@pytest.mark.fast
def test_layer_against_finite_differences(x64) -> None:
    problem = as_problem(inside(herd("small")))
    backward, draw = reverse(problem), np.random.default_rng(1)
    for name in float_fields(problem):
        direction = direction_of(draw, getattr(problem, name))
        if name == "budget":  # an empty one has no smaller one beside it
            direction = np.where(problem.budget > 0, direction, 0)
        found = np.asarray(forward(problem, tangent(problem, name, direction)))
        product = np.asarray(getattr(backward, name)) * direction
        transposed = product if name == "steps" else product.sum(axis=0)
        np.testing.assert_allclose(found, transposed, rtol=1e-6, atol=1e-9, err_msg=name)
        assert np.median(np.abs(found - transposed) / (1 + np.abs(found))) <= 1e-12, name
        wanted, smooth = differences(lambda p: functional(SOLVE, p), problem, name, direction, 2e-6)
        assert smooth.mean() >= 0.9, (name, smooth.mean())
        error = np.abs(found - wanted) / (1 + np.abs(wanted))
        assert error[smooth].max() <= 1e-4, (name, error[smooth].max())
        assert np.mean(np.abs(wanted[smooth]) > 1e-3) > 0.2, name  # it does depend on the field


@pytest.mark.fast
def test_price_is_the_derivative_of_the_value(x64) -> None:
    p = inside(herd("small"))
    price = np.asarray(SOLVE(as_problem(p)).price)
    step = 1e-5 * np.where(np.isfinite(p["budget"]), np.maximum(p["budget"], 1e-2), 0)
    ends = [
        value(p, np.asarray(SOLVE(as_problem(p, budget=np.maximum(p["budget"] + s, 0))).split))
        for s in (step, -step)
    ]
    wanted = (ends[0] - ends[1]) / 2
    expected = np.sum(price * step, axis=0)
    inner = np.all((p["budget"] > step) | (step == 0), axis=0)
    close = np.abs(wanted - expected) <= 1e-4 * (np.sum(step, axis=0) + np.abs(expected))
    assert np.mean(close[inner]) > 0.98  # the rest are kinks of the price
    assert np.mean(expected[inner] > 0) > 0.3


def edge_batch() -> tuple[Instance, jax.Array]:
    scenario = EdgeScenario(num_users=(6, 7, 8), batches=3, servers=2, models=2, budget=0.8)
    instances = jax.vmap(scenario.sample, out_axes=-1)(jax.random.split(jax.random.key(5), 100))
    plan = np.random.default_rng(3).integers(0, 4, (8, 100))
    return instances, jnp.asarray(plan, jnp.int32)


def test_outcome_against_finite_differences(x64) -> None:
    """The objective, and a functional of everything else, against each field of an instance."""
    instances, plan = edge_batch()
    weights = np.random.default_rng(4).normal(size=(3, 8, 100))

    def both(record: Instance, pick: jax.Array) -> jax.Array:
        outcome = evaluate(record, plan)
        mixed = weights[0] * outcome.split + weights[1] * outcome.latency
        other = jnp.sum(mixed + weights[2] * outcome.accuracy, axis=0)
        return pick * outcome.objective + (1 - pick) * (other + jnp.sum(outcome.price, axis=0))

    along = jax.jit(lambda i, d, pick: jax.jvp(lambda r: both(r, pick), (i,), (d,)))
    still = tangent(instances, "wait", np.zeros_like(instances.wait))
    pull = jax.jit(jax.grad(lambda i, pick: jnp.sum(both(i, pick)), allow_int=True))
    draw, seen = np.random.default_rng(6), 0
    for pick in (1.0, 0.0):
        backward = pull(instances, pick)
        for name in sorted(set(float_fields(instances)) - {"capacity"}):
            direction = direction_of(draw, getattr(instances, name))
            found = np.asarray(along(instances, tangent(instances, name, direction), pick)[1])
            product = np.asarray(getattr(backward, name)) * direction
            product = product.sum(axis=tuple(range(product.ndim - 1)))
            np.testing.assert_allclose(found, product, rtol=1e-6, atol=1e-8, err_msg=name)
            wanted, smooth = differences(
                lambda i, pick=pick: along(i, still, pick)[0], instances, name, direction, 2e-6
            )
            assert smooth.mean() >= 0.9, (name, smooth.mean())
            error = np.abs(found - wanted) / (1 + np.abs(wanted))
            assert error[smooth].max() <= 1e-4, (name, error[smooth].max())
            seen += np.mean(np.abs(wanted) > 1e-6) > 0.2
    assert seen >= 28  # every field but capacity moves something


def test_inside_a_scan(x64) -> None:
    """Four calls of the layer, each budget set by the splits before it."""
    p = inside(zoo(9, 40, 8, 3, granted=np.ones((8, 40), bool)))
    problem, weights = as_problem(p), OF_SPLIT[:, :40]
    limited = jnp.where(jnp.isfinite(problem.budget), problem.budget, 1.0)

    def chain(saving: jax.Array) -> jax.Array:
        def call(budget, _):
            solution = jax.vmap(solve_splits, in_axes=-1)(
                replace(problem, saving=saving, budget=budget)
            )
            moved = jnp.sum(weights * solution.split.T, axis=0)
            return 0.9 * budget + 1e-3 * jnp.abs(moved), moved

        return jnp.sum(jax.lax.scan(call, limited, None, length=4)[1], axis=0)

    direction = direction_of(np.random.default_rng(8), problem.saving)
    along = jax.jit(lambda s: jax.jvp(chain, (s,), (direction,)))
    found = along(problem.saving)[1]
    backward = jax.jit(jax.grad(lambda s: jnp.sum(chain(s))))(problem.saving)
    np.testing.assert_allclose(found, jnp.sum(backward * direction, axis=0), rtol=1e-9, atol=1e-9)
    ends = [
        np.asarray(along(problem.saving + s * direction)[0]) for s in (1e-6, -1e-6, 5e-7, -5e-7)
    ]
    coarse, fine = (ends[0] - ends[1]) / 2e-6, (ends[2] - ends[3]) / 1e-6
    smooth = np.abs(coarse - fine) <= 1e-5 * (1 + np.abs(fine))
    assert smooth.mean() >= 0.85
    assert np.max(np.abs(found - fine)[smooth] / (1 + np.abs(fine[smooth]))) <= 1e-4


def corner(**changes) -> SplitProblem:
    """Three rows on one server at a point where the derivative is one-sided, as float64 arrays."""
    base = {
        "saving": [0.3, 0.4, 0.5], "rate": [0.02] * 3, "amplitude": [12.0, 15.0, 9.0],
        "slope": [0.16] * 3, "centre": [20.0, 22.0, 24.0], "lower": [20.0, 25.0, 24.0],
        "weight": [1.0] * 3, "granted": [True] * 3, "server": [0] * 3, "steps": 50.0,
        "budget": [0.6],
    }  # fmt: skip
    return as_problem({name: np.asarray(x) for name, x in {**base, **changes}.items()})


one_solve = jax.jit(solve_splits)


@jax.jit
def one_jacobian(problem: SplitProblem) -> dict[str, jax.Array]:
    floats = {name: getattr(problem, name) for name in float_fields(problem)}
    return jax.jacrev(lambda f: solve_splits(replace(problem, **f)).split)(floats)


one_forward = jax.jit(lambda p, d: jax.jvp(lambda q: solve_splits(q).split, (p,), (d,))[1])


@pytest.mark.fast
def test_corners_are_finite_and_follow_their_bounds(x64) -> None:
    free = np.float64([1e3] * 3)
    cases = {
        "no budget": corner(budget=[0.0]),
        "budget spent by bounds alone": corner(
            amplitude=[0.0, 0, 0], budget=[0.02 * (30.0 + 25.0)], saving=[0.4, 0.4, 1e-9]
        ),
        "lo = b": corner(saving=free, budget=[np.inf]),
        "lo = T": corner(lower=[50.0] * 3),
        "fractional linear row": corner(
            amplitude=[12.0, 0.0, 9.0], saving=[0.3, 0.1, 0.5], budget=[1.1]
        ),
    }
    for name, problem in cases.items():
        solution, jacobian = one_solve(problem), one_jacobian(problem)
        assert int(solution.status) == 0, name
        for field in float_fields(problem):
            reverse_part = np.asarray(jacobian[field])
            assert np.all(np.isfinite(reverse_part)), (name, field)
            unit = np.ones(np.shape(getattr(problem, field)))
            along = one_forward(problem, tangent(problem, field, unit))
            rows = reverse_part.reshape(3, -1).sum(axis=1)
            np.testing.assert_allclose(
                rows, along, rtol=1e-9, atol=1e-12, err_msg=f"{name} {field}"
            )
    # At lo the split follows lo, also where lo = b.
    np.testing.assert_allclose(one_jacobian(cases["lo = b"])["lower"], np.eye(3))
    # The linear row takes up the whole change of the budget: dn = -dW / rho.
    problem = cases["fractional linear row"]
    assert 25.0 < float(one_solve(problem).split[1]) < 50.0
    filled = np.asarray(one_jacobian(problem)["budget"])[:, 0]
    np.testing.assert_allclose(filled, [0, -1 / 0.02, 0], atol=1e-9)


@pytest.mark.fast
def test_second_derivatives(x64) -> None:
    def loss(saving: jax.Array) -> jax.Array:
        solution = solve_splits(replace(corner(), saving=saving))
        return jnp.sum(solution.split**2) + solution.price[0]

    at, h = jnp.array([0.3, 0.4, 0.5]), 1e-6
    slope = jax.jit(jax.grad(loss))
    wanted = [(slope(at.at[i].add(h)) - slope(at.at[i].add(-h))) / (2 * h) for i in range(3)]
    hessian = jax.jit(jax.jacfwd(jax.grad(loss)))(at)
    assert np.max(np.abs(hessian)) > 1
    np.testing.assert_allclose(hessian, np.stack(wanted), rtol=1e-4, atol=1e-3)
