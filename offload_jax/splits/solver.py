"""What solves split problems: one interface, and every implementation by name.

A solver is a frozen record: hashable, since it is static under `jit`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from offload_jax.splits.implicit import solve_native
from offload_jax.splits.layer import check_solver
from offload_jax.splits.problem import Solution, SplitProblem
from offload_jax.splits.qp import check_rules
from offload_jax.splits.rules import NO_RULES, Facts, Rules
from offload_jax.splits.sqp import solve_conic


@runtime_checkable
class Solver(Protocol):
    """Finds optimal split points, and keeps the user's own rules.

    Where it cannot keep them, it cannot be made: ValueError.
    """

    @property
    def name(self) -> str:
        """As in `splits.solver` of a configuration."""

    @property
    def rules(self) -> Rules:
        """Constraints it keeps and terms it adds; empty for most."""

    def validate(self) -> None:
        """Raises ValueError naming the field and what is allowed, before anything is compiled."""

    def solve(self, problem: SplitProblem, facts: Facts | None = None) -> Solution:
        """Optimal splits with status and residual, batch last, differentiable in reverse mode.

        `facts` (of `outcome.facts_of`) are what the rules speak of.
        """


@dataclass(frozen=True)
class Native:
    """Our own: bisection on the prices and the implicit function theorem. The fastest."""

    name: str = "native"
    rules: Rules = NO_RULES

    def __post_init__(self) -> None:
        if self.rules:
            raise ValueError(
                f"splits.solver is {self.name!r}, which takes no constraints or terms; must be one "
                f"of {', '.join(name for name in SOLVERS if name != self.name)}"
            )

    def validate(self) -> None:
        pass

    def solve(self, problem: SplitProblem, facts: Facts | None = None) -> Solution:
        del facts
        return solve_native(problem)


@dataclass(frozen=True)
class Cvxpylayers:
    """A sequence of quadratic programs through cvxpylayers, by one of its conic solvers."""

    name: str = "cvxpylayers-moreau"
    rules: Rules = NO_RULES

    def validate(self) -> None:
        check_solver(self.name)
        check_rules(self.rules)

    def solve(self, problem: SplitProblem, facts: Facts | None = None) -> Solution:
        return solve_conic(problem, self.name, self.rules, facts)


# Made of their name and the user's rules.
SOLVERS: dict[str, Callable[[str, Rules], Solver]] = {
    "native": Native,
    "cvxpylayers-moreau": Cvxpylayers,
    "cvxpylayers-diffcp": Cvxpylayers,
}
NATIVE = Native()


def solver_named(solver: str | Solver) -> Solver:
    """The solver of that name; what is a solver already, as it is. Raises ValueError for others."""
    if not isinstance(solver, str):
        return solver
    if solver not in SOLVERS:
        raise ValueError(f"solver is {solver!r}; must be one of {', '.join(SOLVERS)}")
    return SOLVERS[solver](solver, NO_RULES)
