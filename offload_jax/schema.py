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

Each attribute of the records carries its place in the file, its unit and its domain (`At`). That
one table drives reading, writing, validation and the texts of the errors; arrays are validated by
writing and reading them back. Whatever is wrong is a `SchemaError` that names the place.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import math
import operator
import os
import re
import sys
import uuid
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeAlias, TypeVar, get_type_hints

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]
PathLike: TypeAlias = str | os.PathLike[str]
R = TypeVar("R")


class SchemaError(ValueError):
    """`<path>: <what is wrong>; <what is allowed>`; `path` is the place, file name included."""

    def __init__(self, path: str, wrong: str, allowed: str) -> None:
        super().__init__(path, wrong, allowed)  # all three, so that it pickles
        self.path = path

    def __str__(self) -> str:
        return "{}: {}; {}".format(*self.args)


# ---- the table: where a value stands and what it may be


class Kind(NamedTuple):
    """A type of value: in words, in JSON, in an array."""

    words: str
    accepts: Callable[[Any], bool]
    dtype: type


# Types are compared exactly, as bool is an int and 1 == 1.0 == True. Python compares int and float
# without rounding, so 10**400 is above the largest float; beyond 2**53 other readers round ints.
NUMBER = Kind(
    "a finite number",
    lambda value: type(value) in (int, float) and abs(value) <= sys.float_info.max,
    np.float64,
)
INTEGER = Kind("an integer", lambda value: type(value) is int and abs(value) <= 2**53, np.int64)
TEXT = Kind("a string", lambda value: type(value) is str, object)


@dataclass(frozen=True)
class At:
    """Where an attribute stands in the file, and what it may be.

    In `place`, `[N]` stands for the index of a user (M batch, G server) and `?` marks a key that
    may be left out. `domain` compares with 0, 1, a size N M G, or an attribute above it in the
    table, as in "> 0 and < steps". `null` says what null means, where it is allowed.
    """

    place: str
    unit: str = "-"
    domain: str = ""
    kind: Kind = NUMBER
    null: str = ""
    attr: str = ""

    @property
    def axes(self) -> list[str]:
        return re.findall(r"\[(\w)\]", self.place)

    def allowed(self, rule: str = "") -> str:
        unit = "" if self.unit == "-" else f" ({self.unit})"
        null = f", or null for {self.null}" if self.null else ""
        return f"must be {rule or f'{self.kind.words} {self.domain}'.rstrip()}{unit}{null}"


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


def _fields(record: type) -> list[At]:
    hints = get_type_hints(record, include_extras=True)
    return [replace(hint.__metadata__[0], attr=a) for a, hint in hints.items() if a != "optimum"]


INSTANCE_FORMAT, PLAN_FORMAT, VERSION = "offload-jax/instance", "offload-jax/plan", 1
INSTANCE, PLAN = _fields(InstanceRecord), _fields(Plan)
OPTIMUM = [
    replace(at, place=f"optimum?.{at.place}", attr=f"optimum.{at.attr}")
    for at in _fields(OptimumRecord)
]


# ---- JSON text


@dataclass(frozen=True)
class _Flaw:
    """Stands where an object should have had a value: no kind accepts it."""

    text: str


MISSING, REPEATED = _Flaw("missing"), _Flaw("a repeated key")


def _shown(value: object) -> str:
    """A value in an error: one short line, whatever the value is."""
    if isinstance(value, _Flaw):
        return value.text
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "an array"
    if isinstance(value, int) and abs(value) > 2**63:  # Python refuses to print very long ones
        return f"an integer of {value.bit_length()} bits"
    return json.dumps(value, default=lambda other: type(other).__name__)[:60]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    for key, value in pairs:
        seen[key] = REPEATED if key in seen else value
    return seen


def _loads(text_or_obj: object, source: str) -> Any:
    """Loads JSON text. NaN and 1e400 are loaded as floats, so that their place refuses them."""
    if not isinstance(text_or_obj, str | bytes):
        return text_or_obj
    try:
        text = text_or_obj.decode() if isinstance(text_or_obj, bytes) else text_or_obj
        # 400 digits are too large as well, and int() raises beyond 4300
        return json.loads(text, object_pairs_hook=_unique, parse_int=lambda d: int(d[:400]))
    except UnicodeDecodeError as error:
        before = error.object[: error.start]
        column = error.start - before.rfind(b"\n")
        wrong = f"is not UTF-8 at line {before.count(10) + 1} column {column}"
    except json.JSONDecodeError as error:
        wrong = f"is not JSON at line {error.lineno} column {error.colno} ({error.msg})"
    except RecursionError:
        wrong = "is nested too deeply at line 1 column 1"
    raise SchemaError(source, wrong, "must be a JSON object or an array of objects, in UTF-8")


