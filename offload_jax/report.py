"""Tables and pictures of runs, comparisons and plans. The only file that imports matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from offload_jax import model
from offload_jax.evaluation import ALL, HARD, Comparison, Row
from offload_jax.instance import Instance
from offload_jax.schema import Plan

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe-Ito: told apart by colour-blind readers too.
EDGE_COLOURS = ("#0072B2", "#56B4E9", "#009E73", "#CC79A7", "#D55E00", "#F0E442")
LOCAL_COLOUR, WAIT_COLOUR, AIR_COLOUR = "#E69F00", "#DDDDDD", "#555555"


def markdown(comparison: Comparison) -> str:
    """The comparison as a Markdown table, one line per method: all instances and the hard cells."""
    cells = comparison.cells()
    wide = ALL if ALL in cells else cells[0]
    lines = [
        "| method | mean gap % | 95 % interval | worst cell % | p95 % | max % | hard cells % "
        "| ms per plan |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for method in comparison.methods():
        row = comparison.row(method, wide)
        hard = f"{100 * comparison.row(method, HARD).gap_mean:.2f}" if HARD in cells else "-"
        lines.append(
            f"| {method} | {100 * row.gap_mean:.3f} | ±{100 * row.gap_ci95:.3f} | "
            f"{100 * worst_cell(comparison, method).gap_mean:.2f} | {100 * row.gap_p95:.2f} | "
            f"{100 * row.gap_max:.2f} | {hard} | {1e3 * row.seconds_per_plan:.3f} |"
        )
    return "\n".join(lines)


def worst_cell(comparison: Comparison, method: str) -> Row:
    """The single cell with the largest mean gap of a method."""
    rows = [r for r in comparison.rows if r.method == method and r.cell not in (ALL, HARD)]
    return max(rows, key=lambda row: row.gap_mean)


def learning_curve(rows: Sequence[dict[str, Any]], path: Path, reference: str) -> None:
    """Writes a PNG: gap of the greedy policy, and what the samples gain, against updates.

    `reference` is what the gap is measured against.
    """
    from matplotlib.ticker import LogLocator

    figure, (left, right) = _figure(1, 2, (9.0, 3.4))
    evaluated = [row for row in rows if "gap" in row]
    gaps = [100 * row["gap"] for row in evaluated]
    left.plot([row["step"] for row in evaluated], gaps, "o-", color=EDGE_COLOURS[0])
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
        right.plot(steps, [100 * row[name] for row in rows], label=label)
    right.set(xlabel="update", ylabel="gain, % of all-local time", title="Samples during training")
    right.legend(frameon=False)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    _write(figure, path)


def gap_figure(comparison: Comparison, path: Path) -> None:
    """Writes a PNG: mean gap of every method (deny left out) in every cell."""
    cells = [cell for cell in comparison.cells() if cell not in (ALL, HARD)]
    methods = [m for m in comparison.methods() if m != "deny"] or comparison.methods()
    gaps = np.array([[100 * comparison.row(m, c).gap_mean for c in cells] for m in methods])
    figure, axes = _figure(1, 1, (max(4.0, 0.55 * len(cells) + 2.6), 0.36 * len(methods) + 1.6))
    shown = axes.imshow(np.maximum(gaps, 0.01), norm="log", cmap="Blues", aspect="auto")
    for i, line in enumerate(gaps):
        for j, gap in enumerate(line):
            dark = gap > np.sqrt(0.01 * max(gaps.max(), 0.02))
            text = f"{gap:.0f}" if gap >= 10 else f"{gap:.1f}" if gap >= 0.05 else "0"
            axes.text(
                j, i, text, ha="center", va="center", size=7, color="white" if dark else "black"
            )
    axes.set_xticks(range(len(cells)), cells, rotation=60, ha="right", size=7)
    axes.set_yticks(range(len(methods)), methods, size=8)
    axes.set_title(f"Mean gap to the {comparison.reference}, %", size=9)
    figure.colorbar(shown, ax=axes, pad=0.01)
    _write(figure, path)


def plan_figure(instance: Instance, plan: Plan, path: Path, title: str = "") -> None:
    """Writes a PNG of one plan: a bar per user, who runs where, when and for how many steps."""
    batch = plan.assignment
    placed = model.place(instance, jnp.asarray(batch, jnp.int32))
    local_step, wait = np.asarray(instance.local_step), np.asarray(instance.wait)
    steps, edge_step = float(instance.steps), np.asarray(placed.edge_step)
    transfer = np.asarray(placed.transfer)
    figure, axes = _figure(1, 1, (9.0, 0.27 * len(batch) + 1.5))
    for user, (k, n) in enumerate(zip(batch, plan.integer_split, strict=True)):
        edge = (steps - n) * edge_step[user] if k else 0.0
        pieces = [
            (wait[user], WAIT_COLOUR, ""),
            (edge, EDGE_COLOURS[(k - 1) % len(EDGE_COLOURS)], f"{steps - n:.0f}"),
            (transfer[user], AIR_COLOUR, ""),
            (n * local_step[user], LOCAL_COLOUR, f"{n}"),
        ]
        start = -wait[user]
        for length, colour, text in pieces:
            axes.barh(user, length, left=start, color=colour, height=0.8)
            if text and text != "0":
                axes.text(start + length / 2, user, text, ha="center", va="center", size=7)
            start += length
    axes.invert_yaxis()
    axes.set_yticks(range(len(batch)), [f"user {i}" for i in range(len(batch))], size=7)
    axes.set(xlabel="seconds from the start of the batch (numbers: denoising steps)")
    axes.set_title(title or f"{plan.method}: U = {plan.integer_objective:.2f} s", size=9)
    _plan_legend(axes, int(max(batch, default=0)))
    _write(figure, path)


def _plan_legend(axes: Axes, batches: int) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(color=WAIT_COLOUR, label="wait for the batch")]
    for k in range(batches):
        colour = EDGE_COLOURS[k % len(EDGE_COLOURS)]
        handles.append(
            Patch(color=colour, label="edge" if batches == 1 else f"edge, batch {k + 1}")
        )
    handles.append(Patch(color=AIR_COLOUR, label="transfer"))
    handles.append(Patch(color=LOCAL_COLOUR, label="own device"))
    # Beside the bars, which may reach any corner.
    beside = (1.0, 0.5)
    axes.legend(
        handles=handles, frameon=False, fontsize=7, loc="center left", bbox_to_anchor=beside
    )


def _figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, Any]:
    # The object interface, without pyplot: no global state, no display, safe in threads.
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns)


def _write(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=130)
