"""A sweep as parallel coordinates: an axis for each parameter, a line for each trial."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from offload_jax.evaluation.figures import COLOURS, INK, new_figure
from offload_jax.runs.sweep.space import Number, Scalar, Space
from offload_jax.runs.sweep.spec import SweepConfig

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from offload_jax.runs.sweep.trials import Record

BEST, BETTER, OTHER, PRUNED = COLOURS[1], COLOURS[0], COLOURS[6], COLOURS[9]
_TICKS = 6  # at most, and about
_BEHIND = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.6}  # of a tick's text
_SPREAD = 0.08  # of an axis: lines through the same choice are drawn so far apart


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

    def _scaled(self, value: Number) -> float:
        return math.log(value) if self.log else float(value)

    def ticks(self) -> list[tuple[float, str]]:
        if self.choices:
            return [(self.place(choice, 0.0), str(choice)) for choice in self.choices]
        if self.low == self.high:
            return [(0.5, f"{self.low:.3g}")]
        from matplotlib.ticker import LogLocator, MaxNLocator

        # A short logarithmic axis has too few powers of ten, and reads as well in even steps.
        powers = self.log and self.high / self.low > 5
        locator = LogLocator(subs=(1, 2, 5), numticks=99) if powers else MaxNLocator(_TICKS)
        inside = [v for v in locator.tick_values(self.low, self.high) if self.low <= v <= self.high]
        if len(inside) > 2 * _TICKS:  # powers of ten only
            inside = [v for v in inside if math.isclose(math.log10(v) % 1, 0, abs_tol=1e-9)]
        return [(self.place(value, 0.0), f"{value:.6g}") for value in inside]


def parallel_coordinates(sweep: SweepConfig, records: Sequence[Record]) -> Figure:
    """Every trial with a value as a line over its parameters to the metric, at the right.

    The best finished trial stands out, the better half of the others is darker, and pruned trials
    are thin and broken.
    """
    drawn = [record for record in records if record.value is not None]
    axes_of = [_parameter_axis(name, space) for name, space in sweep.varied.items()]
    axes_of.append(_metric_axis(sweep, drawn))
    figure, axes = new_figure(1, 1, (max(5.0, 1.6 * len(axes_of) + 1.0), 4.0))
    kinds = _kinds(ranked(sweep, drawn))
    for i, record in reversed(list(enumerate(ranked(sweep, drawn)))):  # the best on top
        values = [*(record.parameters[name] for name in sweep.varied), _metric_value(sweep, record)]
        aside = (i + 0.5) / len(drawn) - 0.5
        heights = [axis.place(v, aside) for axis, v in zip(axes_of, values, strict=True)]
        axes.plot(range(len(heights)), heights, **_LOOKS[kinds[record.number]])
    for x, axis in enumerate(axes_of):
        _draw_axis(axes, x, axis)
    axes.set_xlim(-0.3, len(axes_of) - 0.55)
    axes.set_ylim(-0.04, 1.12)
    axes.axis("off")
    _legend(axes, kinds)
    return figure


def ranked(sweep: SweepConfig, records: Sequence[Record]) -> list[Record]:
    """Finished trials, the best first, then the others likewise, those without a value last."""
    sign = 1 if sweep.goal == "minimize" else -1

    def rank(record: Record) -> tuple[bool, bool, float, int]:
        value = record.value
        worth = 0.0 if value is None else sign * value
        return record.state != "finished", value is None, worth, record.number

    return sorted(records, key=rank)


def _parameter_axis(name: str, space: Space) -> _Axis:
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


_LOOKS: dict[str, dict[str, Any]] = {
    "best": {"color": BEST, "lw": 2.6, "marker": "o", "ms": 5},
    "better half": {"color": BETTER, "lw": 1.5},
    "other half": {"color": OTHER, "lw": 0.8},
    "not finished": {"color": PRUNED, "lw": 0.8, "ls": (0, (3, 2))},
}


def _kinds(ordered: Sequence[Record]) -> dict[int, str]:
    """How each trial is drawn, by number; `ordered` begins with the finished ones, best first."""
    finished = sum(record.state == "finished" for record in ordered)
    kinds = ["best", *["better half"] * (finished // 2)][:finished]
    kinds += ["other half"] * (finished - len(kinds))
    kinds += ["not finished"] * (len(ordered) - finished)
    return {record.number: kind for record, kind in zip(ordered, kinds, strict=True)}


def _draw_axis(axes: Axes, x: int, axis: _Axis) -> None:
    axes.plot([x, x], [0, 1], color=INK, lw=0.9, zorder=3)
    axes.text(x, 1.06, axis.label, ha="center", size=8, color=INK)
    for height, text in axis.ticks():
        axes.plot([x - 0.03, x], [height, height], color=INK, lw=0.9, zorder=3)
        axes.annotate(
            text, (x - 0.03, height), (-3, 0), textcoords="offset points", size=7, color=INK,
            ha="right", va="center", zorder=4, bbox=_BEHIND,
        )  # fmt: skip


def _legend(axes: Axes, kinds: Mapping[int, str]) -> None:
    first = {kind: number for number, kind in reversed(list(kinds.items()))}
    names = {kind: kind for kind in _LOOKS if kind in first}
    if "best" in names:
        names["best"] = f"best: trial {first['best']}"
    handles = [axes.plot([], [], label=name, **_LOOKS[kind])[0] for kind, name in names.items()]
    axes.figure.legend(
        handles=handles, frameon=False, fontsize=8, ncols=len(handles),
        loc="outside lower center", labelcolor=INK,
    )  # fmt: skip
