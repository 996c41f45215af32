"""Frozen test sets: the same instances for everybody, with the best plans known for them.

A set is two files in `assets/testsets/`: `NAME.npz` holds the instances as float64 arrays (batch
last, the fields of `Instance`) and never changes; `NAME.json` holds their checksum and, of each
instance, the best plan that anything has found, what found it, how often, and what is proven. A
better plan replaces the known one before any gap is computed.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import math
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from offload_jax.files.checks import TestSetError
from offload_jax.files.disk import PACKAGE, replace_file
from offload_jax.plans.candidates import feasible_gain
from offload_jax.plans.outcome import objective_denied
from offload_jax.plans.plan import PROVEN, sound
from offload_jax.problem.instance import Instance
from offload_jax.problem.scenario import Scenario, from_settings, sample_many
from offload_jax.splits import NATIVE

FORMAT, VERSION = "offload-jax/testset", 1
FOLDER = PACKAGE / "assets" / "testsets"  # looked up at every call
# Of the shipped sets: preset of `scenario`, and number of instances.
SHIPPED = {"edge": ("edge", 512), "edge_large": ("edge_large", 64)}
# Gains this near to each other are the same, as a share: what float32 leaves of a plan's gain.
SAME = 1e-6


@dataclass(frozen=True)
class Best:
    """The best plan known for one instance."""

    objective: float  # U, s
    gain: float  # U - U_deny, s
    assignment: tuple[int, ...]  # per real user
    method: str  # what found it first
    searches: int = 0  # independent ones that have tried
    reached: int = 0  # of these, how many found a plan as good
    bound: float | None = None  # proven upper bound of the gain, s
    bound_by: str | None = None  # what proved it

    @property
    def limit(self) -> float:
        """The bound, inf where there is none."""
        return math.inf if self.bound is None else self.bound

    @property
    def proof(self) -> str | None:
        """What proves that there is no better plan, if anything does."""
        return self.bound_by if self.limit <= self.gain * (1 + PROVEN) else None


@dataclass(frozen=True)
class TestSet:
    """Instances (float64 on the host, batch last) and what is known of them."""

    __test__ = False

    name: str
    instances: Instance  # NumPy arrays
    best: tuple[Best, ...]
    scenario: Scenario  # what they were drawn from
    seed: int

    @property
    def gains(self) -> np.ndarray:
        """Best known U - U_deny (s) of each instance."""
        return np.array([best.gain for best in self.best])

    @property
    def bounds(self) -> np.ndarray:
        """Proven upper bounds of the same; inf where there is none."""
        return np.array([best.limit for best in self.best])

    def on_device(self) -> Instance:
        """The instances in JAX's default float type."""
        floating = jnp.zeros(()).dtype

        def put(x: np.ndarray) -> jax.Array:
            return jnp.asarray(x, floating if x.dtype == np.float64 else x.dtype)

        return jax.tree.map(put, self.instances)

    def assignments(self) -> np.ndarray:
        """The best known assignments (users, instances), padded users denied."""
        mask = np.asarray(self.instances.mask)
        padded = np.zeros(mask.shape, np.int32)
        for i, best in enumerate(self.best):
            padded[mask[:, i], i] = best.assignment
        return padded


def create(scenario: Scenario, name: str, count: int, seed: int = 2411_15781) -> TestSet:
    """A new set of instances drawn in float64; the best plan known denies everybody."""
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(seed % 2**32), count)
        drawn = jax.device_get(jax.jit(partial(sample_many, scenario))(keys))
    mask = np.asarray(drawn.mask)
    denied = _denied(drawn)
    nobody = [(0,) * int(n) for n in mask.sum(axis=0)]
    best = [Best(float(u), 0.0, a, "deny") for u, a in zip(denied, nobody, strict=True)]
    return TestSet(name, drawn, tuple(best), scenario, seed)


def improved(testset: TestSet, found: Mapping[str, ArrayLike]) -> tuple[TestSet, int]:
    """The set with better plans taken over from what methods found, and how many were better.

    `found` maps a method's name to assignments (users, instances). Valued in float64; plans that
    break a capacity or a budget are never taken. Bounds below a plan's gain are dropped (`sound`).
    """
    gains = {name: values_of(testset, plans) for name, plans in found.items()}
    denied, mask = _denied(testset.instances), np.asarray(testset.instances.mask)
    best, count = list(testset.best), 0
    for i, known in enumerate(testset.best):
        for name, values in gains.items():
            if values[i] > best[i].gain * (1 + SAME) + 1e-12:
                plan = tuple(int(a) for a in np.asarray(found[name])[mask[:, i], i])
                gain, objective = float(values[i]), float(denied[i] + values[i])
                best[i] = replace(best[i], gain=gain, objective=objective, assignment=plan,
                                  method=name, reached=0)  # fmt: skip
        count += best[i] is not known
    new = replace(testset, best=tuple(best))
    limits = sound(new.bounds, new.gains, f"of test set {testset.name}")
    best = [
        replace(one, bound=None, bound_by=None) if limit > one.limit else one
        for one, limit in zip(best, limits, strict=True)
    ]
    return replace(testset, best=tuple(best)), count


def searched(testset: TestSet, assignment: ArrayLike) -> TestSet:
    """The set with one more independent search on record: where it reached the best known gains."""
    best = []
    for known, gain in zip(testset.best, values_of(testset, assignment), strict=True):
        reached = known.reached + bool(gain >= known.gain * (1 - SAME))
        best.append(replace(known, searches=known.searches + 1, reached=reached))
    return replace(testset, best=tuple(best))