def _documents(text_or_obj: object, source: str) -> list[tuple[Any, str]]:
    """(object, path) of each document."""
    loaded = _loads(text_or_obj, source)
    if isinstance(loaded, list):
        return [(item, f"{source}[{i}]") for i, item in enumerate(loaded)]
    return [(loaded, source)]


def _file_documents(path: PathLike) -> list[tuple[Any, str]]:
    source = os.fspath(path)
    try:
        return _documents(Path(path).read_bytes(), source)
    except OSError as error:
        wrong = f"cannot be read at line 1 column 1 ({error.strerror})"
        raise SchemaError(source, wrong, "must be a readable file") from error


def _write_file(path: PathLike, documents: Sequence[dict[str, Any]]) -> None:
    lines = [json.dumps(document, allow_nan=False) for document in documents]
    text = lines[0] if len(lines) == 1 else "[" + ",\n".join(lines) + "]"
    target = os.path.realpath(path)  # of a link, its file is replaced
    temporary = f"{target}.{uuid.uuid4().hex}.tmp"  # same directory, so that replacing is atomic
    try:
        with open(temporary, "x", encoding="utf-8") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())  # or a power cut could leave the new name with no content
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


# ---- one document and its record

Part: TypeAlias = "At | Layout"
Layout: TypeAlias = "dict[str, Part]"  # an object by key, or an array as {"[N]": what it holds}
OPERATORS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}


def _layout(fields: Sequence[At]) -> Layout:
    root: dict[str, Any] = {}
    for at in fields:
        *parents, last = re.findall(r"\[\w\]|[^.\[]+", at.place)
        node = root
        for token in parents:
            node = node.setdefault(token, {})
        node[last] = at
    return root


def _constant(key: str, value: str | int) -> At:
    def accepts(found: object) -> bool:
        return type(found) is type(value) and found == value

    return At(key, kind=Kind(json.dumps(value), accepts, object), attr=key)


def _refuse_unknown(keys: Collection[str], known: Collection[str], path: str) -> None:
    for key in (key for key in keys if key not in known):
        near = difflib.get_close_matches(str(key)[:99], known, n=1, cutoff=0.0)[0]
        wrong = f"has the unknown key {_shown(key)}, nearest to {near!r}"
        raise SchemaError(path, wrong, f"must have no keys but {', '.join(known)}")


class _Reader:
    """Reads and checks one document, depth first in the order of the table.

    `known` is what domains compare with: sizes, and the latest value of each attribute. `found` has
    all values of each attribute.
    """

    def __init__(self, value: Any, form: str, fields: list[At], path: str, **known: Any) -> None:
        self.known = {"0": 0, "1": 1, **known}
        self.found: dict[str, list[Any]] = {}
        # The header comes first: of another version, nothing else is worth saying.
        header = [_constant("format", form), _constant("version", VERSION)]
        self.read(_layout(header + fields), value, path)

    def read(self, part: Part, value: Any, path: str) -> None:
        if isinstance(part, At):
            self.read_value(part, value, path)
            return
        token = next(iter(part))
        kind, words = (list, "an array") if token.startswith("[") else (dict, "an object")
        if not isinstance(value, kind):
            raise SchemaError(path, f"is {_shown(value)}", f"must be {words}")
        if isinstance(value, list):
            self.read_array(token[1:-1], part[token], value, path)
        else:
            self.read_object(part, value, path)

    def read_array(self, axis: str, part: Part, value: list[Any], path: str) -> None:
        size = self.known.setdefault(axis, len(value))  # the first array along an axis sets it
        if not value or len(value) != size:
            allowed = f"must be {axis} = {size}" if size else "must be at least 1"
            raise SchemaError(path, f"has length {len(value)}", allowed)
        for i, item in enumerate(value):
            self.read(part, item, f"{path}[{i}]")

    def read_object(self, layout: Layout, value: dict[str, Any], path: str) -> None:
        tokens = {token.removesuffix("?"): token for token in layout}
        for key, token in tokens.items():
            part, optional = layout[token], token != key
            if key not in value:  # most often misspelt: say that first
                _refuse_unknown(value, tokens, path)
            if key in value or not optional or isinstance(part, At):
                self.read(part, value.get(key, None if optional else MISSING), f"{path}.{key}")
        _refuse_unknown(value, tokens, path)

    def read_value(self, at: At, value: Any, path: str) -> None:
        if value is not None or not at.null:
            value = self.checked(at, value, path)
        self.known[at.attr] = value
        self.found.setdefault(at.attr, []).append(value)

    def checked(self, at: At, value: Any, path: str) -> Any:
        if not at.kind.accepts(value):
            raise SchemaError(path, f"is {_shown(value)}", at.allowed())
        value = float(value) if at.kind is NUMBER else value
        for rule in at.domain.split(" and ") if at.domain else ():
            sign, name = rule.split()
            limit = self.known.get(name)  # None: M and steps, for a plan without its instance
            if limit is not None and not OPERATORS[sign](value, limit):
                shown = rule if name.isdigit() else f"{rule} = {limit:.9g}"
                wrong = f"is {_shown(value)}".removesuffix(".0")
                raise SchemaError(path, wrong, at.allowed(shown))
        return value

    def build(self, record: type[R], fields: Sequence[At]) -> R:
        return record(**{at.attr.split(".")[-1]: self.collected(at) for at in fields})

    def collected(self, at: At) -> Any:
        values = self.found[at.attr]
        if not at.axes:
            return values[0]
        if at.kind is TEXT:
            return tuple(values)
        unlimited = [math.inf if value is None else value for value in values]
        return np.array(unlimited, at.kind.dtype).reshape([self.known[axis] for axis in at.axes])


