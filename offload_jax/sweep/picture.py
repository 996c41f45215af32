"""A sweep as parallel coordinates: an axis for each parameter, a line for each trial."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from offload_jax.charts import COLOURS, INK, new_figure
from offload_jax.sweep.space import Number, Scalar, Space
from offload_jax.sweep.spec import SweepConfig

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from offload_jax.sweep.trials import Record

BEST, FINISHED, PRUNED = COLOURS[1], COLOURS[0], COLOURS[9]
_TICKS = 5
_SPREAD = 0.05  # of an axis: lines through the same choice are drawn so far apart


@dataclass(frozen=True)
class _Axis:
    """One vertical axis: where values stand on it (0 to 1), and what is written beside it."""

    label: str
    low: Number
    high: Number
    log: bool = False
    choices: tuple[Scalar, ...] = ()

    def place(self, value: Any, aside: float) -> float:
        """`aside` in -0.5..0.5 keeps lines through the same choice apart."""
        if self.choices:
            room = 1.0 / max(len(self.choices) - 1, 1)
            at = self.choices.index(value) * room
            return (1 - _SPREAD) * at + _SPREAD / 2 + _SPREAD * aside
        low, high, value = (self._scaled(v) for v in (self.low, self.high, value))
        return (value - low) / (high - low) if high > low else 0.5

    def _scaled(self, value: float) -> float:
        return math.log(value) if self.log else float(value)

    def ticks(self) -> list[tuple[float, str]]:
        if self.choices:
            return [(self.place(choice, 0.0), str(choice)) for choice in self.choices]
        if self.low == self.high:
            return [(0.5, f"{self.low:.3g}")]
        spaced = np.geomspace if self.log else np.linspace
        return [(self.place(v, 0.0), f"{v:.3g}") for v in spaced(self.low, self.high, _TICKS)]


def parallel_coordinates(sweep: SweepConfig, records: Sequence[Record]) -> Figure:
    """Every trial with a value as a line over its parameters to the metric, at the right.

    The best finished trial stands out; pruned trials are thin and broken.
    """
    drawn = [record for record in records if record.value is not None]
    spaces = {n: s for n, s in sweep.parameters.items() if not s.fixed}
    axes_of = [_parameter_axis(name, space, drawn) for name, space in spaces.items()]
    axes_of.append(_metric_axis(sweep, drawn))
    figure, axes = new_figure(1, 1, (max(5.0, 1.6 * len(axes_of) + 1.0), 4.0))
    finished = [record for record in drawn if record.state == "finished"]
    best = sweep.best([r.value for r in finished if r.value is not None]) if finished else None
    # The best last, on top of the others.
    order = sorted(drawn, key=lambda r: (r.state == "finished", r.value == best))
    for i, record in enumerate(order):
        values = [*(record.parameters[name] for name in spaces), _metric_value(sweep, record)]
        aside = (i + 0.5) / len(order) - 0.5
        heights = [axis.place(v, aside) for axis, v in zip(axes_of, values, strict=True)]
        axes.plot(range(len(heights)), heights, **_look(record, best))
    for x, axis in enumerate(axes_of):
        _draw_axis(axes, x, axis)
    axes.set_xlim(-0.3, len(axes_of) - 0.55)
    axes.set_ylim(-0.04, 1.12)
    axes.axis("off")
    _legend(axes, order, best)
    return figure


def _parameter_axis(name: str, space: Space, drawn: Sequence[Record]) -> _Axis:
    if space.kind == "choice":
        numbers = all(type(v) in (int, float) for v in space.values)
        choices = sorted(space.values, key=float) if numbers else space.values  # type: ignore[arg-type]
        return _Axis(name, 0.0, 1.0, choices=tuple(choices))
    return _Axis(name, space.low, space.high, space.log)


def _metric_value(sweep: SweepConfig, record: Record) -> float:
    assert record.value is not None
    return 100 * record.value if sweep.metric == "gap" else record.value


def _metric_axis(sweep: SweepConfig, drawn: Sequence[Record]) -> _Axis:
    values = [_metric_value(sweep, record) for record in drawn]
    low, high = min(values), max(values)
    label = f"{sweep.metric}, %" if sweep.metric == "gap" else sweep.metric
    return _Axis(label, low, high, log=low > 0 and high / low > 10)


def _look(record: Record, best: float | None) -> dict[str, Any]:
    if record.state != "finished":
        return {"color": PRUNED, "lw": 0.9, "ls": (0, (3, 2))}
    if record.value == best:
        return {"color": BEST, "lw": 2.6, "marker": "o", "ms": 5}
    return {"color": FINISHED, "lw": 1.2}


def _draw_axis(axes: Axes, x: int, axis: _Axis) -> None:
    axes.plot([x, x], [0, 1], color=INK, lw=0.9, zorder=3)
    axes.text(x, 1.06, axis.label, ha="center", size=8, color=INK)
    for height, text in axis.ticks():
        axes.plot([x - 0.03, x], [height, height], color=INK, lw=0.9, zorder=3)
        axes.annotate(
            text, (x - 0.03, height), (-3, 0), textcoords="offset points", size=7, color=INK,
            ha="right", va="center",
        )  # fmt: skip


def _legend(axes: Axes, drawn: Sequence[Record], best: float | None) -> None:
    groups: dict[str, Record] = {}
    for record in drawn:
        name = record.state
        if record.state == "finished" and record.value == best:
            name = f"best: trial {record.number}"
        groups.setdefault(name if name != "running" else "not finished", record)
    handles = [axes.plot([], [], label=n, **_look(r, best))[0] for n, r in groups.items()]
    axes.figure.legend(
        handles=handles, frameon=False, fontsize=8, ncols=len(handles),
        loc="outside lower center", labelcolor=INK,
    )  # fmt: skip
