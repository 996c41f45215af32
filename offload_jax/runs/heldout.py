"""How good the policy in training is: its gap on the same instances at every evaluation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from offload_jax.evaluation.reference import heldout_set
from offload_jax.learning.devices import ONE_DEVICE, Devices
from offload_jax.policy.decoding import greedy_plan
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
    learner = config.to_learner()
    return lambda params: float(_gap(devices, learner.policy(params), instances, best))


def heldout_instances(config: TrainConfig) -> tuple[Instance, Float[Array, "instances"]]:
    """The run's own, the same at every evaluation, and their reference gains (s)."""
    key = jax.random.fold_in(jax.random.key(config.seed), HELDOUT)
    solver = config.splits.to_solver()
    return heldout_set(config.scenario, config.run.eval_instances, key, solver)


@partial(jax.jit, static_argnums=0)
def _gap(
    devices: Devices, policy: Policy, instances: Instance, best: Float[Array, "instances"]
) -> Float[Array, ""]:
    def gap(policy: Policy, instances: Instance, best: Array) -> Array:
        return devices.mean(mean_gap(policy, *devices.mine((instances, best), axis=-1)))

    return devices.spread(gap)(policy, instances, best)


def mean_gap(
    policy: Policy, instances: Instance, best: Float[Array, "instances"]
) -> Float[Array, ""]:
    """The greedy policy's mean gap to the gains `best`."""
    return jnp.mean(equations.gap(best, greedy_plan(policy, instances)[1]))