def _to_json(record: object, form: str, fields: Sequence[At], path: str) -> dict[str, Any]:
    """The record as JSON holds it; only shapes are checked."""
    values: dict[str, Any] = {}
    for at in fields:
        array = np.array(operator.attrgetter(at.attr)(record), dtype=object)
        sizes = [values.setdefault(axis, n) for axis, n in zip(at.axes, array.shape, strict=False)]
        if len(sizes) != len(at.axes) or tuple(sizes) != array.shape:
            allowed = (
                "must be (" + ", ".join(f"{a} = {values.get(a, 'any')}" for a in at.axes) + ")"
            )
            raise SchemaError(f"{path}.{at.attr}", f"has shape {array.shape}", allowed)
        values[at.attr] = array
    return {"format": form, "version": VERSION, **_written(_layout(fields), values, ())}


def _written(part: Part, values: dict[str, Any], index: tuple[int, ...]) -> Any:
    if isinstance(part, At):
        value = values[part.attr][index]
        value = value.item() if isinstance(value, np.generic) else value
        return None if part.null and value == math.inf else value
    token = next(iter(part))
    if token.startswith("["):
        return [_written(part[token], values, (*index, i)) for i in range(values[token[1:-1]])]
    members = {key: _written(child, values, index) for key, child in part.items()}
    return {k.removesuffix("?"): v for k, v in members.items() if v is not None or k[-1] != "?"}


# ---- instances


def parse_instances(text_or_obj: object, source: str = "<memory>") -> list[InstanceRecord]:
    """Instances from JSON text (str or bytes) or loaded JSON: an object, or an array of any length.

    `source` begins the path of every error. Raises `SchemaError`.
    """
    return [_instance(value, path) for value, path in _documents(text_or_obj, source)]


def _instance(value: Any, path: str) -> InstanceRecord:
    reader = _Reader(value, INSTANCE_FORMAT, INSTANCE + OPTIMUM, path)
    record = reader.build(InstanceRecord, INSTANCE)
    for k, own in enumerate(np.diag(record.interference)):
        if own == 0:  # then steps would cost a server nothing, and its budget would mean nothing
            place = f"{path}.interference[{k}][{k}]"
            raise SchemaError(place, "is 0", "must be > 0 on the diagonal (s/image)")
    if OPTIMUM[0].attr not in reader.found:
        return record
    return replace(record, optimum=reader.build(OptimumRecord, OPTIMUM))


def read_instances(path: PathLike) -> list[InstanceRecord]:
    """Instances of a file, see `parse_instances`. Raises `SchemaError`, also if unreadable."""
    return [_instance(value, place) for value, place in _file_documents(path)]


def instance_to_json(record: InstanceRecord, path: str = "instance") -> dict[str, Any]:
    """The instance as an object for `json.dumps`, float64 exactly. Raises `SchemaError`."""
    fields = INSTANCE + OPTIMUM if record.optimum else INSTANCE
    value = _to_json(record, INSTANCE_FORMAT, fields, path)
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
    _write_file(path, [instance_to_json(r, f"records[{i}]") for i, r in enumerate(records)])


# ---- plans


def parse_plan(text_or_obj: object, source: str = "<memory>") -> Plan:
    """One plan from JSON text (str or bytes) or a loaded object. Raises `SchemaError`."""
    return _plan(_loads(text_or_obj, source), source)


def _plan(value: Any, path: str, **known: Any) -> Plan:
    return _Reader(value, PLAN_FORMAT, PLAN, path, **known).build(Plan, PLAN)


def read_plans(path: PathLike) -> list[Plan]:
    """Plans of a file: one object, or an array of any length. Raises `SchemaError`."""
    return [_plan(value, place) for value, place in _file_documents(path)]


def plan_to_json(plan: Plan, path: str = "plan") -> dict[str, Any]:
    """The plan as an object for `json.dumps`, float64 exactly. Raises `SchemaError`."""
    value = _to_json(plan, PLAN_FORMAT, PLAN, path)
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
    _write_file(path, [plan_to_json(plan, f"plans[{i}]") for i, plan in enumerate(plans)])
