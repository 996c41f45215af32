"""What `eval` leaves behind: numbers, a table, pictures, a page, and plans."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markdown import Markdown

from offload_jax.commands.progress import Stages
from offload_jax.commands.sources import Source
from offload_jax.evaluation import curves, figures, report, timeline
from offload_jax.evaluation.compare import Decide
from offload_jax.evaluation.comparison import Comparison
from offload_jax.evaluation.crosscheck import Certificate
from offload_jax.evaluation.reference import baseline_solver
from offload_jax.files.disk import replace_file
from offload_jax.files.records import Plan
from offload_jax.plans.plan import Decision, to_plans
from offload_jax.problem.instance import taken, users_only
from offload_jax.problem.types import Key
from offload_jax.splits import Solver


@dataclass(frozen=True)
class More:
    """What is measured beside the comparison."""

    anytime_s: float  # for each instance; 0: not measured
    sizes: tuple[int, ...]  # numbers of users; none: not measured
    key: Key


def study_of(comparison: Comparison, source: Source) -> report.Study:
    """The comparison with its headings."""
    return report.Study(
        title=f"offload-jax: {source.name}",
        subtitle=f"{len(comparison.detail.users):,} instances",
        comparison=comparison,
    )


def studied(
    found: report.Study,
    source: Source,
    methods: Mapping[str, Decide],
    decided: Mapping[tuple[str, str], Decision],
    strongest: str,
    splits: Solver,
    more: More,
    stages: Stages,
) -> report.Study:
    """The study with all that a page shows; `strongest` decided the plan that is drawn.

    Gaps against time, and the plan, are of the last cell: the one with most users.
    """
    solver = baseline_solver(splits)
    cell, instances = list(source.cells.items())[-1]
    here = {name: decision for (name, of), decision in decided.items() if of == cell}
    traces, rows = {}, []
    if more.anytime_s:
        known = source.known.gains[cell] if source.known else None
        traces = curves.anytime(
            instances, here, more.anytime_s, more.key, known, solver, stages.stage
        )
    if more.sizes and source.scenario:
        rows = curves.scaling(source.scenario, methods, more.sizes, more.key, solver, stages.stage)
    largest = int(np.argmax(np.sum(np.asarray(instances.mask), axis=0)))
    chosen = taken(instances, slice(largest, largest + 1))
    decision = Decision(here[strongest].assignment[..., largest : largest + 1], 0.0)
    plan = to_plans(chosen, decision, strongest, splits)[0]
    drawn = users_only(taken(chosen, 0)), plan
    return replace(found, traces=traces, scaling=rows, plan=drawn, solver=splits)


def write_numbers(
    found: report.Study,
    out: Path,
    about: Mapping[str, Any],
    certificates: Sequence[Certificate] = (),
) -> list[str]:
    """Writes `eval.json` and `table.md` of what there is so far."""
    document: dict[str, Any] = {**about, **found.comparison.to_json()}
    if certificates:
        document["certificates"] = [asdict(certificate) for certificate in certificates]
    if found.traces:
        document["anytime"] = {
            name: {"seconds": seconds.tolist(), "gap_mean": gaps.tolist()}
            for name, (seconds, gaps) in found.traces.items()
        }
    if found.scaling:
        keys = ("method", "users", "seconds_per_plan")
        document["scaling"] = [dict(zip(keys, row, strict=True)) for row in found.scaling]
    replace_file(out / "eval.json", json.dumps(document, indent=1))
    table = report.markdown(found.comparison)
    replace_file(out / "table.md", f"{_title(found)}\n\n{table}\n")
    return ["eval.json", "table.md"]


def write_pictures(found: report.Study, out: Path) -> list[str]:
    """Writes the page and the pictures."""
    replace_file(out / "report.html", report.html(found))
    figures.save(figures.gap_figure(found.comparison), out / "gaps.png")
    if found.plan is None:
        return ["report.html", "gaps.png"]
    figures.save(timeline.plan_figure(*found.plan, found.solver), out / "plan.png")
    return ["report.html", "gaps.png", "plan.png"]


def show(found: report.Study) -> None:
    """Prints the table."""
    print(_title(found))
    table, console = report.markdown(found.comparison), Console()
    console.print(Markdown(table)) if console.is_terminal else print(table)
    for name, reason in found.comparison.left_out.items():
        print(f"left out: {name} ({reason})")


def _title(found: report.Study) -> str:
    return f"{found.subtitle}; gap to the {found.comparison.reference}"


def plans_of(
    source: Source,
    name: str,
    decided: Mapping[tuple[str, str], Decision],
    splits: Solver,
) -> list[Plan]:
    """One method's plans in the order of the file."""
    plans: dict[int, Plan] = {}
    for cell, chosen in (source.groups or {}).items():
        found = to_plans(source.cells[cell], decided[name, cell], name, splits)
        plans.update(zip(chosen, found, strict=True))
    return [plans[i] for i in range(len(source.records))]
