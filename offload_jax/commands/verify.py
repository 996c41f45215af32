"""`verify`: whether a bundle is whole, and answers here as it did where it was made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from offload_jax.deploy import ENTRIES, RUNTIMES, open_bundle, open_runtime, present
from offload_jax.deploy.verify import ReplayResult, replay
from offload_jax.files.checks import BundleError


@dataclass(frozen=True)
class Arguments:
    """Check every byte of a bundle and replay its test vectors through every runtime present."""

    bundle: tyro.conf.Positional[Path]
    """Folder or .zip."""
    runtime: str | None = None
    """Only this one: iree or jax."""


def run(words: list[str], prog: str) -> int:
    """Prints how every runtime did; 1 where one answers otherwise than the exported policy."""
    parsed = tyro.cli(Arguments, args=words, prog=prog)
    bundle = open_bundle(parsed.bundle)
    print(f"{bundle.source}: every file is as it was written")
    if parsed.runtime is not None:
        names = [parsed.runtime]
    else:
        names = [name for name in RUNTIMES if present(name)]
    found: list[tuple[str, ReplayResult]] = []
    for name in names:
        try:
            runtime = open_runtime(bundle, name)
        except BundleError as error:
            if parsed.runtime is not None:
                raise
            print(f"left out: {error}")
            continue
        calls = [(entry, batch) for entry in ENTRIES for batch in runtime.batches(entry)]
        found += [(name, replay(bundle, runtime, *call)) for call in calls]
    if not found:
        raise BundleError("no runtime is installed; pip install jax, or iree-base-runtime")
    Console().print(_table(found))
    good = all(row.good for _, row in found)
    print("good: the same plans, or as good ones" if good else "BAD: see above")
    return 0 if good else 1


def _table(found: list[tuple[str, ReplayResult]]) -> Table:
    table = Table(
        "runtime",
        "program",
        "at once",
        "identical",
        "off by",
        "infeasible",
        "first",
        "later",
    )
    for name, row in found:
        elsewhere = f"{row.farthest:.1e}" if row.identical < row.count else "-"
        table.add_row(
            name,
            row.entry,
            str(row.batch),
            f"{row.identical}/{row.count}",
            elsewhere,
            str(row.flaws),
            f"{row.first_s:.2f} s",
            "-" if row.median_s is None else f"{row.median_s * 1e3:.2f} ms",
        )
    return table
