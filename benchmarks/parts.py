"""Benchmarks in named parts: each a generator of rows, run on its own, kept in one JSON file.

`status_of` is how every command of the benchmarks ends, one without parts too.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import tyro

from benchmarks.common import Row, UsageError, checked_out, provenance, read
from offload_jax.files.disk import replace_file

Parts: TypeAlias = Mapping[str, Callable[[], Iterator[Row]]]
Needs: TypeAlias = Mapping[str, tuple[str, str]]  # by part: a module, and the extra it comes with


@dataclass(frozen=True)
class Arguments:
    parts: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Parts to run. Default: all."""
    out: Path | None = None
    """JSON file to write, with its tables beside it (.md). Parts that it has already, and that are
    not run, stay in it."""


def command(
    words: Sequence[str] | None, module: str, about: str, parts: Parts, needs: Needs | None = None
) -> int:
    """The command line of a benchmark in parts, `python -m MODULE`; returns what `main` does."""
    text = f"{about}\n\nParts: {', '.join(parts)}."
    parsed = tyro.cli(Arguments, args=words, prog=f"python -m {module}", description=text)
    return main(parsed.parts, parsed.out, parts, needs)


def main(names: Sequence[str], out: Path | None, parts: Parts, needs: Needs | None = None) -> int:
    """Runs the named parts (all for no name), printing each row and writing after each part.

    Parts that `out` has already, and that are not run, stay in it, with its tables beside it (.md).
    Returns 0 good, 2 refused, 130 stopped.
    """

    def run() -> int:
        _check(names, out, parts, needs or {})
        _run(names or tuple(parts), out, parts)
        return 0

    return status_of(run, "finished parts stay in the output file")


def status_of(run: Callable[[], int], stopped: str = "the same command goes on") -> int:
    """What `run` returns; 2 where it refuses an argument, 130 at Ctrl-C, each told in one line.

    `stopped` says what becomes of what was measured so far.
    """
    try:
        return run()
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"stopped; {stopped}", file=sys.stderr)
        return 130


def _run(names: Sequence[str], out: Path | None, parts: Parts) -> None:
    """Runs the parts one after the other; those that the file has stay in it."""
    found = read(out) if out is not None and out.exists() else {}
    for name in names:
        found[name] = {"provenance": provenance(), "rows": _rows(name, parts)}
        if out is not None:
            replace_file(out, json.dumps(found, indent=1) + "\n")
            replace_file(out.with_suffix(".md"), markdown(found, parts))


def _rows(name: str, parts: Parts) -> list[Row]:
    """The rows of a part, each told as soon as it is measured."""
    rows = []
    for row in parts[name]():
        told = ", ".join(f"{_spoken(k)} {_short(k, v)}" for k, v in row.items())
        print(f"{name}: {told}", flush=True)
        rows.append(row)
    return rows


def _check(names: Sequence[str], out: Path | None, parts: Parts, needs: Needs) -> None:
    """Refuses before anything is run."""
    for name in names:
        if name not in parts:
            raise UsageError(f"parts has {name!r}; must be among {', '.join(parts)}")
    for name, (module, extra) in needs.items():
        if name in (names or parts) and find_spec(module) is None:
            raise UsageError(
                f"parts has {name!r}, which needs {module}: pip install 'offload-jax[{extra}]'"
            )
    checked_out(out)


def markdown(found: Mapping[str, Any], parts: Parts) -> str:
    """A table for each part."""
    texts = []
    for name, part in parts.items():
        if name not in found:
            continue
        rows = found[name]["rows"]
        about = " ".join((part.__doc__ or "").split())
        texts.append(f"**{name}.** {about}\n\n{_table(rows)}")
    return "\n\n".join(texts) + "\n"


def _table(rows: Sequence[Row]) -> str:
    """A line for each row; of a single row, for each of its numbers."""
    if len(rows) == 1:
        lines = [["", ""], *([_spoken(key), _short(key, value)] for key, value in rows[0].items())]
    else:
        keys = dict.fromkeys(key for row in rows for key in row)
        lines = [[_spoken(key) for key in keys]]
        lines += [[_short(key, row.get(key)) for key in keys] for row in rows]
    lines.insert(1, ["---", *["---:"] * (len(lines[0]) - 1)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _spoken(key: str) -> str:
    if key.startswith("gap_"):
        return f"gap {key.removeprefix('gap_')} %"  # of a method, by its name
    return key.replace("_", " ")


def _short(key: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list):  # of several seeds
        mean, low, high = (_short(key, f(value)) for f in (statistics.fmean, min, max))
        return f"{mean} ({low} to {high})"
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    return f"{100 * value:.3g}" if key.startswith("gap_") else f"{value:.3g}"
