"""Tables and the picture of `benchmarks.learners.per_dqn`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.learners.tables import spread
from offload_jax.evaluation.figures import COLOURS, new_figure, save
from offload_jax.files.disk import replace_file

Document = Mapping[str, Any]
Curve = tuple[np.ndarray, np.ndarray]  # core-seconds, and the gaps by WHERE at them
EQUAL = 1e-6  # gaps that differ by less are the same
LATE = 20  # of an agent's last gaps: 5,000 episodes
WHERE = ("fixed", "fresh")  # instances that plans are judged on, and that agents are trained on
ALONE, TOGETHER = "a network per cell", "one network for all cells"


@dataclass(frozen=True)
class Side:
    """Networks of one kind in a cell, over seeds."""

    gaps: np.ndarray  # (seeds, WHERE), at their ends
    train_s: float  # core-seconds, the mean
    first_s: float  # of these, until the gap was that of PER-DQN at its end: the median
    kept_s: float  # and until it stayed so


@dataclass(frozen=True)
class Line:
    """A cell in numbers: the agent's, and ours on the same instances."""

    data: str  # what agents, and ours alone, were trained on
    users: int
    gpus: int
    agent: Side
    late: np.ndarray  # (seeds), its mean gap over the LATE last checks, on what it was trained on
    played: float | None  # gap of the best plan of any of its episodes, the mean
    plan_ms: float
    ours: Mapping[str, Side]  # ALONE, TOGETHER


def write_pages(found: Document, out: Path) -> None:
    """Beside the results: a summary (.md), all cells (-cells.md) and the picture (.png)."""
    lines = list(lines_of(found))
    text = "\n\n".join([_summary(found, lines), _restless(lines), _ratios(lines)])
    replace_file(out.with_suffix(".md"), text + "\n")
    replace_file(out.with_name(out.stem + "-cells.md"), _cells(lines) + "\n")
    save(_picture(found), out.with_suffix(".png"))


def lines_of(found: Document) -> Iterator[Line]:
    """A line for each cell and kind of training."""
    for data, users, gpus in sorted({_place(row) for row in found["rows"]}):
        rows, alone = (_rows(found[kind], data, users, gpus) for kind in ("rows", "alone"))
        judged, curves = WHERE.index(data), [_curve(row) for row in rows]
        wanted = [gaps[-1, judged] for _, gaps in curves]
        own = {
            ALONE: [_curve(row) for row in alone],
            TOGETHER: _together(found["ours"], users, gpus),
        }
        played = [row["gap_played"] for row in rows]
        yield Line(
            data=data,
            users=users,
            gpus=gpus,
            agent=_side(curves, zip(curves, wanted, strict=True), judged),
            late=np.array([gaps[-LATE:, judged].mean() for _, gaps in curves]),
            played=None if None in played else float(np.mean(played)),
            plan_ms=min(row["plan_ms"] for row in rows),  # the one that was disturbed least
            ours={name: _side(own[name], product(own[name], wanted), judged) for name in own},
        )


def _rows(found: Sequence[Document], *place: Any) -> list[Document]:
    """Those of a place, by seed."""
    return sorted((row for row in found if _place(row) == place), key=lambda row: row["seed"])


def _place(row: Document) -> tuple[str, int, int]:
    return row["data"], row["users"], row["gpus"]


def _curve(row: Document) -> Curve:
    points = np.array(row["curve"], float)  # (steps, core-seconds, gaps)
    return points[:, 1], points[:, 2:]


def _together(ours: Document, users: int, gpus: int) -> list[Curve]:
    """Of the network for all cells, in this one."""
    place = ours["cells"].index([users, gpus])
    return [
        (
            np.array([point["train_s"] for point in run["curve"]]),
            np.array([point["gaps"][place] for point in run["curve"]]),
        )
        for run in ours["runs"]
    ]


