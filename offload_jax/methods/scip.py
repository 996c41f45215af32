"""Branch and bound on the joint mixed-integer program, by SCIP: the optimum, or how far it may be.

What makes the problem hard is the product of edge steps and step time. A batch has few step times,
as its load is a sum of images: each is a *level* q, and binaries z_q choose one. Everything that
happens in a batch is written down once per level, y_ik = sum_q y_ikq and so on, where

- the step time is a number, so that a user's gain is linear but for the accuracy,
- loads, capacities (1) and budgets (6) hold at every level by themselves, times z_q.

The last is what makes its linear relaxation tight. Where there are too many levels, the batch has
one, and w_ikjl = e_ik y_jl >= max(0, e_ik - E_ik (1 - y_jl)) counts its congestion (E_ik = T - lo).
The radio (3) has one level per number of granted users.

What accuracy costs is convex in the edge steps, and 0 at 0: tangents bound it from below. So each
solve gives an upper bound; more tangents, at the prices and splits of the plans it found, close
what is left to their true value.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterable
from dataclasses import dataclass

import jax
import numpy as np

from offload_jax.methods.levels import Numbers
from offload_jax.methods.scip_program import OutOfTime, Touched, tell, write_down
from offload_jax.plans.outcome import evaluate
from offload_jax.problem.instance import Instance
from offload_jax.splits import NATIVE, Solver

CLOSED = 1e-6  # gap to the bound that counts as proven, as a share of the gain
# What SCIP's tolerances (1e-7 on every row, variables between 0 and 1) may have taken off.
_MARGIN = 1e-6
_POINTS = 12  # where tangents touch to begin with, if there is but one level
_PRICES = (0.0, 0.5, 1.0, 2.0)  # tangents touch the best replies at these multiples of the price


@dataclass(frozen=True)
class Proof:
    """What branch and bound found."""

    assignment: np.ndarray  # (N,) the best plan, padded users denied
    bound: float  # of U - U_deny over all plans, s
    closed: bool  # the plan reaches the bound
    seconds: float


def refuse_scip(instance: Instance, solver: Solver = NATIVE) -> str | None:
    """Why branch and bound does not apply, or None where it does."""
    del instance
    if importlib.util.find_spec("pyscipopt") is None:
        return "scip needs PySCIPOpt: pip install 'offload-jax[scip]'"
    if solver.rules:
        return "scip solves the plain problem, without constraints and terms of one's own"
    return None


def branch_and_bound(instance: Instance, budget_s: float, start: np.ndarray | None = None) -> Proof:
    """Best plan and bound of one concrete instance (no batch axis) within `budget_s` seconds.

    `start` is a plan that the search is told; what it returns is never worse. Everything is
    computed in float64.
    """
    began = time.perf_counter()
    data = Numbers(instance)
    best = _Incumbent(data)
    if start is not None:
        best.offer(np.where(data.real, np.asarray(start), 0))
    touched = _first_touched(data, best)
    bound, closed = data.most, data.most <= 0
    while not closed:
        try:
            dual, ended, plans = _solve(data, touched, best, began + budget_s)
        except OutOfTime:
            break
        bound = min(bound, dual)
        for plan in plans:
            best.offer(plan)
        closed = bound - best.gain <= CLOSED * max(best.gain, 1e-3 * data.most)
        if not ended or not _touch(touched, best, plans):
            break
    bound = max(bound + _MARGIN * max(bound, 0), best.gain)
    return Proof(best.assignment, bound, closed, time.perf_counter() - began)


def _first_touched(data: Numbers, best: _Incumbent) -> Touched:
    """Prices that a plan may have: with its own among them, a plan is counted exactly.

    That is so where a level is one step time; elsewhere its splits must be among the points.
    """
    i = data.instance
    prices = {(g, 0.0) for g in range(i.num_servers)}
    for g in np.flatnonzero(np.isfinite(i.budget)):
        here = [(u, k) for u, k in data.pairs if i.server[k] == g]
        most = max((i.local_step[u] / (data.own[k] * i.demand[u]) for u, k in here), default=0.0)
        price = best.price[g] if best.price[g] > 0 else 0.1 * most
        prices |= {(int(g), float(share * price)) for share in _PRICES}
    # No price gives them all where step times are not known beforehand.
    points = {
        (u, k): {float(e) for e in np.linspace(0, data.longest[u, k], _POINTS)}
        for u, k in data.pairs
    }
    return Touched(prices, points)


def _touch(touched: Touched, best: _Incumbent, plans: Iterable[np.ndarray]) -> bool:
    """Adds the prices and splits of the plans; whether there were new ones."""

    def size() -> int:
        return len(touched.prices) + sum(len(points) for points in touched.points.values())

    before = size()
    for plan in (best.assignment, *plans):
        _, price, split = best.look(plan)
        touched.prices |= {(g, float(p)) for g, p in enumerate(price)}
        e = best.data.instance.steps - split
        for u, k in best.data.pairs:
            if plan[u] == k + 1:
                touched.points[u, k].add(float(e[u]))
    return size() > before


def _solve(
    data: Numbers, touched: Touched, best: _Incumbent, deadline: float
) -> tuple[float, bool, list[np.ndarray]]:
    """(upper bound, solved to the end?, plans found)."""
    program = write_down(data, touched, deadline)
    scip = program.model
    tell(program, data, best.assignment, best.split)
    scip.setParam("limits/time", max(0.01, deadline - time.perf_counter()))
    scip.setParam("limits/gap", CLOSED / 10)
    scip.optimize()
    if scip.getStatus() == "userinterrupt":  # SCIP takes the first Ctrl-C to itself
        raise KeyboardInterrupt
    ended = scip.getStatus() in ("optimal", "gaplimit")
    bound = float(scip.getDualbound()) * data.unit
    plans = []
    for solution in scip.getSols()[:5]:
        plan = np.zeros(len(data.real), int)
        for (u, k), y in program.grant.items():
            if solution[y] > 0.5:
                plan[u] = k + 1
        plans.append(plan)
    scip.freeProb()
    return min(bound, data.most), ended, plans


class _Incumbent:
    """The best plan so far, by its true value."""

    def __init__(self, data: Numbers) -> None:
        self.data, self.gain = data, 0.0
        self.assignment = np.zeros(len(data.real), int)
        self.split = np.full(len(data.real), float(data.instance.steps))
        self.price = np.zeros(data.instance.num_servers)
        self.seen: dict[bytes, tuple[float, np.ndarray, np.ndarray]] = {}

    def look(self, assignment: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """The plan's gain (s; minus infinity if not feasible), prices and splits."""
        plan = np.asarray(assignment, np.int32)
        if plan.tobytes() not in self.seen:
            with jax.enable_x64(True):
                outcome = _evaluate(self.data.instance, plan)
            gain = float(outcome.gain) if outcome.feasible else -np.inf
            price = np.maximum(np.nan_to_num(np.asarray(outcome.price)), 0)
            self.seen[plan.tobytes()] = gain, price, np.asarray(outcome.split)
        return self.seen[plan.tobytes()]

    def offer(self, assignment: np.ndarray) -> None:
        """Takes the plan where it is better."""
        gain, price, split = self.look(assignment)
        if gain > self.gain:
            self.gain, self.price, self.split = gain, price, split
            self.assignment = np.asarray(assignment, int)


_evaluate = jax.jit(evaluate)
