"""The convex layer: optimal split points of a given assignment, with prices and derivatives."""

from __future__ import annotations

from offload_jax.splits.dual import best_reply
from offload_jax.splits.implicit import solve_native
from offload_jax.splits.problem import Solution, SplitProblem
from offload_jax.splits.rounding import round_splits
from offload_jax.types import Solver

__all__ = [
    "SOLVERS",
    "Solution",
    "SplitProblem",
    "best_reply",
    "round_splits",
    "solve_splits",
    "solver_named",
]

SOLVERS: dict[str, Solver] = {"native": solve_native}


def solver_named(name: str) -> Solver:
    """The solver of that name; a ValueError lists the names there are."""
    if name not in SOLVERS:
        raise ValueError(f"solver is {name!r}; must be one of {', '.join(SOLVERS)}")
    return SOLVERS[name]


def solve_splits(problem: SplitProblem, solver: str = "native") -> Solution:
    """Optimal split points of one problem; `jax.vmap` for many, differentiable in every float."""
    return solver_named(solver)(problem)