def _side(curves: Sequence[Curve], pairs: Iterable[tuple[Curve, float]], judged: int) -> Side:
    """Of a curve for each seed, and pairs of one and the gap that it should come to."""
    when = [_when(seconds, gaps[:, judged], wanted) for (seconds, gaps), wanted in pairs]
    return Side(
        gaps=np.array([gaps[-1] for _, gaps in curves]),
        train_s=float(np.mean([seconds[-1] for seconds, _ in curves])),
        first_s=float(np.median([first for first, _ in when])),
        kept_s=float(np.median([kept for _, kept in when])),
    )


def _when(seconds: np.ndarray, gaps: np.ndarray, wanted: float) -> tuple[float, float]:
    """When the gap first is as small as wanted, and from when on it stays so; infinite: never."""
    good = gaps <= wanted + EQUAL
    kept = 0 if good.all() else np.flatnonzero(~good)[-1] + 1
    first = seconds[good.argmax()] if good.any() else np.inf
    return float(first), float(seconds[kept]) if kept < len(seconds) else np.inf


def _summary(found: Document, lines: Sequence[Line]) -> str:
    """A row for each kind of training, and of ours on the same cells, of seeds that all have."""
    shown = []
    for data in dict.fromkeys(line.data for line in lines):
        mine = [line for line in lines if line.data == data]
        most = max(line.users for line in mine)
        plan_ms = float(np.mean([line.plan_ms for line in mine if line.users == most]))
        what = "its one instance" if data == "fixed" else "fresh instances"
        alone, together = ([line.ours[name] for line in mine] for name in (ALONE, TOGETHER))
        own_ms = found["ours"]["plan_ms"]
        for name, sides, seconds, ms in (
            (f"PER-DQN, {ALONE}, {what}", [line.agent for line in mine], None, plan_ms),
            (f"ours, {ALONE}, {what}", alone, None, own_ms),
            (f"ours, {TOGETHER}, fresh instances", together, together[0].train_s, own_ms),
        ):
            seeds = min(len(side.gaps) for side in sides)
            there, fresh = _percents(np.mean([side.gaps[:seeds] for side in sides], axis=0))
            cost = seconds or sum(side.train_s for side in sides)
            shown.append(
                f"| {name} | {len(mine)} | {seeds} | {there} | {fresh} | {cost:,.0f} | {ms:.2g} |"
            )
    head = (
        "| networks, trained on | cells | seeds | gap on the published instances % "
        "| on fresh ones % | training, core-s | ms per plan, in batches |\n|---|"
    )
    return "\n".join([head + "---:|" * 6, *dict.fromkeys(shown)])


def _restless(lines: Sequence[Line]) -> str:
    """How good the agents were on the way to their end, and at it."""
    shown = [
        "Gap of PER-DQN on instances as it was trained on. Its plans go up and down until the end; "
        "the other networks are held to its gap at the end.\n",
        f"| PER-DQN trained on | mean of the last {LATE} checks % | at its end % |",
        "|---|---:|---:|",
    ]
    for data in dict.fromkeys(line.data for line in lines):
        mine = [line for line in lines if line.data == data]
        seeds = min(len(line.late) for line in mine)  # as in the summary
        end = np.mean([line.agent.gaps[:seeds, WHERE.index(data)] for line in mine])
        late = np.mean([line.late[:seeds] for line in mine])
        shown.append(f"| {data} instances | {100 * late:.2f} | {100 * end:.2f} |")
    return "\n".join(shown)


def _ratios(lines: Sequence[Line]) -> str:
    """How many times fewer core-seconds ours took to be as good as the agents."""
    shown = [
        "How many times faster ours is as good as PER-DQN at its end, in core-seconds of training: "
        "median (lowest to highest) over the cells where it needs training.\n",
        "| ours | PER-DQN trained on | cells | need no training | never as good "
        "| until first as good | until as good for good |\n|---|---|---:|---:|---:|---:|---:|",
    ]
    for data, name in dict.fromkeys((line.data, name) for line in lines for name in line.ours):
        mine = [line for line in lines if line.data == data]
        own = [line.ours[name].kept_s for line in mine]
        later = [line for line in mine if 0 < line.ours[name].kept_s < np.inf]
        # A network that nothing has trained may be as good for a moment: no ratio for those.
        first = [line for line in later if line.ours[name].first_s]
        until_first = _factors([x.agent.first_s / x.ours[name].first_s for x in first])
        until_kept = _factors([x.agent.kept_s / x.ours[name].kept_s for x in later])
        shown.append(
            f"| {name} | {data} instances | {len(mine)} | {own.count(0)} | {own.count(np.inf)} "
            f"| {until_first} | {until_kept} |"
        )
    return "\n".join(shown)


