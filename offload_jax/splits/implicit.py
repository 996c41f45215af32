"""Derivative of the native solver, by the implicit function theorem.

Free rows keep their stationarity, rows at a bound follow the bound, and binding servers keep their
budget spent. Differentiating these conditions gives, for a free row with curvature h = -q'',

    dn = (dq' - dDelta + nu drho + rho dnu) / h,
    sum_{i on g} d[w_i rho_i (T - n_i)] = dW_g   for every g with a price,

one scalar equation per server for dnu. It costs one more pass over the rows, works in forward
and reverse mode, and never sees the solver's iterations.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from offload_jax.problem.arrays import pick, total
from offload_jax.splits.dual import solve_dual
from offload_jax.splits.problem import (
    Solution,
    SplitProblem,
    is_valid,
    marginal,
    neutral,
    with_status,
)

# Optimal splits (steps) and prices (s per GPU-second) of a problem.
Answer = tuple[Float[Array, "rows *batch"], Float[Array, "servers *batch"]]


def with_derivative(solve: Callable[[SplitProblem], Answer]) -> Callable[[SplitProblem], Answer]:
    """The same function with the derivative of the optimum, however `solve` finds it."""

    @jax.custom_jvp
    def solved(problem: SplitProblem) -> Answer:
        return solve(problem)

    @solved.defjvp
    def tangent(
        primals: tuple[SplitProblem], tangents: tuple[SplitProblem]
    ) -> tuple[Answer, Answer]:
        (problem,), (tangent,) = primals, tangents
        split, price = solved(problem)  # not `solve`: so that derivatives of derivatives hold too
        return (split, price), _implicit_tangent(problem, tangent, split, price)

    found: Callable[[SplitProblem], Answer] = solved
    return found


_solve = with_derivative(solve_dual)


def solve_native(problem: SplitProblem) -> Solution:
    """Solves one split problem; differentiable in every float of it. Callers `vmap`.

    An invalid problem gets status INVALID, NaN splits and zero derivatives, so that one broken row
    of a batch neither passes for an answer nor spoils the others' gradient.
    """
    return with_status(problem, *_solve(problem))


def _implicit_tangent(
    problem: SplitProblem, tangent: SplitProblem, split: Array, price: Array
) -> tuple[Array, Array]:
    """(dsplit, dprice) for a tangent of the problem; linear in the tangent's floats."""
    valid = is_valid(problem)
    # Reverse mode multiplies by every coefficient: each must be finite, those of bad rows too.
    steps = jnp.where(valid, problem.steps, 1)
    p = replace(problem, steps=steps, budget=jnp.where(valid, problem.budget, 0))
    p, d = neutral(p, p.granted & valid), tangent
    split, price = jnp.where(valid, split, steps), jnp.where(valid, price, 0)
    num_servers = p.budget.shape[0]
    at_lower, at_upper = split <= p.lower, split >= p.steps
    inner = p.granted & ~at_lower & ~at_upper

    push, curvature = _push(p, d, split, price)
    free = inner & (curvature > 0)
    # Rows without an accuracy term inside their interval: they take up what the budget leaves.
    slack = inner & ~free

    def to_server(rows: Array) -> Array:
        return total(p.server, rows, num_servers)

    soft = jnp.where(free, 1 / jnp.where(free, curvature, 1), 0)

    # Split's change at a fixed price; then the budget's equation gives the price's change.
    base = jnp.where(
        free, soft * push, jnp.where(p.granted & at_lower & ~at_upper, d.lower, d.steps)
    )
    base = jnp.where(slack, 0, base)
    weight = jnp.where(p.granted, p.weight, 0)
    edge = p.steps - split
    duse = (d.weight * p.rate + weight * d.rate) * edge * p.granted
    duse += weight * p.rate * (d.steps - base)
    spent = (price > 0) & jnp.isfinite(p.budget)
    # A price that a slack row pins moves with that row: nu = Delta / rho.
    pinned = to_server(jnp.where(slack, 1.0, 0))
    pin = to_server(jnp.where(slack, -push / jnp.where(slack, p.rate, 1), 0)) / jnp.maximum(
        pinned, 1
    )
    stiffness = to_server(weight * p.rate**2 * soft)
    dbudget = jnp.where(spent, d.budget, 0)
    need = jnp.where(spent, to_server(duse) - dbudget, 0)
    movable = spent & (stiffness > 0)
    dprice = jnp.where(movable, need / jnp.where(movable, stiffness, 1), 0)
    dprice = jnp.where(spent & (pinned > 0), pin, dprice)

    dsplit = base + soft * p.rate * pick(p.server, dprice)
    # What the free rows left of the budget's equation falls to the slack rows, in equal shares.
    left = need - stiffness * dprice
    share = weight * p.rate * jnp.maximum(pick(p.server, pinned), 1)
    filler = pick(p.server, left) / jnp.where(slack & (share > 0), share, 1)
    dsplit = jnp.where(slack & (share > 0), filler, dsplit)
    return jnp.where(valid, dsplit, 0), jnp.where(valid, dprice, 0)


def _push(
    p: SplitProblem, d: SplitProblem, split: Array, price: Array
) -> tuple[Float[Array, "rows *batch"], Float[Array, "rows *batch"]]:
    """(change of each row's marginal gain at fixed split and price, curvature -q'')."""
    z = p.slope * (split - p.centre)
    sig = jax.nn.sigmoid(z)
    steep = marginal(p, split)  # q'
    dcurve = (d.amplitude * p.slope + d.slope * p.amplitude) * sig * jax.nn.sigmoid(-z)
    dz = d.slope * (split - p.centre) - p.slope * d.centre
    dcurve += steep * (1 - 2 * sig) * dz
    return dcurve - d.saving + pick(p.server, price) * d.rate, p.slope * steep * (2 * sig - 1)
