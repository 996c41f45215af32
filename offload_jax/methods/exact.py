"""Provably optimal plans."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from offload_jax.plans.reduced_gains import reply_gains
from offload_jax.problem import equations
from offload_jax.problem.instance import Instance
from offload_jax.splits import NATIVE, Solver


def refuse_top_b(instance: Instance, solver: Solver = NATIVE) -> str | None:
    """Why the top-b oracle does not apply to this (concrete) instance, or None where it does."""
    if solver.rules:
        return "top-b needs the plain problem; constraints and terms of one's own couple the users"
    if instance.num_batches != 1:
        return f"top-b needs exactly one batch; the instance has {instance.num_batches}"
    if bool(jnp.any(jnp.where(instance.mask, instance.demand, 1) != 1)):
        return "top-b needs every demand to be 1 image; with mixed demands users compete for room"
    if bool(jnp.any(jnp.isfinite(instance.budget))):
        return "top-b needs a server without a budget; a budget couples the users' splits"
    return None


def top_b(instance: Instance, solver: Solver = NATIVE) -> Int[Array, "users *batch"]:
    """The optimal assignment of one batch, unit demands and no budget (arXiv 2411.15781, any N).

    Given the number b of granted users, step time and air time are fixed and users are independent:
    the best plan of that size grants the b largest gains. The best size of all is the optimum.
    """
    del solver  # the splits are closed form
    users = instance.num_users

    def of_size(
        size: Int[Array, ""],
    ) -> tuple[Float[Array, "*batch"], Int[Array, "users *batch"]]:
        # Gains at step time and air time of a batch of `size`: the user joins `size - 1` others.
        others = jnp.full_like(instance.steps, size - 1)
        times = instance.intercept + equations.own_slope(instance) * others
        gains = reply_gains(instance, times, jnp.zeros_like(times), others)[:, 0]
        gains = jnp.where(instance.mask, gains, -jnp.inf)
        order = jnp.argsort(gains, axis=0, descending=True)
        rank = jnp.argsort(order, axis=0)
        chosen = rank < size
        total = jnp.sum(jnp.where(chosen, gains, 0), axis=0)
        return jnp.where(size <= instance.capacity[0], total, -jnp.inf), chosen.astype(jnp.int32)

    totals, plans = jax.lax.map(of_size, jnp.arange(1, users + 1))
    best = jnp.argmax(totals, axis=0)
    chosen = jnp.take_along_axis(plans, best[None, None], axis=0)[0]
    return jnp.where(jnp.max(totals, axis=0) > 0, chosen, 0)
