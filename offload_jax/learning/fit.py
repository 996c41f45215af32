"""Whether implementations of the user's own fit together, before an update is compiled."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Any

import jax
import jax.numpy as jnp

from offload_jax.env.environment import Environment
from offload_jax.learning.algorithm import Learner
from offload_jax.policy.network import Network
from offload_jax.problem.instance import Instance, taken, to_record
from offload_jax.problem.scenario import SCENARIOS, Scenario

LOOKED_AT = 16  # instances of a scenario of the user's own


def check_fit(learner: Learner) -> None:
    """Raises ValueError where a scenario, environment or network breaks what its protocol says.

    Shapes and types are found by tracing. A scenario of the user's own is also sampled, and the
    domain of its numbers checked.
    """
    scenario = learner.scenario
    instance = jax.eval_shape(scenario.sample, jax.random.key(0))
    check_instance(instance, scenario.max_users)
    if type(scenario) not in SCENARIOS.values():
        check_domain(scenario)
    check_network(learner.network, learner.env, instance)


def check_instance(instance: Any, max_users: int) -> None:
    """Raises ValueError unless these are the shapes and types of one Instance."""
    if not isinstance(instance, Instance):
        raise ValueError(f"scenario samples a {type(instance).__name__}; must be an Instance")
    axes = {"users": max_users, "batches": instance.num_batches, "servers": instance.num_servers}
    for field in fields(Instance):
        name, names = field.name, re.findall("users|batches|servers", str(field.type))
        x = getattr(instance, name)
        wanted = tuple(axes[axis] for axis in names)
        if jnp.shape(x) != wanted:
            raise ValueError(
                f"scenario samples {name} of shape {jnp.shape(x)}; must be {wanted}, one number "
                f"per {' and '.join(names) or 'instance'}"
            )
        floating = jnp.zeros(()).dtype.name
        dtype = {"server": "int32", "mask": "bool"}.get(name, floating)
        if x.dtype != dtype or getattr(x, "weak_type", False):
            weak = "weakly typed " if getattr(x, "weak_type", False) else ""
            raise ValueError(
                f"scenario samples {name} of {weak}{x.dtype}; must be {dtype}, not weakly typed: "
                "return strong_types(instance)"
            )


def check_domain(scenario: Scenario) -> None:
    """Raises SchemaError (a ValueError) for numbers that no instance may have."""
    keys = jax.random.split(jax.random.key(0), LOOKED_AT)
    instances = jax.device_get(jax.jit(jax.vmap(scenario.sample, out_axes=-1))(keys))
    for i in range(LOOKED_AT):
        to_record(taken(instances, i), f"scenario.sample[{i}]")


def check_network(network: Network, env: Environment, instance: Instance) -> None:
    """Raises ValueError unless the network answers with a logit per action, and one value."""
    key = jax.random.key(0)

    def answer(instance: Instance) -> tuple[Any, Any]:
        description, observation = (
            env.describe(instance),
            env.observe(instance, env.reset(instance)),
        )
        params = network.init(key, description, observation)
        encoding = network.encode(params, description)
        return observation.mask, network.decode(params, encoding, observation)

    mask, (logits, value) = jax.eval_shape(answer, instance)
    if logits.shape != mask.shape:
        raise ValueError(
            f"network decodes logits of shape {logits.shape}; must be {mask.shape}, one per action"
        )
    if value.shape != ():
        raise ValueError(f"network decodes a value of shape {value.shape}; must be () (a number)")
