"""`eval`: compares a trained policy with every baseline on the same instances."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from offload_jax import report, runs, schema
from offload_jax.baselines import METHODS
from offload_jax.config import ConfigError, load_config, nearest
from offload_jax.evaluation import (
    ALL,
    HARD,
    Comparison,
    Decider,
    compare,
    deciders,
    refusals,
    sample_cells,
)
from offload_jax.instance import Instance, from_record, stack
from offload_jax.plans import to_plans
from offload_jax.policies import Policy
from offload_jax.schema import InstanceRecord, Plan


@dataclass(frozen=True)
class Arguments:
    """Compare a trained policy with every baseline on the same instances."""

    run: Path | None = None
    """Run directory whose best policy is evaluated. Default: the newest under runs/."""
    instances: Path | None = None
    """Evaluate on this instance file instead of fresh instances of the run's scenario."""
    per_cell: int = 205
    """Fresh instances of every cell (20 cells of paper: 4,100 in all)."""
    samples: tuple[int, ...] = (1, 64)
    """Decodings of the policy: 1 is greedy, more is best of that many samples."""
    methods: tuple[str, ...] = tuple(METHODS)
    """Baselines to compare with."""
    no_policy: bool = False
    """Compare the baselines alone (of --config's scenario, or on --instances)."""
    config: str | None = None
    """Scenario for --no-policy without --instances. Default: paper."""
    seed: int = 2**31
    """Of the fresh instances and the samples; other than training's."""
    out: Path | None = None
    """Where eval.json, the plans and the pictures go.

    Default: eval/ in the run directory, or eval-FILE/ with --instances FILE.json."""


def run(words: list[str], prog: str) -> int:
    """Evaluates as the words say and writes what comes out."""
    parsed = tyro.cli(Arguments, args=words, prog=prog)
    _check(parsed)
    records = _read(parsed.instances) if parsed.instances else []
    folder = None if parsed.no_policy else parsed.run or runs.newest_run()
    policy = runs.load_policy(folder) if folder else None
    name = f"eval-{parsed.instances.stem}" if parsed.instances else "eval"
    out = _out_folder(parsed.out or (folder or Path()) / name)
    if policy:
        print(f"policy: {policy.source}", flush=True)
    key = jax.random.key(parsed.seed)
    methods = deciders(policy, parsed.samples, key, parsed.methods)
    if parsed.instances:
        groups = _groups(parsed.instances, records)
        cells = {name: _stacked(records, chosen) for name, chosen in groups.items()}
        comparison = _compare(cells, methods, [], _known(records, groups))
        _write_comparison(comparison, out, policy, parsed)
        name = _strongest(comparison, policy)
        _write_plans(records, groups, name, methods[name], out)
        return 0
    config = runs.read_config(folder) if folder else load_config(parsed.config or "paper")
    cells = sample_cells(config.scenario, parsed.per_cell, key)
    comparison = _compare(cells, methods, config.scenario.hard_cells(), None)
    _write_comparison(comparison, out, policy, parsed)
    return 0


def _check(parsed: Arguments) -> None:
    for name in parsed.methods:
        if name not in METHODS:
            near = nearest(name, list(METHODS))
            raise ConfigError(f"methods has {name!r}; must be among {', '.join(METHODS)}{near}")
    if parsed.no_policy and not parsed.methods:
        raise ConfigError("methods is empty; must name at least one method with no-policy")
    if parsed.per_cell < 1:
        raise ConfigError(f"per-cell is {parsed.per_cell}; must be at least 1")
    if not parsed.samples or min(parsed.samples) < 1:
        raise ConfigError(f"samples is {parsed.samples}; must be one or more numbers >= 1")
    if not 0 <= parsed.seed < 2**32:
        raise ConfigError(f"seed is {parsed.seed}; must be in 0..{2**32 - 1}")
    if parsed.no_policy and parsed.run:
        raise ConfigError("run names a policy but no-policy leaves it out; give one of them")
    if parsed.config is not None and (parsed.instances or not parsed.no_policy):
        raise ConfigError(
            f"config is {parsed.config!r}; must be left out, but with no-policy and no instances: "
            "a run has a scenario of its own"
        )


def _read(path: Path) -> list[InstanceRecord]:
    records = schema.read_instances(path)
    if not records:
        raise ConfigError(f"instances is {str(path)!r}, which holds none; must hold at least one")
    return records


