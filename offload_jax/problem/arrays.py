"""Picking and summing by a small index, written as masked sums.

A gather or scatter over a few batches or servers is slow on CPUs (XLA does it one element at a
time); a loop over the few values fuses with what surrounds it. The first axis is the indexed one;
further axes, if any, are batches.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from operator import add

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped


def one_hot(index: Int[Array, "*batch"], size: int) -> Bool[Array, "size *batch"]:
    """True where the position along a new first axis equals the index; all False outside of it."""
    return jnp.arange(size).reshape(size, *(1,) * index.ndim) == index


def ranks(x: Float[Array, "rows *batch"]) -> Int[Array, "rows *batch"]:
    """The place of each row when they rise; equal ones keep their order."""
    return jnp.argsort(jnp.argsort(x, axis=0, stable=True), axis=0).astype(jnp.int32)


def pick(
    index: Int[Array, "*index"], values: Shaped[Array, "groups *batch"]
) -> Shaped[Array, "*index"]:
    """values[index] elementwise, 0 where the index is outside the groups.

    The index has the shape (rows, *batch), or (*batch) for a single row.
    """
    return _sum(jnp.where(index == g, values[g], 0) for g in range(values.shape[0]))


def pick_column(
    index: Int[Array, "rows *batch"], table: Shaped[Array, "rows groups *batch"]
) -> Shaped[Array, "rows *batch"]:
    """table[i, index[i]] for each row i, 0 where the index is outside the groups."""
    return _sum(jnp.where(index == g, table[:, g], 0) for g in range(table.shape[1]))


def total(
    index: Int[Array, "rows *batch"], values: Shaped[Array, "rows *batch"], groups: int
) -> Shaped[Array, "groups *batch"]:
    """Sum of the rows of each group."""
    return jnp.stack([jnp.sum(jnp.where(index == g, values, 0), axis=0) for g in range(groups)])


def any_row(mask: Bool[Array, "rows *batch"]) -> Bool[Array, "*batch"]:
    """Whether any row is True. A float sum: XLA's CPU backend vectorises no boolean reduction."""
    return jnp.sum(mask.astype(jnp.float32), axis=0) > 0


def _sum(terms: Iterable[Array]) -> Array:
    return reduce(add, terms)
