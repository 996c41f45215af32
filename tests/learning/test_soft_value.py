"""Soft assignments: the expectation they claim to be, their corners, and their gradient."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import evaluate, sample_one
from episodes import sample

from offload_jax.learning.soft_value import _soft_gain, soft_evaluate
from offload_jax.plans.outcome import objective_denied
from offload_jax.plans.reduced_gains import move_gains
from offload_jax.problem import equations
from offload_jax.problem.arrays import one_hot
from offload_jax.problem.instance import Instance
from offload_jax.problem.scenario import EdgeScenario
from offload_jax.problem.types import Status
from offload_jax.splits import NATIVE, SplitsConfig, solver_named

SCENARIO = EdgeScenario(num_users=(4, 6), batches=3, servers=2, models=2, budget=0.6,
                        split_min_share=0.5)  # fmt: skip
SOLVERS = [solver_named(name) for name in ("native", "cvxpylayers-moreau", "cvxpylayers-diffcp")]
COUNT = 24
soft = jax.jit(soft_evaluate, static_argnames="solver")


def world() -> tuple[Instance, jax.Array, jax.Array]:
    """Instances, probabilities of them, and 0/1 assignments (batch last)."""
    instances = sample(SCENARIO, jax.random.key(3), COUNT)
    draw = np.random.default_rng(0)
    logits = jnp.asarray(draw.normal(size=(6, 4, COUNT)))
    plan = draw.integers(0, 4, (6, COUNT))
    return instances, jax.nn.softmax(logits, axis=1), jnp.asarray(plan, jnp.int32)


def corner(plan: jax.Array) -> jax.Array:
    """The 0/1 probabilities of an assignment."""
    return jnp.moveaxis(one_hot(plan, 4), 0, 1).astype(float)


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: solver.name)
def test_corners_are_plans(x64, solver) -> None:
    instances, _, plan = world()
    outcome, plain = soft(instances, corner(plan), solver=solver), evaluate(instances, plan)
    assert np.all(outcome.status == Status.SOLVED)
    scale = np.sum(instances.mask * (instances.alpha + instances.steps * instances.local_step), 0)
    assert np.max(np.abs(outcome.objective - plain.objective) / scale) <= 1e-6
    np.testing.assert_allclose(
        outcome.gain, outcome.objective - objective_denied(instances, NATIVE)
    )
    chosen = one_hot(plan - 1, 3) & instances.mask
    mine = np.sum(np.where(np.moveaxis(np.asarray(chosen), 0, 1), outcome.split, 0), axis=1)
    granted = np.asarray(chosen.any(axis=0))
    deviation = np.abs(mine - plain.split)[granted] / 50
    assert deviation.max() <= 1e-4
    np.testing.assert_allclose(outcome.load, equations.place(instances, plan).load, atol=1e-12)
    over = np.maximum(np.asarray(outcome.load) - instances.capacity, 0)
    np.testing.assert_allclose(outcome.overload, over)


def test_float32_corners_are_plans() -> None:
    instances, _, plan = world()
    outcome, plain = soft(instances, corner(plan)), evaluate(instances, plan)
    scale = np.sum(instances.mask * (instances.alpha + instances.steps * instances.local_step), 0)
    assert np.all(outcome.status == Status.SOLVED)
    assert np.max(np.abs(outcome.gain - plain.gain) / scale) <= 1e-6


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda solver: solver.name)
def test_gradient_is_that_of_differences(x64, solver) -> None:
    """In the probabilities (constrained to sums of 1) and in fields that move bounds and prices."""
    instances, p, _ = world()
    value = jax.jit(lambda i, p: soft_evaluate(i, p, solver).objective)
    grad = jax.jit(jax.grad(lambda i, p: jnp.sum(value(i, p)), argnums=(0, 1), allow_int=True))
    by_field, by_chance = grad(instances, p)
    draw = np.random.default_rng(1)
    move = draw.normal(size=p.shape) * np.asarray(p)
    move = move - move.mean(axis=1, keepdims=True)
    cases = {"p": (by_chance, move, lambda h: (instances, p + h * move))}
    for name in ("alpha", "budget", "accuracy_centre", "split_min", "interference", "payload"):
        field = getattr(instances, name)
        along = draw.normal(size=field.shape) * np.abs(field)
        cases[name] = (
            getattr(by_field, name),
            along,
            lambda h, n=name, x=field, d=along: (replace(instances, **{n: x + h * d}), p),
        )
    for name, (slope, along, moved) in cases.items():
        found = (np.asarray(slope) * along).reshape(-1, COUNT).sum(axis=0)
        ends = [np.asarray(value(*moved(h))) for h in (1e-4, -1e-4, 5e-5, -5e-5)]
        coarse, fine = (ends[0] - ends[1]) / 2e-4, (ends[2] - ends[3]) / 1e-4
        smooth = np.abs(coarse - fine) <= 1e-4 * (1 + np.abs(fine))
        error = np.abs(found - fine) / (1 + np.abs(fine))
        assert smooth.mean() >= 0.8, name
        assert error[smooth].max() <= 1e-4, (name, error[smooth].max())
        assert np.abs(found).max() > 1e-3, name


def test_fixed_splits_have_the_expected_value(x64) -> None:
    """Exactly, summed over all 4^4 plans of one instance; and by drawing plans."""
    p = world()[1]
    few = replace(SCENARIO, num_users=(4,))
    instance, p = sample_one(few, jax.random.key(8)), p[:4, :, 0]
    split = jnp.asarray(np.random.default_rng(2).uniform(30, 50, (4, 3)))
    claimed = float(_soft_gain(instance, p[:, 1:], split))

    def gain(plan: jax.Array) -> jax.Array:
        placed = equations.place(instance, plan)
        mine = jnp.sum(jnp.where(one_hot(plan - 1, 3).T, split, 0), axis=1)
        return equations.gain(instance, placed, jnp.where(plan > 0, mine, instance.steps))

    plans = jnp.stack(jnp.meshgrid(*[jnp.arange(4)] * 4), axis=-1).reshape(-1, 4)
    chance = jnp.prod(jnp.take_along_axis(p[None], plans[:, :, None], axis=2)[..., 0], axis=1)
    gains = jax.jit(jax.vmap(gain))(plans)
    np.testing.assert_allclose(claimed, jnp.sum(chance * gains), rtol=1e-12)

    keys = jax.random.split(jax.random.key(0), 4)
    draws = jnp.stack([jax.random.categorical(k, jnp.log(p[i]), shape=(20000,))
                       for i, k in enumerate(keys)], axis=1)  # fmt: skip
    found = np.asarray(jax.jit(jax.vmap(gain))(draws))
    assert abs(found.mean() - claimed) <= 4 * found.std() / np.sqrt(len(found))


def test_gradient_at_a_corner_is_the_reduced_gain(x64) -> None:
    """dV/dp_ik - dV/dp_i0 of a denied user is what granting would gain, to first order."""
    instances, _, plan = world()
    plain = evaluate(instances, plan)
    placed = equations.place(instances, plan)
    reduced = jax.jit(move_gains)(instances, placed, plain.split, plain.price)
    total = jax.jit(jax.grad(lambda p: jnp.sum(soft(instances, p).objective)))
    slope = total(corner(plan))
    denied = np.asarray((plan == 0) & instances.mask)[:, None]
    found = np.where(denied, slope[:, 1:] - slope[:, :1], 0)
    np.testing.assert_allclose(found, np.where(denied, reduced, 0), atol=1e-9)


@pytest.mark.fast
def test_padded_users_and_misuse(x64) -> None:
    instances, p, _ = world()
    spoiled = jnp.where(instances.mask[:, None], p, jnp.array([0.1, 0.9, 0, 0])[:, None])
    for name in ("objective", "load", "price"):
        same = getattr(soft(instances, spoiled), name), getattr(soft(instances, p), name)
        np.testing.assert_allclose(*same, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="probabilities has shape"):
        soft_evaluate(instances, p[:, 1:])
    ruled = SplitsConfig("cvxpylayers-moreau", constraints=("split >= 20",)).to_solver()
    with pytest.raises(ValueError, match="must have none for soft assignments"):
        soft_evaluate(instances, p, ruled)


def test_vmap_agrees(x64) -> None:
    instances, p, _ = world()
    for solver in SOLVERS[:2]:
        mapped = jax.jit(jax.vmap(partial(soft_evaluate, solver=solver), in_axes=-1))
        np.testing.assert_allclose(
            mapped(instances, p).objective, soft(instances, p, solver=solver).objective, rtol=1e-9
        )
