"""Genetic algorithms: the paper's, and one tuned for this problem."""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from offload_jax.methods.heuristics import reduced_greedy
from offload_jax.methods.search import Found, Search, found_at, repaired, shaken, someone
from offload_jax.plans.candidates import candidate_gains, exchanged, repeated
from offload_jax.problem.arrays import one_hot
from offload_jax.problem.instance import Instance
from offload_jax.problem.types import Assignment, Key
from offload_jax.splits import Solver


@dataclass(frozen=True)
class Breeding:
    """How a population lives. The defaults are those of arXiv 2411.15781's reference."""

    population: int = 100
    generations: int = 200  # of a search that is not given a time
    elite: int = 1  # that live on unchanged
    contest: int = 2  # of so many random members the best becomes a parent
    uniform: bool = False  # each user from either parent, not the first ones from one of them
    exchange: float = 0.1  # chance that two users of a child are exchanged
    move: float = 0.0  # chance of each user of a child to be moved at random
    seeded: bool = False  # begins with reduced-greedy's plan and shaken copies of it


TUNED = Breeding(elite=4, contest=3, uniform=True, exchange=0.3, move=0.04, seeded=True)


@struct.dataclass
class _Population:
    members: Int[Array, "users population *batch"]
    gains: Float[Array, "population *batch"]


def genetic(breeding: Breeding | None = None) -> Search:
    """A generation a round: selection by contest, crossover, exchange, repair, one solve each."""
    plan = breeding or Breeding()

    def start(instance: Instance, key: Key, solver: Solver) -> Found:
        key, draw = jax.random.split(key)
        crowd = repeated(instance, plan.population)
        if plan.seeded:
            good = reduced_greedy(instance, solver)
            copies = jnp.broadcast_to(good[:, None], crowd.mask.shape)
            members = shaken(crowd, copies, draw, 0.3)[0].at[:, 0].set(good)
        else:
            anything = jax.random.randint(draw, crowd.mask.shape, 0, instance.num_batches + 1)
            members = repaired(crowd, anything)
        nobody = jnp.zeros_like(members[:, 0])
        found = found_at(nobody, jnp.zeros_like(instance.steps), key)
        return _with_members(instance, found, members, solver)

    def advance(instance: Instance, found: Found, solver: Solver) -> Found:
        key, draw = jax.random.split(found.key)
        children = _children(instance, found.memory, draw, plan)
        found = _with_members(instance, replace(found, key=key), children, solver)
        return replace(found, done=found.done | (found.round >= plan.generations - 1))

    return Search(start, advance)


def _with_members(
    instance: Instance, found: Found, members: Int[Array, "users population *batch"], solver: Solver
) -> Found:
    """The state with a new population, valued."""
    gains = candidate_gains(instance, lambda i: members[:, i], members.shape[1], solver)
    fittest = jnp.argmax(gains, axis=0)
    found = found.offered(_member(members, fittest[None])[:, 0], jnp.max(gains, axis=0))
    return replace(found, memory=_Population(members, gains))


def _member(
    members: Int[Array, "users population *batch"], index: Int[Array, "chosen *batch"]
) -> Int[Array, "users chosen *batch"]:
    """The members of these numbers."""
    return jnp.take_along_axis(members, index[None].astype(jnp.int32), axis=1)


def _children(
    instance: Instance, now: _Population, key: Key, plan: Breeding
) -> Int[Array, "users population *batch"]:
    """The next generation: the elite, and the children of contest winners, repaired."""
    keys = iter(jax.random.split(key, 6))
    shape = now.gains.shape

    def parents() -> Assignment:
        # Each parent is the best of `contest` members drawn at random.
        rivals = jax.random.randint(next(keys), (plan.contest, *shape), 0, plan.population)
        strength = jnp.take_along_axis(now.gains[None], rivals, axis=1)
        winner = one_hot(jnp.argmax(strength, axis=0), plan.contest)
        return _member(now.members, jnp.sum(jnp.where(winner, rivals, 0), axis=0))

    mother, father = parents(), parents()
    crowd = repeated(instance, plan.population)
    if plan.uniform:
        from_mother = jax.random.bernoulli(next(keys), 0.5, now.members.shape)
    else:
        # Cut before any user but the first.
        later = crowd.mask & (jnp.cumsum(crowd.mask, axis=0) > 1)
        cut = someone(later, next(keys))
        from_mother = ~jnp.cumsum(cut, axis=0).astype(bool)
    children = jnp.where(from_mother, mother, father)
    happens, one, two = jax.random.split(next(keys), 3)
    first, second = (someone(crowd.mask, key) for key in (one, two))
    happens = jax.random.uniform(happens, shape) < plan.exchange
    children = jnp.where(happens, exchanged(children, first, second), children)
    children = shaken(crowd, children, next(keys), plan.move)[0]
    order = jnp.argsort(now.gains, axis=0, descending=True)[: plan.elite]
    return children.at[:, : plan.elite].set(_member(now.members, order))
