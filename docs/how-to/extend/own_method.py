"""A heuristic: the users with the slowest devices come first."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from offload_jax.methods import Method
from offload_jax.plans.candidates import feasible_gain
from offload_jax.problem.arrays import ranks
from offload_jax.problem.equations import batch_load
from offload_jax.problem.instance import Instance
from offload_jax.splits import NATIVE, Solver


def slowest_first(instance: Instance, solver: Solver = NATIVE) -> jax.Array:
    """Each user in turn joins the batch with the most room, if that gains anything."""
    turn = ranks(jnp.where(instance.mask, -instance.local_step, jnp.inf))  # (users, *batch)

    def decide(plan: jax.Array, now: jax.Array) -> tuple[jax.Array, None]:
        left = instance.capacity - batch_load(plan, instance.demand, instance.num_batches)
        roomy = jnp.argmax(left, axis=0) + 1  # batches count from 1, 0 denies
        granted = jnp.where((turn == now) & instance.mask, roomy, plan).astype(jnp.int32)
        better = feasible_gain(instance, granted, solver) > feasible_gain(instance, plan, solver)
        return jnp.where(better, granted, plan), None

    nobody = jnp.zeros_like(instance.alpha, jnp.int32)
    return jax.lax.scan(decide, nobody, jnp.arange(instance.num_users))[0]


SLOWEST_FIRST = Method("the slowest devices first", slowest_first)
