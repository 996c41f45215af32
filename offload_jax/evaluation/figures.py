"""Charts of comparisons and of training, as figures that are saved or put into a page.

Text and axes are drawn in `INK`, which a page replaces by the colour of its own text, and lines in
colours that stand out on white and on black: the same chart is read in print and on a dark screen.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from offload_jax.evaluation.comparison import ALL, HARD, Comparison, half_width

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#010203"
# Contrast of at least 3 to 1 on white and on #111111 (tests/evaluation/test_figures.py).
COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#C2599B", "#8A6FDF", "#A5760A",
    "#3A8FB7", "#E0457B", "#5A8F29", "#7F7F7F", "#B0603A", "#2F9A9A",
)  # fmt: skip
MARKERS = "osD^vP*X<>hp"  # filled for the first dozen of methods, hollow for the next
LEAST = 1e-5  # gaps below are drawn here: nothing at all cannot be drawn on a logarithmic axis

GapCurve = tuple[np.ndarray, np.ndarray]  # seconds for each instance, mean gap


def styles(methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """A colour and a marker for every method, the same in all charts of these methods."""
    found: dict[str, dict[str, Any]] = {}
    for i, name in enumerate(methods):
        colour = COLOURS[i % len(COLOURS)]
        face = colour if i < len(COLOURS) else "none"
        found[name] = {"color": colour, "marker": MARKERS[i % len(MARKERS)], "ms": 5, "mfc": face}
    return found


def gap_by(
    values: np.ndarray, gaps: Mapping[str, np.ndarray], label: str, parts: int = 8
) -> Figure:
    """Mean gap of each method, with its 95 % interval, against a number of every instance.

    `values` and each of `gaps` are over instances; where there are more than `parts` values, they
    are cut into groups of about equal size.
    """
    from matplotlib.ticker import MaxNLocator

    figure, axes = new_figure(1, 1, (7.6, 4.2))
    group = _groups(values, parts)
    centres = np.array([values[group == g].mean() for g in np.unique(group)])
    # Side by side: intervals and points of equal height would hide each other.
    room = min(0.4, 0.04 * len(gaps)) * (np.min(np.diff(centres)) if len(centres) > 1 else 0.0)
    aside = room * ((np.arange(len(gaps)) + 0.5) / len(gaps) - 0.5)
    look = styles(list(gaps))
    for shift, (name, gap) in zip(aside, gaps.items(), strict=True):
        members = [gap[group == g] for g in np.unique(group)]
        means = np.array([m.mean() for m in members])
        errors = np.nan_to_num([half_width(m) for m in members])
        low, high = (100 * np.maximum(means + e, LEAST) for e in (-errors, errors))
        color = look[name]["color"]
        axes.plot(centres + shift, 100 * np.maximum(means, LEAST), label=name, lw=1.2, **look[name])
        axes.vlines(centres + shift, low, high, color=color, alpha=0.6, lw=1.2)
    _gap_axis(axes, "y")
    if np.array_equal(centres, np.unique(values)):
        axes.set_xticks(centres, [f"{value:g}" for value in centres])
    elif np.all(values == np.round(values)):
        axes.xaxis.set_major_locator(MaxNLocator(9, integer=True))
    axes.set(xlabel=label, ylabel="mean gap, %")
    _legend(axes)
    return figure


def _groups(values: np.ndarray, parts: int) -> np.ndarray:
    """The number of each value's group, from 0: a group of its own for each of few values."""
    different, own = np.unique(values, return_inverse=True)
    if len(different) <= parts:
        return own
    edges = np.unique(np.quantile(values, np.linspace(0, 1, parts + 1)))
    return np.minimum(np.searchsorted(edges, values, side="right"), len(edges) - 1) - 1


def anytime(traces: Mapping[str, GapCurve], methods: Sequence[str] = ()) -> Figure:
    """Mean gap against the time spent on each instance; a point where a method just ends.

    `methods` are all of a comparison: colours are as in its other figures.
    """
    figure, axes = new_figure(1, 1, (7.6, 4.2))
    look = styles(methods or list(traces))
    for name, (seconds, gap) in traces.items():
        x, y = 1e3 * np.maximum(seconds, 1e-6), 100 * np.maximum(gap, LEAST)
        line = {} if len(x) > 1 else {"ls": "none"}
        axes.step(x, y, where="post", label=name, markevery=[len(x) - 1], **look[name], **line)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(_plain)
    _gap_axis(axes, "y")
    axes.set(xlabel="time for each instance, ms", ylabel="mean gap of the best plan so far, %")
    _legend(axes)
    return figure


def scaling(rows: Sequence[tuple[str, int, float]], methods: Sequence[str] = ()) -> Figure:
    """Time per plan against the number of users: rows are (method, N, seconds per plan)."""
    figure, axes = new_figure(1, 1, (7.6, 4.4))
    names = list(dict.fromkeys(name for name, _, _ in rows))
    look = styles(methods or names)
    for name in names:
        line = np.array([(n, s) for method, n, s in rows if method == name], float)
        power = exponent(line)
        text = name if power is None else f"{name}: N$^{{{power:.1f}}}$"
        dashed = "-" if power is not None else "--"
        axes.plot(line[:, 0], 1e3 * line[:, 1], dashed, label=text, **look[name])
    axes.set_xscale("log")
    axes.set_yscale("log")
    sizes = np.unique([n for _, n, _ in rows])
    if len(sizes) > 1:
        _slopes(axes, sizes)
    shown = [n for i, n in enumerate(sizes) if not i or n / sizes[i - 1] > 1.12]
    axes.set_xticks(shown, [str(n) for n in shown])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(_plain)
    axes.set(xlabel="users N", ylabel="time per plan, ms")
    _legend(axes)
    return figure


