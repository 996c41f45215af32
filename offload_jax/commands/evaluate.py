"""`eval`: compares a trained policy with every baseline on the same instances."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jax
import tyro

from offload_jax.commands import results, sources
from offload_jax.commands.options import Arguments, check
from offload_jax.commands.progress import Stages, warn
from offload_jax.commands.sources import Source
from offload_jax.evaluation.compare import Decide, compare, deciders, refusals
from offload_jax.evaluation.comparison import ALL, Comparison
from offload_jax.evaluation.crosscheck import Certificate, certify, merged, other_solvers
from offload_jax.evaluation.reference import baseline_solver
from offload_jax.files import records
from offload_jax.files.checks import ConfigError
from offload_jax.methods import baseline
from offload_jax.methods.bound import refuse_bound
from offload_jax.methods.refine import refuse_refinement
from offload_jax.plans.outcome import check_all_local
from offload_jax.plans.plan import Decision
from offload_jax.policy.policy import Policy
from offload_jax.problem.instance import Instance, taken
from offload_jax.runs import run_folder
from offload_jax.runs.config import TrainConfig
from offload_jax.runs.config_file import load_config
from offload_jax.runs.train import load_policy, settings_of
from offload_jax.splits import Solver


def run(words: list[str], prog: str) -> int:
    """Evaluates as the words say and writes what comes out."""
    parsed = tyro.cli(Arguments, args=words, prog=prog)
    check(parsed)
    origin = _origin(parsed)
    config = (
        settings_of(origin, parsed.plugins) if origin else load_config(parsed.config or "paper")
    )
    splits, key = _splits(config, parsed), jax.random.key(parsed.seed)
    policy = _policy(origin, parsed, splits) if origin else None
    source = _source(parsed, config, splits)
    folder = Path() if parsed.policy or not origin else Path(origin)
    out = _out_folder(parsed.out or folder / _name(parsed))
    if policy:
        print(f"policy: {policy.source}", flush=True)
    solver, stages = baseline_solver(splits), Stages(_stages(parsed, source))
    methods = deciders(
        *(policy, parsed.samples, key, parsed.methods, solver, parsed.budget_s, stages.step),
        refinements=parsed.refine,
    )
    _check_source(source, methods, parsed, splits)
    about = {"source": _about(parsed, policy, splits), **run_folder.provenance()}
    with stages:
        comparison, decided = _compared(source, methods, solver, parsed.bounds, stages)
        name, study = _strongest(comparison, policy), results.study_of(comparison, source)
        written = results.write_numbers(study, out, about)
        if source.groups:
            records.write_plans(out / "plans.json", results.plans_of(source, name, decided, splits))
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
    source: Source, methods: dict[str, Decide], solver: Solver, bounds: bool, stages: Stages
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


def _source(parsed: Arguments, config: TrainConfig, splits: Solver) -> Source:
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


def _origin(parsed: Arguments) -> str | Path | None:
    """Where the policy comes from; None without one."""
    return None if parsed.no_policy else parsed.policy or parsed.run or run_folder.newest_run()


def _policy(origin: str | Path, parsed: Arguments, splits: Solver) -> Policy:
    """The policy to evaluate, with the split layer and the temperature that were asked for."""
    policy = load_policy(origin, warn=warn, plugins=parsed.plugins)
    policy = policy.with_solver(splits)
    for refinement in parsed.refine:
        if reason := refuse_refinement(policy, refinement):
            raise ConfigError(f"refine has {refinement!r}, which does not apply: {reason}")
    return policy if parsed.temperature is None else replace(policy, temperature=parsed.temperature)


def _name(parsed: Arguments) -> str:
    """Of the folder that the results go to."""
    of = parsed.instances.stem if parsed.instances else parsed.testset
    return f"eval-{of}" if of else "eval"


def _about(parsed: Arguments, policy: Policy | None, splits: Solver) -> dict[str, Any]:
    """What the numbers are of."""
    return {
        "policy": policy.source if policy else None,
        "temperature": policy.temperature if policy else None,
        "instances": str(parsed.instances) if parsed.instances else None,
        "testset": parsed.testset,
        "per_cell": parsed.per_cell,
        "budget_s": parsed.budget_s,
        "seed": parsed.seed,
        "splits": {"solver": splits.name, **asdict(splits.rules)},
    }


def _splits(config: TrainConfig, parsed: Arguments) -> Solver:
    """The run's split layer, with the solver that was asked for."""
    chosen = config.splits
    if parsed.splits.solver is not None:
        chosen = replace(chosen, solver=parsed.splits.solver)
    try:
        chosen.validate()
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return chosen.to_solver()


def _check_source(
    source: Source, methods: Mapping[str, Decide], parsed: Arguments, splits: Solver
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
    decodings = len(parsed.samples) + len(parsed.refine)
    methods = len(parsed.methods) + decodings * (not parsed.no_policy)
    compared = len(source.cells) * (methods + parsed.bounds)
    return compared + methods * (bool(parsed.anytime) + len(parsed.scaling))


def _certified(
    cells: dict[str, Instance],
    decided: dict[tuple[str, str], Decision],
    name: str,
    splits: Solver,
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
    names = [m for m in comparison.methods() if policy is None or not baseline(m)]
    cell = ALL if ALL in cells else cells[0]
    return min(reversed(names), key=lambda name: comparison.row(name, cell).gap_mean)
