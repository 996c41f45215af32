"""What training is measured against: fixed instances, and a method's plans for them."""

from __future__ import annotations

from functools import partial

import jax

from offload_jax.methods import assigner
from offload_jax.plans.outcome import Solver, evaluate, objective_denied
from offload_jax.problem import equations
from offload_jax.problem.instance import Instance
from offload_jax.problem.scenario import Scenario
from offload_jax.problem.types import Assignment, Key
from offload_jax.splits import splits_config

# What training measures its gap against: {kind of scenario: (method, what to call it)}.
# A gap to a rule that is not optimal can fall below 0.
_RULE = ("reduced-greedy", "plan of reduced-greedy")
_REFERENCES = {"paper": ("top-b", "optimum (top-b)"), "edge": _RULE, "mixture": _RULE}


def _reference(scenario: Scenario, solver: Solver) -> tuple[str, str]:
    return _REFERENCES["edge" if splits_config(solver).rules else scenario.kind]


def reference_name(scenario: Scenario, solver: Solver) -> str:
    """What the gaps of `validation_set` are measured against, in words."""
    return _reference(scenario, solver)[1]


def baseline_solver(solver: Solver) -> Solver:
    """What baselines decide with: the solver where it has rules, else the native one, faster."""
    return solver if splits_config(solver).rules else "native"


def validation_set(
    scenario: Scenario, count: int, key: Key, solver: Solver = "native"
) -> tuple[Instance, jax.Array]:
    """Fixed instances to watch training by, and their reference gains (U - U_deny, s)."""
    instances = jax.jit(jax.vmap(scenario.sample, out_axes=-1))(jax.random.split(key, count))
    solver = baseline_solver(solver)
    assignment = assigner(_reference(scenario, solver)[0])(instances, solver=solver)
    return instances, values(instances, assignment, solver)[0]


@partial(jax.jit, static_argnums=2)
def values(
    instances: Instance, assignment: Assignment, solver: Solver
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gain (U - U_deny, s), score, and whether the plan is feasible."""
    outcome = evaluate(instances, assignment, solver)
    score = equations.score(instances, objective_denied(instances, solver) + outcome.gain)
    return outcome.gain, score, outcome.feasible