def _factors(ratios: Sequence[float]) -> str:
    if not ratios:
        return ""
    median, least, most = map(_short, (np.median(ratios), min(ratios), max(ratios)))
    return f"{median}x ({least} to {most}; {len(ratios)} cells)"


def _cells(lines: Sequence[Line]) -> str:
    names = ("PER-DQN", f"ours, {ALONE}", f"ours, {TOGETHER}")
    each = "gap on the published instance % | on fresh ones % | core-s | as good as PER-DQN after"
    head = (
        "Gaps are means over seeds (lowest to highest), core-seconds until as good as PER-DQN at "
        "its end medians: the first time / for good.\n\n"
        "| trained on | N | E | seeds of PER-DQN | best plan that PER-DQN played % | "
        + " | ".join(f"{name}: {each}" for name in names)
        + " |\n|---|"
    )
    return "\n".join([head + "---:|" * 16, *map(_row, lines)])


def _row(line: Line) -> str:
    played = "" if line.played is None else spread([max(line.played, 0)])
    sides = [
        f"{' | '.join(_percents(side.gaps))} | {_short(side.train_s)} "
        f"| {_short(side.first_s)} / {_short(side.kept_s)}"
        for side in (line.agent, *line.ours.values())
    ]
    first = f"| {line.data} | {line.users} | {line.gpus} | {len(line.late)} | {played} | "
    return first + " | ".join(sides) + " |"


def _short(value: float) -> str:
    if value == np.inf:
        return "never"
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def _percents(gaps: np.ndarray) -> Iterator[str]:
    """By WHERE; rounding makes some gaps a little negative."""
    return map(spread, np.maximum(gaps, 0).T)


def _picture(found: Document) -> Any:
    """Mean gap over cells against training, on what the agents of a panel are trained on.

    Ours is shown in the same cells.
    """
    kinds = [data for data in WHERE if any(row["data"] == data for row in found["rows"])]
    figure, axes = new_figure(1, len(kinds), (0.6 + 4.8 * len(kinds), 5.2))
    for panel, data in zip(np.ravel(axes), kinds, strict=True):
        _draw(panel, found, data)
        panel.set_title(f"{data} instances", fontsize=9)
    np.ravel(axes)[0].set_ylabel("mean gap, %")
    return figure


def _mean(rows: Sequence[Document]) -> Curve:
    """Of the seeds of a cell: of some there are more than of others."""
    seconds, gaps = zip(*map(_curve, rows), strict=True)
    return np.mean(seconds, axis=0), np.mean(gaps, axis=0)


def _draw(axes: Any, found: Document, data: str) -> None:
    cells = sorted({_place(row) for row in found["rows"] if row["data"] == data})

    def line(curves: Sequence[Curve], **look: Any) -> None:
        # A logarithmic axis has no place for 0 s, and a logarithm none for a gap of 0.
        seconds, gaps = (np.mean([curve[i] for curve in curves], axis=0)[1:] for i in (0, 1))
        axes.plot(seconds, 100 * gaps[:, WHERE.index(data)], **look)

    for colour, users in zip(COLOURS, sorted({n for _, n, _ in cells}), strict=False):
        mine = [place for place in cells if place[1] == users]
        theirs, own = ([_mean(_rows(found[kind], *p)) for p in mine] for kind in ("rows", "alone"))
        line(theirs, label=f"PER-DQN, N = {users}", color=colour, ls="--", lw=1)
        line(own, label=f"ours, N = {users}", color=colour, lw=2)
    together = [curve for _, *place in cells for curve in _together(found["ours"], *place)]
    line(together, label=f"ours, {TOGETHER}", color="black", lw=2)
    axes.set(xscale="log", xlabel="core-seconds of training a network")
    axes.set_yscale("symlog", linthresh=0.01)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.16))
