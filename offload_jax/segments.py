"""Picking and summing by a small index, written as masked sums.

A gather or scatter over a few batches or servers is slow on CPUs (XLA does it one element at a
time); a loop over the few values fuses with what surrounds it. The first axis is the indexed one;
further axes, if any, are batches.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped


def one_hot(index: Int[Array, "*batch"], size: int) -> Bool[Array, "size *batch"]:
    """True where the position along a new first axis equals the index; all False outside 0..size-1."""
    return jnp.arange(size).reshape(size, *(1,) * index.ndim) == index


def pick(index: Int[Array, "rows *batch"], values: Float[Array, "groups *batch"]):
    """values[index] for each row, 0 where the index is outside the groups. Shape (rows, *batch)."""
    return sum(jnp.where(index == g, values[g], 0) for g in range(values.shape[0]))


def pick_column(index: Int[Array, "rows *batch"], table: Float[Array, "rows groups *batch"]):
    """table[i, index[i]] for each row i, 0 where the index is outside the groups. Shape (rows,)."""
    return sum(jnp.where(index == g, table[:, g], 0) for g in range(table.shape[1]))


def total(index: Int[Array, "rows *batch"], values: Shaped[Array, "rows *batch"], groups: int):
    """Sum of the rows of each group. Shape (groups, *batch)."""
    return jnp.stack([jnp.sum(jnp.where(index == g, values, 0), axis=0) for g in range(groups)])


def any_row(mask: Bool[Array, "rows *batch"]) -> Bool[Array, "*batch"]:
    """Whether any row is True. A float sum: XLA's CPU backend vectorises no boolean reduction."""
    return jnp.sum(mask.astype(jnp.float32), axis=0) > 0