def bounded(testset: TestSet, bounds: np.ndarray, method: str) -> TestSet:
    """The set with upper bounds (s) of the gains by a method, where they are better than known.

    Bounds below the gain of a known plan are left out (`sound`).
    """
    bounds = sound(bounds, testset.gains, f"by {method}")
    best = [
        replace(known, bound=max(float(bound), known.gain), bound_by=method)
        if bound < known.limit
        else known
        for known, bound in zip(testset.best, bounds, strict=True)
    ]
    return replace(testset, best=tuple(best))


def values_of(testset: TestSet, assignment: ArrayLike) -> np.ndarray:
    """U - U_deny (s) in float64; minus infinity where a batch is over capacity."""
    with jax.enable_x64(True):
        return np.asarray(_values(testset.instances, np.asarray(assignment, np.int32)))


_values = jax.jit(feasible_gain)
_objective_denied = jax.jit(objective_denied, static_argnums=1)


def _denied(instances: Instance) -> np.ndarray:
    with jax.enable_x64(True):
        return np.asarray(_objective_denied(instances, NATIVE))


# ---- files


def load(name: str, folder: Path | None = None) -> TestSet:
    """A set by name, of `FOLDER` unless said otherwise.

    Raises TestSetError where it is missing or damaged.
    """
    folder = FOLDER if folder is None else folder
    try:
        document = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        content = io.BytesIO((folder / f"{name}.npz").read_bytes())
        with np.load(content) as arrays:
            instances = Instance(**{f.name: arrays[f.name] for f in fields(Instance)})
        about = document.get("format"), document.get("version")
        if about != (FORMAT, VERSION):
            raise TestSetError(
                f"testset {name!r} has format {about[0]!r}, version {about[1]!r}; must be "
                f"{FORMAT!r}, {VERSION}"
            )
        if document["checksum"] != checksum(instances):
            raise TestSetError(
                f"testset {name!r} is damaged: its instances are not those of its checksum; "
                "install it again"
            )
        best = [Best(**{**b, "assignment": tuple(b["assignment"])}) for b in document["best"]]
        scenario = from_settings(document["scenario"])
        return TestSet(name, instances, tuple(best), scenario, document["seed"])
    except FileNotFoundError:
        there = sorted(path.stem for path in folder.glob("*.npz"))
        raise TestSetError(
            f"testset is {name!r}; must be one of {', '.join(there) or 'none are there'}"
        ) from None
    except TestSetError:
        raise
    except _UNREADABLE as error:
        reason = f"{type(error).__name__}: {error}"
        raise TestSetError(
            f"testset {name!r} cannot be read ({reason}); install it again"
        ) from None


# What a file may be that is no test set: torn, of another kind, or with other fields.
_UNREADABLE = (OSError, EOFError, ValueError, LookupError, TypeError, AttributeError,
               zipfile.BadZipFile, zlib.error)  # fmt: skip


def save(testset: TestSet, folder: Path | None = None) -> TestSet:
    """Writes what is known of a set, and its instances where they are not there yet.

    Returns it with what others have found and written meanwhile: nothing is ever overwritten by
    something worse. Each file is replaced as a whole. Raises TestSetError where the folder holds
    other instances under that name.
    """
    folder = FOLDER if folder is None else folder
    folder.mkdir(parents=True, exist_ok=True)
    arrays, known = folder / f"{testset.name}.npz", folder / f"{testset.name}.json"
    if not arrays.exists():
        content = io.BytesIO()
        np.savez_compressed(content, **vars(testset.instances))
        replace_file(arrays, content.getvalue())
    with arrays.open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until it is closed
        if known.exists():
            testset = _merged(testset, load(testset.name, folder))
        document = {
            "format": FORMAT,
            "version": VERSION,
            "name": testset.name,
            "scenario": asdict(testset.scenario),
            "seed": testset.seed,
            "checksum": checksum(testset.instances),
            "best": [asdict(best) for best in testset.best],
        }
        lines = json.dumps(document)
        lines = lines.replace('{"objective"', '\n{"objective"')  # a line per instance: small diffs
        replace_file(known, lines + "\n")
    return testset


def _merged(mine: TestSet, theirs: TestSet) -> TestSet:
    """The better plan, the longer record and the lower bound of each instance."""
    if checksum(mine.instances) != checksum(theirs.instances):
        raise TestSetError(f"testset {mine.name!r} is there with other instances; must be removed")
    best = []
    for one, other in zip(mine.best, theirs.best, strict=True):
        # Of plans as good, the one with the longer record.
        ranks = [
            (b.gain > min(one.gain, other.gain) * (1 + SAME), b.searches) for b in (one, other)
        ]
        plan, rest = (one, other) if ranks[0] >= ranks[1] else (other, one)
        if rest.limit < plan.limit:
            plan = replace(plan, bound=max(rest.limit, plan.gain), bound_by=rest.bound_by)
        best.append(plan)
    return replace(mine, best=tuple(best))


def checksum(instances: Instance) -> str:
    """SHA-256 of all numbers, field by field."""
    digest = hashlib.sha256()
    for field in fields(Instance):
        value = np.ascontiguousarray(getattr(instances, field.name))
        digest.update(f"{field.name} {value.dtype.str} {value.shape}\n".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()
