"""Branch and bound on the joint mixed-integer program, by SCIP: the optimum, or how far it may be.

Assignment y_ik and edge steps e_ik = T - n_ik are decided together. All products are of a binary
and a bounded variable, so they are linear without loss, once

    w_ikjl = e_ik y_jl >= max(0, e_ik - E_ik (1 - y_jl))     (congestion; E_ik = T - lo_ik)
    v_ij   = g_i g_j   >= max(0, g_i + g_j - 1)              (the radio; g_i = sum_k y_ik)

What accuracy costs is convex in e_ik, and 0 at 0: tangents bound it from below. So each solve gives
an upper bound; more tangents, where its solutions lie, close what is left to the true value of the
plans that it found.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from offload_jax.gains import feasible_gain
from offload_jax.instance import Instance, users_only
from offload_jax.splits import splits_config
from offload_jax.value import Solver, evaluate

TANGENTS = 12  # of every user and batch, to begin with
CLOSED = 1e-6  # gap to the bound that counts as proven, as a share of the gain
# What SCIP's tolerances (1e-6 on every row) may have taken off the bound, likewise.
_MARGIN = 2e-6

Tangent = tuple[int, int, float]  # of user i in batch k at e edge steps


@dataclass(frozen=True)
class Proof:
    """What branch and bound found."""

    assignment: np.ndarray  # (N,) the best plan, padded users denied
    bound: float  # of U - U_deny over all plans, s
    closed: bool  # the plan reaches the bound
    seconds: float


def refuse_scip(instance: Instance, solver: Solver = "native") -> str | None:
    """Why branch and bound does not apply, or None where it does."""
    del instance
    if importlib.util.find_spec("pyscipopt") is None:
        return "scip needs PySCIPOpt: pip install 'offload-jax[scip]'"
    if splits_config(solver).rules:
        return "scip solves the plain problem, without constraints and terms of one's own"
    return None


def branch_and_bound(instance: Instance, budget_s: float, start: np.ndarray | None = None) -> Proof:
    """Best plan and bound of one concrete instance (no batch axis) within `budget_s` seconds.

    `start` is a plan that the search is told; what it returns is never worse. Everything is
    computed in float64.
    """
    began = time.perf_counter()
    real = np.asarray(instance.mask)
    data = _Data(users_only(instance))
    best = _Incumbent(data)
    if start is not None:
        best.offer(np.asarray(start)[real])
    tangents, bound = list(data.first_tangents()), np.inf
    while True:
        left = budget_s - (time.perf_counter() - began)
        if left <= 0 or not data.pairs:
            break
        ended, dual, plans, points = _solve(data, tangents, best, left)
        bound = min(bound, dual + _MARGIN * max(1.0, abs(dual)))
        for plan in plans:
            best.offer(plan)
        if not ended or bound - best.gain <= 2 * _MARGIN * max(1.0, best.gain):
            break
        more = [*points, *best.points()]
        if not set(more) - set(tangents):
            break
        tangents += more
    bound = max(min(bound, data.most), best.gain)
    assignment = np.zeros(len(real), int)
    assignment[real] = best.assignment
    closed = bound - best.gain <= 3 * _MARGIN * max(1.0, best.gain)
    return Proof(assignment, bound, closed, time.perf_counter() - began)


class _Data:
    """The numbers of one instance, all users real, in float64."""

    def __init__(self, instance: Instance) -> None:
        i = jax.tree.map(lambda x: np.asarray(x, float if x.dtype.kind == "f" else None), instance)
        self.instance: Any = i  # an Instance of NumPy arrays
        self.users, self.batches = i.accuracy_floor.shape
        own = np.diag(i.interference)
        self.longest = i.steps - np.maximum(i.split_min[:, None], i.accuracy_centre)  # E_ik
        self.saving = i.local_step[:, None] - i.intercept - i.demand[:, None] * own
        self.air = i.payload / (i.bandwidth * i.spectral_efficiency)  # s, with the whole band
        # Nobody gains more than all its steps save, and only where its images fit.
        worth = np.maximum(self.saving * self.longest - self.air[:, None], 0)
        worth = np.where(i.demand[:, None] <= i.capacity * (1 + 1e-9), worth, 0)
        self.pairs = [(int(u), int(k)) for u, k in np.argwhere(worth > 0)]
        self.able = sorted({u for u, _ in self.pairs})
        self.most = float(worth.max(axis=1, initial=0).sum())

    def loss(self, user: int, batch: int, steps: float) -> tuple[float, float]:
        """What e edge steps cost in accuracy (s, alpha included), and the slope of that."""
        i = self.instance
        slope, centre = i.accuracy_slope[user, batch], i.accuracy_centre[user, batch]

        def curve(n: Any) -> float:
            return float(1 / (1 + np.exp(-slope * (n - centre))))

        scale = i.alpha[user] * (i.accuracy_local[user] - i.accuracy_floor[user, batch])
        scale /= curve(i.steps)
        at = curve(i.steps - steps)
        return float(scale * (curve(i.steps) - at)), float(scale * slope * at * (1 - at))

    def first_tangents(self) -> Iterator[Tangent]:
        for user, batch in self.pairs:
            for e in np.linspace(0, self.longest[user, batch], TANGENTS):
                yield user, batch, float(e)


class _Incumbent:
    """The best plan so far, by its true value."""

    def __init__(self, data: _Data) -> None:
        self.data, self.gain = data, 0.0
        self.assignment = np.zeros(data.users, int)
        self.split = np.full(data.users, float(data.instance.steps))

    def offer(self, assignment: np.ndarray) -> None:
        """Takes the plan where it is better."""
        if np.array_equal(assignment, self.assignment):
            return
        with jax.enable_x64(True):
            plan = np.asarray(assignment, np.int32)
            gain = float(_feasible_gain(self.data.instance, plan))
            if gain > self.gain:
                self.gain, self.assignment = gain, np.asarray(assignment, int)
                self.split = np.asarray(_splits(self.data.instance, plan))

    def points(self) -> list[Tangent]:
        """Where its tangents touch."""
        steps = self.data.instance.steps - self.split
        granted = np.flatnonzero(self.assignment)
        return [(int(u), int(self.assignment[u] - 1), float(steps[u])) for u in granted]


_feasible_gain = jax.jit(feasible_gain)
_splits = jax.jit(lambda instance, assignment: evaluate(instance, assignment).split)


@dataclass
class _Program:
    """SCIP's variables by what they stand for."""

    model: Any
    grant: dict[tuple[int, int], Any] = field(default_factory=dict)  # y_ik
    steps: dict[tuple[int, int], Any] = field(default_factory=dict)  # e_ik
    loss: dict[tuple[int, int], Any] = field(default_factory=dict)  # s
    together: dict[tuple[int, int, int, int], Any] = field(default_factory=dict)  # w_ikjl
    on_air: dict[tuple[int, int], Any] = field(default_factory=dict)  # v_ij, i < j

    def granted(self, user: int) -> Any:
        return sum(y for (u, _), y in self.grant.items() if u == user)


