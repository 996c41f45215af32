"""Where the attributes of a record stand in a JSON document, and what they may be.

One table of `At`, taken from a dataclass's annotations, drives reading, writing, validation and the
texts of errors (documents.py), and JSON Schemas (json_schema.py). The standard library only.
"""

from __future__ import annotations

import operator
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias, get_type_hints


class Kind(NamedTuple):
    """A type of value: in words, and as a test of what JSON was loaded as."""

    words: str
    accepts: Callable[[Any], bool]


# Types are compared exactly, as bool is an int and 1 == 1.0 == True. Python compares int and float
# without rounding, so 10**400 is above the largest float; beyond 2**53 other readers round ints.
NUMBER = Kind("a finite number", lambda v: type(v) in (int, float) and abs(v) <= sys.float_info.max)
INTEGER = Kind("an integer", lambda v: type(v) is int and abs(v) <= 2**53)
TEXT = Kind("a string", lambda v: type(v) is str)
OPERATORS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}


@dataclass(frozen=True)
class At:
    """Where an attribute stands in the document, and what it may be.

    In `place`, `[N]` stands for the index along an axis N, and `?` marks a key that may be left
    out. `domain` compares with 0, 1, the size of an axis, or an attribute above it in the table,
    as in "> 0 and < steps". `null` says what null means, where it is allowed.
    """

    place: str
    unit: str = "-"
    domain: str = ""
    kind: Kind = NUMBER
    null: str = ""
    attr: str = ""

    @cached_property
    def axes(self) -> list[str]:
        return re.findall(r"\[(\w)\]", self.place)

    @cached_property
    def rules(self) -> list[tuple[str, str]]:
        """The comparisons of `domain`: sign, and what with."""
        return re.findall(r"([<>]=?) (\w+)", self.domain)

    def allowed(self, rule: str = "") -> str:
        unit = "" if self.unit == "-" else f" ({self.unit})"
        null = f", or null for {self.null}" if self.null else ""
        return f"must be {rule or f'{self.kind.words} {self.domain}'.rstrip()}{unit}{null}"


def table(record: type) -> list[At]:
    """The `At` of each attribute that is annotated with one, in order."""
    hints = get_type_hints(record, include_extras=True)
    marks = {attr: getattr(hint, "__metadata__", ()) for attr, hint in hints.items()}
    return [replace(mark, attr=attr) for attr, found in marks.items() for mark in found]


class Layout(dict[str, Any]):
    """Parts of an object by key, or of an array as {"[N]": part}; not changed once built."""

    @cached_property
    def members(self) -> dict[str, tuple[Part, bool]]:
        """What an object holds by key, and whether it may be left out."""
        return {token.removesuffix("?"): (self[token], token[-1] == "?") for token in self}

    @cached_property
    def axis(self) -> str:
        """Of an array; empty for an object."""
        token = next(iter(self))
        return token[1:-1] if token[0] == "[" else ""


Part: TypeAlias = At | Layout


def layout(fields: Sequence[At]) -> Layout:
    """The document that holds these attributes."""
    root = Layout()
    for at in fields:
        *parents, last = re.findall(r"\[\w\]|[^.\[]+", at.place)
        node: Any = root
        for token in parents:
            node = node.setdefault(token, Layout())
        node[last] = at
    return root
