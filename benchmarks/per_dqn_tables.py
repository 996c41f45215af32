"""Tables and the picture of `benchmarks.per_dqn`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from offload_jax.charts import new_figure, save, styles
from offload_jax.documents import replace_file

Document = Mapping[str, Any]
EQUAL = 1e-6  # gaps that differ by less are the same
WHERE = ("fixed", "fresh")  # instances that plans are judged on


@dataclass(frozen=True)
class Line:
    """A cell in numbers, means over seeds: the agent's, and ours on the same instances."""

    data: str
    users: int
    gpus: int
    seeds: int
    gap: Mapping[str, float]  # where: the agent's, at its end
    train_s: float  # of an agent alone
    reached_s: float  # until its gap on the fixed instance was what it is at the end
    own_gap: Mapping[str, float]
    own_s: Mapping[str, float]  # of ours until it is as good; infinite where it never is


def write_pages(found: Document, out: Path) -> None:
    """The tables (.md) and the picture (.png) beside the results."""
    lines = list(lines_of(found))
    text = "\n\n".join([_summary(found, lines), _cells(lines), *_ratios(lines)])
    replace_file(out.with_suffix(".md"), text + "\n")
    save(_picture(found), out.with_suffix(".png"))


def lines_of(found: Document) -> Iterator[Line]:
    """A line for each cell and kind of training."""
    curve = found["ours"]["curve"]
    seconds = [point["train_s"] for point in curve]
    places = {(n, e): i for i, (n, e, *_) in enumerate(curve[0]["gaps"])}
    for data, users, gpus in sorted({(r["data"], r["users"], r["gpus"]) for r in found["rows"]}):
        wanted = (data, users, gpus)
        rows = [r for r in found["rows"] if (r["data"], r["users"], r["gpus"]) == wanted]
        gap = {where: float(np.mean([r[f"gap_{where}"] for r in rows])) for where in WHERE}
        own = [point["gaps"][places[users, gpus]][2:] for point in curve]
        each = {where: [gaps[i] for gaps in own] for i, where in enumerate(WHERE)}
        yield Line(
            *wanted,
            seeds=len(rows),
            gap=gap,
            train_s=float(np.mean([r["train_s"] / r["agents_at_once"] for r in rows])),
            reached_s=float(np.mean([_reached(r) for r in rows])),
            own_gap={where: gaps[-1] for where, gaps in each.items()},
            own_s={where: _first(seconds, gaps, gap[where]) for where, gaps in each.items()},
        )


def _reached(row: Document) -> float:
    """Core-seconds until an agent was as good on the fixed instance as it is at the end."""
    _, seconds, gaps = zip(*row["curve"], strict=True)
    return _first(seconds, gaps, row["gap_fixed"]) / row["agents_at_once"]


def _first(seconds: Sequence[float], gaps: Sequence[float], wanted: float) -> float:
    """When a gap was first as small as wanted; infinite where it never was."""
    reached = (s for s, gap in zip(seconds, gaps, strict=True) if gap <= wanted + EQUAL)
    return float(next(reached, np.inf))


def _summary(found: Document, lines: Sequence[Line]) -> str:
    """A row for each kind of training, and ours on the same cells."""
    ours = found["ours"]
    total = ours["curve"][-1]["train_s"]
    rows = []
    for data in dict.fromkeys(line.data for line in lines):
        mine = [line for line in lines if line.data == data]
        most = max(line.users for line in mine)
        ms = [r["plan_ms"] for r in found["rows"] if r["data"] == data and r["users"] == most]
        seconds = sum(line.train_s for line in mine)
        trained = "one instance" if data == "fixed" else "fresh instances"
        for name, gaps, cost, plan in (
            (f"PER-DQN, a network per cell, {trained}", "gap", seconds, np.mean(ms)),
            ("ours, one network for all cells", "own_gap", total, ours["plan_ms"]),
        ):
            there, fresh = (
                f"{100 * np.mean([getattr(line, gaps)[where] for line in mine]):.3f}"
                for where in WHERE
            )
            rows.append(f"| {name} | {len(mine)} | {there} | {fresh} | {cost:,.0f} | {plan:.2g} |")
    head = (
        "| trained | cells | mean gap on the fixed instances % | on fresh ones % | training core-s "
        "| ms per plan |\n|---|---:|---:|---:|---:|---:|"
    )
    return "\n".join([head, *dict.fromkeys(rows)])


