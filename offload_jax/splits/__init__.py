"""The convex layer: optimal split points of a given assignment, with prices and derivatives."""

from __future__ import annotations

from dataclasses import dataclass

from offload_jax.splits.dual import best_reply
from offload_jax.splits.problem import Solution, SplitProblem
from offload_jax.splits.rules import Facts, RuleError, Rules
from offload_jax.splits.solver import (
    NATIVE,
    SOLVERS,
    Solver,
    find_solver,
    full_name,
    make_solver,
    solve_by,
    solver_named,
)

__all__ = [
    "NATIVE",
    "SOLVERS",
    "Facts",
    "RuleError",
    "Rules",
    "Solution",
    "Solver",
    "SplitProblem",
    "SplitsConfig",
    "best_reply",
    "find_solver",
    "full_name",
    "solve_by",
    "solve_splits",
    "solver_named",
]


@dataclass(frozen=True)
class SplitsConfig:
    """How split points are found, and rules of your own for them.

    docs/how-to/constraints.md says what a rule may be.
    """

    # native (fastest), cvxpylayers-moreau, cvxpylayers-diffcp, or your own as file.py:Name
    solver: str = "native"
    constraints: tuple[str, ...] = ()  # each "expression <= expression", convex; cvxpylayers only
    terms: tuple[str, ...] = ()  # each a concave expression in seconds, added to the objective

    def validate(self) -> None:
        """Raises ValueError naming the field and what is allowed, before anything is compiled."""
        self.to_solver().validate()

    def to_solver(self) -> Solver:
        """The solver with these rules, which may be one of the user's own that the caller chose."""
        rules = Rules(self.constraints, self.terms)
        return make_solver(self.solver, rules, "splits.solver")


def solve_splits(problem: SplitProblem, solver: str | Solver = "native") -> Solution:
    """Optimal split points of one problem; `jax.vmap` for many, differentiable in every float.

    Reverse mode only with cvxpylayers. Rules need an instance: see `evaluate`.
    """
    found = solver_named(solver)
    if found.rules:
        raise ValueError("solver has constraints or terms; must have none without an instance")
    return solve_by(found, problem)
