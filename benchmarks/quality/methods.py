"""The parts of `benchmarks.quality`: each runs whole methods and yields rows of what they found."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import ROOT, Row
from benchmarks.quality.pymoo_search import pymoo_genetic
from offload_jax.files import records
from offload_jax.learning.trajectories import sample_instances
from offload_jax.methods import apply_method, assigner
from offload_jax.methods.bound import BoundConfig, upper_bound
from offload_jax.methods.enumeration import count_assignments, enumerate_all
from offload_jax.methods.scip import branch_and_bound
from offload_jax.plans.advice import advise
from offload_jax.plans.candidates import feasible_gain
from offload_jax.problem.instance import Instance, from_record, taken
from offload_jax.problem.scenario import PRESETS, EdgeScenario, PaperScenario, Scenario

FULL = EdgeScenario(num_users=(24,))

_sample = jax.jit(sample_instances, static_argnums=(0, 2))
_gain = jax.jit(feasible_gain)


def enumeration() -> Iterator[Row]:
    """All assignments of an edge instance with N = 8, M = 4. Twice: the first time with compiling,
    the second time compiled.
    """
    instance = _one(EdgeScenario(num_users=(8,), batches=4), 0)
    for compiled in (False, True):
        start = time.perf_counter()
        jax.block_until_ready(enumerate_all(instance))
        seconds = time.perf_counter() - start
        yield {
            "assignments": count_assignments(instance), "seconds": seconds, "compiled": compiled
        }  # fmt: skip


def heuristics() -> Iterator[Row]:
    """1,024 instances side by side: `edge` as shipped, with scarcer memory, and with scarce GPU
    time. Gaps are to local search that restarts for 0.1 s an instance.
    """
    worlds = {
        "edge": FULL,
        "edge, capacity factor 6, budget 2.5": replace(FULL, capacity_factor=6.0, budget=2.5),
        "edge, budget 1": replace(FULL, budget=1.0),
    }
    names = ("myopic", "reduced-greedy", "greedy", "local-search")
    for name, scenario in worlds.items():
        instances = _sample(scenario, jax.random.key(0), 1024)
        for row in _compared(instances, dict.fromkeys(names), 0.1):
            yield {"scenario": name, **row}


def searches() -> Iterator[Row]:
    """64 instances, 10 s for all of them together. Gaps are to the best of all methods."""
    instances = _sample(FULL, jax.random.key(1), 64)
    names = ("local-search", "annealing", "tabu", "genetic", "genetic-tuned")
    yield from _compared(instances, dict.fromkeys(names, 10 / 64), 1.0)


def _compared(
    instances: Instance, methods: Mapping[str, float | None], restarts_s: float
) -> list[Row]:
    found = {}
    for name, budget_s in methods.items():
        decision = apply_method(name, instances, budget_s=budget_s)
        found[name] = np.asarray(_gain(instances, decision.assignment)), decision.seconds
    return _rows(instances, found, restarts_s)


def _rows(
    instances: Instance, found: Mapping[str, tuple[np.ndarray, float]], restarts_s: float
) -> list[Row]:
    """A row for each method: gains and seconds, against a local search that goes on for longer."""
    longer = apply_method("local-search", instances, budget_s=restarts_s, key=jax.random.key(9))
    gains = [gain for gain, _ in found.values()]
    best = np.max([*gains, np.asarray(_gain(instances, longer.assignment))], axis=0)
    return [
        {
            "method": name,
            "instances": len(best),
            "seconds": seconds,
            "gap_mean": float(np.mean(1 - gain / best)),
            "gap_p95": float(np.percentile(1 - gain / best, 95)),
        }
        for name, (gain, seconds) in found.items()
    ]


def bounds() -> Iterator[Row]:
    """Upper bounds compared with plans of tabu search (top-b on paper), by rounds of the search for
    prices.
    """
    cases: dict[str, tuple[Scenario, str]] = {
        "edge": (EdgeScenario(), "tabu"),
        "paper": (PaperScenario(), "top-b"),
        "tiny: N = 3 to 6, capacities 4, budgets 0.5": (
            EdgeScenario(num_users=(3, 4, 6), batches=4, servers=2, models=2, budget=0.5,
                         capacity_factor=4.0), "enumeration",
        ),
    }  # fmt: skip
    for name, (scenario, method) in cases.items():
        instances = _sample(scenario, jax.random.key(3), 32)
        plans = apply_method(method, instances).assignment
        gains = np.asarray(_gain(instances, plans))
        for rounds in (300, 600, 1200):
            config = BoundConfig(rounds=rounds)
            upper_bound(instances, plans, config=config)  # compiles
            start = time.perf_counter()
            bound = upper_bound(instances, plans, config=config)
            seconds = time.perf_counter() - start
            gaps = bound[gains > 0] / gains[gains > 0] - 1
            yield {
                "scenario": name,
                "rounds": rounds,
                "instances": len(gaps),
                "seconds_per_instance": seconds / len(bound),
                "gap_mean": float(gaps.mean()),
                "gap_max": float(gaps.max()),
            }


def proofs() -> Iterator[Row]:
    """Branch and bound in float64, 60 s an instance, starting from reduced-greedy's plan."""
    golden = records.read_instances(ROOT / "tests" / "golden" / "edge.json")
    with jax.enable_x64(True):
        yield _proved("golden edge", [from_record(record) for record in golden])
        small = [
            EdgeScenario(num_users=((4, 5, 6)[s % 3],), batches=3, servers=(1, 2, 3)[s // 3 % 3],
                         budget=(1.0, 2.5, 3.0)[s % 3])
            for s in range(24)
        ]  # fmt: skip
        instances = [_one(scenario, s) for s, scenario in enumerate(small)]
        yield _proved("edge, N = 4 to 6, M = 3", instances)
        for users, batches, servers, count in ((8, 4, 2, 8), (12, 6, 3, 4), (24, 6, 3, 4)):
            scenario = EdgeScenario(num_users=(users,), batches=batches, servers=servers)
            instances = [_one(scenario, s) for s in range(count)]
            yield _proved(f"edge, N = {users}, M = {batches}", instances)
        yield _proved("edge_large", [_one(PRESETS["edge_large"], s) for s in range(2)])


def _proved(name: str, instances: Sequence[Instance]) -> Row:
    seconds, closed, away, below, gaps = [], 0, [], [], []
    for instance in instances:
        start = np.asarray(assigner("reduced-greedy")(instance))
        proof = branch_and_bound(instance, 60.0, start)
        gain = float(_gain(instance, jnp.asarray(proof.assignment)))
        seconds.append(proof.seconds)
        closed += proof.closed
        gaps.append(proof.bound / gain - 1 if gain > 0 else 0.0)
        if count_assignments(instance) <= 400_000:
            best = float(_gain(instance, enumerate_all(instance)))
            away.append(abs(best - gain))
            below.append(best - proof.bound)
    return {
        "instances": f"{name} ({len(instances)})",
        "closed": closed,
        "seconds_max": max(seconds),
        "gap_max": max(gaps),
        "enumerated": len(away),
        "away_from_enumeration_max_s": max(away, default=None),
        "bound_below_optimum_max_s": max(below, default=None),
    }


def pymoo() -> Iterator[Row]:
    """8 instances one by one. pymoo's genetic algorithm and ours try 20,000 plans each."""
    instances = _sample(FULL, jax.random.key(2), 8)
    ones = [taken(instances, slice(i, i + 1)) for i in range(8)]
    runs = [pymoo_genetic(taken(one, 0), 100, 200, seed=i) for i, one in enumerate(ones)]
    found = {"pymoo": (np.array([gain for gain, _ in runs]), sum(took for _, took in runs))}
    for name in ("genetic", "genetic-tuned", "local-search"):
        decisions = [apply_method(name, x, key=jax.random.key(i)) for i, x in enumerate(ones)]
        plans = jnp.concatenate([decision.assignment for decision in decisions], axis=-1)
        seconds = sum(decision.seconds for decision in decisions)
        found[name] = np.asarray(_gain(instances, plans)), seconds
    yield from _rows(instances, found, 1.0)


def advice() -> Iterator[Row]:
    """How far prices and reduced gains can be trusted, around 60 plans of reduced-greedy."""
    instances = _sample(EdgeScenario(), jax.random.key(4), 60)
    plans = np.asarray(apply_method("reduced-greedy", instances).assignment)
    told = [advise(taken(instances, i), plans[:, i]) for i in range(60)]
    servers = [server for one in told for server in one.servers]
    binding = [server for server in servers if server.binds]
    denied = [user for one in told for user in one.denied]
    shares = np.array([server.second / server.price for server in binding])
    estimates, gains = np.array([(user.estimate, user.gain) for user in denied]).T
    yield {
        "plans": len(told),
        "budgets": len(servers),
        "binding": len(binding),
        "second_by_price_mean": float(shares.mean()),
        "second_by_price_min": float(shares.min()),
        "second_by_price_max": float(shares.max()),
        "not_binding_but_worth_a_second": sum(s.decided > 0 for s in servers if not s.binds),
        "denied": len(denied),
        "estimate_above_gain_median_s": float(np.median(estimates - gains)),
        "estimate_gain_correlation": float(np.corrcoef(estimates, gains)[0, 1]),
    }


def _one(scenario: Scenario, seed: int) -> Instance:
    return jax.jit(scenario.sample)(jax.random.key(seed))


PARTS: dict[str, Callable[[], Iterator[Row]]] = {
    "enumeration": enumeration,
    "heuristics": heuristics,
    "searches": searches,
    "bounds": bounds,
    "proofs": proofs,
    "pymoo": pymoo,
    "advice": advice,
}
# What parts need besides the package: module and extra.
NEEDS = {"proofs": ("pyscipopt", "scip"), "pymoo": ("pymoo", "bench")}
