"""How far from its training range a policy stays good.

`python -m benchmarks.quality.generalisation`

One thing about the site is changed at a time, far beyond what the policy was trained on; plans are
compared with the best that any method here finds, searches included. Policies that differ in their
seed only are one row: its gaps are a list.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro

from benchmarks import common, parts
from benchmarks.common import ROOT
from offload_jax.evaluation.compare import Decide, compare, deciders
from offload_jax.evaluation.comparison import MethodRow
from offload_jax.evaluation.figures import COLOURS, new_figure, save, styles
from offload_jax.files.checks import CheckpointError, ConfigError, PolicyError
from offload_jax.learning.trajectories import sample_instances
from offload_jax.problem.scenario import EdgeScenario, MixtureScenario
from offload_jax.runs.config_file import load_config
from offload_jax.runs.train import load_policy

OUT = ROOT / "benchmarks" / "results" / "generalisation.json"
INSTANCES = 128
RULES = ("reduced-greedy", "local-search")
SEARCHES = ("tabu", "annealing")  # make the reference better, and are not shown
CONFIGS = ("edge", "edge_sites")  # what the shipped policies of these names were trained on
SEED = " #"  # between the name of a method and the place of its seed
TRAINED = EdgeScenario()  # what `edge` was trained on, and where one thing is changed


@dataclass(frozen=True)
class Axis:
    """What is changed, values along it, and the site with such a value, all else as in training."""

    label: str
    values: tuple[float, ...]
    scenario: Callable[[float], EdgeScenario]


def _with_batches(batches: float) -> EdgeScenario:
    count = int(batches)
    models = min(TRAINED.models, count)
    return replace(TRAINED, batches=count, servers=count // 2, models=models)


AXES = {
    "users": Axis(
        "users N", (4, 8, 16, 24, 32, 48, 64), lambda n: replace(TRAINED, num_users=(int(n),))
    ),
    "budget": Axis(
        "GPU-seconds of each server",
        (0.3, 1, 2, 3, 4, 6, 12),
        lambda x: replace(TRAINED, budget=float(x)),
    ),
    "share": Axis(
        "share of an A100",
        (0.1, 0.2, 0.4, 0.7, 1.0, 1.5, 2.0),
        lambda x: replace(TRAINED, share=(x, x)),
    ),
    "similarity_home": Axis(
        "similarity to the home model",
        (0.0, 0.2, 0.4, 0.7, 1.0),
        lambda x: replace(TRAINED, similarity_home=(x, x)),
    ),
    "batches": Axis("batches M, two on each server", (2, 4, 6, 8, 12, 16), _with_batches),
}


def ranges_of(name: str) -> dict[str, tuple[float, float]]:
    """The smallest and largest values of an axis that each configuration trains with."""
    field = "num_users" if name == "users" else name
    found = {}
    for config in CONFIGS:
        scenario = load_config(config).scenario
        parts = scenario.parts if isinstance(scenario, MixtureScenario) else (scenario,)
        values = np.hstack([getattr(part, field) for part in parts])
        found[config] = (float(values.min()), float(values.max()))
    return found


@dataclass(frozen=True)
class Arguments:
    """Measure policies at sites that they were not trained for, and draw the gaps."""

    axes: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """What to change: users, budget, share, similarity_home, batches. Default: each in turn."""
    policies: tuple[str, ...] = CONFIGS
    """Shipped policies, policy folders or run directories. NAME=POLICY,POLICY,...: trained alike
    with several seeds, of which mean, lowest and highest are shown."""
    out: Path = OUT
    """JSON file to write, its tables (.md) and picture (.png) beside it. Axes that it has already,
    and that are not measured, stay in it."""


def main(words: Sequence[str] | None = None) -> int:
    """0 good, 2 refused, 130 stopped."""
    parsed = tyro.cli(Arguments, args=words, prog="python -m benchmarks.quality.generalisation")
    return parts.status_of(partial(_main, parsed), "finished axes stay in the output file")


def _main(parsed: Arguments) -> int:
    try:
        methods = deciders_of(parsed.policies)
    except (ConfigError, PolicyError, CheckpointError) as error:
        raise common.UsageError(str(error)) from None
    status = parts.main(parsed.axes, parsed.out, {name: _part(name, methods) for name in AXES})
    if status != 2 and parsed.out.exists():  # a stopped one has finished axes, too
        found = json.loads(parsed.out.read_text(encoding="utf-8"))
        save(picture(found), parsed.out.with_suffix(".png"))
    return status


def _part(name: str, methods: Mapping[str, Decide]) -> Callable[[], Iterator[common.MethodRow]]:
    """The axis as a part of the benchmark; its text stands above its table."""
    told = [
        f"{config} {low:g}" + (f" to {high:g}" if high > low else "")
        for config, (low, high) in ranges_of(name).items()
    ]

    def part() -> Iterator[common.MethodRow]:
        return measured(name, methods)

    about = f"{AXES[name].label}; {INSTANCES} instances a row"
    part.__doc__ = f"{about}. Trained with: {', '.join(told)}."
    return part


def measured(name: str, methods: Mapping[str, Decide]) -> Iterator[common.MethodRow]:
    """Mean gaps of policies and rules at every value of an axis."""
    for value in AXES[name].values:
        instances = sample_instances(AXES[name].scenario(value), jax.random.key(1), INSTANCES)
        compared = compare({"all": instances}, dict(methods))
        yield {name: value, **by_method(compared.rows)}
        jax.clear_caches()  # the programs of every shape together need too many memory maps


def by_method(rows: Sequence[MethodRow]) -> dict[str, float | list[float]]:
    """Mean gaps, but not of the searches; of a policy with several seeds all of theirs."""
    found: dict[str, list[float]] = {}
    for row in rows:
        method = row.method.partition(SEED)[0]
        if method not in SEARCHES:
            found.setdefault(f"gap_{method}", []).append(row.gap_mean)
    return {method: gaps if len(gaps) > 1 else gaps[0] for method, gaps in found.items()}


def deciders_of(policies: Sequence[str]) -> dict[str, Decide]:
    """Rules, searches, and the policies, each greedy and the best of 16; after SEED its place.

    Raises ConfigError for two policies of one name, and as `load_policy` does.
    """
    key = jax.random.key(0)
    found = deciders(None, (), key, (*RULES, *SEARCHES))
    for word in policies:
        label, several, listed = word.partition("=")
        name = label if several else Path(word).name
        if any(method.startswith(f"{name}, ") for method in found):
            raise ConfigError(f"policies has {name!r} twice; name them: NAME=POLICY")
        for seed, source in enumerate(listed.split(",") if several else [word]):
            mine = deciders(load_policy(source), (1, 16), key, ())
            for how, each in mine.items():
                found[f"{name}, {how.removeprefix('policy, ')}{SEED}{seed}"] = each
    return found


def picture(found: Mapping[str, Any]) -> Any:
    """Gap against each axis, bands hold all seeds; training ranges are shaded, twice if two are.

    Gaps below 0.01 % are drawn there.
    """
    names = [name for name in AXES if name in found]
    methods = dict.fromkeys(key for name in names for key in found[name]["rows"][0])
    look = styles([key for key in methods if key.startswith("gap_")])
    rows = len(names) // 3 + 1  # one panel is the legend's
    figure, axes = new_figure(rows, 3, (11.0, 3.0 * rows))
    flat, handles = list(np.ravel(axes)), {}
    for panel, name in zip(flat, names, strict=False):
        axis, points = AXES[name], found[name]["rows"]
        values = np.array([point[name] for point in points], float)
        for method in (key for key in points[0] if key in look):
            style = look[method]
            seeds = [np.atleast_1d(point[method]) for point in points]
            gaps = 100 * np.maximum(seeds, 1e-4)
            label = method.removeprefix("gap_")
            (line,) = panel.plot(values, gaps.mean(axis=1), lw=1.2, **style)
            handles[label] = line
            band = {"color": style["color"], "alpha": 0.15, "lw": 0}
            panel.fill_between(values, gaps.min(axis=1), gaps.max(axis=1), **band)
        margin = 0.01 * np.ptp(values)
        for low, high in set(ranges_of(name).values()):
            panel.axvspan(low - margin, high + margin, color=COLOURS[0], alpha=0.12, lw=0)
        panel.set_yscale("log")
        panel.yaxis.set_major_formatter(lambda x, _: f"{x:g}")
        panel.yaxis.set_minor_formatter(lambda x, _: f"{x:g}" if f"{x:g}"[-1] in "25" else "")
        panel.grid(alpha=0.3)
        panel.set(xlabel=axis.label, ylabel="mean gap, %")
    for panel in flat[len(names) :]:
        panel.set_axis_off()
    flat[-1].legend(handles.values(), handles, frameon=False, fontsize=8, loc="center")
    return figure


if __name__ == "__main__":
    sys.exit(main())
