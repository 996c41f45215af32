"""Functions of the package, each as one program: called op by op, they compile for seconds."""

from __future__ import annotations

from functools import partial

import jax

from offload_jax.env import description, observation, step
from offload_jax.learning import updates
from offload_jax.plans import candidates, outcome
from offload_jax.problem.instance import Instance
from offload_jax.problem.scenario import Scenario

evaluate = jax.jit(outcome.evaluate, static_argnames="solver")
gain_of = jax.jit(candidates.gain_of, static_argnames="solver")
feasible_gain = jax.jit(candidates.feasible_gain, static_argnames="solver")
describe = jax.jit(description.describe)
observe = jax.jit(observation.observe, static_argnames="env")
reset = jax.jit(step.reset, static_argnames="env")
init = jax.jit(updates.init, static_argnums=0)


@partial(jax.jit, static_argnums=0)
def sample_one(scenario: Scenario, key: jax.Array) -> Instance:
    return scenario.sample(key)
