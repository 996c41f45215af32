"""The split problem: where to hand each granted user's denoising run from the edge to the device.

For a given assignment the best split points solve a concave program, separable but for one
budget per server (symbols as in arXiv 2411.15781):

    maximise    sum_i  w_i [ c_i sig(a_i (n_i - b_i)) - Delta_i n_i ]
    subject to  lo_i <= n_i <= T,   sum_{i on g}  w_i rho_i (T - n_i) <= W_g

with sig the logistic function. lo_i >= b_i keeps every term on the concave side of its curve, and
n_i = T is always feasible. This file holds the problem, its solution and the certificate.
"""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from offload_jax.problem.arrays import any_row, pick, total
from offload_jax.problem.types import Scalar, Status


@struct.dataclass
class SplitProblem:
    """One row per user, or per (user, batch) for soft assignments. All of it may be traced."""

    saving: Float[Array, "rows *batch"]  # Delta, s/step: latency saved per step moved to the edge
    rate: Float[Array, "rows *batch"]  # rho, GPU-seconds/step: an edge step's part of the budget
    amplitude: Float[Array, "rows *batch"]  # c, s: worth of the whole accuracy curve, >= 0
    slope: Float[Array, "rows *batch"]  # a, 1/step, > 0
    centre: Float[Array, "rows *batch"]  # b, steps: inflection of the curve, <= lower
    lower: Float[Array, "rows *batch"]  # lo, steps
    weight: Float[Array, "rows *batch"]  # w, probability of the row; 1 in a plan
    granted: Bool[Array, "rows *batch"]  # False: the row is fixed at n = T and uses nothing
    server: Int[Array, "rows *batch"]  # server whose budget the row draws on
    steps: Float[Array, "*batch"]  # T
    budget: Float[Array, "servers *batch"]  # W, GPU-seconds, may be infinite


@struct.dataclass
class Solution:
    """Split points with their certificate."""

    split: Float[Array, "rows *batch"]  # n, steps; T if not granted; NaN if INVALID or INFEASIBLE
    price: Float[Array, "servers *batch"]  # nu, s per GPU-second: multiplier of the budget, >= 0
    status: Int[Array, "*batch"]  # problem.types.Status
    residual: Float[Array, "*batch"]  # KKT residual, dimensionless


def drain(problem: SplitProblem) -> Float[Array, "rows *batch"]:
    """GPU-seconds per edge step that a row takes from its server: w rho, 0 where not granted."""
    return jnp.where(problem.granted, problem.weight * problem.rate, 0)


def neutral(problem: SplitProblem, keep: Bool[Array, "rows *batch"]) -> SplitProblem:
    """The problem with the rows outside `keep` fixed at T, their numbers (NaN too) replaced.

    A NaN that is multiplied by 0, or selected away only afterwards, would spoil sums and gradients.
    """

    def fill(rows: Array, value: Array | float) -> Array:
        return jnp.where(keep, rows, value)

    return replace(
        problem,
        saving=fill(problem.saving, 0.0),
        rate=fill(problem.rate, 0.0),
        amplitude=fill(problem.amplitude, 0.0),
        slope=fill(problem.slope, 1.0),
        centre=fill(problem.centre, problem.steps),
        lower=fill(problem.lower, problem.steps),
        weight=fill(problem.weight, 0.0),
        granted=problem.granted & keep,
    )


def server_use(
    problem: SplitProblem, split: Float[Array, "rows *batch"]
) -> Float[Array, "servers *batch"]:
    """GPU-seconds the rows take from each server: sum of w rho (T - n)."""
    use = drain(problem) * (problem.steps - split)
    return total(problem.server, use, problem.budget.shape[0])


def rows_objective(problem: SplitProblem, split: Float[Array, "rows *batch"]) -> Scalar:
    """The objective above, over granted rows, in seconds."""
    curve = problem.amplitude * jax.nn.sigmoid(problem.slope * (split - problem.centre))
    terms = problem.weight * (curve - problem.saving * split)
    return jnp.sum(jnp.where(problem.granted, terms, 0), axis=0)


