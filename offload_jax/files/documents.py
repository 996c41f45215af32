"""JSON documents and the records they hold, for any format: one table reads, checks and writes.

The ground of records.py, which says what our own files hold. NumPy and the standard library only.

A record is a dataclass whose attributes carry their place in the document, their unit and their
domain (fields.py). A file holds one document or an array of them; whatever is wrong is a
`SchemaError` with its place.
"""

from __future__ import annotations

import difflib
import json
import math
import operator
import os
from collections.abc import Collection, Sequence
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np

from offload_jax.files.checks import SchemaError
from offload_jax.files.disk import PathLike, replace_file
from offload_jax.files.fields import NUMBER, OPERATORS, TEXT, At, Kind, Layout, Part, layout

Header: TypeAlias = dict[str, Any]  # the constants that tell a document's format and version
R = TypeVar("R")


@cache
def _whole(header: tuple[tuple[str, Any], ...], fields: tuple[At, ...]) -> Layout:
    """The layout of a document, its header first."""
    return layout([*(_constant(*pair) for pair in header), *fields])


def _constant(key: str, value: str | int) -> At:
    kind = Kind(json.dumps(value), lambda v: type(v) is type(value) and v == value)
    return At(key, kind=kind, attr=key)


class _Flaw(Enum):
    """Stands where an object should have had a value: no kind accepts it."""

    MISSING = "missing"
    REPEATED = "a repeated key"


def _shown(value: object) -> str:
    """A value in an error: one short line, whatever the value is."""
    if isinstance(value, _Flaw):
        return value.value
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "an array"
    if isinstance(value, int) and abs(value) > 2**63:  # Python refuses to print very long ones
        return f"an integer of {value.bit_length()} bits"
    return json.dumps(value, default=lambda other: type(other).__name__)[:60]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    for key, value in pairs:
        seen[key] = _Flaw.REPEATED if key in seen else value
    return seen


def load_json(text_or_obj: object, source: str) -> Any:
    """Loads JSON text (str or bytes); anything else is taken as loaded already.

    NaN and 1e400 are loaded as floats, so that their place refuses them. Raises `SchemaError` with
    line and column of what is not JSON, `source` its path.
    """
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


def parse(text_or_obj: object, source: str) -> list[tuple[Any, str]]:
    """(document, path) of each document in JSON, as `load_json` takes it. Raises `SchemaError`."""
    loaded = load_json(text_or_obj, source)
    if isinstance(loaded, list):
        return [(item, f"{source}[{i}]") for i, item in enumerate(loaded)]
    return [(loaded, source)]


def read(path: PathLike) -> list[tuple[Any, str]]:
    """(document, path) of each document of a file. Raises `SchemaError`, also if unreadable."""
    source = os.fspath(path)
    try:
        return parse(Path(path).read_bytes(), source)
    except OSError as error:
        wrong = f"cannot be read at line 1 column 1 ({error.strerror})"
        raise SchemaError(source, wrong, "must be a readable file") from error


def write(path: PathLike, documents: Sequence[dict[str, Any]]) -> None:
    """Writes one object, or an array unless there is exactly one document.

    The file is replaced as a whole or, with an `OSError`, left as it was.
    """
    lines = [json.dumps(document, allow_nan=False) for document in documents]
    text = lines[0] if len(lines) == 1 else "[" + ",\n".join(lines) + "]"
    replace_file(path, text + "\n")


