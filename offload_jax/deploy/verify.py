"""Whether runtimes answer as the policy did that was exported: replays a bundle's test vectors."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from offload_jax.deploy.bundle import ENTRIES, Bundle
from offload_jax.deploy.physics import effect
from offload_jax.deploy.ports import unpadded
from offload_jax.deploy.runtimes import Runtime, run
from offload_jax.files.records import InstanceRecord, parse_instances

# Two ways to round the same numbers may decide a tie differently; such plans are worth the same.
SAME = 1e-5  # of the objective


@dataclass(frozen=True)
class ReplayResult:
    """How one entry of a bundle came out in one runtime, so many instances a call."""

    entry: str
    batch: int
    count: int
    identical: int  # plans with the same assignment and whole splits
    farthest: float  # difference of the objective elsewhere, as a share of it
    flaws: int  # plans that break a constraint
    first_s: float  # of the first call
    median_s: float | None  # of the others, where there were any

    @property
    def good(self) -> bool:
        return self.flaws == 0 and self.farthest <= SAME


def replay(bundle: Bundle, runtime: Runtime, entry: str, batch: int = 1) -> ReplayResult:
    """Runs every test vector, `batch` a call, padded to the smallest size that holds them."""
    assert entry in ENTRIES, entry
    same, flaws, farthest, seconds = 0, 0, 0.0, []
    for start in range(0, len(bundle.vectors), batch):
        vectors = bundle.vectors[start : start + batch]
        records = [parse_instances(vector["instance"])[0] for vector in vectors]
        began = time.perf_counter()
        answers = _run(bundle, runtime, entry, records, [vector["seed"] for vector in vectors])
        seconds.append(time.perf_counter() - began)
        for record, found, vector in zip(records, answers, vectors, strict=True):
            wanted = vector["answers"][entry]
            keys = ("assignment", "integer_split")
            if all(np.array_equal(found[key], wanted[key]) for key in keys):
                same += 1
            else:
                scale = max(abs(wanted["objective"]), 1e-9)
                farthest = max(farthest, abs(found["objective"] - wanted["objective"]) / scale)
            done = effect(record, *(found[key].astype(int) for key in keys))
            flaws += bool(done.flaws)
    first, *others = seconds
    later = float(np.median(others)) if others else None
    return ReplayResult(entry, batch, len(bundle.vectors), same, farthest, flaws, first, later)


def _run(
    bundle: Bundle,
    runtime: Runtime,
    entry: str,
    records: Sequence[InstanceRecord],
    seeds: Sequence[int],
) -> list[dict[str, Any]]:
    most = max(len(record.alpha) for record in records)
    users = next(size for size in bundle.sizes if most <= size)
    outputs = run(runtime, entry, records, seeds, users, bundle.about["sizes"]["samples"])
    return [unpadded(outputs, i, len(record.alpha)) for i, record in enumerate(records)]
