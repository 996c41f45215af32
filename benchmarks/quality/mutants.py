"""Do the tests notice real faults? Each fault of `mutant_table` is put in, and the tests are run.

`python -m benchmarks.quality.mutants` does so on throw-away copies of this tree, with the tests of
the fault's room, up to the first that fails; that one has to pass without the fault. A fault that
no test notices has survived; one whose place is gone is stale. It takes 11 minutes on two cores,
and goes on where it was stopped.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import tyro

from benchmarks import parts, trees
from benchmarks.common import ROOT, Row, UsageError, checked_out, provenance, read
from benchmarks.quality import mutation
from benchmarks.quality.mutant_runs import Result, Workers, workers
from benchmarks.quality.mutant_table import MUTANTS
from benchmarks.quality.mutation import Mutant, Mutated, Stale
from offload_jax.files.disk import replace_file

OUT = ROOT / "benchmarks" / "results" / "mutants.json"
STATES = ("killed", "survived", "stale")


@dataclass(frozen=True)
class Arguments:
    """Put faults into copies of this tree and see whether its tests notice them."""

    out: Path = OUT
    """JSON file to write, after every mutant; those that it has of this tree are not run again."""
    workers: int = 2
    """Mutants at a time, a core each."""
    limit_s: float = 600.0
    """Seconds for all tests of a mutant; one that takes longer counts as killed."""
    only: tuple[str, ...] = ()
    """Names of mutants to run. Default: all."""
    sample: int | None = None
    """Run only so many of them, drawn at random."""
    seed: int = 0
    """Of that draw."""


def main(words: Sequence[str] | None = None) -> int:
    """0 all killed, 1 some survived or are stale, 2 refused, 130 stopped."""
    parsed = tyro.cli(Arguments, args=words, prog="python -m benchmarks.quality.mutants")
    return parts.status_of(partial(_main, parsed), "the same command goes on after what is done")


def _main(parsed: Arguments) -> int:
    chosen = choose(parsed)
    checked_out(parsed.out)
    with workers(ROOT, parsed.workers, parsed.limit_s) as pool:
        with pool.copy() as tree:
            book = opened(parsed.out, trees.digest(tree, mutation.PACKAGE, "tests"))
            found = mutation.places(tree)
        faults = placed(chosen, found, book, tree)
        try:
            for row in side_by_side(pool, [partial(tried, pool, book, *fault) for fault in faults]):
                book.add(row)
                told = f"{row['state']:8} {row['name']:28} {row['seconds']:4.0f} s  {row['by']}"
                print(told, flush=True)
        except Unsound as error:
            print(f"error: {error}")
            return 1
    rows = [book.document["mutants"][mutant.name] for mutant in chosen]
    print("\n".join(report(rows)))
    return 0 if all(row["state"] == "killed" for row in rows) else 1


def choose(parsed: Arguments) -> list[Mutant]:
    """The mutants that are asked for, in the order of the table. Raises UsageError."""
    known = {mutant.name: mutant for mutant in MUTANTS}
    if strange := [name for name in parsed.only if name not in known]:
        raise UsageError(f"only has {strange[0]!r}; must be among {', '.join(known)}")
    if parsed.workers < 1:
        raise UsageError(f"workers is {parsed.workers}; must be at least 1")
    names = [name for name in known if not parsed.only or name in parsed.only]
    if parsed.sample is not None:
        if not 1 <= parsed.sample <= len(names):
            raise UsageError(f"sample is {parsed.sample}; must be in 1..{len(names)}")
        drawn = random.Random(parsed.seed).sample(names, parsed.sample)
        names = [name for name in names if name in drawn]
    return [known[name] for name in names]


@dataclass(frozen=True)
class Book:
    """The document, written after every mutant."""

    out: Path
    document: dict[str, Any]

    def add(self, row: Row) -> None:
        self.document["mutants"][row["name"]] = row
        replace_file(self.out, json.dumps(self.document, indent=1) + "\n")

    def sound(self) -> set[tuple[str, str]]:
        """(room, what noticed a mutant of it), each known to pass without."""
        return {(row["room"], row["by"]) for row in list(self.document["mutants"].values())}


def opened(out: Path, files: str) -> Book:
    """The book of the tree with this digest; of another tree's nothing is kept."""
    if out.exists():
        document = read(out)
        if document.get("files") == files:
            return Book(out, document)
        print(f"{out} is of another tree: begun anew")
    start = {"provenance": provenance(), "files": files, "mutants": {}}
    return Book(out, start)


