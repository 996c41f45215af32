"""The benchmarks by name, run one after the other into one JSON document."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from importlib import import_module
from typing import Any

from benchmarks.common import Row, UsageError, in_one_line, provenance

# In the order they run: training first, for its peak memory is that of the process so far.
NAMES = ("training", "environment", "splits", "layers", "decode")
ALL = "*"  # case of a row that stands for a benchmark which could not even list its cases


def checked_names(names: Sequence[str]) -> tuple[str, ...]:
    """The benchmarks of these names in running order, all of them for no name."""
    for name in names:
        if name not in NAMES:
            close = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.5)
            near = f" (did you mean {close[0]}?)" if close else ""
            raise UsageError(f"NAMES has {name!r}; must be among {', '.join(NAMES)}{near}")
    return tuple(name for name in NAMES if not names or name in names)


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
        document["ratios"] = import_module("benchmarks.speed.layers").ratios(rows)
    return document


def _rows(name: str, repeats: int, quick: bool) -> Any:
    # Late and guarded: one benchmark that cannot be imported does not stop the others.
    try:
        cases = import_module(f"benchmarks.speed.{name}").cases(quick)
        measure = import_module("benchmarks.speed.timing").measure
    except Exception as error:
        yield {"benchmark": name, "case": ALL, "error": in_one_line(error)}
        return
    for case in cases:
        try:
            # A target says nothing about tiny sizes.
            kept = replace(case, target=None) if quick else case
            yield {"benchmark": name, **measure(kept, repeats)}
        except Exception as error:
            yield {"benchmark": name, "case": case.name, "error": in_one_line(error)}
