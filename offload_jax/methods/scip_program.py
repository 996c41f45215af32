"""The joint mixed-integer program of `scip`, written down for SCIP. Only here is it imported."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from offload_jax.methods.levels import Group, Numbers, Pair

_FAST, _OFF = 2, 3  # of SCIP_PARAMSETTING


@dataclass
class Touched:
    """Where tangents touch what accuracy costs."""

    prices: set[tuple[int, float]]  # at the best replies to a server's price (s per GPU-second)
    points: dict[Pair, set[float]]  # at edge steps, where step times are not known beforehand


class OutOfTime(Exception):
    """The time was spent before the program was written down."""


@dataclass
class ScipProgram:
    """SCIP's variables by what they stand for, with the group's number in front where it counts."""

    model: Any
    deadline: float
    grant: dict[Pair, Any] = field(default_factory=dict)  # y_ik
    level: dict[tuple[int, int], Any] = field(default_factory=dict)  # z_q
    at: dict[tuple[int, int, Pair], Any] = field(default_factory=dict)  # y_ik z_q
    share: dict[tuple[int, int, Pair], Any] = field(default_factory=dict)  # e_ikq / E_ik
    loss: dict[tuple[int, int, Pair], Any] = field(default_factory=dict)  # in units
    count: dict[int, Any] = field(default_factory=dict)  # c users are granted
    on_air: dict[tuple[int, int], Any] = field(default_factory=dict)  # user i as one of c
    together: dict[tuple[Pair, Pair], Any] = field(default_factory=dict)  # e_ik y_jl / E_ik

    def var(self, gain: float = 0.0, most: float | None = 1.0, vtype: str = "C") -> Any:
        if time.perf_counter() > self.deadline:
            raise OutOfTime
        return self.model.addVar(vtype=vtype, lb=0, ub=most, obj=gain)


def write_down(data: Numbers, touched: Touched, deadline: float) -> ScipProgram:
    from pyscipopt import Model, quicksum

    program = ScipProgram(Model(), deadline)
    scip = program.model
    scip.hideOutput()
    scip.setMaximize()
    scip.setParam("numerics/feastol", 1e-7)
    # The relaxation is tight as it is: cuts and long presolving take ten times what they save.
    if all(group.exact for group in data.groups):
        scip.setSeparating(_OFF)
        scip.setPresolve(_FAST)
    for pair in data.pairs:
        program.grant[pair] = program.var(vtype="B")
    for u in data.able:
        scip.addCons(quicksum(y for (v, _), y in program.grant.items() if v == u) <= 1)
    for number, group in enumerate(data.groups):
        _add_levels(program, data, number, group)
        _add_gains(program, data, number, group, touched)
        if not group.exact:
            _add_congestion(program, data, number, group)
    _share_budgets(program, data)
    _share_radio(program, data)
    return program


def _add_levels(program: ScipProgram, data: Numbers, number: int, group: Group) -> None:
    """Loads and capacities of a group, level by level."""
    from pyscipopt import quicksum

    i, scip = data.instance, program.model
    users = sorted({u for u, _ in group.items})
    unit = max(float(np.max(group.row)), 1e-300)
    slack = 2e-9 * group.low[-1] / unit  # sums as close as this are one level
    of_pair = defaultdict(list)
    for q, low in enumerate(group.low):
        program.level[number, q] = z = program.var(vtype="B")
        worth = data.worth(group.step_time(data, q))
        of_user, of_batch, load = defaultdict(list), defaultdict(list), []
        for u, k in group.items:
            own = group.row[k] * i.demand[u]
            here = k not in group.batches or worth[u, k] > 0
            if own > group.high[q] * (1 + 1e-9) or not here:
                continue
            program.at[number, q, (u, k)] = y = program.var()
            of_user[u].append(y)
            of_pair[u, k].append(y)
            of_batch[k].append(i.demand[u] * y)
            load.append(own / unit * y)
        for u in users:
            if of_user[u]:
                scip.addCons(quicksum(of_user[u]) <= z)
        for k, loads in of_batch.items():
            scip.addCons(quicksum(loads) <= i.capacity[k] * z)
        if load or low > 0:
            scip.addCons(quicksum(load) >= (low / unit - slack) * z)
            scip.addCons(quicksum(load) <= (group.high[q] / unit + slack) * z)
    for pair in group.items:
        scip.addCons(quicksum(of_pair[pair]) == program.grant[pair])
    scip.addCons(quicksum(program.level[number, q] for q in range(len(group.low))) == 1)


def _add_gains(
    program: ScipProgram, data: Numbers, number: int, group: Group, touched: Touched
) -> None:
    """Edge steps, what they save and what they cost in accuracy, level by level."""
    i, scip = data.instance, program.model
    prices: dict[int, list[float]] = defaultdict(list)
    for g, price in sorted(touched.prices):
        prices[g].append(price)
    rounds = max(len(p) for p in prices.values())
    by_batch = np.array([(prices[g] * rounds)[:rounds] for g in i.server]).T  # (rounds, M)
    for q in range(len(group.low)):
        met = group.step_time(data, q)
        replies = [data.reply(met, price) for price in by_batch]
        met = np.broadcast_to(met, data.longest.shape)
        for u, k in group.items:
            if k not in group.batches or (number, q, (u, k)) not in program.at:
                continue
            longest, y = data.longest[u, k], program.at[number, q, (u, k)]
            saved = (i.local_step[u] - met[u, k]) * longest / data.unit
            program.share[number, q, (u, k)] = f = program.var(saved)
            scip.addCons(f <= y)
            if data.amplitude[u, k] <= 0:
                continue
            program.loss[number, q, (u, k)] = t = program.var(-1.0, None)
            touch = {float(e[u, k]) for e in replies}
            touch |= set() if group.exact else touched.points[u, k]
            for e in sorted(touch):
                value, slope = data.loss_at(u, k, e)
                rise = slope * longest / data.unit
                # Through 0 where the pair is not granted: what is below 0 there is lifted by y.
                scip.addCons(t >= rise * f + (value - slope * e) / data.unit * y)


def _add_congestion(program: ScipProgram, data: Numbers, number: int, group: Group) -> None:
    """What others add to the step time, by w_ikjl = e_ik y_jl, where there is but one level."""
    from pyscipopt import quicksum

    i, scip = data.instance, program.model
    for u, k in group.items:
        if k not in group.batches:
            continue
        f, of_user = program.share[number, 0, (u, k)], defaultdict(list)
        for j, m in group.items:
            if j == u or group.row[m] <= 0:
                continue
            cost = group.row[m] * i.demand[j] * data.longest[u, k] / data.unit
            program.together[(u, k), (j, m)] = w = program.var(-cost)
            scip.addCons(w >= f - (1 - program.grant[j, m]))
            of_user[j].append((w, program.grant[j, m]))
        for parts in of_user.values():
            # A user is in one batch at most, so its terms may be added up first: tighter.
            if len(parts) > 1:
                inside = quicksum(y for _, y in parts)
                scip.addCons(quicksum(w for w, _ in parts) >= f - (1 - inside))


def _share_budgets(program: ScipProgram, data: Numbers) -> None:
    """(6), in all and at every level."""
    from pyscipopt import quicksum

    i, scip = data.instance, program.model
    for g in np.flatnonzero(np.isfinite(i.budget)):
        use = defaultdict(list)
        for (number, q, (u, k)), f in program.share.items():
            if i.server[k] == g:
                rate = data.own[k] * i.demand[u] * data.longest[u, k]
                use[number, q].append(rate * f)
        # In units of the budget, where there is one.
        scale = max(float(i.budget[g]), 1e-3)
        for level, terms in use.items():
            scip.addCons(
                quicksum(terms) * (1 / scale) <= i.budget[g] / scale * program.level[level]
            )
        if use:
            scip.addCons(
                quicksum(t for ts in use.values() for t in ts) * (1 / scale) <= i.budget[g] / scale
            )


def _share_radio(program: ScipProgram, data: Numbers) -> None:
    """(3): one level per number of granted users."""
    from pyscipopt import quicksum

    scip = program.model
    granted = {u: [y for (v, _), y in program.grant.items() if v == u] for u in data.able}
    for c in range(len(data.able) + 1):
        program.count[c] = program.var(vtype="B")
        for u in data.able if c else ():
            program.on_air[u, c] = a = program.var(-c * data.air[u] / data.unit)
            scip.addCons(a <= program.count[c])
        terms = [program.on_air[u, c] for u in data.able if c]
        if terms:
            scip.addCons(quicksum(terms) == c * program.count[c])
    scip.addCons(quicksum(program.count.values()) == 1)
    for u in data.able:
        parts = quicksum(program.on_air[u, c] for c in range(1, len(data.able) + 1))
        scip.addCons(parts == quicksum(granted[u]))


def tell(program: ScipProgram, data: Numbers, assignment: np.ndarray, split: np.ndarray) -> None:
    """Gives SCIP a plan with its splits as a solution, unless somebody in it gains nothing."""
    inside = {(u, k) for u, k in data.pairs if assignment[u] == k + 1}
    levels = [group.level(data, assignment) for group in data.groups]
    there = all(
        (number, q, pair) in program.at
        for number, (q, group) in enumerate(zip(levels, data.groups, strict=True))
        for pair in inside & set(group.items)
    )
    if not there or len(inside) < np.count_nonzero(assignment):
        return
    told: list[tuple[Any, float]] = [(program.grant[pair], 1.0) for pair in inside]
    told += [(program.count[len(inside)], 1.0)]
    told += [(program.on_air[u, len(inside)], 1.0) for u, _ in inside]
    for number, q in enumerate(levels):
        told += _values(program, data, assignment, split, number, q)
    solution = program.model.createSol()
    for variable, value in told:
        program.model.setSolVal(solution, variable, value)
    program.model.addSol(solution)


def _values(
    program: ScipProgram,
    data: Numbers,
    assignment: np.ndarray,
    split: np.ndarray,
    number: int,
    q: int,
) -> Iterator[tuple[Any, float]]:
    """The group's variables that are not 0 when the plan brings it to level q."""
    i, group = data.instance, data.groups[number]
    e = np.clip((i.steps - split)[:, None], 0, data.longest)
    cost = data.loss(e)
    inside = [(u, k) for u, k in group.items if assignment[u] == k + 1]
    yield program.level[number, q], 1.0
    for u, k in inside:
        yield program.at[number, q, (u, k)], 1.0
        if k not in group.batches:
            continue
        f = float(e[u, k] / data.longest[u, k])
        yield program.share[number, q, (u, k)], f
        if data.amplitude[u, k] > 0:
            # A hair above the curve, which is above all tangents.
            yield program.loss[number, q, (u, k)], float(cost[u, k]) / data.unit + 1e-11
        if group.exact:
            continue
        for j, m in inside:
            if j != u and group.row[m] > 0:
                yield program.together[(u, k), (j, m)], f
