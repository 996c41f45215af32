"""Anytime searches: what one is, how it is run, and where it starts.

A search improves assignments round by round, for any number of instances side by side (batch last).
It ends after its own number of rounds, or, given a time budget, goes on until that is spent: none
of them runs out of things to try. The best assignment so far is always a feasible plan.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from offload_jax.plans.candidates import feasible_gain
from offload_jax.plans.outcome import fits
from offload_jax.plans.plan import warm_up
from offload_jax.problem.arrays import any_row
from offload_jax.problem.instance import Instance
from offload_jax.problem.types import Assignment, Key
from offload_jax.splits import NATIVE, Solver


@struct.dataclass
class Found:
    """The state of a search."""

    best: Int[Array, "users *batch"]  # the best assignment so far; padded users are denied
    best_gain: Float[Array, "*batch"]  # its U - U_deny, s
    done: Bool[Array, "*batch"]  # the search has had its say; more rounds may still improve
    round: Int[Array, ""]
    key: Key
    memory: Any  # what the search keeps besides

    def offered(self, assignment: Assignment, gain: Float[Array, "*batch"]) -> Found:
        """The state with another assignment looked at: kept as the best where it is better."""
        better = gain > self.best_gain
        return replace(
            self,
            best=jnp.where(better, assignment, self.best),
            best_gain=jnp.where(better, gain, self.best_gain),
        )


@dataclass(frozen=True)
class Search:
    """A method that improves round by round. Both functions are pure, jit-able and batch last."""

    start: Callable[[Instance, Key, Solver], Found]
    advance: Callable[[Instance, Found, Solver], Found]  # one round


@dataclass
class Trace:
    """How the best gains grew: after `seconds` (compiling excluded) they were `gains`."""

    seconds: list[float] = field(default_factory=list)
    gains: list[np.ndarray] = field(default_factory=list)  # (instances,) each


def found_at(
    assignment: Assignment, gain: Float[Array, "*batch"], key: Key, memory: Any = None
) -> Found:
    """The state of a search that starts from a feasible assignment."""
    return Found(
        best=assignment,
        best_gain=gain,
        done=jnp.zeros(gain.shape, bool),
        round=jnp.zeros((), jnp.int32),
        key=key,
        memory=memory,
    )


def run(
    search: Search,
    instances: Instance,
    key: Key,
    solver: Solver = NATIVE,
    budget_s: float | None = None,
    trace: Trace | None = None,
) -> Found:
    """Runs a search to its own end, or for `budget_s` seconds (all instances together).

    Compiling is not counted. A round that has begun is finished.
    """
    start, advance = _compiled(search)
    rest = jnp.asarray(budget_s is None)
    warm_up(
        (search, solver),
        instances,
        lambda: advance(instances, start(instances, key, solver), solver, rest).best,
    )
    began = time.perf_counter()
    found = start(instances, key, solver)
    while True:
        jax.block_until_ready(found.best_gain)
        seconds = time.perf_counter() - began
        if trace is not None:
            trace.seconds.append(seconds)
            trace.gains.append(np.asarray(found.best_gain))
        over = bool(jnp.all(found.done)) if budget_s is None else seconds >= budget_s
        if over:
            return found
        found = advance(instances, found, solver, rest)


def one_round(search: Search, instances: Instance, found: Found, solver: Solver) -> Found:
    """The state after the next round, which is counted."""
    return replace(search.advance(instances, found, solver), round=found.round + 1)


@cache
def _compiled(search: Search) -> tuple[Callable[..., Found], Callable[..., Found]]:
    def next_round(instances: Instance, found: Found, solver: Solver, rest: Array) -> Found:
        after = one_round(search, instances, found, solver)
        # With `rest`, what is found for one must not depend on how long others take.
        ended = rest & found.done
        return replace(
            after,
            best=jnp.where(ended, found.best, after.best),
            best_gain=jnp.where(ended, found.best_gain, after.best_gain),
        )

    return (
        jax.jit(search.start, static_argnums=2),
        jax.jit(next_round, static_argnums=2),
    )


# ---- where searches start


def repaired(instance: Instance, assignment: Assignment) -> Assignment:
    """The assignment with users denied, the last in the array first, until every batch holds."""
    batches = jnp.arange(instance.num_batches)
    extra = (1,) * (assignment.ndim - 1)
    numbers = batches.reshape(-1, *extra)

    def place(load: Array, user: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        wanted, demand, real = user
        more = load + jnp.where(numbers == wanted - 1, demand, 0)
        good = real & ~any_row(~fits(instance, more))
        return jnp.where(good, more, load), jnp.where(good, wanted, 0)

    users = (assignment, instance.demand, instance.mask)
    empty = jnp.zeros((instance.num_batches, *assignment.shape[1:]), instance.demand.dtype)
    return jax.lax.scan(place, empty, users)[1].astype(jnp.int32)


def shaken(
    instance: Instance, assignment: Assignment, key: Key, share: float
) -> tuple[Assignment, Key]:
    """Each user moved to a random batch (or denied) with the chance `share`, then repaired.

    Returns the assignment and the next key.
    """
    key, coin, place = jax.random.split(key, 3)
    moves = jax.random.uniform(coin, assignment.shape) < share
    to = jax.random.randint(place, assignment.shape, 0, instance.num_batches + 1)
    return repaired(instance, jnp.where(moves, to, assignment)), key


def someone(real: Bool[Array, "users *batch"], key: Key) -> Bool[Array, "users *batch"]:
    """Where one of the real users is, drawn at random; how many are padded has no part in it."""
    count = jnp.sum(real, axis=0)
    chosen = jnp.floor(jax.random.uniform(key, count.shape) * count).astype(count.dtype)
    return real & (jnp.cumsum(real, axis=0) - 1 == chosen)


def start_from(
    instance: Instance, assignment: Assignment, solver: Solver
) -> tuple[Assignment, Float[Array, "*batch"]]:
    """An assignment with its gain; all denied where that is better, or where no splits exist."""
    gain = feasible_gain(instance, assignment, solver)
    better = gain > 0
    return jnp.where(better, assignment, 0), jnp.where(better, gain, 0)
