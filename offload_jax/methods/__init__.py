"""Every method a policy is compared with, by name, over any number of instances (batch last)."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from offload_jax.files.checks import ConfigError
from offload_jax.files.plugins import find, is_own
from offload_jax.files.records import Plan
from offload_jax.methods.annealing import annealing
from offload_jax.methods.bound import refuse_bound, upper_bound
from offload_jax.methods.enumeration import enumerate_all, refuse_enumeration
from offload_jax.methods.exact import refuse_top_b, top_b
from offload_jax.methods.genetic import TUNED, genetic
from offload_jax.methods.heuristics import deny, grant, greedy, myopic, reduced_greedy
from offload_jax.methods.local_search import local_search
from offload_jax.methods.scip import branch_and_bound, refuse_scip
from offload_jax.methods.search import Search, Trace, run
from offload_jax.methods.tabu import tabu
from offload_jax.plans.candidates import gains_of
from offload_jax.plans.outcome import check_all_local
from offload_jax.plans.plan import Decision, add_batch, timed, to_plans
from offload_jax.problem.instance import Instance, taken
from offload_jax.problem.types import Assignment, Key
from offload_jax.splits import NATIVE, Solver, solver_named

__all__ = [
    "METHODS",
    "QUICK",
    "Method",
    "Show",
    "apply_method",
    "assigner",
    "baseline",
    "method_named",
    "shown_name",
    "solve",
]

Show = Callable[[int, int], None]  # called with the work done and the work there is
SCIP_SECONDS = 60.0  # of one instance, where no time is given


@dataclass(frozen=True)
class Method:
    """One way to assign users: one of `assign`, `search` and `prove` is there."""

    about: str
    # (instances, solver) -> assignment; pure, jit-able, batch last.
    assign: Callable[..., Assignment] | None = None
    search: Search | None = None  # anytime
    # (one instance, solver, budget in s, show) -> (assignment, upper bound of U - U_deny)
    prove: Callable[[Instance, Solver, float | None, Show], tuple[np.ndarray, float]] | None = None
    optimal: bool = False  # its plans are optimal wherever it does not refuse
    refuse: Callable[[Instance, Solver], str | None] = lambda *_: None  # why it does not apply


def _enumerate(
    instance: Instance, solver: Solver, budget_s: float | None, show: Show
) -> tuple[np.ndarray, float]:
    del budget_s  # half an enumeration is worth nothing
    best = enumerate_all(instance, solver, show)
    return np.asarray(best), float(gains_of(instance, best, solver=solver))


def _scip(
    instance: Instance, solver: Solver, budget_s: float | None, show: Show
) -> tuple[np.ndarray, float]:
    del show  # SCIP does not know how much there is to do
    start = assigner("reduced-greedy")(instance, solver=solver)
    proof = branch_and_bound(instance, budget_s or SCIP_SECONDS, np.asarray(start))
    return proof.assignment, proof.bound


METHODS: dict[str, Method] = {
    "deny": Method("everybody runs locally", deny),
    "grant": Method("everybody is granted while there is room", grant),
    "myopic": Method("in order of arrival, what is best at the moment", myopic),
    "greedy": Method("the pair with the largest exact gain, again and again", greedy),
    "reduced-greedy": Method("the same, candidates from the prices", reduced_greedy),
    "local-search": Method("best move or exchange, from reduced-greedy", search=local_search()),
    "annealing": Method("simulated annealing, from reduced-greedy", search=annealing()),
    "tabu": Method("tabu search, from reduced-greedy", search=tabu()),
    "genetic": Method("the paper's genetic algorithm", search=genetic()),
    "genetic-tuned": Method("one tuned for this problem", search=genetic(TUNED)),
    "top-b": Method("optimal for one batch", top_b, optimal=True, refuse=refuse_top_b),
    "enumeration": Method(
        "optimal: all assignments", prove=_enumerate, optimal=True, refuse=refuse_enumeration
    ),
    "scip": Method("branch and bound, with a proven bound", prove=_scip, refuse=refuse_scip),
}
# What a comparison takes unless told otherwise: all that end within milliseconds.
QUICK = ("deny", "grant", "myopic", "greedy", "reduced-greedy", "local-search", "top-b")


def method_named(name: str, where: str = "method") -> Method:
    """The method of that name, or the user's own as `file.py:Name`, which the caller has chosen.

    Raises ConfigError (a ValueError) for others; `where` names the setting.
    """
    found = find(_shown.get(name, name), METHODS, where, plugins=None)
    if not isinstance(found, Method):
        raise ConfigError(f"{where} is {name!r}, a {type(found).__name__}; must be a Method")
    return found


_shown: dict[str, str] = {}  # own methods by what tables call them


def shown_name(name: str) -> str:
    """What tables and pictures call a method: one of the user's own without its folders."""
    if not is_own(name):
        return name
    shown = Path(name).name
    _shown[shown] = name
    return shown


