"""Plans checked by solvers that share nothing with the one that made them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from offload_jax.plans.outcome import Outcome, evaluate
from offload_jax.problem.instance import Instance
from offload_jax.problem.types import Assignment, Status
from offload_jax.splits import NATIVE, SOLVERS, Rules, Solver


@dataclass(frozen=True)
class Certificate:
    """How far the plans' splits are from those of another solver, at worst over `plans`."""

    solver: str
    plans: int
    solved: int  # of them, by both solvers
    split_deviation: float  # |dn| / T
    objective_deviation: float  # |dU| / sum over users of (alpha + T l), s/s
    residual: float  # KKT residual of the other solver
    own_residual: float  # and of the plans'

    def __str__(self) -> str:
        return (
            f"{self.solved} of {self.plans} plans by {self.solver}: splits within "
            f"{self.split_deviation:.1e} T, U within {self.objective_deviation:.1e} of its scale, "
            f"worst KKT residual {self.residual:.1e} (the plans' own: {self.own_residual:.1e})"
        )


def merged(parts: Sequence[Certificate]) -> Certificate:
    """One certificate for all plans of several, by the same solver."""
    counts = {name: sum(getattr(part, name) for part in parts) for name in ("plans", "solved")}
    names = ("split_deviation", "objective_deviation", "residual", "own_residual")
    worst = {name: max(getattr(part, name) for part in parts) for name in names}
    return Certificate(solver=parts[0].solver, **counts, **worst)


def certify(
    instances: Instance, assignment: Assignment, solver: Solver = NATIVE
) -> list[Certificate]:
    """Solves the splits of plans (batch last) again with every other installed solver, in float64.

    Both sides are given the same numbers in float64, so that nothing but the solvers can differ.
    """
    with jax.enable_x64(True):
        exact = jax.tree.map(_widened, instances)
        plan = jnp.asarray(np.asarray(assignment))
        own = _outcome(exact, plan, solver)
        others = other_solvers(solver)
        return [_compared(exact, own, _outcome(exact, plan, other), other) for other in others]


def other_solvers(solver: Solver) -> list[Solver]:
    """The same splits by every other solver that is installed and keeps the rules."""
    found = (_usable(name, solver.rules) for name in SOLVERS if name != solver.name)
    return [other for other in found if other is not None]


def _usable(name: str, rules: Rules) -> Solver | None:
    try:
        other = SOLVERS[name](name, rules)
        other.validate()
    except ValueError:
        return None
    return other


_evaluate = jax.jit(evaluate, static_argnames="solver")  # compiled once for all cells


def _widened(x: jax.Array) -> jax.Array:
    array = np.asarray(x)
    return jnp.asarray(array.astype(np.float64) if array.dtype.kind == "f" else array)


def _outcome(instances: Instance, assignment: jax.Array, solver: Solver) -> Outcome:
    return jax.device_get(_evaluate(instances, assignment, solver=solver))


def _compared(instances: Instance, own: Outcome, other: Outcome, solver: Solver) -> Certificate:
    good = (own.status == Status.SOLVED) & (other.status == Status.SOLVED)
    steps, real = np.asarray(instances.steps), np.asarray(instances.mask)
    scale = np.sum(real * (instances.alpha + steps * instances.local_step), axis=0)

    def worst(x: np.ndarray | jax.Array) -> float:
        return float(np.max(np.where(good, x, 0), initial=0))

    return Certificate(
        solver=solver.name,
        plans=len(good),
        solved=int(np.sum(good)),
        split_deviation=worst(np.max(np.abs(own.split - other.split), axis=0) / steps),
        objective_deviation=worst(np.abs(own.objective - other.objective) / scale),
        residual=worst(other.residual),
        own_residual=worst(own.residual),
    )
