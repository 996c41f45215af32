"""How far from its training range a policy stays good: `python -m benchmarks.generalisation`.

One thing about the site is changed at a time, far beyond what the policy was trained on; plans are
compared with the best that any method here finds, searches included.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from benchmarks import suite
from offload_jax import runs
from offload_jax.charts import COLOURS, new_figure, save, styles
from offload_jax.documents import replace_file
from offload_jax.evaluation import Decider, compare, deciders
from offload_jax.learner import sample_instances
from offload_jax.scenario import EdgeScenario

OUT = Path(__file__).resolve().parents[1] / "benchmarks" / "results" / "generalisation.json"
INSTANCES = 128
RULES = ("reduced-greedy", "local-search")
SEARCHES = ("tabu", "annealing")  # make the reference better, and are not shown
TRAINED = EdgeScenario()  # what `edge` was trained on


@dataclass(frozen=True)
class Axis:
    """What is changed: values along it, and the range of training."""

    label: str
    values: tuple[float, ...]
    trained: tuple[float, float]

    def scenario(self, name: str, value: float) -> EdgeScenario:
        """The site with this value, all else as in training."""
        if name == "users":
            return replace(TRAINED, num_users=(int(value),))
        if name == "budget":
            return replace(TRAINED, budget=float(value))
        if name == "batches":
            batches = int(value)
            models = min(TRAINED.models, batches)
            return replace(TRAINED, batches=batches, servers=batches // 2, models=models)
        return replace(TRAINED, **{name: (float(value), float(value))})


AXES = {
    "users": Axis("users N", (4, 8, 16, 24, 32, 48, 64), (8, 24)),
    "budget": Axis("GPU-seconds of each server", (0.3, 1, 2, 3, 4, 6, 12), (3, 3)),
    "share": Axis("share of an A100", (0.1, 0.2, 0.4, 0.7, 1.0, 1.5, 2.0), (0.4, 1.0)),
    "similarity_home": Axis("similarity to the home model", (0, 0.2, 0.4, 0.7, 1.0), (0.4, 1.0)),
    "batches": Axis("batches M, two on each server", (2, 4, 6, 8, 12, 16), (6, 6)),
}


@dataclass(frozen=True)
class Arguments:
    """Measure policies at sites that they were not trained for, and draw the gaps."""

    policies: tuple[str, ...] = ("edge",)
    """Shipped policies, policy folders or run directories; runs of one variant differ by -SEED."""
    axes: tuple[str, ...] = tuple(AXES)
    """What to change: users, budget, share, similarity_home, batches."""
    out: Path = OUT
    """JSON file to write, its table (.md) and picture (.png) beside it; other axes stay in it."""


def main(words: Sequence[str] | None = None) -> int:
    """0 good, 2 refused."""
    parsed = tyro.cli(Arguments, args=words, prog="python -m benchmarks.generalisation")
    if strange := [name for name in parsed.axes if name not in AXES]:
        print(f"error: axes has {strange[0]!r}; must be among {', '.join(AXES)}", file=sys.stderr)
        return 2
    found: dict[str, Any] = {}
    if parsed.out.exists():
        found = json.loads(parsed.out.read_text(encoding="utf-8"))
    for name in parsed.axes:
        rows = []
        for row in measured(name, parsed.policies):
            print(f"{name} {row['value']:g}: {_told(row['gap'])}", flush=True)
            rows.append(row)
        found[name] = {"provenance": suite.provenance(), "rows": rows}
        replace_file(parsed.out, json.dumps(found, indent=1) + "\n")
    replace_file(parsed.out.with_suffix(".md"), table(found))
    save(picture(found), parsed.out.with_suffix(".png"))
    return 0


def _told(gaps: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {100 * gap:.2f} %" for name, gap in gaps.items())


def measured(name: str, policies: Sequence[str]) -> Iterator[suite.Row]:
    """Mean gaps of policies and rules at every value of an axis."""
    methods = _deciders(policies)
    for value in AXES[name].values:
        scenario = AXES[name].scenario(name, value)
        instances = sample_instances(scenario, jax.random.key(1), INSTANCES)
        compared = compare({"all": instances}, methods)
        gaps = {row.method: row.gap_mean for row in compared.rows if row.method not in SEARCHES}
        yield {"value": value, "instances": INSTANCES, "gap": gaps}


def _deciders(policies: Sequence[str]) -> dict[str, Decider]:
    key = jax.random.key(0)
    found = deciders(None, (), key, (*RULES, *SEARCHES))
    for source in policies:
        policy = runs.load_policy(source)
        mine = deciders(policy, (1, 16), key, ())
        name = Path(source).name
        found |= {f"{name}, {how.removeprefix('policy, ')}": each for how, each in mine.items()}
    return found


def table(found: Mapping[str, Any]) -> str:
    """A table for each axis; values within the training range are bold."""
    texts = []
    for name, axis in AXES.items():
        if name not in found:
            continue
        rows = found[name]["rows"]
        methods = list(rows[0]["gap"])
        lines = [f"| {axis.label} | " + " | ".join(f"{m} %" for m in methods) + " |"]
        lines.append("|---:" * (len(methods) + 1) + "|")
        for row in rows:
            low, high = axis.trained
            value = f"{row['value']:g}"
            value = f"**{value}**" if low <= row["value"] <= high else value
            gaps = " | ".join(f"{100 * gap:.2f}" for gap in row["gap"].values())
            lines.append(f"| {value} | {gaps} |")
        texts.append("\n".join(lines))
    return "\n\n".join(texts) + "\n"


def picture(found: Mapping[str, Any]) -> Any:
    """Gap against each axis, the training range shaded."""
    names = [name for name in AXES if name in found]
    rows = len(names) // 3 + 1  # one panel is the legend's
    figure, axes = new_figure(rows, 3, (11.0, 3.0 * rows))
    flat = list(np.ravel(axes))
    for panel, name in zip(flat, names, strict=False):
        axis, points = AXES[name], found[name]["rows"]
        values = np.array([point["value"] for point in points], float)
        look = styles(list(points[0]["gap"]))
        for method, style in look.items():
            gaps = 100 * np.maximum([point["gap"][method] for point in points], 1e-4)
            panel.plot(values, gaps, label=method, lw=1.2, **style)
        low, high = axis.trained
        margin = 0.01 * np.ptp(values)
        panel.axvspan(low - margin, high + margin, color=COLOURS[0], alpha=0.12, lw=0)
        panel.set_yscale("log")
        panel.yaxis.set_major_formatter(lambda x, _: f"{x:g}")
        panel.yaxis.set_minor_formatter(lambda x, _: f"{x:g}" if f"{x:g}"[-1] in "25" else "")
        panel.grid(alpha=0.3)
        panel.set(xlabel=axis.label, ylabel="mean gap, %")
    for panel in flat[len(names) :]:
        panel.set_axis_off()
    handles, labels = flat[0].get_legend_handles_labels()
    flat[-1].legend(handles, labels, frameon=False, fontsize=8, loc="center")
    return figure


if __name__ == "__main__":
    sys.exit(main())
