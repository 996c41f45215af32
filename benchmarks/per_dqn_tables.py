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
WHERE = ("fixed", "fresh")  # instances that plans are judged on, and that agents are trained on


@dataclass(frozen=True)
class Line:
    """A cell in numbers, means over seeds: the agent's, and ours on the same instances."""

    data: str  # what the agent was trained on
    users: int
    gpus: int
    seeds: int
    gaps: Sequence[float]  # by WHERE: the agent's at its end
    best: float  # and the best of its greedy plans on the way, on what it was trained on
    played: float | None  # and the best plan of any of its episodes
    train_s: float  # core-seconds
    kept_s: float  # of these, until it was as good as at its end, and stayed so
    plan_ms: float
    own: Sequence[float]  # by WHERE: ours
    own_s: float  # core-seconds of ours until as good as the agent, and staying so; the median


def write_pages(found: Document, out: Path) -> None:
    """The tables (.md) and the picture (.png) beside the results."""
    lines = list(lines_of(found))
    text = "\n\n".join([_summary(found, lines), *_ratios(lines), _cells(lines)])
    replace_file(out.with_suffix(".md"), text + "\n")
    save(_picture(found), out.with_suffix(".png"))


def lines_of(found: Document) -> Iterator[Line]:
    """A line for each cell and kind of training."""
    ours = found["ours"]
    for data, users, gpus in sorted({(r["data"], r["users"], r["gpus"]) for r in found["rows"]}):
        rows = [
            r for r in found["rows"] if (r["data"], r["users"], r["gpus"]) == (data, users, gpus)
        ]
        judged = WHERE.index(data)
        curves = [_curve(row) for row in rows]
        place = ours["cells"].index([users, gpus])
        own = [_own(run, place) for run in ours["runs"]]
        played = [row["gap_played"] for row in rows]
        yield Line(
            data=data,
            users=users,
            gpus=gpus,
            seeds=len(rows),
            gaps=np.mean([gaps[-1] for _, gaps in curves], axis=0),
            best=float(np.mean([gaps[:, judged].min() for _, gaps in curves])),
            played=None if None in played else float(np.mean(played)),
            train_s=float(np.mean([seconds[-1] for seconds, _ in curves])),
            kept_s=float(np.mean([_kept(s, g[:, judged], g[-1, judged]) for s, g in curves])),
            plan_ms=float(np.mean([row["plan_ms"] for row in rows])),
            own=np.mean([gaps[-1] for _, gaps in own], axis=0),
            own_s=float(
                np.median(
                    [
                        _kept(seconds, gaps[:, judged], theirs[-1, judged])
                        for seconds, gaps in own
                        for _, theirs in curves
                    ]
                )
            ),
        )


def _curve(row: Document) -> tuple[np.ndarray, np.ndarray]:
    """(core-seconds of the agent alone, its gaps by WHERE) at every point."""
    points = np.array(row["curve"], float)
    return points[:, 1] / row["agents_at_once"], points[:, 2:]


def _own(run: Document, place: int) -> tuple[np.ndarray, np.ndarray]:
    """The same of one of our runs, on the cell at that place."""
    curve = run["curve"]
    return np.array([p["train_s"] for p in curve]), np.array([p["gaps"][place] for p in curve])


def _kept(seconds: np.ndarray, gaps: np.ndarray, wanted: float) -> float:
    """From when on all gaps are as small as wanted; infinite where the last one is not."""
    worse = np.flatnonzero(gaps > wanted + EQUAL)
    first = 0 if not len(worse) else worse[-1] + 1
    return float(seconds[first]) if first < len(seconds) else np.inf


def _summary(found: Document, lines: Sequence[Line]) -> str:
    """A row for each kind of training, and ours on the same cells."""
    ours = found["ours"]
    total = np.mean([run["curve"][-1]["train_s"] for run in ours["runs"]])
    shown = []
    for data in dict.fromkeys(line.data for line in lines):
        mine = [line for line in lines if line.data == data]
        most = max(line.users for line in mine)
        plan_ms = np.mean([line.plan_ms for line in mine if line.users == most])
        what = "its one instance" if data == "fixed" else "fresh instances"
        theirs = np.mean([line.gaps for line in mine], axis=0)
        own = np.mean([line.own for line in mine], axis=0)
        cost = sum(line.train_s for line in mine)
        for name, gaps, seconds, ms in (
            (f"PER-DQN, a network per cell, trained on {what}", theirs, cost, plan_ms),
            ("ours, one network for all cells", own, total, ours["plan_ms"]),
        ):
            there, fresh = (_percent(gap) for gap in gaps)
            shown.append(
                f"| {name} | {len(mine)} | {there} | {fresh} | {seconds:,.0f} | {ms:.2g} |"
            )
    head = (
        "| learner | cells | gap on the published instances % | on fresh ones % "
        "| training, core-s | ms per plan, in batches |\n|---|---:|---:|---:|---:|---:|"
    )
    return "\n".join([head, *dict.fromkeys(shown)])


