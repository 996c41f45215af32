"""The optimum by trying every assignment."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from offload_jax.plans.candidates import candidate_gains
from offload_jax.problem.instance import Instance
from offload_jax.problem.types import Assignment
from offload_jax.splits import NATIVE, Solver

MOST = 2**23  # assignments of one instance; at about a million a second
_BLOCK = 2**16  # of one call, between two looks at the progress bar


def count_assignments(instance: Instance) -> int:
    """(M + 1)^N of the largest of these (concrete) instances."""
    users = int(np.max(np.sum(np.asarray(instance.mask), axis=0)))
    return int((instance.num_batches + 1) ** users)


def refuse_enumeration(instance: Instance, solver: Solver = NATIVE) -> str | None:
    """Why enumeration does not apply to this (concrete) instance, or None where it does."""
    del solver
    if count_assignments(instance) <= MOST:
        return None
    users = int(np.max(np.sum(np.asarray(instance.mask), axis=0)))
    return (
        f"enumeration tries at most {MOST:,} assignments; the instance has "
        f"{instance.num_batches + 1}^{users}"
    )


def enumerate_all(
    instance: Instance,
    solver: Solver = NATIVE,
    show: Callable[[int, int], None] = lambda done, total: None,
) -> Assignment:
    """The best of all assignments of one instance (no batch axis), capacities kept.

    Calls `show(done, total)` after each block of assignments.
    """
    total = count_assignments(instance)
    best, best_gain = jnp.zeros_like(instance.alpha, jnp.int32), jnp.zeros_like(instance.steps)
    for first in range(0, total, _BLOCK):
        block = min(_BLOCK, total)
        best, best_gain = _best_of(instance, first, block, best, best_gain, solver)
        jax.block_until_ready(best)
        show(min(first + block, total), total)
    return best


@partial(jax.jit, static_argnames=("count", "solver"))
def _best_of(
    instance: Instance,
    first: Int[Array, ""],
    count: int,
    best: Int[Array, "users"],
    best_gain: Float[Array, ""],
    solver: Solver,
) -> tuple[Int[Array, "users"], Float[Array, ""]]:
    """The best assignment so far and of the numbers first..first + count - 1.

    Assignments are numbered in base M + 1, a digit per real user. Numbers past the last one count
    on from the first: their first digits are tried again.
    """
    base = instance.num_batches + 1
    # Digits of padded users would need powers beyond an int32; their mask takes them out.
    rank = jnp.where(instance.mask, jnp.cumsum(instance.mask) - 1, 0)
    weight = jnp.array(base, jnp.int32) ** rank

    def numbered(offset: Int[Array, "chunk"]) -> Int[Array, "users chunk"]:
        digits = (first + offset) // weight[:, None] % base
        return jnp.where(instance.mask[:, None], digits, 0).astype(jnp.int32)

    gains = candidate_gains(instance, numbered, count, solver)
    winner = jnp.argmax(gains)
    better = gains[winner] > best_gain
    found = numbered(winner[None])[:, 0]
    return jnp.where(better, found, best), jnp.where(better, gains[winner], best_gain)
