"""Simulated annealing: random moves and exchanges, worse ones taken ever more rarely."""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from offload_jax.methods.heuristics import reduced_greedy
from offload_jax.methods.search import Found, Search, found_at, someone, start_from
from offload_jax.plans.candidates import exchanged, feasible_gain
from offload_jax.problem.instance import Instance
from offload_jax.problem.types import Key
from offload_jax.splits import Solver


@dataclass(frozen=True)
class Cooling:
    """The schedule. Temperatures are shares of the gain per user of reduced-greedy's plan."""

    hot: float = 0.3
    cold: float = 0.01
    moves: int = 400  # a user and cooling
    rounds: int = 40  # of a cooling; the next one starts hot again, from the best plan


@struct.dataclass
class _Walk:
    assignment: Int[Array, "users *batch"]
    gain: Float[Array, "*batch"]
    scale: Float[Array, "*batch"]  # s, the unit of temperature


def annealing(cooling: Cooling | None = None) -> Search:
    """Cools down geometrically, once; then again from the best plan, for ever.

    A round is `moves` N / `rounds` single solves of every instance.
    """
    plan = cooling or Cooling()

    def start(instance: Instance, key: Key, solver: Solver) -> Found:
        first, gain = start_from(instance, reduced_greedy(instance, solver), solver)
        users = jnp.maximum(jnp.sum(instance.mask, axis=0), 1)
        return found_at(first, gain, key, _Walk(first, gain, gain / users))

    def advance(instance: Instance, found: Found, solver: Solver) -> Found:
        phase = (found.round % plan.rounds) / max(plan.rounds - 1, 1)
        heat = plan.hot * (plan.cold / plan.hot) ** phase
        again = (found.round > 0) & (found.round % plan.rounds == 0)
        walk = found.memory
        walk = replace(
            walk,
            assignment=jnp.where(again, found.best, walk.assignment),
            gain=jnp.where(again, found.best_gain, walk.gain),
        )

        def move(_: Int[Array, ""], found: Found) -> Found:
            return _move(instance, found, heat, solver)

        count = -(-plan.moves * instance.num_users // plan.rounds)
        found = jax.lax.fori_loop(0, count, move, replace(found, memory=walk))
        return replace(found, done=found.done | (found.round >= plan.rounds - 1))

    return Search(start, advance)


def _move(instance: Instance, found: Found, heat: Float[Array, ""], solver: Solver) -> Found:
    """One proposal for every instance: a user to a random batch, or two users exchanged."""
    walk: _Walk = found.memory
    shape = jnp.shape(instance.steps)
    keys = jax.random.split(found.key, 6)
    here, there = (someone(instance.mask, key) for key in keys[1:3])
    to = jax.random.randint(keys[4], shape, 0, instance.num_batches + 1)
    changed = jnp.where(
        jax.random.uniform(keys[3], shape) < 0.5,
        exchanged(walk.assignment, here, there),
        jnp.where(here, to, walk.assignment),
    )
    gain = feasible_gain(instance, changed, solver)
    luck = jax.random.uniform(keys[5], shape, minval=jnp.finfo(gain.dtype).tiny)
    taken = gain - walk.gain > heat * walk.scale * jnp.log(luck)
    walk = replace(
        walk,
        assignment=jnp.where(taken, changed, walk.assignment),
        gain=jnp.where(taken, gain, walk.gain),
    )
    return replace(found.offered(walk.assignment, walk.gain), key=keys[0], memory=walk)
