"""The command line: measure, or compare with another commit."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro

from benchmarks import parts
from benchmarks.common import Row, UsageError, checked_out
from benchmarks.speed import suite, table

Names = Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[NAMES ...]")]
Out = Annotated[Path | None, tyro.conf.arg(metavar="FILE.json")]
Quick = Annotated[bool, tyro.conf.FlagCreatePairsOff]


@dataclass(frozen=True)
class RunArguments:
    """Measure how fast this tree is; print a table and write JSON.

    Another form, `python -m benchmarks compare --own REV`, compares this tree with a commit.
    """

    names: Names = ()
    """Benchmarks to run: training, environment, splits, layers, decode. Default: all."""
    out: Out = None
    """JSON file to write, and beside it (.md) its table."""
    repeats: int = 9
    """Timed repeats of every case (fewer, but at least 3, where they would last minutes)."""
    quick: Quick = False
    """Tiny sizes: to see that everything runs, not how fast."""


@dataclass(frozen=True)
class CompareArguments:
    """Measure this tree (as it is, uncommitted changes too) and another commit in turn.

    Each runs its own benchmarks in its own environment, in fresh processes, in the order A B B A
    ... Cases of the same name are compared. The ratio is the median over the rounds of the other's
    time over this tree's: above 1, this tree is faster. Below 0.95 a case is measured again in 10
    rounds, and then those count. The exit status is 1 where one stays below, or where a side lacks
    a case of the other.
    """

    own: str
    """The other commit: anything git understands."""
    only: tuple[str, ...] = ()
    """Beginnings of the names of the cases to compare, such as splits or "decode: paper".
    Default: all."""
    rounds: int = 5
    """Rounds, each a process per side."""
    out: Out = None
    """JSON file to write, after every round; given again, the comparison goes on there."""
    repeats: int = 5
    """Timed repeats of every case in every process."""
    quick: Quick = False
    """Tiny sizes: to see that everything runs, not how fast."""


def main(words: Sequence[str] | None = None) -> int:
    """Runs `python -m benchmarks ...`; 0 good, 1 something failed, 2 refused, 130 stopped."""
    words = list(sys.argv[1:] if words is None else words)
    if words[:1] == ["compare"]:
        return parts.status_of(partial(_compare, words[1:]), "finished rounds stay in --out")
    return parts.status_of(partial(_run, words), "nothing is kept")


def _run(words: list[str]) -> int:
    parsed = tyro.cli(RunArguments, args=words, prog="python -m benchmarks")
    names = suite.checked_names(parsed.names)
    _check(parsed)
    busy = os.getloadavg()[0]
    if busy > 0.5:
        print(f"warning: other work keeps {busy:.1f} cores busy; the numbers will suffer")
    print(table.HEADER)
    seen: set[str] = set()

    def show(row: Row) -> None:
        if row["benchmark"] not in seen:
            print(row["benchmark"])
        seen.add(row["benchmark"])
        print("  " + table.measurement(row), flush=True)

    document = suite.run(names, parsed.repeats, parsed.quick, show)
    for line in table.layers(document):
        print(line)
    _write(document, parsed.out)
    if parsed.out is not None:
        text = table.markdown(document)
        parsed.out.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
    return 1 if any("error" in row for row in document["results"]) else 0


def _compare(words: list[str]) -> int:
    from benchmarks.speed import compare

    parsed = tyro.cli(CompareArguments, args=words, prog="python -m benchmarks compare")
    _check(parsed)
    if parsed.rounds < 1:
        raise UsageError(f"rounds is {parsed.rounds}; must be at least 1")
    asked = compare.Asked(**vars(parsed))
    try:
        document = compare.compare(asked, partial(print, flush=True))
    except compare.Failed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join(table.comparison(document)))
    rows = document["results"]
    return 0 if rows and not any(row["slower"] for row in rows) else 1


def _check(parsed: RunArguments | CompareArguments) -> None:
    if parsed.repeats < 1:
        raise UsageError(f"repeats is {parsed.repeats}; must be at least 1")
    checked_out(parsed.out)


def _write(document: dict[str, Any], path: Path | None) -> None:
    if path is not None:
        path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        print(f"written: {path}")


if __name__ == "__main__":
    sys.exit(main())