def _slopes(axes: Axes, sizes: np.ndarray) -> None:
    """N and N^2 to compare with, from the lower left corner, where the axes end already."""
    limits = axes.get_ylim()
    for label, power, dashes in (("slope of N", 1, ":"), ("slope of N$^2$", 2, "-.")):
        slope = 1.3 * limits[0] * (sizes / sizes[0]) ** power
        axes.plot(sizes, slope, dashes, color=INK, alpha=0.45, lw=1, label=label, zorder=1)
    axes.set_ylim(limits)


_STEEPEST = 6.0  # what grows faster is no power of N worth naming


def exponent(line: np.ndarray) -> float | None:
    """Slope of log(seconds) over log(N) in the upper half of the sizes.

    None for fewer than 4 sizes, and for what grows faster than any power of use.
    """
    if len(line) < 4:
        return None
    upper = line[len(line) // 2 - 1 :]
    power = float(np.polyfit(np.log(upper[:, 0]), np.log(upper[:, 1]), 1)[0])
    return power if power <= _STEEPEST else None


def certified(gap: np.ndarray) -> Figure:
    """How far the best known plans may be from the optimum: a share of instances for every gap."""
    figure, axes = new_figure(1, 1, (7.6, 3.2))
    ordered = 100 * np.sort(np.maximum(gap, LEAST))
    share = 100 * np.arange(1, len(gap) + 1) / len(gap)
    axes.step([ordered[0], *ordered], [0.0, *share], where="post", color=COLOURS[0])
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
    axis.set_major_formatter(lambda x, at: "0" if x <= 1.01 * least else _plain(x, at))
    axes.minorticks_off()
    axes.grid(alpha=0.3)


def _plain(number: float, _: int | None = None) -> str:
    """1e+06 is no number to read on an axis."""
    return f"{number:,.0f}" if number >= 1 else f"{number:.10f}".rstrip("0")


def _legend(axes: Axes) -> None:
    axes.grid(alpha=0.3)
    # Beside the lines, which may be anywhere, and in the order in which they end there; what has no
    # colour of its own (slopes to compare with) comes last.
    lines = [line for line in axes.lines if not str(line.get_label()).startswith("_")]
    lines.sort(key=lambda line: (line.get_color() == INK, -float(np.asarray(line.get_ydata())[-1])))
    axes.legend(
        handles=lines, frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5),
        labelcolor=INK, handlelength=2.8,
    )  # fmt: skip


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


def learning_curve(rows: Sequence[dict[str, Any]], reference: str) -> Figure:
    """Gap of the greedy policy, and what the samples gain, against updates.

    `reference` is what the gap is measured against.
    """
    from matplotlib.ticker import LogLocator

    figure, (left, right) = new_figure(1, 2, (9.0, 3.4))
    evaluated = [row for row in rows if "gap" in row]
    gaps = [100 * row["gap"] for row in evaluated]
    left.plot([row["step"] for row in evaluated], gaps, "o-", color=COLOURS[0])
    if gaps and min(gaps) > 0:
        left.set_yscale("log")
        left.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        left.yaxis.set_major_formatter("{x:g}")
        left.minorticks_off()
    left.set(
        xlabel="update", ylabel="mean gap of greedy decoding, %", title=f"Gap to the {reference}"
    )
    steps = [row["step"] for row in rows]
    for name, label in (("best_of_samples", "best sample"), ("gain", "mean of samples")):
        right.plot(steps, [100 * row.get(name, np.nan) for row in rows], label=label)
    right.set(xlabel="update", ylabel="gain, % of all-local time", title="Samples during training")
    right.legend(frameon=False)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    return figure


def gap_figure(comparison: Comparison) -> Figure:
    """Mean gap of every method (deny left out) in every cell."""
    cells = [cell for cell in comparison.cells() if cell not in (ALL, HARD)]
    methods = [m for m in comparison.methods() if m != "deny"] or comparison.methods()
    gaps = np.array([[100 * comparison.row(m, c).gap_mean for c in cells] for m in methods])
    figure, axes = new_figure(1, 1, (max(4.0, 0.55 * len(cells) + 2.6), 0.36 * len(methods) + 1.6))
    shown = axes.imshow(np.maximum(gaps, 0.01), norm="log", cmap="Blues", aspect="auto")
    for i, line in enumerate(gaps):
        for j, gap in enumerate(line):
            dark = gap > np.sqrt(0.01 * max(gaps.max(), 0.02))
            digits = 0 if gap >= 10 else 1 if gap >= 0.1 else 2
            text = f"{gap:.{digits}f}" if gap >= 0.005 else "0"
            axes.text(
                j, i, text, ha="center", va="center", size=7, color="white" if dark else "black"
            )
    axes.set_xticks(range(len(cells)), cells, rotation=60, ha="right", size=7)
    axes.set_yticks(range(len(methods)), methods, size=8)
    width = int(14 * figure.get_figwidth())  # letters of this size
    title = textwrap.fill(f"Mean gap to the {comparison.reference}, %", width)
    figure.suptitle(title, size=9)
    figure.colorbar(shown, ax=axes, pad=0.01)
    return figure
