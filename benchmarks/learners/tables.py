"""Tables and pictures of `benchmarks.learners`: what its runs found, by question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from offload_jax.evaluation.figures import new_figure, save, styles
from offload_jax.files.disk import replace_file

Document = dict[str, Any]

# The questions, and the variants that answer each; the first one is what the others change.
GROUPS: Mapping[str, tuple[str, ...]] = {
    "learners": ("shared", "critic", "preference", "self-labelling", "local-search labels"),
    "layer": ("shared", "shared + layer"),
    "sight": (
        "self-labelling", "without reduced gains", "without prices", "without pairs",
        "without residual",
    ),
    "settings": ("self-labelling", "samples at temperature 3", "entropy bonus 0.01"),
}  # fmt: skip


def write_pages(document: Document, out: Path) -> None:
    """FILE-GROUP.md and FILE-GROUP.png beside the results, for every group that has runs."""
    for group, names in GROUPS.items():
        found = {name: runs_of(document, name) for name in names}
        found = {name: runs for name, runs in found.items() if runs}
        if len(found) < 2:
            continue
        stem = out.with_name(f"{out.stem}-{group}")
        replace_file(stem.with_suffix(".md"), table(document, found))
        save(curves(document, found), stem.with_suffix(".png"))


def runs_of(document: Document, name: str) -> list[Document]:
    """The runs of a variant that have been judged."""
    return [run for run in document["runs"] if run["variant"] == name and "greedy" in run]


def table(document: Document, found: Mapping[str, Sequence[Document]]) -> str:
    """A line for each variant."""
    minutes = document["minutes"]
    lines = [
        f"{minutes:g} minutes each on 2 CPU cores; gap to the optimum on the 512 instances of the "
        "test set edge, mean over seeds (lowest to highest)",
        "",
        "| variant | seeds | trajectories | greedy % | best of 16 % | ms of an update |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, runs in found.items():
        cost = 1e3 * document["update_s"][name]
        count = runs[0]["trajectories"]
        greedy, sampled = (spread([run[key] for run in runs]) for key in ("greedy", "sampled"))
        lines.append(f"| {name} | {len(runs)} | {count:,} | {greedy} | {sampled} | {cost:,.0f} |")
    return "\n".join(lines) + "\n"


def spread(gaps: Sequence[float]) -> str:
    """Their mean in percent and, where seeds differ, the lowest and the highest."""
    mean, low, high = (f"{100 * f(gaps):.3f}" for f in (np.mean, min, max))
    return mean if low == high else f"{mean} ({low} to {high})"


def curves(document: Document, found: Mapping[str, Sequence[Document]]) -> Any:
    """Gap on held-out instances against time, and against trajectories; bands hold all seeds."""
    figure, both = new_figure(1, 2, (9.6, 3.8))
    look = styles(list(found))
    for name, runs in found.items():
        update = np.array([point["update"] for point in runs[0]["curve"]])
        gaps = 100 * np.array([[point["gap"] for point in run["curve"]] for run in runs])
        color = look[name]["color"]
        trajectories = runs[0]["trajectories"] / runs[0]["updates"]
        scales = (document["update_s"][name] / 60, trajectories / 1e6)
        for axes, scale in zip(both, scales, strict=True):
            axes.plot(scale * update, gaps.mean(axis=0), label=name, lw=1.3, **look[name])
            axes.fill_between(scale * update, gaps.min(0), gaps.max(0), color=color, alpha=0.15)
            axes.grid(alpha=0.3)
    both[0].set(xlabel="minutes on 2 cores", ylabel="mean gap to reduced-greedy, %")
    both[1].set(xlabel="million trajectories")
    last = max(100 * run["curve"][-1]["gap"] for runs in found.values() for run in runs)
    top = min(max(3.0, 1.3 * last), both[0].get_ylim()[1])  # beginnings may be far above
    for axes in both:
        axes.set_ylim(top=top)
    both[1].legend(frameon=False, fontsize=8)
    return figure
