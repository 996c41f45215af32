"""What code behind an interface must return: shapes and types, looked at while it is traced.

A violation is told before anything is compiled; nothing of this is in a compiled program.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass, field, fields, is_dataclass, replace
from typing import Any, NoReturn

import chex
import jax
import jax.numpy as jnp
import numpy as np

from offload_jax.files.checks import InterfaceError

_TYPES: dict[str, tuple[type, str]] = {
    "Float": (jnp.floating, "floats"),
    "Int": (jnp.integer, "integers"),
    "Bool": (np.bool_, "booleans"),
}
_ONE_OF = {
    "users": "user",
    "batches": "batch",
    "servers": "server",
    "rows": "row",
    "columns": "column",
}


@dataclass(frozen=True)
class Returned:
    """What a method returned. Each check raises InterfaceError at the first violation."""

    method: str  # of the interface: "Network.decode"
    implementation: object
    sizes: Mapping[str, int] = field(default_factory=dict)  # of axes by name; others may have any

    def parts(self, found: Any, *names: str) -> Any:
        """A tuple of so many parts, which is returned."""
        if not isinstance(found, tuple) or len(found) != len(names):
            self._refuse(f"a {type(found).__name__}", f"a tuple: {', '.join(names)}")
        return found

    def array(self, name: str, array: Any, *axes: str, kind: str = "Float") -> None:
        """An array with exactly these axes, of a type of `_TYPES`."""
        wanted = tuple(self.sizes.get(axis) for axis in axes)
        if not hasattr(array, "dtype"):
            self._refuse(f"{name} as {type(array).__name__}", "an array")
        try:
            chex.assert_shape(array, wanted)
        except AssertionError:
            sizes = str(wanted).replace("None", "any")
            names = f"({', '.join(axes)})" if axes else "a scalar"
            self._refuse(f"{name} of shape {array.shape}", f"{sizes}, {names}")
        base, plural = _TYPES[kind]
        try:
            chex.assert_type(array, base)
        except AssertionError:
            self._refuse(f"{name} of type {array.dtype}", plural)

    def record(self, record: Any, like: type, *batch: str) -> None:
        """A `like` whose arrays are as annotated there; `batch` stands for the axes with a star.

        An axis whose size is not given has that of the first array that has it.
        """
        if not isinstance(record, like):
            self._refuse(f"a {type(record).__name__}", f"a record {like.__name__}")
        sizes = dict(self.sizes)
        known = replace(self, sizes=sizes)
        for part in fields(like):
            kind, axes = annotated(part)
            value = getattr(record, part.name)
            if kind in _TYPES and value is not None:
                whole = [b for a in axes for b in (batch if a.startswith("*") else (a,))]
                known.array(part.name, value, *whole, kind=kind)
                sizes |= zip(whole, value.shape, strict=True)

    def strongly_typed(self, tree: Any, remedy: str) -> None:
        """A tree whose floats have JAX's own width, and which has no weak types.

        Else one compiled program would not serve all of them.
        """
        width = jnp.zeros(()).dtype
        for path, array in jax.tree_util.tree_leaves_with_path(tree):
            name = jax.tree_util.keystr(path).lstrip(".")
            weak = "weakly typed " if getattr(array, "weak_type", False) else ""
            floating = jnp.issubdtype(array.dtype, jnp.floating)
            wanted = width if floating else array.dtype
            if weak or array.dtype != wanted:
                self._refuse(
                    f"{name} of {weak}{array.dtype}", f"{wanted}, strongly typed: {remedy}"
                )

    def batch_last(self, name: str, tree: Any, axis: str) -> None:
        """A tree whose arrays all end with this axis."""
        try:
            chex.assert_tree_shape_suffix(tree, (self.sizes[axis],))
        except AssertionError as error:
            self._refuse(f"an {name} ({_told(error)})", f"arrays whose last axis is {axis}")

    def same(self, name: str, tree: Any, before: Any) -> None:
        """A tree with the structure, shapes and types of one before it."""
        try:
            chex.assert_trees_all_equal_shapes_and_dtypes(before, tree)
        except AssertionError as error:
            wanted = "of the same structure, shapes and types"
            self._refuse(f"a {name} unlike that before ({_told(error)})", wanted)

    def _refuse(self, found: str, wanted: str) -> NoReturn:
        who = type(self.implementation).__name__
        raise InterfaceError(f"{self.method} of {who} returned {found}; must be {wanted}") from None


def annotated(part: Field[Any]) -> tuple[str, list[str]]:
    """Kind and axes that a field's annotation names: Float[Array, "users *batch"]."""
    named = re.search(r"""["'](.*)["']""", str(part.type))
    return str(part.type).partition("[")[0], named[1].split() if named else []


def arrays_of(
    name: str, record: Any, before: tuple[str, ...] = (), after: tuple[str, ...] = ()
) -> Iterator[tuple[str, Any, tuple[str, ...]]]:
    """Arrays of a record, or of any tree: name, array, and what an index along each axis is of.

    Between `before` and `after` stand the axes that the annotations name.
    """
    if not is_dataclass(record):
        for path, array in jax.tree_util.tree_leaves_with_path(record):
            own = [f"axis {i}" for i in range(array.ndim - len(before) - len(after))]
            yield f"{name}{jax.tree_util.keystr(path)}", array, (*before, *own, *after)
        return
    for part in fields(record):
        kind, words = annotated(part)
        array = getattr(record, part.name)
        if kind in _TYPES and array is not None:
            own = [_ONE_OF.get(word, word) for word in words if not word.startswith("*")]
            yield f"{name}.{part.name}", array, (*before, *own, *after)


def _told(error: AssertionError) -> str:
    """What an assertion of chex says, on one line and without the name of the assertion."""
    return " ".join(str(error).partition("failed:")[2].split()).rstrip(".")
