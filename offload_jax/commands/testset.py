"""`testset`: builds a frozen test set, or looks for better plans for it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.typing import ArrayLike

from offload_jax.commands.progress import warn
from offload_jax.evaluation import testsets
from offload_jax.evaluation.testsets import SHIPPED, TestSet
from offload_jax.files.checks import ConfigError
from offload_jax.methods import apply_method
from offload_jax.methods.bound import BoundConfig, upper_bound
from offload_jax.methods.enumeration import enumerate_all, refuse_enumeration
from offload_jax.methods.local_search import local_search
from offload_jax.methods.scip import branch_and_bound, refuse_scip
from offload_jax.methods.search import run as run_search
from offload_jax.plans.candidates import gain_of
from offload_jax.policy.decoding import best_of
from offload_jax.problem.instance import Instance, taken, toy
from offload_jax.problem.scenario import PRESETS
from offload_jax.problem.types import Assignment, Key
from offload_jax.runs.train import load_policy


@dataclass(frozen=True)
class Arguments:
    """Build a frozen test set, or look for better plans for one that is there."""

    name: tyro.conf.Positional[str]
    """Which set: edge or edge_large."""
    restarts: int = 32
    """Local searches from random plans, each until no move or exchange improves any instance."""
    repeats: int = 4
    """Runs of each other search: iterated local search, annealing, tabu, genetic-tuned."""
    seconds: float = 0.5
    """Time of an iterated local search, for each instance."""
    policies: tuple[Path, ...] = ()
    """Run directories of policies that try too (best of 64)."""
    plugins: tuple[str, ...] = ()
    """Files or modules of your own code that their settings may name."""
    scip_s: float = 0.0
    """Seconds of branch and bound for each instance that is not proven optimal yet; 0 for none."""
    bound_rounds: int = 1200
    """Rounds of the search for upper bounds; 0 for none."""
    folder: Path = testsets.FOLDER
    """Where the set is, or is to be."""


def run(words: list[str], prog: str) -> int:
    """Builds or improves the set; whatever was found is kept when it is interrupted."""
    parsed = tyro.cli(Arguments, args=words, prog=prog)
    _check(parsed)
    known = _opened(parsed)
    instances = known.on_device()
    for name in ("greedy", "reduced-greedy"):
        known = _offered(known, name, apply_method(name, instances).assignment, parsed)
    for method, assignment in _searches(parsed, instances, _key(known)):
        known = _offered(known, method, assignment, parsed, search=True)
    known = _enumerated(known, instances, parsed)
    if parsed.scip_s:
        known = _branched(known, parsed)
    if parsed.bound_rounds:
        config = BoundConfig(rounds=parsed.bound_rounds)
        bounds = upper_bound(instances, jnp.asarray(known.assignments()), config=config)
        known = testsets.save(testsets.bounded(known, bounds, "upper bound"), parsed.folder)
    print(_summary(known))
    return 0


def _opened(parsed: Arguments) -> TestSet:
    """The set as it is or a new one, on disk before anything is searched for."""
    try:
        if (parsed.folder / f"{parsed.name}.npz").exists():
            known = testsets.load(parsed.name, parsed.folder)
        else:
            preset, count = SHIPPED[parsed.name]
            known = testsets.create(PRESETS[preset], parsed.name, count)
        return testsets.save(known, parsed.folder)
    except OSError as error:
        raise ConfigError(
            f"folder is {str(parsed.folder)!r}; must be a folder that can be written "
            f"({error.strerror})"
        ) from None


def _check(parsed: Arguments) -> None:
    if parsed.name not in SHIPPED:
        raise ConfigError(f"name is {parsed.name!r}; must be one of {', '.join(SHIPPED)}")
    for field in ("restarts", "repeats", "bound_rounds"):
        if getattr(parsed, field) < 0:
            raise ConfigError(f"{field} is {getattr(parsed, field)}; must be at least 0")
    if not 0 < parsed.seconds < math.inf:
        raise ConfigError(f"seconds is {parsed.seconds}; must be above 0 and finite")
    if not 0 <= parsed.scip_s < math.inf:
        raise ConfigError(f"scip-s is {parsed.scip_s}; must be at least 0 and finite")
    if parsed.scip_s and (reason := refuse_scip(toy()[0])):
        raise ConfigError(f"scip-s is {parsed.scip_s}; must be 0: {reason}")


def _offered(
    known: TestSet, method: str, assignment: Assignment, parsed: Arguments, search: bool = False
) -> TestSet:
    """The set with what a method found, saved; an independent search is put on record."""
    known, better = testsets.improved(known, {method: assignment})
    if search:
        known = testsets.searched(known, assignment)
    print(f"{method}: {better} of {len(known.best)} improved", flush=True)
    return testsets.save(known, parsed.folder)


def _key(known: TestSet) -> Key:
    """Another one at every run: the same search again would be no further evidence."""
    done = max(best.searches for best in known.best)
    return jax.random.fold_in(jax.random.key(known.seed), done)


def _searches(parsed: Arguments, instances: Instance, key: Key) -> Iterator[tuple[str, Assignment]]:
    """What independent searches find, one after the other, each with a key of its own."""
    keys = map(partial(jax.random.fold_in, key), itertools.count())
    anywhere = local_search(first_shake=1.0)
    for _ in range(parsed.restarts):
        yield "local-search, restarted", run_search(anywhere, instances, next(keys)).best
    for _ in range(parsed.repeats):
        for name in ("local-search", "annealing", "tabu", "genetic-tuned"):
            seconds = parsed.seconds if name == "local-search" else None
            decision = apply_method(name, instances, budget_s=seconds, key=next(keys))
            yield name, decision.assignment
    for folder in parsed.policies:
        policy = load_policy(folder, warn=warn, plugins=parsed.plugins)
        yield f"policy {folder.name}", best_of(policy, instances, 64, next(keys))[0]


def _enumerated(known: TestSet, instances: Instance, parsed: Arguments) -> TestSet:
    """All assignments of every instance that is small enough; kept one by one."""
    for i, best in enumerate(known.best):
        instance = taken(instances, i)
        if best.proof is None and not refuse_enumeration(instance):
            found = enumerate_all(instance)
            # Enumeration is in float32: its winner is proven up to that.
            known = _proven(known, i, found, float(gain_of(instance, found)), "enumeration", parsed)
    return known


def _branched(known: TestSet, parsed: Arguments) -> TestSet:
    """Branch and bound on every instance without a proof; kept one by one."""
    open_ = [i for i, best in enumerate(known.best) if best.proof is None]
    for done, i in enumerate(open_, 1):
        instance = taken(known.instances, i)
        proof = branch_and_bound(instance, parsed.scip_s, known.assignments()[:, i])
        print(f"scip: {done} of {len(open_)}", flush=True)
        known = _proven(known, i, proof.assignment, proof.bound, "scip", parsed)
    return known


def _proven(
    known: TestSet, i: int, assignment: ArrayLike, bound: float, method: str, parsed: Arguments
) -> TestSet:
    """The set with the plan and the bound that an exact method has for one instance, saved."""
    plans, bounds = known.assignments(), np.full(len(known.best), np.inf)
    plans[:, i], bounds[i] = np.asarray(assignment), bound
    known, better = testsets.improved(known, {method: plans})
    known = testsets.bounded(known, bounds, method)
    best = known.best[i]
    said = "optimal" if best.proof else f"gains {best.gain:.6g} s, at most {bound:.6g} s"
    print(f"{method}: instance {i} {said}{', improved' * better}", flush=True)
    return testsets.save(known, parsed.folder)


def _summary(known: TestSet) -> str:
    bounded = np.isfinite(known.bounds)
    gap = known.bounds[bounded] / np.maximum(known.gains[bounded], 1e-9) - 1
    bounds = "no upper bounds"
    if bounded.any():
        bounds = (
            f"{np.sum(bounded)} upper bounds, {100 * gap.mean():.2f} % above on average and "
            f"{100 * gap.max():.2f} % at most"
        )
    proven = sum(best.proof is not None for best in known.best)
    again = np.array([best.reached for best in known.best])
    return (
        f"{known.name}: {len(known.best)} instances, {proven} proven optimal; {bounds}; the best "
        f"plan was reached by {again.mean():.1f} searches on average, once or never for "
        f"{int(np.sum(again <= 1))}"
    )
