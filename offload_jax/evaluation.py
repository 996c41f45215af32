"""Paired comparison: every method decides the same instances, measured by its gap to the best.

The gap of a plan is (U_best - U) / (U_best - U_deny): 0 is the optimum, 1 is denying everybody.
Where an exact method applies, or an instance file has the optimum, U_best is proven; elsewhere it
is the best that any compared method found, and the result says which.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from offload_jax import model
from offload_jax.baselines import METHODS, method_named
from offload_jax.gains import gain_of
from offload_jax.instance import Instance, pad_users
from offload_jax.policies import Policy, best_of
from offload_jax.scenario import EdgeScenario, PaperScenario
from offload_jax.splits import splits_config
from offload_jax.types import Assignment, Key
from offload_jax.value import Solver, objective_denied

Decider = Callable[[Instance], Assignment]
ALL, HARD = "all", "hard"


@dataclass(frozen=True)
class Row:
    """One method on one cell (or on several cells together)."""

    method: str
    cell: str
    instances: int
    gap_mean: float
    gap_ci95: float  # half width of the 95 % confidence interval of the mean
    gap_p95: float
    gap_max: float
    score_mean: float  # 0.1 U / N
    seconds_per_plan: float  # in one batch, compiling excluded


@dataclass(frozen=True)
class Comparison:
    """All rows, and what the gaps are measured against."""

    reference: str  # "optimum (top-b)", "optimum in the file" or "best of the methods compared"
    rows: list[Row] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)  # method: why it does not apply

    def row(self, method: str, cell: str = ALL) -> Row:
        """The row of a method and cell; KeyError where there is none."""
        for row in self.rows:
            if (row.method, row.cell) == (method, cell):
                return row
        raise KeyError(f"no row for method {method!r} and cell {cell!r}")

    def methods(self) -> list[str]:
        return list(dict.fromkeys(row.method for row in self.rows))

    def cells(self) -> list[str]:
        return list(dict.fromkeys(row.cell for row in self.rows))

    def to_json(self) -> dict[str, Any]:
        """{"reference", "left_out", "cells": {cell: {method: {gap_mean, ...}}}}."""
        cells: dict[str, Any] = {}
        for row in self.rows:
            numbers = asdict(row)
            cells.setdefault(numbers.pop("cell"), {})[numbers.pop("method")] = numbers
        return {"reference": self.reference, "left_out": self.left_out, "cells": cells}


# Every cell compiles a sampler of its own, to run it once: optimising it would take 4x as long.
_QUICK_COMPILE = {"xla_backend_optimization_level": 0}


def sample_cells(
    scenario: PaperScenario | EdgeScenario, per_cell: int, key: Key
) -> dict[str, Instance]:
    """`per_cell` instances of every cell of a scenario (batch last), padded to one common N."""
    cells = {}
    named: dict[str, Any] = dict(scenario.cells())
    for i, (name, cell) in enumerate(named.items()):
        keys = jax.random.split(jax.random.fold_in(key, i), per_cell)
        sample = jax.jit(jax.vmap(cell.sample, out_axes=-1), compiler_options=_QUICK_COMPILE)
        instances = sample(keys)
        cells[name] = pad_users(instances, scenario.max_users)
    return cells


def deciders(
    policy: Policy | None,
    samples: Sequence[int],
    key: Key,
    methods: Sequence[str] | None = None,
    solver: Solver = "native",
) -> dict[str, Decider]:
    """The methods to compare by name: baselines, and the policy for every number of samples.

    Baselines decide with `solver`, the policy with its own. Raises ValueError for a method that
    does not exist.
    """
    names = list(METHODS) if methods is None else methods
    chosen: dict[str, Decider] = {
        name: jax.jit(partial(method_named(name).assign, solver=solver)) for name in names
    }
    for count in samples:
        if policy is None:
            break
        name = "policy, greedy" if count == 1 else f"policy, best of {count}"
        chosen[name] = _sampler(policy, count, key)
    return chosen


def _sampler(policy: Policy, count: int, key: Key) -> Decider:
    return lambda instances: best_of(policy, instances, count, key)[0]


def compare(
    cells: dict[str, Instance],
    methods: dict[str, Decider],
    hard: Sequence[str] = (),
    progress: Callable[[str, str], None] = lambda cell, method: None,
    known: Mapping[str, np.ndarray] | None = None,
    solver: Solver = "native",
) -> Comparison:
    """Every method on every cell, the same instances for all; calls `progress(cell, method)` first.

    `known` holds the gains (U - U_deny, s) of known optima, per cell; then they are the reference.
    Plans are valued with `solver`.

    Rows of the cells are followed by rows of all instances together (cell "all"), and of the cells
    named in `hard` (cell "hard"). Exact methods that do not apply to a cell are left out. Raises
    ValueError where no method is left.
    """
    left_out = refusals(cells, methods, solver)
    methods = {name: decide for name, decide in methods.items() if name not in left_out}
    if not methods:
        reasons = "; ".join(left_out.values()) or "none was named"
        raise ValueError(f"methods holds none that applies ({reasons}); must hold at least one")
    exact = [name for name in methods if name in METHODS and METHODS[name].optimal]
    found: dict[tuple[str, str], _Found] = {}
    compiled: set[tuple[object, ...]] = set()
    for cell, instances in cells.items():
        for name, decide in methods.items():
            progress(cell, name)
            shape = (name, instances.accuracy_floor.shape, instances.num_servers)
            found[name, cell] = _measure(decide, instances, shape not in compiled, solver)
            compiled.add(shape)
        best = [known[cell]] if known else [found[n, cell].gain for n in (exact or methods)]
        best_gain = np.max(best, axis=0)
        for name in methods:
            result = found[name, cell]
            gaps = np.asarray(model.gap(jnp.asarray(best_gain), jnp.asarray(result.gain)))
            found[name, cell] = replace(result, gap=gaps)
    groups = {cell: [cell] for cell in cells}
    groups |= {ALL: list(cells)} if len(cells) > 1 else {}
    groups |= {HARD: list(hard)} if 0 < len(hard) < len(cells) else {}
    rows = [
        _summary(name, group, [found[name, cell] for cell in members])
        for group, members in groups.items()
        for name in methods
    ]
    reference = f"optimum ({exact[0]})" if exact else "best of the methods compared"
    reference = "optimum in the file" if known else reference
    return Comparison(reference=reference, rows=rows, left_out=left_out)


def refusals(
    cells: dict[str, Instance], methods: Iterable[str], solver: Solver = "native"
) -> dict[str, str]:
    """The methods that do not apply to every cell, and why."""
    reasons = {}
    for name in methods:
        for cell in cells.values():
            if name in METHODS and (reason := METHODS[name].refuse(cell, solver)):
                reasons[name] = reason
    return reasons


@dataclass(frozen=True)
class _Found:
    """What one method found on one cell; arrays over instances."""

    gain: np.ndarray  # U - U_deny, s
    score: np.ndarray
    seconds: float  # per plan
    gap: np.ndarray = field(default_factory=lambda: np.zeros(0))


def _measure(decide: Decider, instances: Instance, warm_up: bool, solver: Solver) -> _Found:
    if warm_up:
        jax.block_until_ready(decide(instances))  # compiles
    start = time.perf_counter()
    assignment = jax.block_until_ready(decide(instances))
    seconds = (time.perf_counter() - start) / instances.alpha.shape[-1]
    gain, score = _gain_and_score(instances, assignment, solver)
    return _Found(gain=np.asarray(gain), score=np.asarray(score), seconds=seconds)


@partial(jax.jit, static_argnums=2)
def _gain_and_score(
    instances: Instance, assignment: Assignment, solver: Solver
) -> tuple[jax.Array, jax.Array]:
    gain = gain_of(instances, assignment, solver)
    return gain, model.score(instances, objective_denied(instances, solver) + gain)


def _summary(method: str, cell: str, parts: list[_Found]) -> Row:
    gaps = np.concatenate([part.gap for part in parts])
    count = len(gaps)
    error = np.std(gaps, ddof=1) / np.sqrt(count) if count > 1 else 0.0
    return Row(
        method=method,
        cell=cell,
        instances=count,
        gap_mean=float(np.mean(gaps)),
        gap_ci95=float(error * special.stdtrit(max(count - 1, 1), 0.975)),
        gap_p95=float(np.percentile(gaps, 95)),
        gap_max=float(np.max(gaps)),
        score_mean=float(np.mean(np.concatenate([part.score for part in parts]))),
        seconds_per_plan=float(np.mean([part.seconds for part in parts])),
    )


# What training measures its gap against: {kind of scenario: (method, what to call it)}.
# A gap to a rule that is not optimal can fall below 0.
_REFERENCES = {
    "paper": ("top-b", "optimum (top-b)"),
    "edge": ("reduced-greedy", "plan of reduced-greedy"),
}


def _reference(scenario: PaperScenario | EdgeScenario, solver: Solver) -> tuple[str, str]:
    return _REFERENCES["edge" if splits_config(solver).rules else scenario.kind]


def reference_name(scenario: PaperScenario | EdgeScenario, solver: Solver) -> str:
    """What the gaps of `validation_set` are measured against, in words."""
    return _reference(scenario, solver)[1]


def baseline_solver(solver: Solver) -> Solver:
    """What baselines decide with: the solver where it has rules, else the native one, faster."""
    return solver if splits_config(solver).rules else "native"


def validation_set(
    scenario: PaperScenario | EdgeScenario, count: int, key: Key, solver: Solver = "native"
) -> tuple[Instance, jax.Array]:
    """Fixed instances to watch training by, and their reference gains (U - U_deny, s)."""
    instances = jax.jit(jax.vmap(scenario.sample, out_axes=-1))(jax.random.split(key, count))
    solver = baseline_solver(solver)
    assign = METHODS[_reference(scenario, solver)[0]].assign
    assignment = jax.jit(partial(assign, solver=solver))(instances)
    return instances, _gain_and_score(instances, assignment, solver)[0]