def _ratios(lines: Sequence[Line]) -> Iterator[str]:
    """How many times fewer core-seconds ours took to be as good as the agents."""
    for data in dict.fromkeys(line.data for line in lines):
        mine = [line for line in lines if line.data == data]
        own = [line.own_s for line in mine]
        later = [line for line in mine if 0 < line.own_s < np.inf]
        text = (
            f"Trained and judged on {data} instances: of {len(mine)} cells ours was as good as the "
            f"agent at its end before any training in {own.count(0)}, never in {own.count(np.inf)}"
        )
        if later:
            ratios = [line.kept_s / line.own_s for line in later]
            text += (
                f", and in the other {len(later)} after {np.median(ratios):,.0f} times fewer "
                f"core-seconds (median; {min(ratios):,.0f} to {max(ratios):,.0f})"
            )
        yield text + "."


def _cells(lines: Sequence[Line]) -> str:
    head = (
        "| trained on | N | E | seeds | PER-DQN: gap on the published instance % | on fresh ones % "
        "| its best greedy plan % | best plan played % | core-s | as good as at the end after "
        "| ours: gap there % | on fresh ones % | core-s to be as good as PER-DQN |\n|---|"
    )
    return "\n".join([head + "---:|" * 12, *map(_row, lines)])


def _row(line: Line) -> str:
    gaps = [*line.gaps, line.best, line.played]
    theirs = " | ".join("" if gap is None else _percent(gap) for gap in gaps)
    own = " | ".join(_percent(gap) for gap in line.own)
    when = "never" if line.own_s == np.inf else f"{line.own_s:.1f}" if line.own_s else "untrained"
    return (
        f"| {line.data} | {line.users} | {line.gpus} | {line.seeds} | {theirs} "
        f"| {line.train_s:,.0f} | {line.kept_s:,.0f} | {own} | {when} |"
    )


def _percent(gap: float) -> str:
    return f"{100 * max(gap, 0):.3f}"  # rounding makes some a little negative


def _picture(found: Document) -> Any:
    """Mean gap over cells against training, on what the agents of a panel are trained on."""
    kinds = [data for data in WHERE if any(row["data"] == data for row in found["rows"])]
    figure, axes = new_figure(1, len(kinds), (0.6 + 4.8 * len(kinds), 3.8))
    for panel, data in zip(np.ravel(axes), kinds, strict=True):
        _draw(panel, found, data)
        panel.set_title(f"{data} instances", fontsize=9)
    np.ravel(axes)[0].set_ylabel("mean gap, %")
    return figure


def _draw(axes: Any, found: Document, data: str) -> None:
    judged, ours = WHERE.index(data), found["ours"]
    rows = [row for row in found["rows"] if row["data"] == data]
    users = sorted({row["users"] for row in rows})
    look = styles([*(f"PER-DQN, N = {n}" for n in users), "ours, all N"])
    cells = sorted({(row["users"], row["gpus"]) for row in rows})
    own = [_own(run, ours["cells"].index(list(c))) for run in ours["runs"] for c in cells]
    each = [[_curve(row) for row in rows if row["users"] == n] for n in users] + [own]
    for (name, style), curves in zip(look.items(), each, strict=True):
        # A logarithmic axis has no place for 0 s, and a logarithm none for a gap of 0.
        seconds, gaps = (np.mean([c[i] for c in curves], axis=0)[1:] for i in (0, 1))
        width = 2.0 if name.startswith("ours") else 1.0
        axes.plot(seconds, 100 * gaps[:, judged], label=name, lw=width, **style)
    axes.set(xscale="log", xlabel="core-seconds of training a network")
    axes.set_yscale("symlog", linthresh=0.01)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
