"""Instance and plan files: what they hold, how they are read, checked and written.

NumPy and the standard library only, so that a deployment reads the same files without JAX.

An **instance** is one window of the offloading problem (arXiv 2411.15781, extended to M batches
on G servers): N users, each with an own diffusion model, may run the first denoising steps of a
request on a shared model in one of M batches and the last `split` steps on their device. As JSON:

    {"format": "offload-jax/instance", "version": 1, "name": text, "steps", "bandwidth",
     "servers": [{"budget": number, or null: no limit}, ... G],
     "batches": [{"server", "intercept", "capacity", "model": text, optional}, ... M],
     "interference": M rows of M numbers,
     "users": [{"local_step", "alpha", "wait", "demand", "payload", "spectral_efficiency",
                "split_min", "accuracy_local", "accuracy": [{"floor", "slope", "centre"}, ... M]},
               ... N],
     "optimum": {"objective", "deny_all", "assignment", "split", "method"}, optional}

A **plan** is the answer for one instance: the attributes of `Plan` as keys, beside
`"format": "offload-jax/plan", "version": 1`. A file holds one object or an array of them.

Each attribute of the records carries its place in the file, its unit and its domain; the rest
follows from that table (fields.py, documents.py). Arrays are validated by writing and reading them
back. Whatever is wrong is a `SchemaError` that names the place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from offload_jax.files import documents
from offload_jax.files.checks import SchemaError as SchemaError  # the name callers know it by
from offload_jax.files.disk import PathLike
from offload_jax.files.fields import INTEGER, TEXT, At, table

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]

CHOICE = "batch from 1, 0 to deny"  # what an assignment counts


# Records compare by identity (eq=False): == on arrays has no single answer.
@dataclass(frozen=True, eq=False)
class OptimumRecord:
    """Known optimum of an instance (real-valued splits); objective with all users denied."""

    objective: Annotated[float, At("objective", "s")]
    deny_all: Annotated[float, At("deny_all", "s")]
    assignment: Annotated[Ints, At("assignment[N]", CHOICE, ">= 0 and <= M", INTEGER)]
    split: Annotated[Floats, At("split[N]", "steps", ">= 0 and <= steps")]
    method: Annotated[str, At("method", kind=TEXT)]


@dataclass(frozen=True, eq=False)
class InstanceRecord:
    """One instance. Shapes: (N,) users, (M,) batches, (G,) servers, as the place's brackets say.

    `local_step` time of a step on the user's device, `alpha` worth of +1 accuracy, `wait` time
    waited when the batch starts, `demand` load on a batch, `payload` prompt up and latent down,
    `split_min` smallest split point; accuracy is `accuracy_local` all local and falls along the
    logistic curve `accuracy_floor/slope/centre` of user i on batch k; a step of batch k takes
    `intercept[k] + sum_l interference[k, l] load[l]`, `capacity` limits its load and `budget` the
    GPU time of a server (inf: no limit); all granted users share `bandwidth`.
    """

    name: Annotated[str, At("name", kind=TEXT)]
    steps: Annotated[float, At("steps", "steps", "> 0")]
    bandwidth: Annotated[float, At("bandwidth", "Hz", "> 0")]
    budget: Annotated[Floats, At("servers[G].budget", "s", ">= 0", null="no limit")]
    server: Annotated[Ints, At("batches[M].server", "server from 0", ">= 0 and < G", INTEGER)]
    intercept: Annotated[Floats, At("batches[M].intercept", "s", ">= 0")]
    capacity: Annotated[Floats, At("batches[M].capacity", "images", ">= 0")]
    model: Annotated[tuple[str | None, ...], At("batches[M].model?", kind=TEXT, null="unnamed")]
    interference: Annotated[Floats, At("interference[M][M]", "s/image", ">= 0")]  # diagonal > 0
    local_step: Annotated[Floats, At("users[N].local_step", "s/step", "> 0")]
    alpha: Annotated[Floats, At("users[N].alpha", "s", ">= 0")]
    wait: Annotated[Floats, At("users[N].wait", "s", ">= 0")]
    demand: Annotated[Floats, At("users[N].demand", "images", "> 0")]
    payload: Annotated[Floats, At("users[N].payload", "bit", ">= 0")]
    spectral_efficiency: Annotated[Floats, At("users[N].spectral_efficiency", "bit/s/Hz", "> 0")]
    split_min: Annotated[Floats, At("users[N].split_min", "steps", ">= 0 and <= steps")]
    accuracy_local: Annotated[Floats, At("users[N].accuracy_local", "-", "> 0 and <= 1")]
    accuracy_floor: Annotated[
        Floats, At("users[N].accuracy[M].floor", "-", ">= 0 and < accuracy_local")
    ]
    accuracy_slope: Annotated[Floats, At("users[N].accuracy[M].slope", "1/step", "> 0")]
    accuracy_centre: Annotated[Floats, At("users[N].accuracy[M].centre", "steps", "< steps")]
    optimum: OptimumRecord | None = None


@dataclass(frozen=True, eq=False)
class Plan:
    """The answer for one instance: the real-valued optimum of the splits, and splits to execute.

    `bound`: proven upper bound of `objective`; `status`: how the search of `seconds` ended.
    """

    assignment: Annotated[Ints, At("assignment[N]", CHOICE, ">= 0 and <= M", INTEGER)]
    split: Annotated[Floats, At("split[N]", "steps", ">= 0 and <= steps")]
    integer_split: Annotated[Ints, At("integer_split[N]", "steps", ">= 0 and <= steps", INTEGER)]
    objective: Annotated[float, At("objective", "s")]
    integer_objective: Annotated[float, At("integer_objective", "s")]
    bound: Annotated[float | None, At("bound", "s", null="none proven")]
    status: Annotated[str, At("status", kind=TEXT)]
    seconds: Annotated[float, At("seconds", "s", ">= 0")]
    method: Annotated[str, At("method", kind=TEXT)]


INSTANCE_FORMAT, PLAN_FORMAT, VERSION = "offload-jax/instance", "offload-jax/plan", 1
INSTANCE_HEADER = {"format": INSTANCE_FORMAT, "version": VERSION}
PLAN_HEADER = {"format": PLAN_FORMAT, "version": VERSION}
INSTANCE, PLAN = table(InstanceRecord), table(Plan)
OPTIMUM = [
    replace(at, place=f"optimum?.{at.place}", attr=f"optimum.{at.attr}")
    for at in table(OptimumRecord)
]


# ---- instances


def parse_instances(text_or_obj: object, source: str = "<memory>") -> list[InstanceRecord]:
    """Instances from JSON text (str or bytes) or loaded JSON: an object, or an array of any length.

    `source` begins the path of every error. Raises `SchemaError`.
    """
    return [_instance(value, path) for value, path in documents.parse(text_or_obj, source)]


def _instance(value: Any, path: str) -> InstanceRecord:
    reader = documents.Reader(value, INSTANCE_HEADER, INSTANCE + OPTIMUM, path)
    record = reader.build(InstanceRecord, INSTANCE)
    if record.steps % 1:  # then no whole split is the all-local one
        raise SchemaError(f"{path}.steps", f"is {record.steps:g}", "must be a whole number (steps)")
    for k, own in enumerate(np.diag(record.interference)):
        if own == 0:  # then steps would cost a server nothing, and its budget would mean nothing
            place = f"{path}.interference[{k}][{k}]"
            raise SchemaError(place, "is 0", "must be > 0 on the diagonal (s/image)")
    if OPTIMUM[0].attr not in reader.found:
        return record
    return replace(record, optimum=reader.build(OptimumRecord, OPTIMUM))


def read_instances(path: PathLike) -> list[InstanceRecord]:
    """Instances of a file, see `parse_instances`. Raises `SchemaError`, also if unreadable."""
    return [_instance(value, place) for value, place in documents.read(path)]


def instance_to_json(record: InstanceRecord, path: str = "instance") -> dict[str, Any]:
    """The instance as an object for `json.dumps`, float64 exactly. Raises `SchemaError`."""
    fields = INSTANCE + OPTIMUM if record.optimum else INSTANCE
    value = documents.to_json(record, INSTANCE_HEADER, fields, path)
    _instance(value, path)  # what is written can be read
    return value


def validate(record: InstanceRecord, path: str = "instance") -> None:
    """Checks shapes, types and domain of the arrays, the optimum's too. Raises `SchemaError`.

    Every number is finite, but a budget may be inf. An error's path starts with `path` and goes on
    with the place of the value in a file.
    """
    instance_to_json(record, path)


def write_instances(path: PathLike, records: Sequence[InstanceRecord]) -> None:
    """Writes one object, or an array unless there is exactly one record.

    The file is replaced as a whole or, with an `OSError` or `SchemaError`, left as it was.
    """
    documents.write(path, [instance_to_json(r, f"records[{i}]") for i, r in enumerate(records)])


# ---- plans


def parse_plan(text_or_obj: object, source: str = "<memory>") -> Plan:
    """One plan from JSON text (str or bytes) or a loaded object. Raises `SchemaError`."""
    return _plan(documents.load_json(text_or_obj, source), source)


def _plan(value: Any, path: str, **known: Any) -> Plan:
    return documents.Reader(value, PLAN_HEADER, PLAN, path, **known).build(Plan, PLAN)


def read_plans(path: PathLike) -> list[Plan]:
    """Plans of a file: one object, or an array of any length. Raises `SchemaError`."""
    return [_plan(value, place) for value, place in documents.read(path)]


def plan_to_json(plan: Plan, path: str = "plan") -> dict[str, Any]:
    """The plan as an object for `json.dumps`, float64 exactly. Raises `SchemaError`."""
    value = documents.to_json(plan, PLAN_HEADER, PLAN, path)
    _plan(value, path)  # what is written can be read
    return value


def validate_plan(plan: Plan, path: str = "plan", instance: InstanceRecord | None = None) -> None:
    """Checks a plan by itself and, given its instance, against that one's N, M and `steps`.

    Capacities and budgets are not looked at. Raises `SchemaError`.
    """
    value, known = plan_to_json(plan, path), {}
    if instance is not None:
        users, batches = instance.accuracy_floor.shape
        known = {"N": users, "M": batches, "steps": instance.steps}
    _plan(value, path, **known)


def write_plans(path: PathLike, plans: Sequence[Plan]) -> None:
    """Writes plans as `write_instances` writes instances."""
    documents.write(path, [plan_to_json(plan, f"plans[{i}]") for i, plan in enumerate(plans)])
