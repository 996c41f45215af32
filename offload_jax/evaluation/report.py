"""The report of a comparison: its table, and one page with everything to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from offload_jax.evaluation import figures, timeline
from offload_jax.evaluation.comparison import ALL, HARD, Comparison, MethodRow
from offload_jax.evaluation.page import Section, Table, page
from offload_jax.files.records import Plan
from offload_jax.methods import baseline
from offload_jax.plans.plan import PROVEN
from offload_jax.problem.instance import Instance
from offload_jax.splits import NATIVE, Solver


@dataclass(frozen=True)
class Study:
    """What a page shows beside the comparison; what is left empty is left out."""

    title: str
    subtitle: str
    comparison: Comparison
    traces: Mapping[str, figures.GapCurve] = field(default_factory=dict)
    scaling: Sequence[tuple[str, int, float]] = ()  # method, N, seconds per plan
    plan: tuple[Instance, Plan] | None = None  # without padding
    solver: Solver = NATIVE  # of the plan's split points


def table(comparison: Comparison) -> Table:
    """One line per method, over all instances; the worst and the hard cells where there are any."""
    cells = comparison.cells()
    wide, several = ALL if ALL in cells else cells[0], len(cells) > 1
    header = ["method", "mean gap %", "95 % interval", "p95 %", "max %", "feasible %",
              "ms per plan"]  # fmt: skip
    header += ["worst cell %"] * several + ["hard cells %"] * (HARD in cells)
    rows = []
    for method in comparison.methods():
        row = comparison.row(method, wide)
        line = [
            method,
            f"{100 * row.gap_mean:.3f}",
            "-" if np.isnan(row.gap_ci95) else f"±{100 * row.gap_ci95:.3f}",
            f"{100 * row.gap_p95:.2f}",
            f"{100 * row.gap_max:.2f}",
            f"{100 * row.feasible:.5g}",
            _milliseconds(row.seconds_per_plan),
        ]
        line += [f"{100 * worst_cell(comparison, method).gap_mean:.2f}"] * several
        line += [f"{100 * comparison.row(method, HARD).gap_mean:.2f}"] if HARD in cells else []
        rows.append(line)
    best = ("mean gap %", "p95 %", "max %", "ms per plan", "worst cell %", "hard cells %")
    return Table(header, rows, best)


def _milliseconds(seconds: float) -> str:
    """Three digits, but never as a power of ten."""
    number = 1e3 * seconds
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def markdown(comparison: Comparison) -> str:
    """The same as a Markdown table."""
    found = table(comparison)
    lines = [found.header, ["---", *["---:"] * (len(found.header) - 1)], *found.rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines).replace("| --- |", "|---|")


def worst_cell(comparison: Comparison, method: str) -> MethodRow:
    """The single cell with the largest mean gap of a method."""
    rows = [r for r in comparison.rows if r.method == method and r.cell not in (ALL, HARD)]
    return max(rows, key=lambda row: row.gap_mean)


def html(study: Study) -> str:
    """The page: table, gaps by N and by load, time, what is proven, and one plan."""
    comparison = study.comparison
    sections = [
        Section(
            "All methods side by side",
            (
                "The gap of a plan is (U_best - U) / (U_best - U_deny): 0 is the best plan known, "
                f"100 % is denying everybody. U_best: {comparison.reference}. Time is that of one "
                "plan when all instances are decided side by side, compiling left out.",
                *(f"{name} is left out: {why}." for name, why in comparison.left_out.items()),
            ),
            table(comparison),
        ),
        *_gaps(comparison),
        *_times(study),
    ]
    if study.plan is not None:
        drawn = timeline.plan_figure(*study.plan, study.solver)
        text = (
            "Who runs where, when, and for how many steps. The price of a server is what a little "
            "more of its budget is worth, in seconds for each GPU-second."
        )
        sections.append(Section("One plan", (text,), svg=figures.svg(drawn, "plan")))
    methods = [[n, one.about] for n in comparison.methods() if (one := baseline(n))]
    sections.append(
        Section("What the methods are", table=Table(["method", "what it does"], methods))
    )
    return page(study.title, study.subtitle, sections)


def _gaps(comparison: Comparison) -> list[Section]:
    detail = comparison.detail
    shown = {name: gap for name, gap in detail.gaps.items() if name != "deny"} or detail.gaps
    sections = []
    for title, values, label in (
        ("Gap by number of users", detail.users, "users N"),
        ("Gap by load", detail.load, "images asked for, as a share of all capacity"),
    ):
        if len(np.unique(values)) > 1:
            drawn = figures.gap_by(values, shown, label)
            caption = "Mean gap with its 95 % interval; logarithmic, 0 at the bottom."
            sections.append(Section(title, svg=figures.svg(drawn, title), caption=caption))
    if detail.bound_gap is not None:
        sections.append(_proven(detail.bound_gap))
    return sections


def _proven(gap: np.ndarray) -> Section:
    """`gap` is from the best known plans to the bounds, as a share."""
    proven = int(np.sum(gap <= PROVEN))
    if proven == len(gap):
        text = f"All {proven} best known plans are proven optimal: no method can gain more."
        return Section("What is proven", (text,))
    text = (
        f"Upper bounds, valid for every plan, lie {100 * gap.mean():.2f} % above the best "
        f"known plans on average and {100 * gap.max():.2f} % at most: no method, however "
        f"clever, can gain more than that. {proven} of {len(gap)} are proven optimal."
    )
    return Section("What is proven", (text,), svg=figures.svg(figures.certified(gap), "proven"))


def _times(study: Study) -> list[Section]:
    methods, sections = study.comparison.methods(), []
    # Methods that were left out of the comparison may have a place among the times.
    named = dict.fromkeys([*methods, *(name for name, _, _ in study.scaling)])
    shown = [name for name in named if name != "deny"]
    if study.traces:
        traces = {name: trace for name, trace in study.traces.items() if name != "deny"}
        drawn = figures.anytime(traces, shown)
        text = (
            "The best plan so far against the time it took: lines of methods that go on improving, "
            "points of those that just end."
        )
        sections.append(Section("Gap against time", (text,), svg=figures.svg(drawn, "anytime")))
    if study.scaling:
        rows = [row for row in study.scaling if row[0] != "deny"]
        drawn = figures.scaling(rows, shown)
        text = (
            "Time per plan against the number of users, on logarithmic axes: a straight line is a "
            "power of N, its slope the exponent (measured over the larger half of the sizes). "
            "Dashed lines have too few points for one, or grow faster than powers."
        )
        sections.append(Section("Time against users", (text,), svg=figures.svg(drawn, "scaling")))
    return sections
