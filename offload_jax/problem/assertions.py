"""Assertions about numbers inside a compiled program, which name the array and the place in it.

For functions under `chex.chexify` only: it collects them, and raises the first that failed.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.experimental import checkify
from jaxtyping import Array, Bool, Float, Int

_RANK = 6  # the most axes; all failures look alike, so that a program carries only one

Axes = tuple[str | tuple[str, ...], ...]  # what an index along each axis is of, or its names


@struct.dataclass
class Failure:
    """Where an assertion failed. As text: `load[batch 1, instance 5] is 19; must be at most 18`."""

    index: Int[Array, "rank"]
    found: Float[Array, ""]
    limit: Float[Array, ""]
    name: str = struct.field(pytree_node=False)
    axes: Axes = struct.field(pytree_node=False)
    must: str = struct.field(pytree_node=False)  # with {limit}

    def __str__(self) -> str:
        place = ", ".join(
            axis[int(i)] if isinstance(axis, tuple) else f"{axis} {int(i)}"
            for axis, i in zip(self.axes, self.index, strict=False)
        )
        must = self.must.format(limit=f"{float(self.limit):.7g}")
        return f"{self.name}[{place}] is {float(self.found):.7g}; must be {must}"


def require(
    good: Bool[Array, "*axes"], found: Any, name: str, axes: Axes, must: str, limit: Any = 0.0
) -> None:
    """Asserts that all of an array is `good`; `found` and `limit` (in `must`) broadcast to it."""
    first = jnp.argmin(good.reshape(-1))
    place = [*jnp.unravel_index(first, good.shape), *[first] * (_RANK - good.ndim)]

    def at_first(values: Any) -> Float[Array, ""]:
        whole = jnp.broadcast_to(jax.lax.stop_gradient(values), good.shape)
        return whole.reshape(-1)[first].astype(jnp.float32)

    index = jnp.stack(place).astype(jnp.int32)
    failure = Failure(index, at_first(found), at_first(limit), name, axes, must)
    checkify.check(jnp.all(good), "{}", failure)


def require_finite(array: Array, name: str, axes: Axes, where: Any = True) -> None:
    """Asserts that an array is finite where that matters; integers and booleans are."""
    if jnp.issubdtype(array.dtype, jnp.inexact):
        good = jnp.isfinite(array) | jnp.logical_not(where)
        require(good, array, name, axes, "finite")


def require_finite_tree(tree: Any, name: str) -> None:
    """Asserts that all numbers of a tree of floats are finite, by the path of the leaf."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    paths = ("/".join(str(getattr(key, "key", key)) for key in path) for path, _ in leaves)
    sums = jnp.stack([jnp.sum(leaf) for _, leaf in leaves])  # NaN or infinite where a number is
    good = jnp.stack([jnp.all(jnp.isfinite(leaf)) for _, leaf in leaves])
    require(good, sums, name, (tuple(paths),), "finite")