def _solve(
    data: _Data, tangents: list[Tangent], best: _Incumbent, limit_s: float
) -> tuple[bool, float, list[np.ndarray], list[Tangent]]:
    """(solved to the end?, upper bound, plans found, where the best solution's tangents touch)."""
    began = time.perf_counter()
    program = _program(data, tangents)
    scip = program.model
    _tell(program, data, best)
    scip.setParam("limits/time", max(0.01, limit_s - (time.perf_counter() - began)))
    scip.setParam("limits/gap", CLOSED / 10)
    scip.optimize()
    bound, ended = float(scip.getDualbound()), scip.getStatus() in ("optimal", "gaplimit")
    plans, points = [], []
    for number, solution in enumerate(scip.getSols()):
        plan = np.zeros(data.users, int)
        for (u, k), y in program.grant.items():
            if solution[y] > 0.5:
                plan[u] = k + 1
                e = min(max(solution[program.steps[u, k]], 0.0), data.longest[u, k])
                points += [(u, k, float(e))] if number == 0 else []
        plans.append(plan)
    scip.freeProb()
    return ended, min(bound, data.most), plans, points


def _program(data: _Data, tangents: list[Tangent]) -> _Program:
    from pyscipopt import Model

    i, program = data.instance, _Program(Model())
    scip = program.model
    scip.hideOutput()
    for u, k in data.pairs:
        longest = data.longest[u, k]
        program.grant[u, k] = y = scip.addVar(vtype="B")
        program.steps[u, k] = e = scip.addVar(lb=0, ub=longest)
        program.loss[u, k] = scip.addVar(lb=0)
        scip.addCons(e <= longest * y)
    for u, k, e in tangents:
        value, slope = data.loss(u, k, e)
        # Through 0 where the pair is not granted: a tangent that starts below 0 is lifted by y.
        y, steps = program.grant[u, k], program.steps[u, k]
        scip.addCons(program.loss[u, k] >= slope * steps + (value - slope * e) * y)
    for u in data.able:
        scip.addCons(program.granted(u) <= 1)
    _share_batches(program, data)
    _share_radio(program, data)
    gain = sum(data.saving[u, k] * e for (u, k), e in program.steps.items())
    gain -= sum(program.loss.values())
    for (_, k, j, m), w in program.together.items():
        gain -= i.interference[k, m] * i.demand[j] * w
    for (u, j), v in program.on_air.items():
        gain -= (data.air[u] + data.air[j]) * v
    gain -= sum(data.air[u] * y for (u, _), y in program.grant.items())
    scip.setObjective(gain, "maximize")
    return program