class Reader:
    """Reads and checks one document, depth first in the order of the table; raises `SchemaError`.

    `known` is what domains compare with: sizes, and the latest value of each attribute; what nobody
    told limits nothing. `found` has all values of each attribute.
    """

    def __init__(
        self, value: Any, header: Header, fields: Sequence[At], path: str, **known: Any
    ) -> None:
        self.known = {"0": 0, "1": 1, **known}
        self.found: dict[str, list[Any]] = {}
        # The header comes first: of another version, nothing else is worth saying.
        self._read(_whole(tuple(header.items()), tuple(fields)), value, path)

    def build(self, record: type[R], fields: Sequence[At]) -> R:
        """The record of these fields. Arrays have one axis per bracket of their place."""
        return record(**{at.attr.split(".")[-1]: self._collected(at) for at in fields})

    def _collected(self, at: At) -> Any:
        values = self.found[at.attr]
        if not at.axes:
            return values[0]
        if at.kind is TEXT:
            return tuple(values)
        unlimited = [math.inf if value is None else value for value in values]
        return np.array(unlimited).reshape([self.known[axis] for axis in at.axes])

    def _read(self, part: Part, value: Any, path: str) -> None:
        if isinstance(part, At):
            self._read_value(part, value, path)
        elif part.axis:
            self._read_array(part.axis, part[f"[{part.axis}]"], value, path)
        else:
            self._read_object(part, value, path)

    def _read_array(self, axis: str, part: Part, value: Any, path: str) -> None:
        if not isinstance(value, list):
            raise SchemaError(path, f"is {_shown(value)}", "must be an array")
        size = self.known.setdefault(axis, len(value))  # the first array along an axis sets it
        if not value or len(value) != size:
            allowed = f"must be {axis} = {size}" if size else "must be at least 1"
            raise SchemaError(path, f"has length {len(value)}", allowed)
        for i, item in enumerate(value):
            self._read(part, item, f"{path}[{i}]")

    def _read_object(self, parts: Layout, value: Any, path: str) -> None:
        if not isinstance(value, dict):
            raise SchemaError(path, f"is {_shown(value)}", "must be an object")
        for key, (part, optional) in parts.members.items():
            if key not in value:  # most often misspelt: say that first
                _refuse_unknown(value, parts.members, path)
            if key in value or not optional or isinstance(part, At):
                default = None if optional else _Flaw.MISSING
                self._read(part, value.get(key, default), f"{path}.{key}")
        _refuse_unknown(value, parts.members, path)

    def _read_value(self, at: At, value: Any, path: str) -> None:
        if value is not None or not at.null:
            if not at.kind.accepts(value):
                raise SchemaError(path, f"is {_shown(value)}", at.allowed())
            value = float(value) if at.kind is NUMBER else value
            self._check_domain(at, value, path)
        self.known[at.attr] = value
        self.found.setdefault(at.attr, []).append(value)

    def _check_domain(self, at: At, value: Any, path: str) -> None:
        for sign, name in at.rules:
            limit = self.known.get(name)
            if limit is not None and not OPERATORS[sign](value, limit):
                rule = f"{sign} {name}" if name.isdigit() else f"{sign} {name} = {limit:.9g}"
                raise SchemaError(path, f"is {_shown(value)}".removesuffix(".0"), at.allowed(rule))


def _refuse_unknown(keys: Collection[str], known: Collection[str], path: str) -> None:
    for key in (key for key in keys if key not in known):
        near = difflib.get_close_matches(str(key)[:99], known, n=1, cutoff=0.0)[0]
        wrong = f"has the unknown key {_shown(key)}, nearest to {near!r}"
        raise SchemaError(path, wrong, f"must have no keys but {', '.join(known)}")


def to_json(record: object, header: Header, fields: Sequence[At], path: str) -> dict[str, Any]:
    """The record as an object for `json.dumps`, `header` first. Raises `SchemaError` for shapes."""
    values: dict[str, Any] = {}  # by attribute, and the sizes by axis
    for at in fields:
        array = np.array(operator.attrgetter(at.attr)(record), dtype=object)
        values = dict(zip(at.axes, array.shape, strict=False)) | values
        if array.shape != tuple(values.get(axis) for axis in at.axes):
            sizes = ", ".join(f"{axis} = {values.get(axis, 'any')}" for axis in at.axes)
            raise SchemaError(f"{path}.{at.attr}", f"has shape {array.shape}", f"must be ({sizes})")
        values[at.attr] = array
    return {**header, **_written(layout(fields), values, ())}


def _written(part: Part, values: dict[str, Any], index: tuple[int, ...]) -> Any:
    if isinstance(part, At):
        value = values[part.attr][index]
        value = value.item() if isinstance(value, np.generic) else value
        return None if part.null and value == math.inf else value
    if axis := part.axis:
        child = part[f"[{axis}]"]
        return [_written(child, values, (*index, i)) for i in range(values[axis])]
    members = {key: _written(child, values, index) for key, child in part.items()}
    return {k.removesuffix("?"): v for k, v in members.items() if v is not None or k[-1] != "?"}
