"""Inputs of the cases, made once per process: compiling the sampling takes longer than sampling."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from offload_jax.learning import updates
from offload_jax.learning.algorithm import Learner
from offload_jax.learning.trajectories import sample_instances
from offload_jax.problem.instance import Instance
from offload_jax.problem.scenario import Scenario

VARIANTS = 4  # different inputs of a case, taken in turn, so that no one draw decides
_CHUNK = 512  # instances sampled at a time: one compilation for all batch sizes

_sample = jax.jit(sample_instances, static_argnums=(0, 2))


def batches(scenario: Scenario, batch: int) -> list[Instance]:
    """VARIANTS different batches (batch last), the same in every process."""
    count = math.ceil(batch * VARIANTS / _CHUNK)
    keys = jax.random.split(jax.random.key(0), count)
    chunks = [jax.device_get(_sample(scenario, key, _CHUNK)) for key in keys]

    def cut(start: int, *leaves: Any) -> jax.Array:
        return jnp.asarray(np.concatenate(leaves, axis=-1)[..., start : start + batch])

    return [jax.tree.map(partial(cut, v * batch), *chunks) for v in range(VARIANTS)]


def keys(seed: int) -> list[jax.Array]:
    """VARIANTS different keys."""
    return list(jax.random.split(jax.random.key(seed), VARIANTS))


@partial(jax.jit, static_argnums=0)
def fresh_state(learner: Learner) -> Any:
    """The learner's state before training; its parameters are random."""
    return jax.jit(updates.init, static_argnums=0)(learner, jax.random.key(0))
