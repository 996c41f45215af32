"""Rows of measurements and of comparisons as plain text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.common import Row

# Written beside every row of the JSON file, and not notes.
_KNOWN = {
    *("benchmark", "case", "median_s", "p10_s", "p90_s", "best_s", "repeats", "calls_per_repeat"),
    *("compile_s", "rate", "unit", "target", "program_mb"),
}
HEADER = f"{'case':58} {'rate':>22} {'a call':>10} {'p10 to p90':>19} {'compile':>8}  target, notes"


def measurement(row: Row) -> str:
    """One line of the table; see HEADER."""
    if "error" in row:
        return f"{row['case']:58} FAILED {row['error']}"
    rate = f"{number(row['rate'])} {row['unit']}"
    spread = f"{duration(row['p10_s'])} - {duration(row['p90_s'])}"
    extras = [f"{k.replace('_', ' ')} {number(v)}" for k, v in row.items() if k not in _KNOWN]
    notes = "; ".join([*_verdict(row), *extras])
    return (
        f"{row['case']:58} {rate:>22} {duration(row['median_s']):>10} {spread:>19} "
        f"{row['compile_s']:6.1f} s  {notes}"
    )


def _verdict(row: Row) -> Iterator[str]:
    target = row["target"]
    if target is not None:
        missing = target / row["rate"]
        reached = "reached" if missing <= 1 else f"short by {missing:.2f}x"
        yield f"target {number(target)}: {reached}"


def markdown(document: dict[str, Any]) -> str:
    """The measurements as a Markdown table, each case at its fastest batch size.

    The layers have a table of their own.
    """
    best: dict[tuple[str, str], Row] = {}
    for row in document["results"]:
        if row["benchmark"] == "layers":
            continue
        key = (row["benchmark"], row["case"].split(", batch ")[0])
        if "rate" in row and row["rate"] > best.get(key, {"rate": 0})["rate"]:
            best[key] = row
    about = document["provenance"]
    lines = [
        f"{about['device']}, {about['cpu']}, {about['usable_cores']} cores, "
        f"jax {about['versions']['jax']}, commit {(about['commit'] or 'unknown')[:7]}",
    ]
    if best:
        lines += ["", "| benchmark | case | rate | target |", "|---|---|---:|---:|"]
    for (benchmark, case), row in best.items():
        target = "" if row["target"] is None else number(row["target"])
        rate = f"{number(row['rate'])} {row['unit']}"
        lines.append(f"| {benchmark} | {case} | {rate} | {target} |")
    own = list(layers(document))
    return "\n".join([*lines, "", *own] if own else lines)


def layers(document: dict[str, Any]) -> Iterator[str]:
    """A Markdown table of the layers' problems/s at one size and batch; nothing without them."""
    size, batch = ", N=24 M=6 G=3", ", batch 512"  # layers.COMPARED
    found = [
        row
        for row in document.get("ratios", ())
        if size in row["case"] and row["case"].endswith(batch)
    ]
    if not found:
        return
    columns = list(dict.fromkeys(row["layer"] for row in found))
    yield f"Layers, problems/s{size}{batch} (in brackets: native is this many times as fast)\n"
    yield f"| case | native | {' | '.join(columns)} |"
    yield f"|---|---:|{'---:|' * len(columns)}"
    for case in dict.fromkeys(row["case"] for row in found):
        rows = {row["layer"]: row for row in found if row["case"] == case}
        cells = [number(next(iter(rows.values()))["rate_native"])]
        for layer in columns:
            row = rows.get(layer)
            cells.append(f"{number(row['rate'])} ({number(row['ratio'])}x)" if row else "")
        yield f"| {case.replace(size, '').replace(batch, '')} | {' | '.join(cells)} |"


def comparison(document: dict[str, Any]) -> Iterator[str]:
    """The lines of a comparison: ratios above, what could not be measured below."""
    this, other = document["this"], document["other"]
    dirty = " with uncommitted changes" if this["uncommitted"] else ""
    yield f"this:  {this['commit'][:12]}{dirty}, {this['environment']}"
    yield f"other: {other['commit'][:12]} ({other['rev']}), {other['environment']}"
    yield f"{'case':70} {'this':>8} {'other':>8} {'ratio':>6}  95 % interval, lowest to highest"
    for row in document["results"]:
        times = f"{duration(row['this_s']):>8} {duration(row['other_s']):>8}"
        interval = "" if row["low"] is None else f"{row['low']:.3f} to {row['high']:.3f}, "
        spread = f"{interval}{min(row['ratios']):.3f} to {max(row['ratios']):.3f}"
        yield f"{row['case']:70} {times} {row['ratio']:6.3f}  {spread}{_judged(row)}"
    for name, reason in document["failed"].items():
        yield f"{name}: not compared, {reason}"


def _judged(row: Row) -> str:
    """What a ratio means, and how it was measured, where that is special."""
    verdict = "  SLOWER" if row["slower"] else ""
    again = "" if row["before"] is None else f"  (before: {row['before']:.3f})"
    return verdict + again


def number(value: float) -> str:
    """Three digits: 1,230,000 or 0.0123."""
    if value == 0 or not 1e-3 <= abs(value) < 1e15:
        return f"{value:.3g}"
    shown = float(f"{value:.3g}")
    return f"{shown:,.0f}" if abs(shown) >= 100 else f"{shown:g}"


def duration(seconds: float) -> str:
    """With the unit that suits it."""
    for scale, unit in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"