def _out_folder(out: Path) -> Path:
    """Made before anything is computed: a result that cannot be written is no result."""
    reason = "not allowed"
    try:
        out.mkdir(parents=True, exist_ok=True)
        if os.access(out, os.W_OK):
            return out
    except OSError as error:
        reason = error.strerror or str(error)
    raise ConfigError(f"out is {str(out)!r}; must be a folder that can be written ({reason})")


def _groups(path: Path, records: Sequence[InstanceRecord]) -> dict[str, list[int]]:
    """Positions in the file by cell: only instances of the same M and G can be stacked."""
    stem = path.name if path.stem in (ALL, HARD) else path.stem  # those name groups of cells
    shapes = [(len(record.intercept), len(record.budget)) for record in records]
    groups: dict[str, list[int]] = {}
    for i, (m, g) in enumerate(shapes):
        name = stem if len(set(shapes)) == 1 else f"{stem} M{m} G{g}"
        groups.setdefault(name, []).append(i)
    return groups


def _stacked(records: Sequence[InstanceRecord], chosen: Sequence[int]) -> Instance:
    return stack([from_record(records[i]) for i in chosen])


def _known(
    records: Sequence[InstanceRecord], groups: dict[str, list[int]]
) -> dict[str, np.ndarray] | None:
    """Gains (U - U_deny, s) of the optima in the file, by cell, where every instance has one."""
    found = [r.optimum for r in records]
    gains = np.array([o.objective - o.deny_all for o in found if o is not None])
    if len(gains) < len(records):
        return None
    return {name: gains[chosen] for name, chosen in groups.items()}


def _strongest(comparison: Comparison, policy: Policy | None) -> str:
    """The method with the smallest gap, among the policy's decodings where there is a policy."""
    cells = comparison.cells()
    names = [m for m in comparison.methods() if policy is None or m not in METHODS]
    cell = ALL if ALL in cells else cells[0]
    return min(reversed(names), key=lambda name: comparison.row(name, cell).gap_mean)


def _compare(
    cells: dict[str, Instance],
    methods: dict[str, Decider],
    hard: Sequence[str],
    known: dict[str, np.ndarray] | None,
) -> Comparison:
    reasons = refusals(cells, methods)
    if len(reasons) == len(methods):
        why = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        raise ConfigError(f"methods has none that applies ({why}); must have at least one")
    console = Console(stderr=True)
    if not console.is_terminal:
        return compare(cells, methods, hard, known=known)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("evaluating", total=len(cells) * len(methods))

        def show(cell: str, method: str) -> None:
            bar.update(task, advance=1, description=f"{cell}: {method}")

        return compare(cells, methods, hard, show, known)


def _write_comparison(
    comparison: Comparison, out: Path, policy: Policy | None, parsed: Arguments
) -> None:
    source = {
        "policy": policy.source if policy else None,
        "instances": str(parsed.instances) if parsed.instances else None,
        "per_cell": parsed.per_cell,
        "seed": parsed.seed,
    }
    result = {"source": source, **runs.provenance(), **comparison.to_json()}
    (out / "eval.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    cells = comparison.cells()
    count = comparison.row(comparison.methods()[0], ALL if ALL in cells else cells[0]).instances
    title = f"{count:,} instances; gap to the {comparison.reference}"
    table = report.markdown(comparison)
    (out / "table.md").write_text(f"{title}\n\n{table}\n", encoding="utf-8")
    report.gap_figure(comparison, out / "gaps.png")
    print(title)
    console = Console()
    console.print(Markdown(table)) if console.is_terminal else print(table)
    for name, reason in comparison.left_out.items():
        print(f"left out: {name} ({reason})")
    print(f"written: {out}/eval.json, table.md, gaps.png")


def _write_plans(
    records: Sequence[InstanceRecord],
    groups: dict[str, list[int]],
    name: str,
    decide: Decider,
    out: Path,
) -> None:
    """One method's plans in the order of the file, and a picture of the first."""
    plans: dict[int, Plan] = {}
    optimal = name in METHODS and METHODS[name].optimal
    for chosen in groups.values():
        instances = _stacked(records, chosen)
        start = time.perf_counter()  # compiled by the comparison
        assignment = jax.block_until_ready(decide(instances))
        seconds = time.perf_counter() - start
        found = to_plans(instances, assignment, name, seconds, optimal)
        plans.update(zip(chosen, found, strict=True))
    schema.write_plans(out / "plans.json", [plans[i] for i in range(len(records))])
    report.plan_figure(from_record(records[0]), plans[0], out / "plan.png")
    print(f"written: {out}/plans.json ({name}), plan.png")
