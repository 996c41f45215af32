"""Paired comparison: every method decides the same instances, measured by its gap to the best.

The gap of a plan is (U_best - U) / (U_best - U_deny): 0 is the optimum, 1 is denying everybody.
Where an exact method applies, or an instance file has the optimum, U_best is proven; elsewhere it
is the best plan known for a test set or that any compared method found, and the result says which.
A plan better than what is known counts as the best before any gap is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from offload_jax.evaluation.comparison import ALL, HARD, Comparison, Detail, MethodRow, half_width
from offload_jax.evaluation.reference import values
from offload_jax.methods import QUICK, Show, apply_method, baseline, method_named, shown_name
from offload_jax.methods.bound import upper_bound
from offload_jax.methods.refine import Refinement, refine
from offload_jax.plans.plan import Decision, sound
from offload_jax.policy.decoding import timed_best_of
from offload_jax.policy.policy import Policy
from offload_jax.problem import equations
from offload_jax.problem.instance import Instance, pad_users
from offload_jax.problem.scenario import Scenario, sample_many
from offload_jax.problem.types import Assignment, Key
from offload_jax.splits import NATIVE, Solver

Decide = Callable[[Instance], Decision]


def sample_cells(scenario: Scenario, per_cell: int, key: Key) -> dict[str, Instance]:
    """`per_cell` instances of every cell of a scenario (batch last), padded to one common N."""
    cells = {}
    named: dict[str, Any] = dict(scenario.cells())
    for i, (name, cell) in enumerate(named.items()):
        keys = jax.random.split(jax.random.fold_in(key, i), per_cell)
        cells[name] = _sample_padded(cell, scenario.max_users, keys)
    return cells


# Every cell compiles a sampler of its own, to run it once: optimising it would take 4x as long.
@partial(jax.jit, static_argnums=(0, 1), compiler_options={"xla_backend_optimization_level": 0})
def _sample_padded(cell: Scenario, num_users: int, keys: Array) -> Instance:
    return pad_users(sample_many(cell, keys), num_users)


def deciders(
    policy: Policy | None,
    samples: Sequence[int],
    key: Key,
    methods: Sequence[str] | None = None,
    solver: Solver = NATIVE,
    budget_s: float | None = None,
    show: Show = lambda done, total: None,
    refinements: Sequence[Refinement] = (),
) -> dict[str, Decide]:
    """The methods to compare by name: baselines, and the policy for every number of samples.

    The largest number of samples is also refined (`methods.refine`), in a row each. Baselines
    decide with `solver`, the policy with its own; `budget_s` is what searches, re-deciding and scip
    may take for each instance. Methods that go through instances one by one call
    `show(done, total)`. Raises ValueError for a method that does not exist.
    """
    chosen: dict[str, Decide] = {}
    for name in dict.fromkeys(QUICK if methods is None else methods):
        method_named(name)
        shown = shown_name(name)
        if shown in chosen:
            raise ValueError(f"methods has two named {shown}; must have another name for each")
        chosen[shown] = partial(
            apply_method, name, solver=solver, budget_s=budget_s, key=key, show=show
        )
    if policy is None:
        return chosen
    for count in samples:
        name = "policy, greedy" if count == 1 else f"policy, best of {count}"
        chosen[name] = partial(timed_best_of, policy, samples=count, key=key)
    for refinement in refinements:
        count = max(samples)
        chosen[f"policy, best of {count} + {refinement}"] = partial(
            refine, policy, samples=count, refinement=refinement, key=key, budget_s=budget_s
        )
    return chosen


@dataclass(frozen=True)
class Known:
    """What is known beforehand, by cell: gains (U - U_deny, s) of the best plans, and bounds."""

    reference: str  # what to call it
    gains: Mapping[str, np.ndarray]
    bounds: Mapping[str, np.ndarray] = field(default_factory=dict)


def compare(
    cells: dict[str, Instance],
    methods: dict[str, Decide],
    hard: Sequence[str] = (),
    progress: Callable[[str, str], None] = lambda cell, method: None,
    known: Known | None = None,
    solver: Solver = NATIVE,
    keep: dict[tuple[str, str], Decision] | None = None,
    bounds: bool = False,
) -> Comparison:
    """Every method on every cell, the same instances for all; calls `progress(cell, method)` first.

    Plans are valued with `solver`. `keep` is filled with what was decided, by method and cell.
    With `bounds` upper bounds of what any plan can gain are computed (`methods.bound`), beside
    those that are known or that methods prove.

    Rows of the cells are followed by rows of all instances together (cell "all"), and of the cells
    named in `hard` (cell "hard"). Exact methods that do not apply to a cell are left out. Raises
    ValueError where no method is left.
    """
    left_out = refusals(cells, methods, solver)
    methods = {name: decide for name, decide in methods.items() if name not in left_out}
    if not methods:
        reasons = "; ".join(left_out.values()) or "none was named"
        raise ValueError(f"methods holds none that applies ({reasons}); must hold at least one")
    kept = {} if keep is None else keep
    found: dict[tuple[str, str], _Found] = {}
    left: dict[str, np.ndarray] = {}  # to the bounds, as a share
    for cell, instances in cells.items():
        here: dict[str, _Found] = {}
        for name, decide in methods.items():
            progress(cell, name)
            kept[name, cell] = decide(instances)
            here[name] = _measured(kept[name, cell], instances, solver)
        gains = [one.gain for one in here.values()]
        best = np.max([*gains, *([known.gains[cell]] if known else [])], axis=0, initial=0)
        proven = {f"by {name}": one.bound for name, one in here.items()}
        if known and cell in known.bounds:
            proven["known"] = known.bounds[cell]
        if bounds:
            progress(cell, "upper bounds")
            plans = [kept[name, cell].assignment for name in methods]
            proven["by duality"] = upper_bound(instances, _winners(plans, gains))
        least = np.min([sound(bound, best, whose) for whose, bound in proven.items()], axis=0)
        left[cell] = np.maximum(least - best, 0) / np.maximum(best, 1e-9)
        found |= {(name, cell): one.against(best) for name, one in here.items()}
    exact = [name for name in methods if (one := baseline(name)) and one.optimal]
    reference = f"optimum ({exact[0]})" if exact else "best of the methods compared"
    return Comparison(
        reference=known.reference if known else reference,
        detail=_detail(cells, list(methods), found, left),
        rows=_rows(list(cells), hard, list(methods), found),
        left_out=left_out,
    )


def _winners(plans: Sequence[Assignment], gains: Sequence[np.ndarray]) -> Assignment:
    """Of each instance the plan that gains most."""
    winner = np.argmax(gains, axis=0)[None, None]
    return jnp.asarray(np.take_along_axis(np.stack(plans), winner, axis=0)[0])


def _rows(
    cells: Sequence[str],
    hard: Sequence[str],
    methods: Sequence[str],
    found: Mapping[tuple[str, str], _Found],
) -> list[MethodRow]:
    groups = {cell: [cell] for cell in cells}
    groups |= {ALL: list(cells)} if len(cells) > 1 else {}
    groups |= {HARD: list(hard)} if 0 < len(hard) < len(cells) else {}
    return [
        _summary(name, group, [found[name, cell] for cell in members])
        for group, members in groups.items()
        for name in methods
    ]


def _detail(
    cells: dict[str, Instance],
    methods: Sequence[str],
    found: dict[tuple[str, str], _Found],
    left: dict[str, np.ndarray],
) -> Detail:
    def joined(arrays: Iterable[np.ndarray]) -> np.ndarray:
        return np.concatenate(list(arrays))

    masks = {cell: np.asarray(instances.mask) for cell, instances in cells.items()}
    asked = {c: np.sum(np.where(masks[c], cells[c].demand, 0), axis=0) for c in cells}
    bound_gap = joined(left[cell] for cell in cells)
    return Detail(
        users=joined(masks[cell].sum(axis=0) for cell in cells),
        load=joined(
            asked[c] / np.maximum(np.asarray(cells[c].capacity).sum(axis=0), 1e-9) for c in cells
        ),
        gaps={name: joined(found[name, cell].gap for cell in cells) for name in methods},
        bound_gap=bound_gap if np.all(np.isfinite(bound_gap)) else None,
    )


def refusals(
    cells: dict[str, Instance], methods: Iterable[str], solver: Solver = NATIVE
) -> dict[str, str]:
    """The methods that do not apply to every cell, and why."""
    reasons = {}
    for name in methods:
        for cell in cells.values():
            one = baseline(name)
            if one and (reason := one.refuse(cell, solver)):
                reasons[name] = reason
    return reasons


@dataclass(frozen=True)
class _Found:
    """What one method found on one cell; arrays over instances."""

    gain: np.ndarray  # U - U_deny, s; minus infinity where the plan is not feasible
    score: np.ndarray
    feasible: np.ndarray
    bound: np.ndarray  # of U_best - U_deny, s; inf where none was proven
    seconds: float  # per plan
    gap: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def against(self, best: np.ndarray) -> _Found:
        """With gaps to these best gains; a plan that is not feasible is worth denying everybody."""
        gain = jnp.asarray(np.where(self.feasible, self.gain, 0))
        return replace(self, gap=np.asarray(equations.gap(jnp.asarray(best), gain)))


def _measured(decision: Decision, instances: Instance, solver: Solver) -> _Found:
    gain, score, feasible = values(instances, decision.assignment, solver)
    count = instances.alpha.shape[-1]
    return _Found(
        gain=np.asarray(jnp.where(feasible, gain, -jnp.inf)),  # sets no standard
        score=np.asarray(score),
        feasible=np.asarray(feasible),
        bound=np.full(count, np.inf) if decision.bound is None else decision.bound,
        seconds=decision.seconds / count,
    )


def _summary(method: str, cell: str, parts: list[_Found]) -> MethodRow:
    gaps = np.concatenate([part.gap for part in parts])
    count = len(gaps)
    return MethodRow(
        method=method,
        cell=cell,
        instances=count,
        gap_mean=float(np.mean(gaps)),
        gap_ci95=half_width(gaps),
        gap_p95=float(np.percentile(gaps, 95)),
        gap_max=float(np.max(gaps)),
        score_mean=float(np.mean(np.concatenate([part.score for part in parts]))),
        feasible=float(np.mean(np.concatenate([part.feasible for part in parts]))),
        seconds_per_plan=sum(part.seconds * len(part.gap) for part in parts) / count,
    )