def placed(
    chosen: Sequence[Mutant], found: mutation.Places, book: Book, tree: Path
) -> list[tuple[Mutant, Mutated]]:
    """The mutants still to be run, with their faults; stale ones go into the book."""
    faults = []
    for mutant in chosen:
        row = {"name": mutant.name, "room": mutant.room, "function": mutant.function}
        try:
            fault = mutation.mutated(mutant, found, tree)
        except Stale as error:
            book.add({**row, "state": "stale", "by": str(error)})
            continue
        known = book.document["mutants"].get(mutant.name, {})
        if known.get("diff") != fault.diff:
            faults.append((mutant, fault))
    return faults


def side_by_side(pool: Workers, jobs: Sequence[Callable[[], Row]]) -> Iterator[Row]:
    """The rows of jobs as they end. However the caller ends, no job goes on."""
    with ThreadPoolExecutor(max(1, pool.free.qsize())) as threads:
        futures = [threads.submit(job) for job in jobs]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:  # Ctrl-C, too
            threads.shutdown(wait=False, cancel_futures=True)
            pool.stop()
            raise


class Unsound(Exception):
    """A test that fails without any fault, too, and so says nothing of one."""


def tried(pool: Workers, book: Book, mutant: Mutant, fault: Mutated) -> Row:
    """Runs the tests on a copy with the fault; what notices it has to pass without. Or Unsound."""
    with pool.copy() as tree:
        path = tree / fault.path
        before = path.read_bytes()
        path.write_text(fault.source, encoding="utf-8")
        try:
            result = pool.tested(tree, mutant.room, mutant.first)
        finally:
            path.write_bytes(before)
        if not result.passed and (mutant.room, result.by) not in book.sound():
            anyway = pool.untouched(tree, mutant, result.by)
            if not anyway.passed:
                raise Unsound(f"{anyway.by} fails without any fault\n{anyway.output}")
    return row_of(mutant, fault, result)


def row_of(mutant: Mutant, fault: Mutated, result: Result) -> Row:
    where = {"function": mutant.function, "file": str(fault.path), "line": fault.line}
    state = "survived" if result.passed else "killed"
    found = {"state": state, "by": result.by, "seconds": round(result.seconds, 1)}
    return {"name": mutant.name, "room": mutant.room, **where, **found, "diff": fault.diff}


def report(rows: Sequence[Row]) -> Iterator[str]:
    """A line a room, then what survived and what is stale."""
    yield f"\n{'room':10} {'killed':>8} {'survived':>8} {'stale':>8}"
    for room in [*dict.fromkeys(row["room"] for row in rows), "all"]:
        states = [row["state"] for row in rows if room in ("all", row["room"])]
        yield f"{room:10} " + " ".join(f"{states.count(state):8}" for state in STATES)
    slow = [row["name"] for row in rows if row["by"].startswith("time-out")]
    if slow:
        yield f"killed by the time limit: {', '.join(slow)}"
    for row in rows:
        if row["state"] == "survived":
            yield f"\nsurvived: {row['name']}, {row['file']}:{row['line']}\n{row['diff']}"
        elif row["state"] == "stale":
            yield f"\nstale: {row['name']}: {row['by']}"


if __name__ == "__main__":
    sys.exit(main())
