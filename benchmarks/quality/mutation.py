"""Mutants: real faults, each a change of one text in one function, wherever that function lives.

A function is named as `batch_load` or `Class.method`; where several bear that name, as
`room.batch_load`. Its old text stands exactly once in its body, the docstring left out. So a mutant
survives when functions move between files; one that is not found is stale.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "offload_jax"


@dataclass(frozen=True)
class Mutant:
    """A fault, and where to look for the test that notices it."""

    name: str
    function: str
    old: str
    new: str
    room: str  # whose tests are run
    first: str  # the file of tests that most likely notices it: run first


@dataclass(frozen=True)
class Place:
    """A function's body in a file."""

    path: Path
    start: int  # lines from 0
    end: int


@dataclass(frozen=True)
class Mutated:
    """A file with the fault."""

    path: Path  # in its tree
    line: int  # of the fault, from 1
    source: str
    diff: str  # the lines taken away and put in


class Stale(ValueError):
    """A mutant that the package no longer has a place for; the message says why."""


Places = Mapping[str, list[Place]]  # of functions by name, and by room and name


def places(tree: Path) -> Places:
    """All functions and methods of the package in a tree, nested ones left out."""
    found: dict[str, list[Place]] = {}
    for path in sorted((tree / PACKAGE).rglob("*.py")):
        room = path.relative_to(tree / PACKAGE).with_suffix("").parts[0]
        for name, place in _functions(path):
            for key in (name, f"{room}.{name}"):
                found.setdefault(key, []).append(place)
    return found


def _functions(path: Path) -> Iterator[tuple[str, Place]]:
    def named(body: list[ast.stmt], before: str) -> Iterator[tuple[str, Place]]:
        for node in body:
            if isinstance(node, ast.ClassDef):
                yield from named(node.body, f"{before}{node.name}.")
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                inner = node.body[1:] if ast.get_docstring(node) is not None else node.body
                if inner:
                    yield before + node.name, Place(path, inner[0].lineno - 1, node.end_lineno or 0)

    yield from named(ast.parse(path.read_text(encoding="utf-8")).body, "")


def mutated(mutant: Mutant, found: Places, tree: Path) -> Mutated:
    """The file with the fault. Raises Stale."""
    candidates = found.get(mutant.function, [])
    if len(candidates) != 1:
        raise Stale(f"{len(candidates)} functions are named {mutant.function}; must be one")
    (place,) = candidates
    lines = place.path.read_text(encoding="utf-8").splitlines(keepends=True)
    body = "".join(lines[place.start : place.end])
    if body.count(mutant.old) != 1:
        where = f"{body.count(mutant.old)} times in {mutant.function}"
        raise Stale(f"{mutant.old!r} stands {where}; must be once")
    line = place.start + body[: body.index(mutant.old)].count("\n") + 1
    changed = body.replace(mutant.old, mutant.new)
    source = "".join([*lines[: place.start], changed, *lines[place.end :]])
    try:
        compile(source, str(place.path), "exec")
    except SyntaxError as error:
        raise Stale(f"{mutant.function} is no Python with {mutant.new!r}: {error.msg}") from None
    return Mutated(place.path.relative_to(tree), line, source, _diff(body, changed))


def _diff(before: str, after: str) -> str:
    """Only the lines that differ."""
    lines = difflib.ndiff(before.splitlines(), after.splitlines())
    return "\n".join(line.rstrip() for line in lines if line[:2] in ("- ", "+ "))
