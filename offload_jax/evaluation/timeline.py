"""The picture of a plan: what every user does when, on the edge, on the air, on its own device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

from offload_jax.evaluation.figures import INK, new_figure
from offload_jax.files.records import Plan
from offload_jax.plans.plan import execute
from offload_jax.problem import equations
from offload_jax.problem.instance import Instance
from offload_jax.splits import NATIVE, Solver

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Told apart by colour-blind readers, and in grey: the edge is dark, the own device light, the wait
# hatched.
EDGE_COLOURS = ("#0072B2", "#009E73", "#8A6FDF", "#C2599B", "#3A8FB7", "#5A8F29")
LOCAL_COLOUR, WAIT_COLOUR, AIR_COLOUR = "#F0B94A", "#DDDDDD", "#777777"
LIGHT, DARK = "#FFFFFF", "#1A1A1A"  # numbers on the bars
DARKER = ("#0072B2",)  # bars where the light ones read better
# Light pieces stand out on white by their outline, a short transfer is kept from vanishing by its.
OUTLINES = {WAIT_COLOUR: AIR_COLOUR, LOCAL_COLOUR: "#A5760A"}
_WIDTH, _ROW, _LEAST_ROW, _PAGE = 9.0, 0.2, 0.11, 12.0  # inches: figure, its rows, what fits a page


@dataclass(frozen=True)
class _Row:
    """A line of the timeline: a heading, or a user's bar."""

    text: str
    user: int | None = None
    indent: float = 0.0  # points
    height: float = 1.0  # in rows; the rows of many denied users are lower


def plan_figure(instance: Instance, plan: Plan, solver: Solver = NATIVE, title: str = "") -> Figure:
    """One plan as a timeline: servers, their batches, and who runs where, when, for how many steps.

    `instance` is the plan's, without padding; servers count from 0 and batches from 1, as in files.
    Beside each server stand its use, its budget and the price that `solver` gives it; beside each
    batch its load and capacity. Rows shrink until the figure fits a page, or nearly.
    """
    rows = _rows(instance, plan, solver)
    ends = np.cumsum([row.height for row in rows])
    unit = float(np.clip(_PAGE / ends[-1], _LEAST_ROW, _ROW))
    size = min(7.0, 42 * unit)  # points that fit a row
    figure, axes = new_figure(1, 1, (_WIDTH, unit * float(ends[-1]) + 1.2))
    placed = equations.place(instance, jnp.asarray(plan.assignment, jnp.int32))
    limits = _seconds(instance, plan, placed)
    axes.set_xlim(*limits)
    axes.set_ylim(ends[-1] + 0.2, -0.1)
    for row, end in zip(rows, ends, strict=True):
        y = end - row.height / 2
        if row.user is not None:
            _draw_user(axes, y, row, _pieces(instance, plan, placed, row.user), size)
            continue
        if not row.indent:  # a server begins, or those who are denied
            axes.axhline(end - row.height, color=INK, alpha=0.4, lw=0.6, zorder=0)
        axes.annotate(
            row.text, (0, y), (4 + row.indent, 0), xycoords=axes.get_yaxis_transform(),
            textcoords="offset points", size=size, color=INK, va="center",
        )  # fmt: skip
    _user_ticks(axes, rows, ends, size)
    axes.set_xlabel("seconds from the start of the batch (numbers: denoising steps)")
    title = title or f"{plan.method}: U = {plan.integer_objective:.2f} s"
    axes.set_title(title, size=9, parse_math=False)
    _plan_legend(axes)
    return figure


def _rows(instance: Instance, plan: Plan, solver: Solver) -> list[_Row]:
    """Headings of servers, of batches and of the denied, and users below them."""
    assignment = jnp.asarray(plan.assignment, jnp.int32)
    outcome = execute(instance, assignment, solver).outcome
    placed = equations.place(instance, assignment)
    split = jnp.asarray(plan.integer_split, instance.alpha.dtype)
    use = np.asarray(equations.server_use(instance, placed, split))
    load, budget = np.asarray(placed.load), np.asarray(instance.budget)
    rows = []
    for g in range(instance.num_servers):
        text = f"server {g}: {use[g]:.2f} GPU-s, no limit"
        if np.isfinite(budget[g]):
            price = float(outcome.price[g])
            text = (
                f"server {g}: {use[g]:.2f} of {budget[g]:.2f} GPU-s, price {price:.2f} s per GPU-s"
            )
        batches = np.flatnonzero(np.asarray(instance.server) == g)
        empty = [str(k + 1) for k in batches if not np.any(plan.assignment == k + 1)]
        text += f"; nobody in batch {', '.join(empty)}" if empty else ""
        rows.append(_Row(text))
        for k in batches:
            members = np.flatnonzero(plan.assignment == k + 1)
            full = f"{load[k]:g} of {float(instance.capacity[k]):g} images"
            rows += [_Row(f"batch {k + 1}: {full}", indent=12.0)] if len(members) else []
            rows += [_Row(f"user {user}", int(user)) for user in members]
    denied = np.flatnonzero(plan.assignment == 0)
    if len(denied):
        steps = f"all {float(instance.steps):g} steps on the own device"
        rows.append(_Row(f"denied: {len(denied)}, {steps}"))
    lower = 0.6 if len(denied) > 30 else 1.0
    return rows + [_Row(f"user {user}", int(user), height=lower) for user in denied]


