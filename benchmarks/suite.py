"""The benchmarks by name, run one after the other into one JSON document."""

from __future__ import annotations

import difflib
import json
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import Any

Row = dict[str, Any]

# In the order they run: training first, for its peak memory is that of the process so far.
NAMES = ("training", "environment", "splits", "layers", "decode")
ALL = "*"  # case of a row that stands for a benchmark which could not even list its cases


class UsageError(ValueError):
    """An argument that is wrong; the message names it and what is allowed."""


def checked_names(names: Sequence[str]) -> tuple[str, ...]:
    """The benchmarks of these names in running order, all of them for no name."""
    for name in names:
        if name not in NAMES:
            close = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.5)
            near = f" (did you mean {close[0]}?)" if close else ""
            raise UsageError(f"NAMES has {name!r}; must be among {', '.join(NAMES)}{near}")
    return tuple(name for name in NAMES if not names or name in names)


def checked_out(path: Path | None) -> None:
    """Refuses an output file that cannot be written before anything is measured."""
    if path is None:
        return
    if path.is_dir():
        raise UsageError(f"out is {str(path)!r}, a folder; must be a file")
    if not path.parent.is_dir():
        raise UsageError(f"out is {str(path)!r}; its folder must exist")


def read(path: Path) -> dict[str, Any]:
    """What a benchmark wrote before. Raises UsageError where that cannot be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"out is {str(path)!r}; must be a benchmark's JSON file ({error})"
        ) from None
    if not isinstance(found, dict):
        raise UsageError(f"out is {str(path)!r}; must be a benchmark's JSON file")
    return found


def run(
    names: Sequence[str], repeats: int, quick: bool, show: Callable[[Row], None]
) -> dict[str, Any]:
    """Measures the named benchmarks, showing each row at once; returns the JSON document.

    A case that fails becomes a row with its error instead of numbers.
    """
    started, load = datetime.now().astimezone(), os.getloadavg()[0]
    rows: list[Row] = []
    for name in checked_names(names):
        for row in _rows(name, repeats, quick):
            rows.append(row)
            show(row)
    document = {
        "date": started.isoformat(timespec="seconds"),
        "provenance": provenance(),
        "load_before": load,
        "quick": quick,
        "results": rows,
    }
    if any(row["benchmark"] == "layers" and "rate" in row for row in rows):
        document["ratios"] = import_module("benchmarks.layers").ratios(rows)
    return document


def _rows(name: str, repeats: int, quick: bool) -> Any:
    # Imported late and guarded: `compare` runs this on older trees, which may lack anything.
    try:
        cases = import_module(f"benchmarks.{name}").cases(quick)
        measure = import_module("benchmarks.timing").measure
    except Exception as error:
        yield {"benchmark": name, "case": ALL, "error": _text(error)}
        return
    for case in cases:
        try:
            # A target says nothing about tiny sizes.
            kept = replace(case, target=None) if quick else case
            yield {"benchmark": name, **measure(kept, repeats)}
        except Exception as error:
            yield {"benchmark": name, "case": case.name, "error": _text(error)}


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def provenance() -> dict[str, Any]:
    """What `folders.provenance` tells (device, versions, commit), and the processor."""
    try:
        found = import_module("offload_jax.folders").provenance()  # late: older trees lack it
    except (ImportError, AttributeError) as error:  # a tree older than it
        found = {"commit": None, "unknown": _text(error)}
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    return {**found, "cpu": _cpu(), "cores": os.cpu_count(), "usable_cores": usable}


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
