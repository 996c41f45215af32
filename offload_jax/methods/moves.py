"""The neighbours of an assignment: a user moved, granted or denied, or two users exchanged."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from offload_jax.plans.candidates import candidate_gains, exchanged, moved
from offload_jax.plans.outcome import solve_assignment
from offload_jax.plans.reduced_gains import move_gains
from offload_jax.problem import equations
from offload_jax.problem.arrays import one_hot, pick, pick_column
from offload_jax.problem.equations import Placement
from offload_jax.problem.instance import Instance
from offload_jax.splits import Solution, Solver

# Neighbours of each kind that are solved exactly at a step (benchmarks/quality/methods.py tells
# what that misses).
PROMISING = 32


@dataclass(frozen=True)
class Moves:
    """N (M + 1) moves, numbered first, then N (N - 1) / 2 exchanges."""

    users: int
    batches: int

    @property
    def singles(self) -> int:
        """Number of the moves."""
        return self.users * (self.batches + 1)

    @cached_property
    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """The two users of every exchange."""
        return np.triu_indices(self.users, 1)

    @property
    def count(self) -> int:
        return self.singles + len(self.pairs[0])

    def apply(
        self, assignment: Int[Array, "users *batch"], number: Int[Array, "chunk *#batch"]
    ) -> Int[Array, "users chunk *batch"]:
        """The neighbours of these numbers."""
        first, second = (jnp.array(np.append(users, 0), jnp.int32) for users in self.pairs)
        exchange = number >= self.singles
        pair = jnp.where(exchange, number - self.singles, len(self.pairs[0]))
        one, other = (one_hot(users[pair], self.users) for users in (first, second))
        both = exchanged(assignment[:, None], one, other)
        single = moved(assignment, number // (self.batches + 1), number % (self.batches + 1))
        return jnp.where(exchange, both, single)

    def take(
        self, assignment: Int[Array, "users *batch"], number: Int[Array, "*batch"]
    ) -> Int[Array, "users *batch"]:
        """One neighbour of each instance."""
        return self.apply(assignment, number[None])[:, 0]

    def all(self, assignment: Int[Array, "users *batch"]) -> Int[Array, "moves *#batch"]:
        """The numbers of all neighbours."""
        return jnp.arange(self.count).reshape(-1, *(1,) * (assignment.ndim - 1))

    def gains(
        self,
        instance: Instance,
        assignment: Int[Array, "users *batch"],
        numbers: Int[Array, "candidates *#batch"],
        solver: Solver,
    ) -> Float[Array, "candidates *batch"]:
        """Exact gains (U - U_deny, s) of the neighbours of these numbers.

        Minus infinity where a batch overflows or nothing changes, as by moving a padded user.
        """

        def neighbours(index: Int[Array, "chunk"]) -> Int[Array, "users chunk *batch"]:
            after = self.apply(assignment, numbers[index])
            return jnp.where(instance.mask[:, None], after, 0)

        # Those that change nothing are no neighbours: a search must not think it has moved.
        shape = (numbers.shape[0], *assignment.shape[1:])
        changes = jnp.broadcast_to(self.changes(instance, assignment), (self.count, *shape[1:]))
        changes = jnp.take_along_axis(changes, jnp.broadcast_to(numbers, shape), axis=0)
        gains = candidate_gains(instance, neighbours, numbers.shape[0], solver)
        return jnp.where(changes, gains, -jnp.inf)

    def changes(
        self, instance: Instance, assignment: Int[Array, "users *batch"]
    ) -> Bool[Array, "moves *batch"]:
        """Which of all neighbours concern real users and are others than the assignment."""
        numbers = jnp.arange(self.batches + 1).reshape(1, -1, *(1,) * (assignment.ndim - 1))
        single = (assignment[:, None] != numbers) & instance.mask[:, None]
        i, j = self.pairs
        both = instance.mask[i] & instance.mask[j] & (assignment[i] != assignment[j])
        return jnp.concatenate([single.reshape(-1, *assignment.shape[1:]), both])

    def promising(
        self, instance: Instance, assignment: Int[Array, "users *batch"], solver: Solver
    ) -> Int[Array, "candidates *batch"]:
        """Numbers of the neighbours that gain most to first order: PROMISING of each kind."""
        estimates = self.estimates(instance, assignment, solver)
        single, both = estimates[: self.singles], estimates[self.singles :]
        return jnp.concatenate([top(single), self.singles + top(both)])

    def estimates(
        self, instance: Instance, assignment: Int[Array, "users *batch"], solver: Solver
    ) -> Float[Array, "moves *batch"]:
        """What all neighbours gain over the assignment (s), to first order and by one solve.

        Minus infinity as in `gains`; the prices are those of the assignment's own splits.
        """
        solved = solve_assignment(instance, assignment, solver)
        placed, solution = solved.placed, solved.splits
        worth, room = _outlook(instance, placed, solution)
        stay, demand = pick_column(assignment, worth), instance.demand
        single = jnp.where(demand[:, None] <= room, worth - stay[:, None], -jnp.inf)
        # What user i would have where user j is, and the room there is when j has left.
        here = [assignment[None] == a for a in range(self.batches + 1)]
        at = sum(jnp.where(on, worth[:, a][:, None], 0) for a, on in enumerate(here))
        left = sum(jnp.where(on, room[0, a], 0) for a, on in enumerate(here)) + demand[None]
        change = jnp.where(demand[:, None] <= left, at - stay[:, None], -jnp.inf)
        i, j = self.pairs
        edge_steps = jnp.where(placed.granted, instance.steps - solution.split, 0)
        both = change[i, j] + change[j, i] + _meetings(instance, placed, edge_steps)[i, j]
        all_ = jnp.concatenate([single.reshape(self.singles, *stay.shape[1:]), both])
        return jnp.where(self.changes(instance, assignment), all_, -jnp.inf)


def _outlook(
    instance: Instance, placed: Placement, solution: Solution
) -> tuple[Float[Array, "users choices *batch"], Float[Array, "1 choices *batch"]]:
    """What each user has in each batch to first order, denied (0) first; the room there is."""
    worth = move_gains(instance, placed, solution.split, solution.price)
    worth = jnp.concatenate([jnp.zeros_like(worth[:, :1]), worth], axis=1)
    room = instance.capacity - placed.load + 1e-5 * jnp.maximum(instance.capacity, 1)
    anywhere = jnp.full_like(room[:1], jnp.finfo(room.dtype).max / 4)
    return worth, jnp.concatenate([anywhere, room])[None]


def _meetings(
    instance: Instance, placed: Placement, edge_steps: Float[Array, "users *batch"]
) -> Float[Array, "users users *batch"]:
    """What an exchange of two users is worth above its two moves, each with the other in place, s.

    A move counts what two users cost each other where both would be, but they never meet there,
    on a server or on the air.
    """
    # Someone denied has no edge steps yet: as many as the other.
    mine = jnp.where(placed.granted[:, None], edge_steps[:, None], edge_steps[None])
    theirs = jnp.swapaxes(mine, 0, 1)
    demand = instance.demand
    alone = pick(placed.batch, equations.own_slope(instance))  # X_kk of each user's batch
    together = alone[:, None] + alone[None]
    # X_kl of the batches of two users, the first one's slowed down.
    slowed = [pick(placed.batch, instance.interference[:, k]) for k in range(instance.num_batches)]
    apart = sum(jnp.where(placed.batch[None] == k, s[:, None], 0) for k, s in enumerate(slowed))
    apart = apart + jnp.swapaxes(apart, 0, 1)
    steps = (mine * demand[None] + theirs * demand[:, None]) * (together - apart)
    # Leaving the air and coming on it: one does not wait for the other.
    one_denied = placed.granted[:, None] != placed.granted[None]
    air = equations.airtime(instance)
    return steps + jnp.where(one_denied, air[:, None] + air[None], 0)


def top(gains: Float[Array, "moves *batch"]) -> Int[Array, "candidates *batch"]:
    """Numbers of the PROMISING largest."""
    count = min(PROMISING, gains.shape[0])
    return jnp.moveaxis(jax.lax.top_k(jnp.moveaxis(gains, 0, -1), count)[1], -1, 0)
