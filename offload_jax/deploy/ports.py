"""What goes into an exported program and what comes out: names, shapes, types and padding.

NumPy only. Every array has the batch of instances first; padded users are zeros behind the real
ones, whose number is `num_users`. Programs take their inputs, and return their outputs, in the
order below.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from offload_jax.files.fields import INTEGER, TEXT
from offload_jax.files.records import INSTANCE, InstanceRecord

AXES = {"N": "users", "M": "batches", "G": "servers", "P": "samples"}


class Port(NamedTuple):
    """One array of a program; `axes` are the letters of AXES behind the batch."""

    name: str
    axes: str
    dtype: str
    unit: str

    def shape(self, batch: Any, sizes: dict[str, Any]) -> tuple[Any, ...]:
        return (batch, *(sizes[axis] for axis in self.axes))

    def to_json(self) -> dict[str, Any]:
        shape = ["batch", *(AXES[axis] for axis in self.axes)]
        return {"name": self.name, "shape": shape, "dtype": self.dtype, "unit": self.unit}


INPUTS = (
    *(
        Port(at.attr, "".join(at.axes), "int32" if at.kind is INTEGER else "float32", at.unit)
        for at in INSTANCE
        if at.kind is not TEXT
    ),
    Port("num_users", "", "int32", "users"),
)
RANGED = tuple(port for port in INPUTS if port.dtype == "float32")  # what training had limits for
# Only of the program that samples; one uniform number in [0, 1) for each decision and sample.
DRAWS = Port("draws", "NP", "float32", "-")
OUTPUTS = (
    Port("assignment", "N", "int32", "batch from 1, 0 to deny"),
    Port("split", "N", "float32", "steps"),
    Port("integer_split", "N", "int32", "steps"),
    Port("latency", "N", "float32", "s"),  # with the whole splits, as accuracy
    Port("accuracy", "N", "float32", "-"),
    Port("price", "G", "float32", "s per GPU-second"),
    Port("objective", "", "float32", "s"),
    Port("integer_objective", "", "float32", "s"),
)


def inputs_of(entry: str) -> tuple[Port, ...]:
    """What the program of an entry takes."""
    return (*INPUTS, DRAWS) if entry == "best" else INPUTS


def arrays_of(
    entry: str, records: Sequence[InstanceRecord], users: int, seeds: Sequence[int], samples: int
) -> list[np.ndarray]:
    """The same for instances; each draws by a seed of its own, whatever else is in the batch."""
    arrays = packed(records, users)
    return [*arrays, draws(seeds, users, samples)] if DRAWS in inputs_of(entry) else arrays


def packed(records: Sequence[InstanceRecord], users: int) -> list[np.ndarray]:
    """The inputs of instances with the same M and G, users padded to `users`."""
    first = records[0]
    sizes = {"N": users, "M": len(first.intercept), "G": len(first.budget)}
    arrays = []
    for port in INPUTS:
        array = np.zeros(port.shape(len(records), sizes), port.dtype)
        for i, record in enumerate(records):
            count = len(record.alpha)
            value = count if port.name == "num_users" else getattr(record, port.name)
            with np.errstate(over="ignore"):  # infinite: far outside of any trained range
                array[(i, slice(count)) if port.axes.startswith("N") else i] = value
        arrays.append(array)
    return arrays


def unpadded(outputs: Sequence[np.ndarray], i: int, users: int) -> dict[str, np.ndarray]:
    """What a program put out for instance `i`, by name, without padded users."""
    pairs = zip(OUTPUTS, outputs, strict=True)
    return {port.name: x[i, :users] if port.axes == "N" else x[i] for port, x in pairs}


def draws(seeds: Sequence[int], users: int, samples: int) -> np.ndarray:
    """The draws of instances from a seed each: whatever is in their batch, however it is padded."""
    shape = users, samples
    return np.stack([np.random.default_rng(seed).random(shape, np.float32) for seed in seeds])
