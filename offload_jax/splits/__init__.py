"""The convex layer: optimal split points of a given assignment, with prices and derivatives."""

from __future__ import annotations

from dataclasses import dataclass

from offload_jax.files.checks import Checks
from offload_jax.splits.dual import best_reply
from offload_jax.splits.implicit import solve_native
from offload_jax.splits.layer import check_solver
from offload_jax.splits.problem import Solution, SplitProblem
from offload_jax.splits.qp import check_rules
from offload_jax.splits.rules import Facts, RuleError, Rules
from offload_jax.splits.sqp import solve_conic

__all__ = [
    "SOLVERS",
    "Facts",
    "RuleError",
    "Rules",
    "Solution",
    "SplitProblem",
    "SplitsConfig",
    "best_reply",
    "solve_splits",
    "splits_config",
]

SOLVERS = ("native", "cvxpylayers-moreau", "cvxpylayers-diffcp")


@dataclass(frozen=True)
class SplitsConfig:
    """How split points are found (hashable: static under `jit`), and rules of your own for them.

    docs/constraints.md says what a rule may be.
    """

    solver: str = "native"  # native (fastest), cvxpylayers-moreau or cvxpylayers-diffcp
    constraints: tuple[str, ...] = ()  # each "expression <= expression", convex; cvxpylayers only
    terms: tuple[str, ...] = ()  # each a concave expression in seconds, added to the objective

    def validate(self) -> None:
        """Raises ValueError naming the field and what is allowed, before anything is compiled."""
        Checks(self, "splits").one_of("solver", SOLVERS)
        if self.solver != "native":
            check_solver(self.solver)
        self.check_takes_rules()
        check_rules(self.rules)

    def check_takes_rules(self) -> None:
        """Raises ValueError where there are constraints or terms, and the solver knows none."""
        if self.rules and self.solver == "native":
            others = ", ".join(SOLVERS[1:])
            raise ValueError(
                f"splits.solver is 'native', which takes no constraints or terms; must be one of "
                f"{others}"
            )

    @property
    def rules(self) -> Rules:
        """The constraints and terms."""
        return Rules(self.constraints, self.terms)

    def solve(self, problem: SplitProblem, facts: Facts | None = None) -> Solution:
        """Optimal split points; `facts` (of `outcome.facts_of`) are what the rules speak of."""
        if self.solver == "native":
            return solve_native(problem)
        return solve_conic(problem, self.solver, self.rules, facts)


def splits_config(solver: str | SplitsConfig) -> SplitsConfig:
    """The configuration of a solver's name, checked; one that is a configuration already, as is.

    Raises ValueError for an unknown name, and for rules that the solver would not keep.
    """
    if isinstance(solver, SplitsConfig):
        solver.check_takes_rules()
        return solver
    if solver not in SOLVERS:
        raise ValueError(f"solver is {solver!r}; must be one of {', '.join(SOLVERS)}")
    return SplitsConfig(solver)


def solve_splits(problem: SplitProblem, solver: str | SplitsConfig = "native") -> Solution:
    """Optimal split points of one problem; `jax.vmap` for many, differentiable in every float.

    Reverse mode only with cvxpylayers. Rules need an instance: see `evaluate`.
    """
    config = splits_config(solver)
    if config.rules:
        raise ValueError("solver has constraints or terms; must have none without an instance")
    return config.solve(problem)
