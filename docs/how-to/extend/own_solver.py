"""Split points by bisection on the price of each server's GPU time."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from offload_jax.problem.arrays import pick
from offload_jax.splits import Facts, Rules, Solution, SplitProblem, best_reply
from offload_jax.splits.implicit import with_derivative
from offload_jax.splits.problem import neutral, server_use, with_status
from offload_jax.splits.rules import NO_RULES

HALVINGS = 40


@dataclass(frozen=True)
class Bisection:
    name: str = "bisection"
    rules: Rules = NO_RULES

    def validate(self) -> None:
        if self.rules:
            raise ValueError(f"splits.solver is {self.name!r}, which takes no rules")

    def solve(self, problem: SplitProblem, facts: Facts | None = None) -> Solution:
        return with_status(problem, *exact(problem))


def bisect(problem: SplitProblem) -> tuple[jax.Array, jax.Array]:
    """Splits (rows, *batch) and prices (servers, *batch)."""
    rows = neutral(problem, problem.granted)
    limited = jnp.isfinite(rows.budget)
    budget = jnp.where(limited, rows.budget, 0)

    def over(price: jax.Array) -> jax.Array:
        split = best_reply(rows, pick(rows.server, price))
        return limited & (server_use(rows, split) > budget)

    def halve(_: int, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = ends
        middle = (low + high) / 2
        more = over(middle)
        return jnp.where(more, middle, low), jnp.where(more, high, middle)

    free = jnp.zeros_like(budget)
    # Nobody pays more than a step saves.
    dear = jnp.max(jnp.where(rows.rate > 0, rows.saving / jnp.maximum(rows.rate, 1e-9), 0), axis=0)
    ends = (free, jnp.broadcast_to(jnp.maximum(dear, 0), free.shape))
    _, high = jax.lax.fori_loop(0, HALVINGS, halve, ends)
    price = jnp.where(over(free), high, 0)
    return best_reply(rows, pick(rows.server, price)), price


exact = with_derivative(bisect)
