"""What training is measured against: fixed instances, and a method's plans for them."""

from __future__ import annotations

from functools import partial

import jax

from offload_jax.files.checks import ConfigError
from offload_jax.methods import METHODS, assigner
from offload_jax.plans.outcome import evaluate, objective_denied
from offload_jax.problem import equations
from offload_jax.problem.instance import Instance
from offload_jax.problem.scenario import Scenario, sample_many
from offload_jax.problem.types import Assignment, Key
from offload_jax.splits import NATIVE, Solver


def reference_method(scenario: Scenario, solver: Solver) -> str:
    """What training measures its gap against; rules of the user's own leave one method.

    A gap to a method that is not optimal can fall below 0. Raises ConfigError for a scenario whose
    reference is none of the package's methods that decide at once.
    """
    name = "reduced-greedy" if solver.rules else scenario.reference
    quick = [name for name, one in METHODS.items() if one.assign]
    if name not in quick:
        raise ConfigError(f"scenario.reference is {name!r}; must be one of {', '.join(quick)}")
    return name


def reference_name(scenario: Scenario, solver: Solver) -> str:
    """What the gaps of `heldout_set` are measured against, in words."""
    name = reference_method(scenario, solver)
    return f"optimum ({name})" if METHODS[name].optimal else f"plan of {name}"


def baseline_solver(solver: Solver) -> Solver:
    """What baselines decide with: the solver where it has rules, else the native one, faster."""
    return solver if solver.rules else NATIVE


def heldout_set(
    scenario: Scenario, count: int, key: Key, solver: Solver = NATIVE
) -> tuple[Instance, jax.Array]:
    """Fixed instances to watch training by, and their reference gains (U - U_deny, s)."""
    draw = jax.jit(partial(sample_many, scenario))
    instances = draw(jax.random.split(key, count))
    solver = baseline_solver(solver)
    assignment = assigner(reference_method(scenario, solver))(instances, solver=solver)
    return instances, values(instances, assignment, solver)[0]


@partial(jax.jit, static_argnums=2)
def values(
    instances: Instance, assignment: Assignment, solver: Solver
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gain (U - U_deny, s), score, and whether the plan is feasible."""
    outcome = evaluate(instances, assignment, solver)
    score = equations.score(instances, objective_denied(instances, solver) + outcome.gain)
    return outcome.gain, score, outcome.feasible