def _cells(lines: Sequence[Line]) -> str:
    head = (
        "| trained on | N | E | seeds | PER-DQN: gap on the fixed instance % | on fresh ones % "
        "| core-s | that gap first after | ours: gap there % | on fresh ones % "
        "| core-s to PER-DQN's gap there | on fresh ones |\n|---|" + "---:|" * 11
    )
    return "\n".join([head, *map(_row, lines)])


def _row(line: Line) -> str:
    there, fresh, own_there, own_fresh = (
        f"{100 * max(gap, 0):.3f}"
        for gaps in (line.gap, line.own_gap)
        for gap in (gaps["fixed"], gaps["fresh"])
    )
    own = " | ".join(_seconds(line.own_s[where]) for where in WHERE)
    return (
        f"| {line.data} | {line.users} | {line.gpus} | {line.seeds} | {there} | {fresh} "
        f"| {line.train_s:,.0f} | {line.reached_s:,.0f} | {own_there} | {own_fresh} | {own} |"
    )


def _seconds(value: float) -> str:
    if not np.isfinite(value):
        return "never"
    return f"{value:.1f}" if value else "0 (untrained)"


def _ratios(lines: Sequence[Line]) -> Iterator[str]:
    """How many times fewer training seconds ours took to each cell's score of the agent."""
    for data in dict.fromkeys(line.data for line in lines):
        for where in WHERE:
            mine = [line for line in lines if line.data == data]
            own = [line.own_s[where] for line in mine]
            trained = [line for line in mine if 0 < line.own_s[where] < np.inf]
            text = (
                f"Trained on {data}, judged on {where}: of {len(mine)} cells ours was as good "
                f"untrained in {own.count(0)}, never in {own.count(np.inf)}"
            )
            if trained:
                key = "reached_s" if where == data == "fixed" else "train_s"
                ratios = [getattr(line, key) / line.own_s[where] for line in trained]
                text += (
                    f"; in the other {len(trained)} after {np.median(ratios):,.0f} times fewer "
                    f"core-seconds (median; {min(ratios):,.0f} to {max(ratios):,.0f})"
                )
            yield text + "."


def _picture(found: Document) -> Any:
    """Mean gap over cells on their fixed instances, against training seconds."""
    figure, axes = new_figure(1, 1, (6.4, 3.8))
    users = sorted({row["users"] for row in found["rows"] if row["data"] == "fixed"})
    look = styles([*(f"PER-DQN, N = {n}" for n in users), "ours, all N"])
    for n, (name, style) in zip(users, look.items(), strict=False):
        rows = [r for r in found["rows"] if (r["users"], r["data"]) == (n, "fixed")]
        seconds = np.mean([[s / r["agents_at_once"] for _, s, _ in r["curve"]] for r in rows], 0)
        gaps = np.mean([[gap for *_, gap in r["curve"]] for r in rows], axis=0)
        axes.plot(seconds, 100 * gaps, label=name, lw=1.0, **style)
    points = found["ours"]["curve"][1:]  # a logarithmic axis has no place for 0 s
    own = [np.mean([gap for n, _, gap, _ in point["gaps"] if n in users]) for point in points]
    seconds = [point["train_s"] for point in points]
    axes.plot(seconds, 100 * np.array(own), label="ours, all N", lw=1.8, **look["ours, all N"])
    axes.set(xscale="log", xlabel="core-seconds of training a network", ylabel="mean gap, %")
    axes.set_yscale("symlog", linthresh=0.01)  # some are 0
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    return figure
