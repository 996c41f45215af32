"""What solves split problems: one interface, and every implementation by name.

A solver is a frozen record: hashable, since it is static under `jit`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from offload_jax.files.checks import ConfigError
from offload_jax.files.plugins import Plugins, check_record, find, is_own, name_of
from offload_jax.problem.contracts import Returned
from offload_jax.splits.implicit import solve_native
from offload_jax.splits.layer import check_solver
from offload_jax.splits.problem import Solution, SplitProblem
from offload_jax.splits.qp import check_rules
from offload_jax.splits.rules import NO_RULES, Facts, Rules
from offload_jax.splits.sqp import solve_conic


@runtime_checkable
class Solver(Protocol):
    """Finds optimal split points, and keeps the user's own rules.

    Where it cannot keep them, it cannot be made, or `validate` says so: ValueError.
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
    """Our own, the fastest: Newton steps on the prices, and the implicit function theorem."""

    name: str = "native"
    rules: Rules = NO_RULES

    def __post_init__(self) -> None:
        if self.rules:
            raise ValueError(
                f"splits.solver is {self.name!r}, which takes no constraints or terms; must be one "
                f"of {', '.join(name for name in SOLVERS if name != self.name)}"
            )

    def validate(self) -> None:
        """Refuses nothing more: whatever was made is good."""

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


def find_solver(
    name: str, where: str, plugins: Plugins = (), folder: Path | None = None
) -> Callable[[str, Rules], Solver]:
    """What makes the solver of that name from the name and rules, or the user's own.

    Raises ConfigError (a ValueError) as `plugins.find`, and for what is no solver.
    """
    found = find(name, SOLVERS, where, plugins, folder)
    if is_own(name):
        check_record(found, Solver, f"{where} is {name!r}")
    return found


def full_name(name: str) -> str:
    """The name of a solver as another process finds it, too: own ones by their absolute path."""
    return name_of(find_solver(name, "solver", None), "solver") if is_own(name) else name


def make_solver(name: str, rules: Rules, where: str) -> Solver:
    """The solver of that name, which the caller has chosen, with these rules.

    Raises ConfigError (a ValueError) for an unknown name, ValueError where it takes no rules.
    """
    make = find_solver(name, where, plugins=None)
    try:
        return make(name, rules)
    except TypeError as error:
        raise ConfigError(
            f"{where} is {name!r}, which cannot be made ({error}); must take its name and rules"
        ) from None


def solver_named(solver: str | Solver, where: str = "solver") -> Solver:
    """The solver of that name; what is a solver already, as it is.

    The name may be the user's own, as `file.py:Name`, which the caller has chosen. Raises
    ConfigError (a ValueError) for others.
    """
    if isinstance(solver, str):
        return make_solver(solver, NO_RULES, where)
    if not isinstance(solver, Solver):
        raise ConfigError(
            f"{where} is a {type(solver).__name__}; must be a name or a Solver, such as "
            "SplitsConfig(...).to_solver()"
        )
    return solver


def solve_by(solver: Solver, problem: SplitProblem, facts: Facts | None = None) -> Solution:
    """`solver.solve`. Raises InterfaceError for splits or prices of other shapes than asked for."""
    solution = solver.solve(problem, facts)
    rows, *batch = problem.saving.shape
    side_by_side = {f"instances {i}": size for i, size in enumerate(batch)}
    sizes = {"rows": rows, "servers": problem.budget.shape[0], **side_by_side}
    Returned("Solver.solve", solver, sizes).record(solution, Solution, *side_by_side)
    return solution
