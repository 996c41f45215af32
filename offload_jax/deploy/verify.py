"""Whether runtimes answer as the policy did that was exported: replays a bundle's test vectors."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from offload_jax import schema
from offload_jax.deploy.bundle import ENTRIES, Bundle
from offload_jax.deploy.physics import effect
from offload_jax.deploy.ports import OUTPUTS, draws, packed
from offload_jax.deploy.runtimes import Runtime
from offload_jax.schema import InstanceRecord

# Two ways to round the same numbers may decide a tie differently; such plans are worth the same.
SAME = 1e-5  # of the objective


@dataclass(frozen=True)
class Replay:
    """How one entry of a bundle came out in one runtime."""

    entry: str
    count: int
    identical: int  # plans with the same assignment and whole splits
    farthest: float  # difference of the objective elsewhere, as a share of it
    flaws: int  # plans that break a constraint
    first_s: float  # until the first answer
    median_s: float  # of the others

    @property
    def good(self) -> bool:
        return self.flaws == 0 and self.farthest <= SAME


def replay(bundle: Bundle, runtime: Runtime, entry: str) -> Replay:
    """Runs every test vector, one at a time, padded to the smallest size that holds it."""
    assert entry in ENTRIES, entry
    same, flaws, farthest, seconds = 0, 0, 0.0, []
    for vector in bundle.vectors:
        (record,) = schema.parse_instances(vector["instance"])
        start = time.perf_counter()
        found = _run(bundle, runtime, entry, record, vector["seed"])
        seconds.append(time.perf_counter() - start)
        wanted = vector["answers"][entry]
        keys = ("assignment", "integer_split")
        if all(np.array_equal(found[key], wanted[key]) for key in keys):
            same += 1
        else:
            scale = max(abs(wanted["objective"]), 1e-9)
            farthest = max(farthest, abs(found["objective"] - wanted["objective"]) / scale)
        done = effect(record, found["assignment"].astype(int), found["integer_split"].astype(int))
        flaws += bool(done.flaws)
    return Replay(
        entry, len(seconds), same, farthest, flaws, seconds[0], float(np.median(seconds[1:] or 0))
    )


def _run(
    bundle: Bundle, runtime: Runtime, entry: str, record: InstanceRecord, seed: int
) -> dict[str, Any]:
    users = next(size for size in bundle.sizes if len(record.alpha) <= size)
    arrays = packed([record], users)
    if entry == "best":
        arrays.append(draws([seed], users, bundle.about["sizes"]["samples"]))
    outputs = [x[0] for x in runtime.call(entry, users, arrays)]
    return {
        port.name: (x[: len(record.alpha)] if port.axes == "N" else x)
        for port, x in zip(OUTPUTS, outputs, strict=True)
    }
