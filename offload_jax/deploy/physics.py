"""What a plan does, in plain NumPy and float64: independent of the programs that made it.

The equations are those of arXiv 2411.15781, extended to M batches on G servers: step time
s_k = h_k + sum_l X_kl load_l, latency = wait + air time + (T - n) s_k + n l, accuracy along its
logistic curve, and U = sum of alpha accuracy - latency.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from offload_jax.files.accuracy import accuracy_loss
from offload_jax.files.records import Floats, InstanceRecord, Ints

SLACK = 1e-5  # of a budget, relative to max(1, budget): programs compute in float32


@dataclass(frozen=True, eq=False)
class Effect:
    """What an assignment with its splits does to an instance."""

    latency: Floats  # (N,) s
    accuracy: Floats  # (N,)
    objective: float  # U, s
    flaws: tuple[str, ...]  # constraints it breaks, in words; none: it can be executed


def effect(record: InstanceRecord, assignment: Ints, split: Floats | Ints) -> Effect:
    """The effect of a plan; what breaks a constraint is named in `flaws`.

    An assignment outside 0..M or a split that is no number has no effect but its flaw: NaN.
    """
    users, batches = record.accuracy_floor.shape
    nothing = np.full(users, np.nan)
    if assignment.shape != (users,) or np.any((assignment < 0) | (assignment > batches)):
        return Effect(nothing, nothing, np.nan, (f"assignment must be {users} of 0..{batches}",))
    if split.shape != (users,) or not np.all(np.isfinite(split)):
        return Effect(nothing, nothing, np.nan, (f"split must be {users} finite numbers",))
    granted, batch = assignment > 0, np.maximum(assignment - 1, 0)
    load = _sums(assignment, np.where(granted, record.demand, 0), batches + 1)[1:]
    times = record.intercept + record.interference @ load
    edge = (record.steps - split) * granted  # steps
    seconds = edge * np.diag(record.interference)[batch] * record.demand
    use = _sums(record.server[batch], seconds, len(record.budget))
    air = record.payload * granted.sum() / (record.bandwidth * record.spectral_efficiency)
    local = (record.steps - edge) * record.local_step
    latency = record.wait + granted * air + edge * times[batch] + local
    accuracy = np.where(granted, _accuracy(record, batch, split), record.accuracy_local)
    return Effect(
        latency=latency,
        accuracy=accuracy,
        objective=float(np.sum(record.alpha * accuracy - latency)),
        flaws=_flaws(record, granted, batch, split, load, use),
    )


def _sums(index: Ints, values: Floats, size: int) -> Floats:
    return np.bincount(index, values, size).astype(np.float64)


def _accuracy(record: InstanceRecord, batch: Ints, split: Floats | Ints) -> Floats:
    row = np.arange(len(batch))
    floor, slope, centre = (
        table[row, batch]
        for table in (record.accuracy_floor, record.accuracy_slope, record.accuracy_centre)
    )
    local = record.accuracy_local
    return local - accuracy_loss(record.steps, split, local, floor, slope, centre)


def _flaws(
    record: InstanceRecord,
    granted: np.ndarray,
    batch: Ints,
    split: Floats | Ints,
    load: Floats,
    use: Floats,
) -> tuple[str, ...]:
    """The constraints that are broken, in words."""
    centre = record.accuracy_centre[np.arange(len(batch)), batch]
    lower = np.where(granted, np.maximum(record.split_min, centre), record.steps)
    outside = (split < lower - 1e-4) | (split > record.steps)
    over = load > record.capacity * (1 + 1e-6)
    dear = use > record.budget + SLACK * np.maximum(record.budget, 1)
    words = [
        f"split[{i}] is {split[i]:g}, below {lower[i]:g} or above {record.steps:g} steps"
        for i in np.flatnonzero(outside)
    ]
    words += [
        f"batch {k + 1} holds {load[k]:g} of {record.capacity[k]:g} images"
        for k in np.flatnonzero(over)
    ]
    words += [
        f"server {g} spends {use[g]:g} of {record.budget[g]:g} GPU-seconds"
        for g in np.flatnonzero(dear)
    ]
    return tuple(words)
