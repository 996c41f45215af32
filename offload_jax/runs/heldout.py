"""How good the policy in training is: its gap on the same instances at every evaluation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from offload_jax.env.environment import Environment
from offload_jax.evaluation.reference import heldout_set
from offload_jax.learning.devices import ONE_DEVICE, Devices
from offload_jax.policy.decoding import greedy_plan
from offload_jax.policy.network import Network
from offload_jax.policy.policy import Policy
from offload_jax.problem import equations
from offload_jax.problem.instance import Instance
from offload_jax.runs.config import TrainConfig

HELDOUT = 1  # the branch of the seed that evaluations draw from: never what training saw


def heldout_gap(config: TrainConfig, devices: Devices) -> Callable[[Any], float]:
    """The mean gap of the greedy policy on fixed instances, as a function of its parameters."""
    instances, best = heldout_instances(config)
    if config.run.eval_instances % devices.count:
        devices = ONE_DEVICE  # every device evaluates all of them
    network, env = config.network, config.to_env()
    return lambda params: float(_spread_gap(network, env, devices, params, instances, best))


def heldout_instances(config: TrainConfig) -> tuple[Instance, Float[Array, "instances"]]:
    """The run's own, the same at every evaluation, and their reference gains (s)."""
    key = jax.random.fold_in(jax.random.key(config.seed), HELDOUT)
    solver = config.splits.to_solver()
    return heldout_set(config.scenario, config.run.eval_instances, key, solver)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _spread_gap(
    network: Network,
    env: Environment,
    devices: Devices,
    params: Any,
    instances: Instance,
    best: Float[Array, "instances"],
) -> Float[Array, ""]:
    def gap(params: Any, instances: Instance, best: Array) -> Array:
        own = devices.mine((instances, best), axis=-1)
        return devices.mean(mean_gap(network, env, params, *own))

    return devices.spread(gap)(params, instances, best)


def mean_gap(
    network: Network,
    env: Environment,
    params: Any,
    instances: Instance,
    best: Float[Array, "instances"],
) -> Float[Array, ""]:
    """The greedy policy's mean gap to the gains `best`."""
    return jnp.mean(equations.gap(best, greedy_plan(Policy(params, network, env), instances)[1]))
