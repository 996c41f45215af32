"""A zoo of split problems, plain-NumPy judges of them, and functions compiled once for all tests.

Arrays are batch-last, as in the package: `problem.saving` has the shape (rows, problems).
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import jaxtyped

from offload_jax.plans.rounding import round_splits
from offload_jax.splits import SplitProblem, solve_splits

# Jitted once: compiling takes longer than anything else in these tests.
SOLVE = jax.jit(solve_splits)
ROUND = jax.jit(round_splits)


def conforms(record: Any) -> bool:
    """Whether the fields of a struct have the types, axes and common sizes of their annotations."""
    hints = inspect.get_annotations(type(record), eval_str=True)
    with jaxtyped("context"):
        return all(isinstance(getattr(record, f.name), hints[f.name]) for f in fields(record))


def fields(record: Any) -> tuple[dataclasses.Field, ...]:
    return dataclasses.fields(record)


def float_fields(record: Any) -> list[str]:
    return [f.name for f in fields(record) if jnp.issubdtype(getattr(record, f.name).dtype, float)]


def sigmoid(x):
    return 0.5 * (1 + np.tanh(0.5 * np.asarray(x, np.float64)))


def zoo(seed: int, problems: int, rows: int, servers: int, **fixed: Any) -> dict[str, np.ndarray]:
    """Random problems as float64 arrays; `fixed` replaces fields before budgets are drawn.

    Times and rates as in the edge scenario and wider. Among the rows: linear ones (amplitude 0),
    lo = b, lo = T, nothing to save, weight 0, not granted. Among the budgets: a part of what is
    used without a price, slack, zero, infinite, and servers that no row uses.
    """
    r = np.random.default_rng(seed)
    shape = (rows, problems)
    steps = r.choice([20.0, 50.0, 50.0, 200.0], problems)
    steps = fixed.get("steps", steps)  # before the bounds that follow from it
    demand = r.choice([1.0, 2.0, 4.0], shape, p=[0.6, 0.25, 0.15])
    local = demand * np.exp(r.uniform(np.log(0.05), np.log(0.8), shape))
    slope = np.exp(r.uniform(np.log(4), np.log(25), shape)) / steps
    centre = r.uniform(0.1, 0.7, shape) * steps
    worth = r.uniform(0.02, 0.7, shape) * steps * local * r.uniform(0.3, 1, shape)
    linear = r.random(shape) < 0.08
    lower = np.where(r.random(shape) < 0.7, centre, np.maximum(centre, 0.4 * steps))
    lower = np.where(r.random(shape) < 0.04, steps, lower)
    values = {
        "saving": local - r.uniform(0.01, 0.3, shape),
        "rate": demand * r.uniform(0.005, 0.05, shape),
        "amplitude": np.where(linear, 0, worth / sigmoid(slope * (steps - centre))),
        "slope": slope,
        "centre": centre,
        "lower": lower,
        "weight": np.where(r.random(problems) < 0.7, 1, r.uniform(0, 1, shape).round(1)),
        "granted": r.random(shape) < r.choice([0, 0.5, 0.9, 1], problems, p=[0.03, 0.3, 0.37, 0.3]),
        "server": r.integers(0, servers, shape) % r.integers(1, servers + 1, problems),
        "steps": steps,
        **fixed,
    }
    wanted = use(values, closed_form(values, np.zeros((servers, problems))), servers)
    share = np.where(r.random(wanted.shape) < 0.1, 0, r.uniform(0.01, 1.2, wanted.shape))
    budget = np.where(r.random(wanted.shape) < 0.15, 1e3, share * wanted)
    values["budget"] = np.where(r.random(wanted.shape) < 0.15, np.inf, budget)
    return values


def as_problem(values: dict[str, np.ndarray], **changes: Any) -> SplitProblem:
    """The arrays in JAX's current default float type, its fields checked."""
    problem = SplitProblem(
        **{
            name: jnp.asarray(
                value, {"f": float, "b": bool}.get(np.asarray(value).dtype.kind, jnp.int32)
            )
            for name, value in {**values, **changes}.items()
        }
    )
    assert conforms(problem)
    return problem


def closed_form(p: dict[str, np.ndarray], price: np.ndarray) -> np.ndarray:
    """Formulation section 4, word for word: split points at given prices (servers, problems)."""
    paid = p["saving"] - np.take_along_axis(price, p["server"], 0) * p["rate"]
    steepest = p["amplitude"] * p["slope"]
    v = paid / np.where(steepest > 0, steepest, 1)
    inside = (steepest > 0) & (v > 0) & (v < 0.25)
    v = np.where(inside, v, 0.2)
    root = np.sqrt(1 - 4 * v)
    free = p["centre"] + (2 * np.log1p(root) - np.log(4 * v)) / p["slope"]
    at_bound = np.where(paid > 0, p["lower"], np.broadcast_to(p["steps"], paid.shape))
    split = np.where(inside, np.clip(free, p["lower"], p["steps"]), at_bound)
    return np.where(p["granted"], split, p["steps"])


def use(p: dict[str, np.ndarray], split: np.ndarray, servers: int) -> np.ndarray:
    """GPU-seconds of each server, (servers, problems)."""
    spent = np.where(p["granted"], p["weight"] * p["rate"] * (p["steps"] - split), 0)
    return np.stack([np.sum(np.where(p["server"] == g, spent, 0), 0) for g in range(servers)])


def value(p: dict[str, np.ndarray], split: np.ndarray) -> np.ndarray:
    """The problem's objective, (problems,)."""
    curve = p["amplitude"] * sigmoid(p["slope"] * (split - p["centre"]))
    return np.sum(np.where(p["granted"], p["weight"] * (curve - p["saving"] * split), 0), 0)


def kkt(p: dict[str, np.ndarray], split: np.ndarray, price: np.ndarray) -> np.ndarray:
    """KKT residual of the formulation in float64, written apart from the package's."""
    sig = sigmoid(p["slope"] * (split - p["centre"]))
    steepest = p["amplitude"] * p["slope"]
    g = steepest * sig * (1 - sig) - p["saving"]
    g = g + np.take_along_axis(price, p["server"], 0) * p["rate"]
    scale = np.maximum(steepest / 4, np.abs(p["saving"]))
    wide = p["steps"] - p["lower"]
    moved = np.clip(split + wide * g / np.where(scale > 0, scale, 1), p["lower"], p["steps"])
    row = np.abs(split - moved) / np.where(wide > 0, wide, 1)
    row = np.maximum(row, np.maximum(p["lower"] - split, split - p["steps"]))
    limited = np.isfinite(p["budget"])
    budget = np.where(limited, p["budget"], 0)
    over = np.where(limited, use(p, split, len(budget)) - budget, 0)
    slack = np.abs(price * over) / np.maximum(price, 1)
    gap = np.maximum.reduce([over, slack, -price]) / np.maximum(budget, 1)
    return np.maximum(np.max(np.where(p["granted"], row, 0), 0), gap.max(0))


@functools.cache
def herd(name: str) -> dict[str, np.ndarray]:
    """The shapes shared by tests, so that each is compiled once."""
    problems, rows, servers = {"small": (1000, 8, 3), "long": (1100, 64, 8)}[name]
    return zoo(len(name), problems, rows, servers)