def apply_method(
    name: str,
    instances: Instance,
    solver: Solver = NATIVE,
    budget_s: float | None = None,
    key: Key | None = None,
    show: Show = lambda done, total: None,
    trace: Trace | None = None,
) -> Decision:
    """Decides concrete instances (one batch axis) by a named method.

    `budget_s` is the time (s) for each instance that a search takes instead of its own number of
    rounds, and the limit of scip; `key` is what searches draw from; `trace` records how a search
    went. Calls `show(done, total)` in methods that go through the instances one by one.

    Raises ValueError for an unknown method, and for a budget that is not positive and finite.
    """
    if budget_s is not None and not 0 < budget_s < math.inf:
        raise ValueError(f"budget_s is {budget_s}; must be above 0 and finite (s), or None")
    method, key = method_named(name), jax.random.key(0) if key is None else key
    if method.search is not None:
        trace = Trace() if trace is None else trace
        total = None if budget_s is None else budget_s * instances.mask.shape[-1]
        found = run(method.search, instances, key, solver, total, trace)
        return Decision(found.best, trace.seconds[-1])
    if method.prove is not None:
        return _one_by_one(method, instances, solver, budget_s, show)
    assign = partial(assigner(name), instances, solver=solver)
    decision = timed((name, solver), instances, assign)
    if not method.optimal:
        return decision
    bound = np.asarray(gains_of(instances, decision.assignment, solver=solver))
    return Decision(decision.assignment, decision.seconds, bound)


def baseline(name: str) -> Method | None:
    """The method of that name; None where the name is something else's, as a policy's decoding."""
    return method_named(name) if name in METHODS or is_own(name) else None


@cache
def assigner(name: str) -> Callable[..., Assignment]:
    """The jitted rule of that name: (instances, solver=...) -> assignment, batch last."""
    assign = method_named(name).assign
    assert assign is not None
    return jax.jit(assign, static_argnames="solver")


def _one_by_one(
    method: Method, instances: Instance, solver: Solver, budget_s: float | None, show: Show
) -> Decision:
    assert method.prove is not None
    count = instances.mask.shape[-1]
    plans, bounds, start = [], [], time.perf_counter()
    for i in range(count):
        instance = taken(instances, i)
        within = show if count == 1 else lambda done, total: None
        plan, bound = method.prove(instance, solver, budget_s, within)
        plans.append(plan)
        bounds.append(bound)
        if count > 1:
            show(i + 1, count)
    seconds = time.perf_counter() - start
    return Decision(jnp.asarray(np.stack(plans, axis=-1), jnp.int32), seconds, np.array(bounds))


def solve(
    instance: Instance,
    method: str,
    budget_s: float | None = None,
    solver: str | Solver = "native",
    bound: bool = False,
    show: Show = lambda done, total: None,
    certify: bool | None = None,
) -> Plan:
    """Decides one instance by a named method; `solver` finds the split points.

    `budget_s` is the time (s) that an anytime method (local-search, annealing, tabu, genetic,
    genetic-tuned) goes on improving, and the limit of scip; other methods end by themselves and
    ignore it. `bound` adds an upper bound where the method proves none (see `methods.bound`).
    `seconds` of the plan excludes compiling. `show(done, total)` is called as enumeration proceeds.

    Raises ValueError for an unknown method, a budget that is not positive, or an instance that the
    method does not apply to.
    """
    if certify is not None:
        warnings.warn("certify is now called bound", DeprecationWarning, stacklevel=2)
        bound = certify
    chosen, solver = method_named(method), solver_named(solver)
    if instance.alpha.ndim != 1:
        raise ValueError(
            f"instance has users of shape {instance.alpha.shape}; must be one instance"
        )
    refusal = chosen.refuse(instance, solver)
    if refusal:
        raise ValueError(f"method is {method!r}, which does not apply: {refusal}")
    refusal = refuse_bound(solver) if bound else None
    if refusal:
        raise ValueError(f"bound is True, which does not apply: {refusal}")
    batch = add_batch(instance)
    check_all_local(batch, solver)
    decision = apply_method(method, batch, solver, budget_s, show=show)
    if bound and decision.bound is None:
        found = upper_bound(batch, decision.assignment, budget_s)
        decision = Decision(decision.assignment, decision.seconds, found)
    return to_plans(batch, decision, method, solver)[0]
