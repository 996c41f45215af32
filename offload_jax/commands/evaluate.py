"""`eval`: compares a trained policy with every baseline on the same instances."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import tyro

from offload_jax import folders, runs, schema
from offload_jax.baselines import METHODS, QUICK
from offload_jax.baselines.bound import refuse_bound
from offload_jax.certificate import Certificate, certify, merged, other_solvers
from offload_jax.commands import results, sources
from offload_jax.commands.progress import Stages, warn
from offload_jax.commands.sources import Source
from offload_jax.comparison import ALL, Comparison
from offload_jax.config import ConfigError, TrainConfig, load_config, nearest
from offload_jax.evaluation import (
    Decider,
    baseline_solver,
    compare,
    deciders,
    refusals,
)
from offload_jax.instance import Instance, taken
from offload_jax.plans import Decision
from offload_jax.policies import Policy
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
    methods: tuple[str, ...] = QUICK
    """Baselines to compare with. There are also: annealing, tabu, genetic, genetic-tuned,
    enumeration and scip."""
    testset: str | None = None
    """Evaluate on a frozen test set (edge or edge_large), against the best plans known for it."""
    budget_s: float | None = None
    """Seconds for each instance that searches and scip get. Default: searches end by themselves,
    scip has 60 s."""
    bounds: bool = False
    """Also compute upper bounds, valid for every plan (test sets come with theirs)."""
    anytime: float = 0.0
    """Seconds for each instance that searches get, once more, for the picture of gap against time
    (0: no picture)."""
    scaling: tuple[int, ...] = ()
    """Numbers of users to measure the time per plan at, for the picture of time against users."""
    splits: SplitsOption = field(default_factory=lambda: SplitsOption())
    certify: bool = False
    """Also solve a sample of the plans again, by cvxpylayers, and report how far they are apart."""
    certified: int = 64
    """Plans in that sample."""
    no_policy: bool = False
    """Compare the baselines alone (of --config's scenario, on --instances or --testset)."""
    config: str | None = None
    """Scenario for --no-policy without --instances or --testset. Default: paper."""
    seed: int = 2**31
    """Of the fresh instances and the samples; other than training's."""
    out: Path | None = None
    """Where eval.json, the plans and the pictures go.

    Default: eval/ in the run directory, or eval-NAME/ with --instances NAME.json or
    --testset NAME."""


def run(words: list[str], prog: str) -> int:
    """Evaluates as the words say and writes what comes out."""
    parsed = tyro.cli(Arguments, args=words, prog=prog)
    _check(parsed)
    folder = None if parsed.no_policy else parsed.run or folders.newest_run()
    config = folders.read_config(folder) if folder else load_config(parsed.config or "paper")
    splits, key = _splits(config, parsed), jax.random.key(parsed.seed)
    source = _source(parsed, config, splits)
    policy = runs.load_policy(folder, warn=warn) if folder else None
    if policy:
        policy = replace(policy, env=replace(policy.env, solver=splits))
    out = _out_folder(parsed.out or (folder or Path()) / _name(parsed))
    if policy:
        print(f"policy: {policy.source}", flush=True)
    solver, stages = baseline_solver(splits), Stages(_stages(parsed, source))
    methods = deciders(
        policy, parsed.samples, key, parsed.methods, solver, parsed.budget_s, stages.step
    )
    _check_source(source, methods, parsed, splits)
    about = {"source": _about(parsed, policy, splits), **folders.provenance()}
    with stages:
        comparison, decided = _compared(source, methods, solver, parsed.bounds, stages)
        name, study = _strongest(comparison, policy), results.study_of(comparison, source)
        written = results.write_numbers(study, out, about)
        if source.groups:
            schema.write_plans(out / "plans.json", results.plans_of(source, name, decided, splits))
            written += [f"plans.json ({name})"]
        more = results.More(parsed.anytime, parsed.scaling, key)
        study = results.studied(study, source, methods, decided, name, splits, more, stages)
    count = parsed.certified if parsed.certify else 0
    certificates = _certified(source.cells, decided, name, splits, count)
    results.write_numbers(study, out, about, certificates)
    written += results.write_pictures(study, out)
    results.show(study)
    for certificate in certificates:
        print(f"certified, {name}: {certificate}")
    print(f"written: {out}/{', '.join(written)}")
    return 0


def _compared(
    source: Source, methods: dict[str, Decider], solver: Solver, bounds: bool, stages: Stages
) -> tuple[Comparison, dict[tuple[str, str], Decision]]:
    """The comparison and what was decided; better plans are kept even where it is interrupted."""
    decided: dict[tuple[str, str], Decision] = {}
    try:
        comparison = compare(
            source.cells,
            methods,
            source.hard,
            lambda cell, name: stages.stage(f"{cell}: {name}"),
            source.known,
            solver,
            decided,
            bounds,
        )
    finally:
        source.keep_better(decided)
    return comparison, decided


def _source(parsed: Arguments, config: TrainConfig, splits: SplitsConfig) -> Source:
    """Where the instances come from."""
    if parsed.testset is not None:
        if splits.rules:
            raise ConfigError(
                "testset is given, but the run has splits.constraints or splits.terms; must have "
                "none: the best plans known are those of the plain problem"
            )
        return sources.of_testset(parsed.testset)
    if parsed.instances is not None:
        # Optima in a file are those of the plain problem.
        return sources.of_file(parsed.instances, with_optima=not splits.rules)
    return sources.fresh(config.scenario, parsed.per_cell, jax.random.key(parsed.seed))


def _name(parsed: Arguments) -> str:
    """Of the folder that the results go to."""
    of = parsed.instances.stem if parsed.instances else parsed.testset
    return f"eval-{of}" if of else "eval"


def _about(parsed: Arguments, policy: Policy | None, splits: SplitsConfig) -> dict[str, Any]:
    """What the numbers are of."""
    return {
        "policy": policy.source if policy else None,
        "instances": str(parsed.instances) if parsed.instances else None,
        "testset": parsed.testset,
        "per_cell": parsed.per_cell,
        "budget_s": parsed.budget_s,
        "seed": parsed.seed,
        "splits": asdict(splits),
    }


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


def _check_source(
    source: Source, methods: Mapping[str, Decider], parsed: Arguments, splits: SplitsConfig
) -> None:
    """Refuses what these instances do not allow."""
    solver = baseline_solver(splits)
    reasons = refusals(source.cells, methods, solver)
    if len(reasons) == len(methods):
        why = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        raise ConfigError(f"methods has none that applies ({why}); must have at least one")
    if parsed.certify and not other_solvers(splits):
        raise ConfigError(
            "certify is given, but no other solver is there; must have one: pip install diffcp"
        )
    if parsed.bounds and (reason := refuse_bound(solver)):
        raise ConfigError(f"bounds is given, which does not apply: {reason}")
    try:
        for instances in source.cells.values():
            check_all_local(instances, splits)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _stages(parsed: Arguments, source: Source) -> int:
    """How many stages there will be, about: methods that do not apply are counted, too."""
    methods = len(parsed.methods) + len(parsed.samples) * (not parsed.no_policy)
    compared = len(source.cells) * (methods + parsed.bounds)
    return compared + methods * (bool(parsed.anytime) + len(parsed.scaling))


def _certified(
    cells: dict[str, Instance],
    decided: dict[tuple[str, str], Decision],
    name: str,
    splits: SplitsConfig,
    count: int,
) -> list[Certificate]:
    """Certificates of `count` plans of one method, the same number from every cell."""
    each = math.ceil(count / len(cells))
    found: dict[str, list[Certificate]] = {}
    for cell, instances in cells.items() if each else ():
        few = taken(instances, slice(each))
        for certificate in certify(few, decided[name, cell].assignment[..., :each], splits):
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
    if parsed.config is not None and (parsed.instances or parsed.testset or not parsed.no_policy):
        raise ConfigError(
            f"config is {parsed.config!r}; must be left out, but with no-policy and without "
            "instances or testset: a run and a test set have scenarios of their own"
        )
    if parsed.scaling and parsed.instances is not None:
        raise ConfigError(
            f"scaling is {parsed.scaling}; must be left out with instances: a file tells no "
            "scenario to draw more users from"
        )
    if parsed.testset is not None and parsed.instances is not None:
        raise ConfigError("testset and instances are both given; must be one of them")
    if parsed.budget_s is not None and not 0 < parsed.budget_s < math.inf:
        raise ConfigError(f"budget-s is {parsed.budget_s}; must be above 0 and finite (s)")
    if not 0 <= parsed.anytime < math.inf:
        raise ConfigError(f"anytime is {parsed.anytime}; must be at least 0 and finite (s)")
    if parsed.scaling and min(parsed.scaling) < 1:
        raise ConfigError(f"scaling is {parsed.scaling}; must be numbers of users >= 1")


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


def _strongest(comparison: Comparison, policy: Policy | None) -> str:
    """The method with the smallest gap, among the policy's decodings where there is a policy."""
    cells = comparison.cells()
    names = [m for m in comparison.methods() if policy is None or m not in METHODS]
    cell = ALL if ALL in cells else cells[0]
    return min(reversed(names), key=lambda name: comparison.row(name, cell).gap_mean)
