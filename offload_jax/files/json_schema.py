"""JSON Schemas of documents, from the same tables that read and check them.

What a schema cannot say (a limit that is another field's value, equal lengths along an axis) is in
each field's description, and checked by `documents.Reader` all the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from offload_jax.files.documents import Header
from offload_jax.files.fields import INTEGER, NUMBER, TEXT, At, Part, layout

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_LIMITS = {
    ">": "exclusiveMinimum",
    ">=": "minimum",
    "<": "exclusiveMaximum",
    "<=": "maximum",
}
_TYPES = {id(NUMBER): "number", id(INTEGER): "integer", id(TEXT): "string"}


def json_schema(header: Header, fields: Sequence[At], sizes: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of one document; `sizes` has an axis's length, or (least, most), by its letter."""
    schema = _object(layout(fields), sizes)
    schema["properties"] = {
        **{key: {"const": value} for key, value in header.items()},
        **schema["properties"],
    }
    return {**schema, "required": [*header, *schema["required"]]}


def _schema(part: Part, sizes: Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(part, At):
        return _value(part)
    token = next(iter(part))
    if not token.startswith("["):
        return _object(part, sizes)
    size = sizes.get(token[1:-1], (1, None))
    least, most = size if isinstance(size, tuple) else (size, size)
    limits = {"minItems": least} | ({} if most is None else {"maxItems": most})
    return {"type": "array", "items": _schema(part[token], sizes), **limits}


def _object(parts: Mapping[str, Part], sizes: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {key.removesuffix("?"): _schema(p, sizes) for key, p in parts.items()},
        "required": [key for key in parts if not key.endswith("?")],
        "additionalProperties": False,
    }


def _value(at: At) -> dict[str, Any]:
    kind = _TYPES[id(at.kind)]
    found: dict[str, Any] = {"type": [kind, "null"] if at.null else kind}
    for sign, name in at.rules:
        if name.isdigit():
            found[_LIMITS[sign]] = int(name)
    return {**found, "description": at.allowed()}
