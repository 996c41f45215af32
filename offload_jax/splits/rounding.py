"""Integer split points: denoising steps are whole, so a plan that runs has whole splits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from offload_jax.segments import one_hot, pick
from offload_jax.splits.problem import SplitProblem, drain, server_use

# A split this close above a whole number is that number: float32 splits are off by 2e-5 steps.
SNAP = 1e-4


def round_splits(
    problem: SplitProblem, split: Float[Array, "rows *batch"]
) -> Int[Array, "rows *batch"]:
    """Whole split points near the real optimum `split` that keep every bound and budget.

    Rounds up, which only frees budget, then lowers rows by whole steps, the best gain per
    GPU-second first, as long as one gains, stays at or above its bound and fits its budget.
    """
    per_step = drain(problem)

    def fits(n: Array) -> Array:
        """Whether one more edge step of each row fits, beside the current use."""
        left = jnp.where(
            jnp.isfinite(problem.budget), problem.budget - server_use(problem, n), jnp.inf
        )
        return per_step <= pick(problem.server, left)

    def best(n: Array) -> tuple[Array, Array]:
        """The row to lower next, and whether there is any."""
        rise = _row_value(problem, n - 1) - _row_value(problem, n)
        allowed = problem.granted & (rise > 0) & (n - 1 >= problem.lower) & fits(n)
        merit = jnp.where(
            allowed, rise / jnp.maximum(per_step, jnp.finfo(rise.dtype).tiny), -jnp.inf
        )
        return jnp.argmax(merit, axis=0), jnp.any(allowed, axis=0)

    def lower_best(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        n, row, any_left = carry
        n = n - (one_hot(row, n.shape[0]) & any_left)
        return n, *best(n)

    up = jnp.minimum(jnp.ceil(split - SNAP), problem.steps)
    # Snapping down spends a trifle; where that breaks a budget, the server's rows go up instead.
    over = server_use(problem, up) > problem.budget
    over = pick(problem.server, over.astype(split.dtype)) > 0
    up = jnp.where(over, jnp.minimum(jnp.ceil(split), problem.steps), up)
    # Neither may go below a bound that lies between the whole number and the split.
    up = jnp.maximum(up, jnp.ceil(problem.lower))
    up = jnp.where(problem.granted, up, problem.steps)
    n, *_ = jax.lax.while_loop(lambda carry: jnp.any(carry[2]), lower_best, (up, *best(up)))
    return n.astype(jnp.int32)


def _row_value(
    problem: SplitProblem, split: Float[Array, "rows *batch"]
) -> Float[Array, "rows *batch"]:
    curve = problem.amplitude * jax.nn.sigmoid(problem.slope * (split - problem.centre))
    return curve - problem.saving * split