def _pieces(
    instance: Instance, plan: Plan, placed: equations.Placement, user: int
) -> list[tuple[float, str, str]]:
    """A user's bar, from the wait before 0 on: (seconds, colour, steps as text) of each piece."""
    k, n, steps = int(plan.assignment[user]), int(plan.integer_split[user]), float(instance.steps)
    edge = (steps - n) * float(placed.edge_step[user]) if k else 0.0
    # Of the denied the heading says how many steps they run.
    texts = (f"{steps - n:.0f}" if steps > n else "", f"{n}" if n else "") if k else ("", "")
    return [
        (float(instance.wait[user]), WAIT_COLOUR, ""),
        (edge, EDGE_COLOURS[(k - 1) % len(EDGE_COLOURS)], texts[0]),
        (float(placed.transfer[user]), AIR_COLOUR, ""),
        (n * float(instance.local_step[user]), LOCAL_COLOUR, texts[1]),
    ]


def _seconds(instance: Instance, plan: Plan, placed: equations.Placement) -> tuple[float, float]:
    """The time that all bars span, with room for a number after the longest."""
    bars = [_pieces(instance, plan, placed, user) for user in range(instance.num_users)]
    longest = max([sum(length for length, _, _ in bar[1:]) for bar in bars], default=0.0) or 1.0
    waited = max([bar[0][0] for bar in bars], default=0.0)
    return -1.05 * max(waited, 0.02 * longest), 1.08 * longest


def _draw_user(
    axes: Axes, y: float, row: _Row, pieces: Sequence[tuple[float, str, str]], size: float
) -> None:
    """The bar, its numbers in the pieces, or behind the bar where one of them is too short."""
    low, high = axes.get_xlim()
    inch = (high - low) / (_WIDTH - 0.8)  # s
    font = 0.9 * size
    widths = [(length, 0.7 * font * len(text) / 72 * inch) for length, _, text in pieces if text]
    inside = all(length > needed for length, needed in widths)
    start = -pieces[0][0]
    for length, colour, text in pieces:
        hatch = "//////" if colour == WAIT_COLOUR else None
        if length > 0:
            axes.barh(y, length, left=start, color=colour, height=0.8 * row.height, hatch=hatch,
                      edgecolor=OUTLINES.get(colour, colour), linewidth=0.5,
                      hatch_linewidth=0.6)  # fmt: skip
        if text and inside:
            ink = LIGHT if colour in DARKER else DARK
            axes.text(start + length / 2, y, text, ha="center", va="center_baseline", size=font,
                      color=ink)  # fmt: skip
        start += length
    if not inside:
        steps = " + ".join(text for _, _, text in pieces if text)
        axes.annotate(steps, (start, y), (3, 0), textcoords="offset points", size=font, color=INK,
                      va="center_baseline")  # fmt: skip


def _user_ticks(axes: Axes, rows: Sequence[_Row], ends: np.ndarray, size: float) -> None:
    users = [(end - row.height / 2, row) for row, end in zip(rows, ends, strict=True)]
    users = [(y, row) for y, row in users if row.user is not None]
    axes.set_yticks([y for y, _ in users], [row.text for _, row in users])
    for label, (_, row) in zip(axes.get_yticklabels(), users, strict=True):
        label.set_fontsize(size if row.height == 1 else 0.8 * size)


def _plan_legend(axes: Axes) -> None:
    from matplotlib.patches import Patch

    handles = [
        Patch(facecolor=WAIT_COLOUR, edgecolor=AIR_COLOUR, hatch="//////", lw=0.5,
              hatch_linewidth=0.6, label="wait for the batch"),
        Patch(color=EDGE_COLOURS[0], label="edge (a colour per batch)"),
        Patch(color=AIR_COLOUR, label="transfer"),
        Patch(color=LOCAL_COLOUR, label="own device"),
    ]  # fmt: skip
    # Below the axes, where the layout leaves room: bars may reach any corner.
    axes.figure.legend(
        handles=handles,
        frameon=False,
        fontsize=7,
        ncols=len(handles),
        loc="outside lower center",
        labelcolor=INK,
    )
