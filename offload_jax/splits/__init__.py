"""The convex layer: optimal split points of a given assignment, with prices and derivatives."""

from __future__ import annotations

from dataclasses import dataclass

from offload_jax.files.checks import Checks
from offload_jax.splits.dual import best_reply
from offload_jax.splits.problem import Solution, SplitProblem
from offload_jax.splits.rules import Facts, RuleError, Rules
from offload_jax.splits.solver import NATIVE, SOLVERS, Solver, solver_named

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
    "solve_splits",
    "solver_named",
]


@dataclass(frozen=True)
class SplitsConfig:
    """How split points are found, and rules of your own for them.

    docs/how-to/constraints.md says what a rule may be.
    """

    solver: str = "native"  # native (fastest), cvxpylayers-moreau or cvxpylayers-diffcp
    constraints: tuple[str, ...] = ()  # each "expression <= expression", convex; cvxpylayers only
    terms: tuple[str, ...] = ()  # each a concave expression in seconds, added to the objective

    def validate(self) -> None:
        """Raises ValueError naming the field and what is allowed, before anything is compiled."""
        Checks(self, "splits").one_of("solver", tuple(SOLVERS))
        self.to_solver().validate()

    def to_solver(self) -> Solver:
        """The solver with these rules."""
        return SOLVERS[self.solver](self.solver, Rules(self.constraints, self.terms))


def solve_splits(problem: SplitProblem, solver: str | Solver = "native") -> Solution:
    """Optimal split points of one problem; `jax.vmap` for many, differentiable in every float.

    Reverse mode only with cvxpylayers. Rules need an instance: see `evaluate`.
    """
    found = solver_named(solver)
    if found.rules:
        raise ValueError("solver has constraints or terms; must have none without an instance")
    return found.solve(problem)
