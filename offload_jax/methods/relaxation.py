"""The relaxation behind the upper bound: users and batches at every load, and ranges of grants.

What is independent of the prices that `bound` searches for.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float

from offload_jax.plans.candidates import gain_of
from offload_jax.plans.outcome import split_rows
from offload_jax.problem import equations
from offload_jax.problem.equations import Curve
from offload_jax.problem.instance import Instance, neutral_padding
from offload_jax.problem.types import Assignment
from offload_jax.splits import SplitProblem

RANGES = 3  # of the number of granted users


@dataclass(frozen=True)
class Grid:
    """What is known before tracing: batches of each server, and how loads are cut into cells."""

    slots: tuple[tuple[int, ...], ...]  # of each server its batches; -1 where it has fewer
    cuts: int  # cells along each batch
    whole: bool  # demands are whole images, hence loads are

    @classmethod
    def of(cls, server: np.ndarray, instances: Instance, cells: int) -> Grid:
        """Of instances whose batches are on these servers, with about so many cells a server."""
        hosted = [np.flatnonzero(server == g).tolist() for g in range(instances.num_servers)]
        width = max(1, *(len(batches) for batches in hosted))
        slots = tuple(tuple(b + [-1] * (width - len(b))) for b in hosted)
        demand = np.where(instances.mask, instances.demand, 0)
        whole = bool(np.all(demand % 1 == 0))
        most = max(1, math.floor(cells ** (1 / width) + 1e-9))
        room = np.minimum(np.asarray(instances.capacity), demand.sum(axis=0))
        levels = math.floor(room.max()) + 1
        return cls(slots, min(most, levels) if whole else most, whole)

    @property
    def cells(self) -> np.ndarray:
        """Number of the cell along each slot: (cells, slots)."""
        return np.array(list(itertools.product(range(self.cuts), repeat=len(self.slots[0]))))


@struct.dataclass
class Relaxation:
    """The problem, prepared. Axes: users, cells, slots, servers, ranges, *batch; some of size 1."""

    problem: SplitProblem
    curve: Curve  # its steps are those of the problem
    demand: Array
    possible: Array  # the user may be in that slot, in that cell
    exists: Array  # (cells, servers, 1, *batch): there are such loads
    room: Array  # (cells, slots, servers, 1, *batch): the largest load of the cell
    budget: Array  # (servers, 1, *batch)
    air: Array  # (users, ranges, *batch): s that a transfer costs at least
    fewest: Array  # (ranges, *batch) granted users
    most: Array
    fewest_air: Array  # R_lo: sum of the air times of the `fewest` users with the best radio
    unit: Float[Array, "*batch"]  # s, the gain per user
    gain: Float[Array, "*batch"]  # of the given plan


@partial(jax.jit, static_argnums=0)
def relaxed(layout: Grid, instance: Instance, assignment: Assignment) -> Relaxation:
    """The relaxation of instances (batch last); a good plan tells its scale and its ranges."""
    instance = neutral_padding(instance)
    slots = np.array(layout.slots).T  # (slots, servers)
    there = jnp.array(slots >= 0)[:, :, None, None]

    def of_users(x: Array) -> Array:
        return x[:, None, None, None, None]

    def of_pairs(x: Array) -> Array:
        return x[:, slots][:, None, :, :, None]

    least, room, exists = _loads(layout, instance, slots)
    interference = instance.interference[slots[:, None], slots[None, :]]  # (slots, slots, servers)
    interference = jnp.where(there[:, None, :, 0] & there[None, :, :, 0], interference, 0)
    own = equations.own_slope(instance)[slots][:, :, None]
    demand = of_users(instance.demand)
    # A batch holds its user at least, even where its cell begins with fewer images.
    more = jnp.maximum(demand - least, 0) * own
    times = instance.intercept[slots] + jnp.sum(interference * least[:, None, :, :, 0], axis=2)
    curve = Curve(
        steps=instance.steps,
        alpha=of_users(instance.alpha),
        local=of_users(instance.accuracy_local),
        floor=of_pairs(instance.accuracy_floor),
        slope=of_pairs(instance.accuracy_slope),
        centre=of_pairs(instance.accuracy_centre),
    )
    problem = split_rows(
        curve,
        of_users(instance.split_min),
        saving=of_users(instance.local_step) - times[:, :, :, None] - more,
        rate=demand * own,
        weight=jnp.ones(()),
        granted=jnp.ones((), bool),
        server=jnp.zeros((), jnp.int32),
        budget=jnp.zeros(()),
    )
    gain = jnp.maximum(gain_of(instance, assignment), 0)
    real = equations.num_real_users(instance)
    longest = jnp.max(jnp.where(instance.mask, instance.local_step * curve.steps, 0), axis=0)
    return Relaxation(
        problem=problem,
        curve=curve,
        demand=demand,
        possible=of_users(instance.mask) & there & (demand <= room + 1e-6),
        exists=exists,
        room=room,
        budget=instance.budget[:, None],
        unit=jnp.maximum(gain / real, 1e-3 * longest),
        gain=gain,
        **_ranges(instance, assignment),
    )


def _loads(layout: Grid, instance: Instance, slots: np.ndarray) -> tuple[Array, Array, Array]:
    """Least and largest load of every slot in every cell, and which cells there are.

    Shapes (cells, slots, servers, 1, *batch) and, without slots, the last.
    """
    number = jnp.array(layout.cells)[:, :, None, None, None]
    everything = jnp.sum(jnp.where(instance.mask, instance.demand, 0), axis=0)
    capacity = jnp.minimum(instance.capacity, everything)[slots]
    capacity = jnp.where(jnp.array(slots >= 0)[:, :, None], capacity, 0)[None, :, :, None]
    if not layout.whole:
        least, room = capacity * number / layout.cuts, capacity * (number + 1) / layout.cuts
        return least, room, jnp.ones_like(least[:, 0], bool)
    # Integers: exact in floats of this size, so no load falls between two cells.
    levels = jnp.floor(capacity + 1e-6) + 1
    least = jnp.floor_divide(number * levels + layout.cuts - 1, layout.cuts)
    room = jnp.floor_divide((number + 1) * levels + layout.cuts - 1, layout.cuts) - 1
    return least, room, jnp.all(least <= room, axis=1)


def _ranges(instance: Instance, assignment: Assignment) -> dict[str, Array]:
    """Ranges of the number of granted users: below 3/4 of the given plan's, up to it, and above."""
    count = jnp.sum((assignment > 0) & instance.mask, axis=0)
    real = jnp.sum(instance.mask, axis=0)
    middle = -(-3 * count // 4)
    fewest = jnp.stack([jnp.zeros_like(count), middle, count])
    most = jnp.stack([middle - 1, count - 1, real])
    air = jnp.where(instance.mask, equations.airtime(instance), 0)
    quickest = jnp.sort(jnp.where(instance.mask, air, jnp.max(air, axis=0)), axis=0)
    sums = jnp.concatenate([jnp.zeros_like(quickest[:1]), jnp.cumsum(quickest, axis=0)])
    return {
        "air": fewest * air[:, None],
        "fewest": fewest.astype(air.dtype),
        "most": most.astype(air.dtype),
        "fewest_air": jnp.take_along_axis(sums, fewest, axis=0),
    }
