"""What a sweep leaves behind: its trials as a table and as JSON, a picture, the best settings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offload_jax.evaluation.figures import save
from offload_jax.files.disk import replace_file
from offload_jax.runs import run_files
from offload_jax.runs.config_file import to_yaml
from offload_jax.runs.sweep.picture import parallel_coordinates, ranked
from offload_jax.runs.sweep.space import Scalar
from offload_jax.runs.sweep.spec import SweepConfig
from offload_jax.runs.tracking.metrics import TrackingConfig

if TYPE_CHECKING:
    from offload_jax.runs.sweep.trials import Record


def best_of(sweep: SweepConfig, records: Sequence[Record]) -> Record | None:
    """The finished trial with the best value; a pruned one was stopped for being worse."""
    finished = [r for r in records if r.state == "finished" and r.value is not None]
    return ranked(sweep, finished)[0] if finished else None


def shown(metric: str, value: float | None) -> str:
    """A value of the metric as people read it, with its unit."""
    if value is None:
        return "-"
    return f"{100 * value:.3f} %" if metric == "gap" else f"{value:.5g}"


def write(sweep: SweepConfig, records: Sequence[Record], folder: Path) -> list[str]:
    """Writes `sweep.json`, `table.md`, and, from the finished trials, `sweep.png` and `best.yaml`.

    Returns the names of what there is.
    """
    best = best_of(sweep, records)
    replace_file(
        folder / "sweep.json", json.dumps(_document(sweep, records, best, folder), indent=1)
    )
    replace_file(folder / "table.md", table(sweep, records) + "\n")
    names = ["sweep.json", "table.md"]
    if best is not None:
        # Where its numbers went is no part of what was found.
        settings = replace(sweep.settings(best.parameters), tracking=TrackingConfig())
        about = f"# Trial {best.number} of sweep {sweep.name}: "
        about += f"{sweep.metric} {shown(sweep.metric, best.value)}"
        replace_file(folder / "best.yaml", f"{about}\n{to_yaml(settings)}")
        names.append("best.yaml")
    if any(record.value is not None for record in records):
        save(parallel_coordinates(sweep, records), folder / "sweep.png")
        names.append("sweep.png")
    return names


def _document(
    sweep: SweepConfig, records: Sequence[Record], best: Record | None, folder: Path
) -> dict[str, Any]:
    trials = [asdict(record) for record in records]
    return {
        "name": sweep.name,
        "file": sweep.document,
        "metric": sweep.metric,
        "goal": sweep.goal,
        "best": None if best is None else best.number,
        "trials": trials,
        "provenance": _provenance(records, folder),
    }


def _provenance(records: Sequence[Record], folder: Path) -> dict[str, Any] | None:
    """Versions, commit and device, as the last of the trials that ran here noted them.

    Not this process' own: to ask for its devices would be to take a GPU's memory.
    """
    for record in reversed(records):
        path = folder / "trials" / str(record.number) / run_files.ABOUT
        if path.exists():
            start = json.loads(path.read_bytes())["starts"][-1]
            kept = ("commit", "uncommitted", "python", "versions", "device", "machine")
            return {key: start.get(key) for key in kept}
    return None


def table(sweep: SweepConfig, records: Sequence[Record]) -> str:
    """All trials in Markdown, the best first; parameters with a single value stand above."""
    varied = list(sweep.varied)
    fixed = [f"{name} {value}" for name, value in sweep.fixed.items()]
    states = [record.state for record in records]
    counts = [f"{states.count(state)} {state}" for state in dict.fromkeys(sorted(states))]
    columns = ["trial", sweep.metric, "state", *varied, "seconds", "starts"]
    lines = [
        f"{sweep.name}: {len(records)} trials ({', '.join(counts)}), {sweep.method}, "
        f"{sweep.goal} {sweep.metric}" + (f"; {', '.join(fixed)}" if fixed else ""),
        "",
        f"| {' | '.join(columns)} |",
        f"|---:|---:|---|{'---:|' * (len(varied) + 2)}",
    ]
    for record in ranked(sweep, records):
        settings = [_short(record.parameters.get(name)) for name in varied]
        seconds = "-" if record.seconds is None else f"{record.seconds:.0f}"
        value = shown(sweep.metric, record.value)
        cells = [str(record.number), value, record.state, *settings, seconds, str(record.starts)]
        lines.append(f"| {' | '.join(cells)} |")
    failed = [f"trial {r.number} failed: {r.reason}" for r in records if r.state == "failed"]
    return "\n".join([*lines, "", *failed] if failed else lines)


def _short(value: Scalar) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