def _share_batches(program: _Program, data: _Data) -> None:
    """Capacities, budgets, and the congestion of every granted user by every other."""
    i, scip = data.instance, program.model
    own = np.diag(i.interference)
    for k in range(data.batches):
        load = [i.demand[u] * program.grant[u, m] for u, m in data.pairs if m == k]
        if load:
            scip.addCons(sum(load) <= i.capacity[k])
    for g in np.flatnonzero(np.isfinite(i.budget)):
        use = [
            own[k] * i.demand[u] * program.steps[u, k] for u, k in data.pairs if i.server[k] == g
        ]
        if use:
            scip.addCons(sum(use) <= i.budget[g])
    for u, k in data.pairs:
        e, longest = program.steps[u, k], data.longest[u, k]
        for j in range(data.users):
            if j == u:
                continue
            parts = []
            for m in range(data.batches):
                if (j, m) not in program.grant or i.interference[k, m] <= 0:
                    continue
                program.together[u, k, j, m] = w = scip.addVar(lb=0, ub=longest)
                y = program.grant[j, m]
                scip.addCons(w >= e - longest * (1 - y))
                parts.append((w, y))
            # A user is in one batch at most, so its terms may be added up first: tighter.
            if len(parts) > 1:
                inside = sum(y for _, y in parts)
                scip.addCons(sum(w for w, _ in parts) >= e - longest * (1 - inside))


def _share_radio(program: _Program, data: _Data) -> None:
    """v_ij for every two users that can be granted."""
    granted = {u: program.granted(u) for u in data.able}
    for a, u in enumerate(data.able):
        for j in data.able[a + 1 :]:
            program.on_air[u, j] = v = program.model.addVar(lb=0, ub=1)
            program.model.addCons(v >= granted[u] + granted[j] - 1)


def _tell(program: _Program, data: _Data, best: _Incumbent) -> None:
    """Gives SCIP the incumbent as a solution."""
    scip = program.model
    solution = scip.createSol()
    steps = data.instance.steps - best.split
    inside = {(u, k): best.assignment[u] == k + 1 for u, k in data.pairs}
    for (u, k), y in program.grant.items():
        e = float(min(max(steps[u], 0.0), data.longest[u, k])) if inside[u, k] else 0.0
        scip.setSolVal(solution, y, float(inside[u, k]))
        scip.setSolVal(solution, program.steps[u, k], e)
        # A hair above the curve, which is above all tangents.
        loss = data.loss(u, k, e)[0] + 1e-9 if inside[u, k] else 0.0
        scip.setSolVal(solution, program.loss[u, k], loss)
    for (u, k, j, m), w in program.together.items():
        both = inside[u, k] and inside[j, m]
        scip.setSolVal(solution, w, float(steps[u]) if both else 0.0)
    for (u, j), v in program.on_air.items():
        scip.setSolVal(solution, v, float(best.assignment[u] > 0 and best.assignment[j] > 0))
    scip.addSol(solution)
