"""Charts of comparisons, as figures that are saved or put into a page.

Text and axes are drawn in `INK`, which a page replaces by the colour of its own text, and lines in
colours that stand out on white and on black: the same chart is read in print and on a dark screen.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#010203"
# Contrast of at least 3 to 1 on white and on #111111 (tests/test_charts.py).
COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#C2599B", "#8A6FDF", "#A5760A",
    "#3A8FB7", "#E0457B", "#5A8F29", "#7F7F7F", "#B0603A", "#2F9A9A",
)  # fmt: skip
MARKERS = "osD^vP*X<>hp"
LEAST = 1e-5  # gaps below are drawn here: nothing at all cannot be drawn on a logarithmic axis

Trace = tuple[np.ndarray, np.ndarray]  # seconds for each instance, mean gap


def styles(methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """A colour and a marker for every method, the same in all charts of these methods."""
    return {
        name: {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)], "ms": 5}
        for i, name in enumerate(methods)
    }


def gap_by(
    values: np.ndarray, gaps: Mapping[str, np.ndarray], label: str, parts: int = 8
) -> Figure:
    """Mean gap of each method, with its 95 % interval, against a number of every instance.

    `values` and each of `gaps` are over instances; they are cut into groups of about equal size.
    """
    figure, axes = new_figure(1, 1, (7.6, 4.2))
    edges = np.unique(np.quantile(values, np.linspace(0, 1, parts + 1)))
    group = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, max(len(edges) - 2, 0))
    groups = np.unique(group)
    centres = np.array([values[group == g].mean() for g in groups])
    look = styles(list(gaps))
    for name, gap in gaps.items():
        members = [gap[group == g] for g in groups]
        means = np.array([m.mean() for m in members])
        errors = np.array([1.96 * m.std() / np.sqrt(len(m)) for m in members])
        shown = 100 * np.maximum(means, LEAST)
        low = 100 * np.maximum(means - errors, LEAST)
        axes.plot(centres, shown, label=name, **look[name])
        axes.fill_between(
            centres, low, 100 * np.maximum(means + errors, LEAST), color=look[name]["color"],
            alpha=0.15, lw=0,
        )  # fmt: skip
    _gap_axis(axes, "y")
    axes.set(xlabel=label, ylabel="mean gap, %")
    _legend(axes)
    return figure


def anytime(traces: Mapping[str, Trace], methods: Sequence[str] = ()) -> Figure:
    """Mean gap against the time spent on each instance, of methods that go on improving.

    `methods` are all of a comparison: colours are as in its other charts.
    """
    figure, axes = new_figure(1, 1, (7.6, 4.2))
    look = styles(methods or list(traces))
    for name, (seconds, gap) in traces.items():
        shown = 100 * np.maximum(gap, LEAST)
        style = {**look[name], "marker": None}
        axes.step(1e3 * np.maximum(seconds, 1e-6), shown, where="post", label=name, **style)
        axes.plot(1e3 * seconds[-1], shown[-1], **look[name])
    axes.set_xscale("log")
    _gap_axis(axes, "y")
    axes.set(xlabel="time for each instance, ms", ylabel="mean gap of the best plan so far, %")
    _legend(axes)
    return figure


def scaling(rows: Sequence[tuple[str, int, float]], methods: Sequence[str] = ()) -> Figure:
    """Time per plan against the number of users: rows are (method, N, seconds per plan)."""
    from matplotlib.ticker import ScalarFormatter

    figure, axes = new_figure(1, 1, (7.6, 4.4))
    look = styles(methods or list(dict.fromkeys(name for name, _, _ in rows)))
    for name in dict.fromkeys(name for name, _, _ in rows):
        line = np.array([(n, s) for method, n, s in rows if method == name], float)
        power = exponent(line)
        text = name if power is None else f"{name}: N$^{{{power:.1f}}}$"
        dashed = "-" if power is not None else "--"
        axes.plot(line[:, 0], 1e3 * line[:, 1], dashed, label=text, **look[name])
    axes.set_xscale("log")
    axes.set_yscale("log")
    sizes = sorted({n for _, n, _ in rows})
    axes.set_xticks(sizes, [str(n) for n in sizes])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(ScalarFormatter() if not rows else "{x:g}")
    axes.set(xlabel="users N", ylabel="time per plan, ms")
    _legend(axes)
    return figure


def exponent(line: np.ndarray) -> float | None:
    """Slope of log(seconds) over log(N) in the upper half of the sizes; None for fewer than 4."""
    if len(line) < 4:
        return None
    upper = line[len(line) // 2 - 1 :]
    return float(np.polyfit(np.log(upper[:, 0]), np.log(upper[:, 1]), 1)[0])


def certified(gap: np.ndarray) -> Figure:
    """How far the best known plans may be from the optimum: a share of instances for every gap."""
    figure, axes = new_figure(1, 1, (7.6, 3.2))
    ordered = 100 * np.sort(np.maximum(gap, LEAST))
    share = 100 * np.arange(1, len(gap) + 1) / len(gap)
    axes.step(ordered, share, where="post", color=COLOURS[0])
    _gap_axis(axes, "x")
    axes.set(
        xlabel="upper bound above the best known plan, %", ylabel="instances, %", ylim=(0, 101)
    )
    return figure


def _gap_axis(axes: Axes, which: str) -> None:
    """Logarithmic, in per cent; what is not there at all stands at 0."""
    least = 100 * LEAST
    getattr(axes, f"set_{which}scale")("log")
    axis = getattr(axes, f"{which}axis")
    low, high = getattr(axes, f"get_{which}lim")()
    getattr(axes, f"set_{which}lim")(max(low, 0.7 * least), high)
    axis.set_major_formatter(lambda x, _: "0" if x <= 1.01 * least else f"{x:g}")
    axes.minorticks_off()
    axes.grid(alpha=0.3)


def _legend(axes: Axes) -> None:
    axes.grid(alpha=0.3)
    # Beside the lines, which may be anywhere.
    axes.legend(
        frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), labelcolor=INK
    )


def new_figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, Any]:
    """A figure with its axes, text and lines of the axes in INK."""
    # The object interface, without pyplot: no global state, no display, safe in threads.
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    found = figure.subplots(rows, columns)
    for axes in np.atleast_1d(found).ravel():
        axes.tick_params(colors=INK, which="both", labelsize=8)
        for part in (axes.xaxis.label, axes.yaxis.label, axes.title):
            part.set_color(INK)
            part.set_fontsize(9)
        for side, spine in axes.spines.items():
            spine.set_color(INK)
            spine.set_visible(side in ("left", "bottom") or rows * columns > 1)
    return figure, found


def save(figure: Figure, path: Path) -> None:
    """Writes the figure as a PNG on white."""
    figure.savefig(path, dpi=130, facecolor="white")


def svg(figure: Figure, name: str) -> str:
    """The figure as an SVG element; `name` makes its ids unique in a page and describes it."""
    from matplotlib import rc_context

    text = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif"}):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    drawn = text.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    prefix = re.sub(r"\W+", "-", name.lower())
    drawn = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', drawn)
    drawn = re.sub(r'(url\(|href=")#', rf"\1#{prefix}-", drawn)
    # Points of matplotlib would be pixels; the page decides how wide it is.
    drawn = re.sub(r'<svg ([^>]*?)width="[^"]+"', r"<svg \1", drawn, count=1)
    drawn = re.sub(r'<svg ([^>]*?)height="[^"]+"', r"<svg \1", drawn, count=1)
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
    black = r"#000000|(?<=fill: )black"  # what has no colour of its own
    return re.sub(rf"{INK}|{black}", "currentColor", drawn)
