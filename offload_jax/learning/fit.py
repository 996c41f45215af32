"""Whether implementations of the user's own fit together, before a run directory is made."""

from __future__ import annotations

from functools import partial

import jax

from offload_jax.learning import updates
from offload_jax.learning.algorithm import Learner
from offload_jax.problem.contracts import Returned
from offload_jax.problem.instance import taken, to_record
from offload_jax.problem.scenario import SCENARIOS, Scenario, sample, sample_many

LOOKED_AT = 16  # instances whose numbers are looked at


def check_fit(learner: Learner) -> None:
    """Raises ValueError where something of the user's own breaks what its interface says.

    An update is traced, which meets the contracts of all interfaces; it is not compiled. A scenario
    of the user's own is also sampled, and the domain of its numbers checked.
    """
    key, scenario = jax.random.key(0), learner.scenario
    if type(scenario) not in SCENARIOS.values():
        instance = jax.eval_shape(partial(sample, scenario), key)
        Returned("Scenario.sample", scenario).strongly_typed(instance, "strong_types(instance)")
        check_domain(scenario)
    state = jax.eval_shape(partial(updates.init, learner), key)
    jax.eval_shape(partial(updates.update, learner), state)


def check_domain(scenario: Scenario) -> None:
    """Raises SchemaError (a ValueError) for numbers that no instance may have."""
    keys = jax.random.split(jax.random.key(0), LOOKED_AT)
    instances = jax.device_get(jax.jit(partial(sample_many, scenario))(keys))
    for i in range(LOOKED_AT):
        to_record(taken(instances, i), f"scenario.sample[{i}]")
