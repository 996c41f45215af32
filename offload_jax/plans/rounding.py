"""Whole split points: denoising steps are whole, so a plan that runs has whole splits.

`round_splits` keeps bounds and budgets; `mend` keeps users' own constraints, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from offload_jax.plans.outcome import facts_of, gain
from offload_jax.problem.arrays import one_hot, pick
from offload_jax.problem.equations import Placement
from offload_jax.problem.instance import Instance
from offload_jax.splits import Solver
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


ALLOWED = 1e-5  # what the rounding of floats may miss, as a share


def mend(
    instance: Instance,
    placed: Placement,
    problem: SplitProblem,
    whole: Int[Array, "users *batch"],
    solver: Solver,
) -> tuple[Int[Array, "users *batch"], Bool[Array, "*batch"]]:
    """(whole splits near `whole`, whether they keep the solver's constraints and the budgets).

    First users are lowered by a step while that mends a constraint, the most broken first; then
    raised by a step, where that breaks none, while a budget is exceeded, the cheapest first. What
    does not come out right is left as it was.
    """
    around = _Around(instance, placed, problem, solver)
    n = whole.astype(problem.saving.dtype)
    for improve in (around.lowered, around.raised):
        n = jax.lax.fori_loop(0, instance.num_users, lambda _, n, f=improve: f(n), n)
    kept = (around.missed(n) <= ALLOWED) & (around.over(n) <= ALLOWED)
    return jnp.where(kept, n, whole).astype(whole.dtype), kept


@dataclass(frozen=True)
class _Around:
    """Moves of single users between whole split points."""

    instance: Instance
    placed: Placement
    problem: SplitProblem
    solver: Solver

    def missed(self, n: Float[Array, "users *batch"]) -> Float[Array, "*batch"]:
        """By how much constraints are missed, over all users."""
        rules = self.solver.rules
        return rules.missed(facts_of(self.instance, self.placed), n)

    def over(self, n: Float[Array, "users *batch"]) -> Float[Array, "*batch"]:
        """By how much the worst server exceeds its budget, over max(1, W)."""
        limited = jnp.isfinite(self.problem.budget)
        budget = jnp.where(limited, self.problem.budget, 0)
        share = (server_use(self.problem, n) - budget) / jnp.maximum(budget, 1)
        return jnp.max(jnp.where(limited, share, -1), axis=0)

    def lowered(self, n: Float[Array, "users *batch"]) -> Float[Array, "users *batch"]:
        new, merit = self._best(n, -1, lambda other: -self.missed(other))
        return jnp.where((self.missed(n) > ALLOWED) & (-merit < self.missed(n)), new, n)

    def raised(self, n: Float[Array, "users *batch"]) -> Float[Array, "users *batch"]:
        def worth(other: Array) -> Array:
            better = (self.over(other) < self.over(n)) & (self.missed(other) <= ALLOWED)
            value = gain(self.instance, self.placed, other, self.solver)
            return jnp.where(better, value, -jnp.inf)

        new, merit = self._best(n, 1, worth)
        return jnp.where((self.over(n) > ALLOWED) & (merit > -jnp.inf), new, n)

    def _best(
        self, n: Array, by: int, merit: Callable[[Array], Array]
    ) -> tuple[Float[Array, "users *batch"], Float[Array, "*batch"]]:
        """The move of one user with the largest merit, and that merit."""
        users = self.instance.num_users

        def moved(user: Array) -> Array:
            chosen = one_hot(user, users) & self.problem.granted
            lowest = jnp.minimum(jnp.ceil(self.problem.lower - 1e-6), n)
            return jnp.clip(n + jnp.where(chosen, by, 0), lowest, self.problem.steps)

        everywhere = jnp.zeros(n.shape[1:], jnp.int32)
        merits = jax.lax.map(lambda i: merit(moved(everywhere + i)), jnp.arange(users))
        return moved(jnp.argmax(merits, axis=0)), jnp.max(merits, axis=0)