def marginal(
    problem: SplitProblem, split: Float[Array, "rows *batch"]
) -> Float[Array, "rows *batch"]:
    """Derivative of each row's curve, c a sig (1 - sig), in s/step."""
    z = problem.slope * (split - problem.centre)
    return problem.amplitude * problem.slope * jax.nn.sigmoid(z) * jax.nn.sigmoid(-z)


def kkt_residual(
    problem: SplitProblem, split: Float[Array, "rows *batch"], price: Float[Array, "servers *batch"]
) -> Scalar:
    """How far (split, price) is from optimal: the largest violation of any KKT condition.

    Stationarity is the length of a projected gradient step in units of the interval [lo, T], with
    the gradient over max(c a / 4, |Delta|), so it does not depend on the scale of the objective;
    feasibility and complementarity of a budget W are taken over max(1, W), complementarity also
    over max(1, price), or rounding of the use would count for more the more a budget is worth. NaN
    stays NaN.
    """
    width = problem.steps - problem.lower
    gradient = (
        marginal(problem, split) - problem.saving + pick(problem.server, price) * problem.rate
    )
    scale = jnp.maximum(problem.amplitude * problem.slope / 4, jnp.abs(problem.saving))
    step = gradient / jnp.where(scale > 0, scale, 1)
    # Shifted units (n - lo) / (T - lo), so that float32 does not lose the step beside a large n.
    place = (split - problem.lower) / jnp.where(width > 0, width, 1)
    stationarity = jnp.where(width > 0, jnp.abs(place - jnp.clip(place + step, 0, 1)), 0)
    bounds = jnp.maximum(jnp.maximum(-place, place - 1), 0)
    fixed = jnp.abs(split - problem.steps) / problem.steps
    rows = jnp.where(problem.granted, jnp.maximum(stationarity, bounds), fixed)

    limited = jnp.isfinite(problem.budget)
    budget = jnp.where(limited, problem.budget, 0)
    excess = jnp.where(limited, server_use(problem, split) - budget, 0)
    slack = jnp.minimum(price, 1) * jnp.abs(excess)
    gap = jnp.maximum(jnp.maximum(excess, slack), -price)
    return jnp.maximum(jnp.max(rows, axis=0), jnp.max(gap / jnp.maximum(budget, 1), axis=0))


def is_valid(problem: SplitProblem) -> Bool[Array, "*batch"]:
    """Whether every number is finite (budgets may be infinite) and in its domain."""
    ca = problem.amplitude * problem.slope
    row = (
        jnp.isfinite(problem.saving + problem.rate + ca + problem.centre + problem.lower)
        & (jnp.isfinite(problem.weight) & (problem.weight >= 0))
        & ((problem.rate >= 0) & (problem.amplitude >= 0) & (problem.slope > 0))
        & ((problem.centre <= problem.lower) & (problem.lower <= problem.steps))
    )
    servers = problem.budget.shape[0]
    hosted = (problem.server >= 0) & (problem.server < servers)
    broken = any_row(problem.granted & ~(row & hosted))
    servers_valid = jnp.all(problem.budget >= 0, axis=0)
    return ~broken & servers_valid & jnp.isfinite(problem.steps) & (problem.steps > 0)


def tolerance(dtype: jnp.dtype) -> float:
    """Largest KKT residual that counts as solved: 1e-4 in float32, 1e-8 in float64."""
    return 1e-8 if jnp.finfo(dtype).bits == 64 else 1e-4


def with_status(
    problem: SplitProblem,
    split: Float[Array, "rows *batch"],
    price: Float[Array, "servers *batch"],
    allowed: float | None = None,
) -> Solution:
    """A solver's answer with its status and residual; an invalid problem gets NaN, no number.

    Solved is what has a residual of at most `allowed` (default: `tolerance` of the float type).
    """
    valid = is_valid(problem)
    residual = kkt_residual(*jax.lax.stop_gradient((problem, split, price)))
    solved = residual <= (tolerance(split.dtype) if allowed is None else allowed)
    status = jnp.where(valid, jnp.where(solved, Status.SOLVED, Status.UNCONVERGED), Status.INVALID)
    return Solution(
        split=jnp.where(valid, split, jnp.nan),
        price=jnp.where(valid, price, jnp.nan),
        status=status.astype(jnp.int32),
        residual=jnp.where(valid, residual, jnp.nan),
    )
