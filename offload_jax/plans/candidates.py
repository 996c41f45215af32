"""Exact gains of candidate assignments: one more user granted, moved or exchanged."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from offload_jax.plans.outcome import fits, solve_assignment
from offload_jax.problem import equations
from offload_jax.problem.arrays import any_row, one_hot
from offload_jax.problem.instance import Instance
from offload_jax.problem.types import Assignment
from offload_jax.splits import NATIVE, Solver


def exact_gains(
    instance: Instance, assignment: Assignment, solver: Solver = NATIVE
) -> Float[Array, "users batches *batch"]:
    """Exact gain (s) of also granting user i in batch k, every other user kept, splits re-solved.

    N M solves. Minus infinity where the batch lacks capacity or the user is granted or padded.
    """
    users, batches = instance.num_users, instance.num_batches
    placed = equations.place(instance, assignment)
    now = gain_of(instance, assignment, solver)

    def with_pairs(pairs: Int[Array, "chunk"]) -> Int[Array, "users chunk *batch"]:
        return moved(assignment, pairs // batches, pairs % batches + 1)

    gains = candidate_gains(instance, with_pairs, users * batches, solver)
    gains = gains.reshape(users, batches, *now.shape) - now
    open_ = (instance.mask & ~placed.granted)[:, None]
    return jnp.where(open_, gains, -jnp.inf)


def gain_of(
    instance: Instance, assignment: Assignment, solver: Solver = NATIVE
) -> Float[Array, "*batch"]:
    """U - U_deny (s) of an assignment with its optimal splits; see `outcome.gain`."""
    return solve_assignment(instance, assignment, solver).gain


gains_of = jax.jit(gain_of, static_argnames="solver")  # of concrete instances


def feasible_gain(
    instance: Instance, assignment: Assignment, solver: Solver = NATIVE
) -> Float[Array, "*batch"]:
    """`gain_of`; minus infinity where a batch is over capacity."""
    solved = solve_assignment(instance, assignment, solver)
    over = any_row(~fits(instance, solved.placed.load))
    return jnp.where(over, -jnp.inf, solved.gain)


# Problems that are solved side by side. Of 256 to 32,768 the fastest on 2 CPU cores lie around
# here: enough to hide what a call costs, few enough to stay in the cache.
SIDE_BY_SIDE = 2048


def candidate_gains(
    instance: Instance,
    make: Callable[[Int[Array, "chunk"]], Int[Array, "users chunk *batch"]],
    count: int,
    solver: Solver = NATIVE,
) -> Float[Array, "candidates *batch"]:
    """`feasible_gain` of the candidates `make(0..count-1)`, a chunk at a time.

    A single instance is as fast per candidate as many are.
    """
    shape = jnp.shape(instance.steps)
    chunk = count
    if all(isinstance(size, int) for size in shape):  # an exported program's batch is a symbol
        chunk = min(count, max(1, SIDE_BY_SIDE // max(1, math.prod(shape))))
    rounds = -(-count // chunk)
    copies = repeated(instance, chunk)
    indices = jnp.minimum(jnp.arange(rounds * chunk), count - 1).reshape(rounds, chunk)
    gains = jax.lax.map(lambda index: feasible_gain(copies, make(index), solver), indices)
    return gains.reshape(rounds * chunk, *shape)[:count]


def repeated(instance: Instance, count: int) -> Instance:
    """The instance (or batch of them) `count` times along a new first batch axis."""
    axes = jnp.ndim(instance.steps)

    def repeat(x: Array) -> Array:
        at = x.ndim - axes
        return jnp.broadcast_to(jnp.expand_dims(x, at), (*x.shape[:at], count, *x.shape[at:]))

    return jax.tree.map(repeat, instance)


def moved(
    assignment: Int[Array, "users *batch"],
    user: Int[Array, "chunk ..."],
    to: Int[Array, "chunk ..."],
) -> Int[Array, "users chunk *batch"]:
    """The assignment with one user at a time moved to a batch (from 1; 0 to deny).

    `user` and `to` are the same for all instances, or of each: (chunk,) or (chunk, *batch).
    """
    user, to = (x.reshape(*x.shape, *(1,) * (assignment.ndim - x.ndim)) for x in (user, to))
    chosen = one_hot(user, assignment.shape[0])
    return jnp.where(chosen, to, assignment[:, None]).astype(jnp.int32)


def exchanged(
    assignment: Int[Array, "users ..."],
    one: Bool[Array, "users ..."],
    other: Bool[Array, "users ..."],
) -> Int[Array, "users ..."]:
    """The assignment with two users, each the only True one of its mask, in each other's place.

    Axes after the users broadcast.
    """
    first, second = (jnp.sum(jnp.where(on, assignment, 0), axis=0) for on in (one, other))
    return jnp.where(one, second, jnp.where(other, first, assignment)).astype(jnp.int32)
