"""Pictures of runs, comparisons and plans."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from offload_jax import model
from offload_jax.charts import INK, new_figure
from offload_jax.comparison import ALL, HARD, Comparison
from offload_jax.instance import Instance
from offload_jax.schema import Plan
from offload_jax.value import evaluate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Told apart by colour-blind readers, and in grey: the edge is dark, the own device is light.
EDGE_COLOURS = ("#0072B2", "#009E73", "#8A6FDF", "#C2599B", "#3A8FB7", "#5A8F29")
LOCAL_COLOUR, WAIT_COLOUR, AIR_COLOUR = "#E69F00", "#BBBBBB", "#777777"


def learning_curve(rows: Sequence[dict[str, Any]], reference: str) -> Figure:
    """Gap of the greedy policy, and what the samples gain, against updates.

    `reference` is what the gap is measured against.
    """
    from matplotlib.ticker import LogLocator

    figure, (left, right) = new_figure(1, 2, (9.0, 3.4))
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
            text = f"{gap:.0f}" if gap >= 10 else f"{gap:.1f}" if gap >= 0.05 else "0"
            axes.text(
                j, i, text, ha="center", va="center", size=7, color="white" if dark else "black"
            )
    axes.set_xticks(range(len(cells)), cells, rotation=60, ha="right", size=7)
    axes.set_yticks(range(len(methods)), methods, size=8)
    axes.set_title(f"Mean gap to the {comparison.reference}, %", size=9)
    figure.colorbar(shown, ax=axes, pad=0.01)
    return figure


def plan_figure(instance: Instance, plan: Plan, title: str = "") -> Figure:
    """One plan as a timeline: servers, their batches, and who runs where, when, for how many steps.

    `instance` is the plan's, without padding; servers count from 0 and batches from 1, as in files.
    Beside each server stand its use, budget and price;
    beside each batch its load and capacity.
    """
    rows = _rows(instance, plan)
    height = 0.2 * len(rows) + 1.2
    figure, axes = new_figure(1, 1, (9.0, height))
    placed = model.place(instance, jnp.asarray(plan.assignment, jnp.int32))
    longest, beside = 0.0, axes.get_yaxis_transform()
    for y, (text, user) in enumerate(rows):
        if user is None:
            if not text.startswith(" "):  # a server begins, or those who are denied
                axes.axhline(y - 0.5, color=INK, alpha=0.4, lw=0.6, zorder=0)
            axes.text(0.01, y, text, transform=beside, size=7, color=INK, va="center")
            continue
        longest = max(longest, _draw_user(axes, y, instance, plan, placed, user))
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_yticks(
        [y for y, (_, user) in enumerate(rows) if user is not None],
        [f"user {user}" for _, user in rows if user is not None],
        size=7 if len(rows) < 60 else 5,
    )
    axes.set_xlim(-1.05 * max(float(np.max(instance.wait, initial=0.0)), 0.02 * longest), None)
    axes.set_xlabel("seconds from the start of the batch (numbers: denoising steps)")
    axes.set_title(title or f"{plan.method}: U = {plan.integer_objective:.2f} s", size=9)
    _plan_legend(axes)
    return figure


def _rows(instance: Instance, plan: Plan) -> list[tuple[str, int | None]]:
    """The lines of the timeline: headings (without a user), and users under their batch."""
    outcome = evaluate(instance, plan.assignment)
    placed = model.place(instance, jnp.asarray(plan.assignment, jnp.int32))
    split = jnp.asarray(plan.integer_split, instance.alpha.dtype)
    use = np.asarray(model.server_use(instance, placed, split))
    load, budget = np.asarray(placed.load), np.asarray(instance.budget)
    rows: list[tuple[str, int | None]] = []
    for g in range(instance.num_servers):
        limit = f"of {budget[g]:.3g} " if np.isfinite(budget[g]) else ""
        text = f"server {g}: {use[g]:.2f} {limit}GPU-s"
        if np.isfinite(budget[g]):
            text += f", one more is worth {float(outcome.price[g]):.2f} s"
        rows.append((text, None))
        for k in np.flatnonzero(np.asarray(instance.server) == g):
            members = np.flatnonzero(plan.assignment == k + 1)
            full = f"{load[k]:g} of {float(instance.capacity[k]):g} images"
            rows.append((f"      batch {k + 1}: {full}", None))
            rows += [("", int(user)) for user in members]
    denied = np.flatnonzero(plan.assignment == 0)
    if len(denied):
        rows.append((f"denied: {len(denied)}", None))
    return rows + [("", int(user)) for user in denied]


def _draw_user(
    axes: Axes, y: int, instance: Instance, plan: Plan, placed: model.Placement, user: int
) -> float:
    """One user's bar: wait, edge steps, transfer, own steps. Returns where it ends."""
    k, n, steps = int(plan.assignment[user]), int(plan.integer_split[user]), float(instance.steps)
    wait = float(instance.wait[user])
    edge = (steps - n) * float(placed.edge_step[user]) if k else 0.0
    pieces = [
        (wait, WAIT_COLOUR, ""),
        (edge, EDGE_COLOURS[(k - 1) % len(EDGE_COLOURS)], f"{steps - n:.0f}"),
        (float(placed.transfer[user]), AIR_COLOUR, ""),
        (n * float(instance.local_step[user]), LOCAL_COLOUR, f"{n}"),
    ]
    start = -wait
    for length, colour, text in pieces:
        axes.barh(y, length, left=start, color=colour, height=0.8)
        if text and text != "0" and length > 0:
            dark = colour != LOCAL_COLOUR
            axes.text(start + length / 2, y, text, ha="center", va="center", size=6,
                      color="#FFFFFF" if dark else "#1A1A1A", clip_on=True)  # fmt: skip
        start += length
    return start


def _plan_legend(axes: Axes) -> None:
    from matplotlib.patches import Patch

    handles = [
        Patch(color=WAIT_COLOUR, label="wait for the batch"),
        Patch(color=EDGE_COLOURS[0], label="edge (a colour per batch)"),
        Patch(color=AIR_COLOUR, label="transfer"),
        Patch(color=LOCAL_COLOUR, label="own device"),
    ]
    # Below the axes, where the layout leaves room: bars may reach any corner.
    axes.figure.legend(
        handles=handles,
        frameon=False,
        fontsize=7,
        ncols=len(handles),
        loc="outside lower center",
        labelcolor=INK,
    )
