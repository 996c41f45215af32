"""`eval`: compares a trained policy with every baseline on the same instances."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from offload_jax import report, runs, schema
from offload_jax.baselines import METHODS
from offload_jax.certificate import Certificate, certify, merged
from offload_jax.config import ConfigError, TrainConfig, load_config, nearest
from offload_jax.evaluation import (
    ALL,
    HARD,
    Comparison,
    Decider,
    baseline_solver,
    compare,
    deciders,
    refusals,
    sample_cells,
)
from offload_jax.instance import Instance, from_record, stack
from offload_jax.plans import to_plans
from offload_jax.policies import Policy
from offload_jax.schema import InstanceRecord, Plan
from offload_jax.splits import SplitsConfig
from offload_jax.value import Solver, check_all_local


@dataclass(frozen=True)
class SplitsOption:
    """Split points of the plans."""

    solver: str | None = None
    """Solver for them instead of the run's: native, cvxpylayers-moreau or cvxpylayers-diffcp."""


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
    splits: SplitsOption = field(default_factory=lambda: SplitsOption())
    certify: bool = False
    """Also solve a sample of the plans again, by cvxpylayers, and report how far they are apart."""
    certified: int = 64
    """Plans in that sample."""
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
    config = runs.read_config(folder) if folder else load_config(parsed.config or "paper")
    splits = _splits(config, parsed)
    policy = runs.load_policy(folder) if folder else None
    if policy:
        policy = replace(policy, env=replace(policy.env, solver=splits))
    solver = baseline_solver(splits)
    name = f"eval-{parsed.instances.stem}" if parsed.instances else "eval"
    out = _out_folder(parsed.out or (folder or Path()) / name)
    if policy:
        print(f"policy: {policy.source}", flush=True)
    key = jax.random.key(parsed.seed)
    methods = deciders(policy, parsed.samples, key, parsed.methods, solver)
    groups = _groups(parsed.instances, records) if parsed.instances else {}
    if parsed.instances:
        cells = {name: _stacked(records, chosen) for name, chosen in groups.items()}
    else:
        cells = sample_cells(config.scenario, parsed.per_cell, key)
    for instances in cells.values():
        _check_rules(instances, splits)
    hard = [] if parsed.instances else config.scenario.hard_cells()
    # Optima in a file are those of the plain problem.
    known = None if splits.rules or not parsed.instances else _known(records, groups)
    comparison = _compare(cells, methods, hard, known, solver)
    name = _strongest(comparison, policy)
    certificates = _certified(cells, methods[name], splits, parsed) if parsed.certify else []
    _write_comparison(comparison, out, policy, parsed, splits, certificates)
    for certificate in certificates:
        print(f"certified, {name}: {certificate}")
    if parsed.instances:
        _write_plans(records, groups, name, methods[name], out, splits)
    return 0


def _splits(config: TrainConfig, parsed: Arguments) -> SplitsConfig:
    """The run's split layer, with the solver that was asked for."""
    chosen = config.splits
    if parsed.splits.solver is not None:
        chosen = replace(chosen, solver=parsed.splits.solver)
    try:
        chosen.validate()
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return chosen


def _check_rules(instances: Instance, splits: SplitsConfig) -> None:
    try:
        check_all_local(instances, splits)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _certified(
    cells: dict[str, Instance], decide: Decider, splits: SplitsConfig, parsed: Arguments
) -> list[Certificate]:
    """Certificates of one method's plans, the same number from every cell."""
    each = math.ceil(parsed.certified / len(cells))
    found: dict[str, list[Certificate]] = {}
    for instances in cells.values():
        plans = decide(instances)[..., :each]
        few = jax.tree.map(lambda x: x[..., :each], instances)
        for certificate in certify(few, plans, splits):
            found.setdefault(certificate.solver, []).append(certificate)
    return [merged(parts) for parts in found.values()]


def _check(parsed: Arguments) -> None:
    for name in parsed.methods:
        if name not in METHODS:
            near = nearest(name, list(METHODS))
            raise ConfigError(f"methods has {name!r}; must be among {', '.join(METHODS)}{near}")
    if parsed.no_policy and not parsed.methods:
        raise ConfigError("methods is empty; must name at least one method with no-policy")
    if parsed.certified < 1:
        raise ConfigError(f"certified is {parsed.certified}; must be at least 1")
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
    solver: Solver,
) -> Comparison:
    reasons = refusals(cells, methods, solver)
    if len(reasons) == len(methods):
        why = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        raise ConfigError(f"methods has none that applies ({why}); must have at least one")
    console = Console(stderr=True)
    if not console.is_terminal:
        return compare(cells, methods, hard, known=known, solver=solver)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("evaluating", total=len(cells) * len(methods))

        def show(cell: str, method: str) -> None:
            bar.update(task, advance=1, description=f"{cell}: {method}")

        return compare(cells, methods, hard, show, known, solver)


def _write_comparison(
    comparison: Comparison,
    out: Path,
    policy: Policy | None,
    parsed: Arguments,
    splits: SplitsConfig,
    certificates: Sequence[Certificate],
) -> None:
    source = {
        "policy": policy.source if policy else None,
        "instances": str(parsed.instances) if parsed.instances else None,
        "per_cell": parsed.per_cell,
        "seed": parsed.seed,
        "splits": asdict(splits),
    }
    result = {"source": source, **runs.provenance(), **comparison.to_json()}
    if certificates:
        result["certificates"] = [asdict(certificate) for certificate in certificates]
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
    splits: SplitsConfig,
) -> None:
    """One method's plans in the order of the file, and a picture of the first."""
    plans: dict[int, Plan] = {}
    optimal = name in METHODS and METHODS[name].optimal
    for chosen in groups.values():
        instances = _stacked(records, chosen)
        start = time.perf_counter()  # compiled by the comparison
        assignment = jax.block_until_ready(decide(instances))
        seconds = time.perf_counter() - start
        found = to_plans(instances, assignment, name, seconds, optimal, splits)
        plans.update(zip(chosen, found, strict=True))
    schema.write_plans(out / "plans.json", [plans[i] for i in range(len(records))])
    report.plan_figure(from_record(records[0]), plans[0], out / "plan.png")
    print(f"written: {out}/plans.json ({name}), plan.png")
