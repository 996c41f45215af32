"""Tabu search: the best move that is not forbidden, be it worse; what was left is forbidden."""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Int

from offload_jax.methods.heuristics import reduced_greedy
from offload_jax.methods.moves import Moves
from offload_jax.methods.search import Found, Search, found_at, start_from
from offload_jax.problem.arrays import one_hot
from offload_jax.problem.instance import Instance
from offload_jax.problem.types import Assignment, Key
from offload_jax.splits import Solver


@dataclass(frozen=True)
class Memory:
    """How long a search remembers."""

    rounds: int = 100  # of a search that is not given a time
    tenure: tuple[int, int] = (4, 12)  # rounds that a user may not return to the batch it left


@struct.dataclass
class _Walk:
    assignment: Int[Array, "users *batch"]
    until: Int[Array, "users choices *batch"]  # round before which the user may not go there


def tabu(memory: Memory | None = None) -> Search:
    """Best improvement with a memory (Glover 1989), from reduced-greedy's plan.

    A user that left a batch (or was denied before) may not return for a random number of rounds,
    unless that gives the best plan so far. A round is one step of every instance, to the best of
    the neighbours that promise most.
    """
    plan = memory or Memory()

    def start(instance: Instance, key: Key, solver: Solver) -> Found:
        return tabu_from(instance, reduced_greedy(instance, solver), key, solver)

    def advance(instance: Instance, found: Found, solver: Solver) -> Found:
        walk = found.memory
        moves = Moves(instance.num_users, instance.num_batches)
        numbers = moves.promising(instance, walk.assignment, solver)
        gains = moves.gains(instance, walk.assignment, numbers, solver)
        free = ~_forbidden(moves, walk, numbers, found.round) | (gains > found.best_gain)
        gains = jnp.where(free, gains, -jnp.inf)
        gain, best = jnp.max(gains, axis=0), jnp.argmax(gains, axis=0)
        after = moves.take(walk.assignment, jnp.take_along_axis(numbers, best[None], axis=0)[0])
        after = jnp.where(gain > -jnp.inf, after, walk.assignment)
        key, luck = jax.random.split(found.key)
        tenure = jax.random.randint(luck, gain.shape, plan.tenure[0], plan.tenure[1] + 1)
        left = one_hot(walk.assignment, instance.num_batches + 1)  # (choices, users, *batch)
        left = jnp.moveaxis(left, 0, 1) & (after != walk.assignment)[:, None]
        until = jnp.where(left, found.round + 1 + tenure, walk.until)
        found = found.offered(after, gain)
        over = found.round >= plan.rounds - 1
        return replace(found, key=key, done=found.done | over, memory=_Walk(after, until))

    return Search(start, advance)


def tabu_from(instance: Instance, assignment: Assignment, key: Key, solver: Solver) -> Found:
    """Where a tabu search begins: at an assignment, or at denying everybody if that is better."""
    first, gain = start_from(instance, assignment, solver)
    until = jnp.zeros((instance.num_users, instance.num_batches + 1, *gain.shape), jnp.int32)
    return found_at(first, gain, key, _Walk(first, until))


def _forbidden(
    moves: Moves, walk: _Walk, numbers: Int[Array, "candidates *batch"], now: Int[Array, ""]
) -> Bool[Array, "candidates *batch"]:
    """Whether a neighbour has a user where it may not go yet."""
    after = moves.apply(walk.assignment, numbers)
    until = sum(
        jnp.where(after == a, walk.until[:, a][:, None], 0) for a in range(walk.until.shape[1])
    )
    return jnp.any((until > now) & (after != walk.assignment[:, None]), axis=0)
