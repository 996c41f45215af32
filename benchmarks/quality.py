"""How good and how fast the methods are: `python -m benchmarks.quality --out FILE.json`.

Beside `python -m benchmarks`, which times single functions: here whole methods are run on the edge
scenario, and what they find is compared. Every part prints its line and stands in the JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks import suite
from benchmarks.pymoo_search import pymoo_genetic
from offload_jax import schema
from offload_jax.advice import advise
from offload_jax.baselines import apply_method, assigner
from offload_jax.baselines.bound import BoundConfig, upper_bound
from offload_jax.baselines.enumeration import count_assignments, enumerate_all
from offload_jax.baselines.scip import branch_and_bound
from offload_jax.documents import replace_file
from offload_jax.gains import feasible_gain
from offload_jax.instance import Instance, from_record, taken
from offload_jax.learner import sample_instances
from offload_jax.scenario import PRESETS, EdgeScenario, PaperScenario, Scenario

ROOT = Path(__file__).resolve().parents[1]
Row = dict[str, Any]
FULL = EdgeScenario(num_users=(24,))

_sample = jax.jit(sample_instances, static_argnums=(0, 2))
_gain = jax.jit(feasible_gain)


@dataclass(frozen=True)
class Arguments:
    """Run whole methods on sampled instances and compare what they find; some 25 minutes."""

    parts: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Parts to run: enumeration, heuristics, searches, bounds, proofs, pymoo, advice.
    Default: all."""
    out: Path | None = None
    """JSON file to write, with its tables beside it (.md). Parts that it has already, and that are
    not run, stay in it."""


def main(words: Sequence[str] | None = None) -> int:
    """0 good, 2 refused."""
    parsed = tyro.cli(Arguments, args=words, prog="python -m benchmarks.quality")
    try:
        _check(parsed)
    except suite.UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    found: dict[str, Any] = {}
    if parsed.out is not None and parsed.out.exists():
        found = json.loads(parsed.out.read_text(encoding="utf-8"))
    for name in parsed.parts or PARTS:
        rows = []
        for row in PARTS[name]():
            print(
                f"{name}:",
                ", ".join(f"{_spoken(k)} {_short(k, v)}" for k, v in row.items()),
                flush=True,
            )
            rows.append(row)
        found[name] = {"provenance": suite.provenance(), "rows": rows}
        if parsed.out is not None:
            replace_file(parsed.out, json.dumps(found, indent=1) + "\n")
            replace_file(parsed.out.with_suffix(".md"), markdown(found))
    return 0


def _check(parsed: Arguments) -> None:
    """Refuses before anything is run."""
    for name in parsed.parts:
        if name not in PARTS:
            raise suite.UsageError(f"parts has {name!r}; must be among {', '.join(PARTS)}")
    for name, (module, extra) in NEEDS.items():
        if name in (parsed.parts or PARTS) and find_spec(module) is None:
            raise suite.UsageError(
                f"parts has {name!r}, which needs {module}: pip install 'offload-jax[{extra}]'"
            )
    suite.checked_out(parsed.out)


def markdown(found: Mapping[str, Any]) -> str:
    """A table for each part."""
    texts = []
    for name, part in PARTS.items():
        if name not in found:
            continue
        rows = found[name]["rows"]
        about = " ".join((part.__doc__ or "").split())
        texts.append(f"**{name}.** {about}\n\n{_table(rows)}")
    return "\n\n".join(texts) + "\n"


def _table(rows: Sequence[Row]) -> str:
    """A line for each row; of a single row, for each of its numbers."""
    if len(rows) == 1:
        lines = [["", ""], *([_spoken(key), _short(key, value)] for key, value in rows[0].items())]
    else:
        lines = [[_spoken(key) for key in rows[0]]]
        lines += [[_short(key, value) for key, value in row.items()] for row in rows]
    lines.insert(1, ["---", *["---:"] * (len(lines[0]) - 1)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _spoken(key: str) -> str:
    return key.replace("_", " ") + (" %" if key.startswith("gap_") else "")


def _short(key: str, value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    return f"{100 * value:.3g}" if key.startswith("gap_") else f"{value:.3g}"


def enumeration() -> Iterator[Row]:
    """All assignments of an edge instance with N = 8, M = 4; twice, the second time compiled."""
    instance = _one(EdgeScenario(num_users=(8,), batches=4), 0)
    for compiled in (False, True):
        start = time.perf_counter()
        jax.block_until_ready(enumerate_all(instance))
        seconds = time.perf_counter() - start
        yield {
            "assignments": count_assignments(instance), "seconds": seconds, "compiled": compiled
        }  # fmt: skip


def heuristics() -> Iterator[Row]:
    """1,024 instances side by side; gaps to local search that restarts for 0.1 s an instance.

    As shipped, with scarcer memory, and with scarce GPU time.
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
    """64 instances, 10 s for all of them; gaps to the best of all."""
    instances = _sample(FULL, jax.random.key(1), 64)
    names = ("local-search", "annealing", "tabu", "genetic", "genetic-tuned")
    yield from _compared(instances, dict.fromkeys(names, 10 / 64), 1.0)


def _compared(instances: Instance, methods: dict[str, float | None], restarts_s: float) -> list:
    decisions = {
        name: apply_method(name, instances, budget_s=seconds) for name, seconds in methods.items()
    }
    longer = apply_method("local-search", instances, budget_s=restarts_s, key=jax.random.key(9))
    gains = {name: np.asarray(_gain(instances, d.assignment)) for name, d in decisions.items()}
    best = np.max([*gains.values(), np.asarray(_gain(instances, longer.assignment))], axis=0)
    return [
        {
            "method": name,
            "instances": len(best),
            "seconds": decisions[name].seconds,
            "gap_mean": float(np.mean(1 - gain / best)),
            "gap_p95": float(np.percentile(1 - gain / best, 95)),
        }
        for name, gain in gains.items()
    ]


def bounds() -> Iterator[Row]:
    """Upper bounds against the plans of tabu search (top-b on paper), by rounds of the search."""
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
    """Branch and bound, in float64, 60 s an instance, told reduced-greedy's plan."""
    golden = schema.read_instances(ROOT / "tests" / "golden" / "edge.json")
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
        start = np.asarray(assigner("reduced-greedy")(instance, solver="native"))
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
    """The same 20,000 plans an instance by pymoo's genetic algorithm and by ours, one by one."""
    instances = _sample(FULL, jax.random.key(2), 8)
    found: dict[str, tuple[np.ndarray, float]] = {}
    seconds, gains = [], []
    for i in range(8):
        instance = taken(instances, i)
        gain, took = pymoo_genetic(instance, population=100, generations=200, seed=i)
        gains.append(gain)
        seconds.append(took)
    found["pymoo"] = np.array(gains), float(np.mean(seconds))
    for name in ("genetic", "genetic-tuned", "local-search"):
        gains, seconds = [], []
        for i in range(8):
            one = taken(instances, slice(i, i + 1))
            decision = apply_method(name, one, key=jax.random.key(i))
            gains.append(float(_gain(one, decision.assignment)[0]))
            seconds.append(decision.seconds)
        found[name] = np.array(gains), float(np.mean(seconds))
    best = apply_method("local-search", instances, budget_s=1.0)
    best = np.max([np.asarray(_gain(instances, best.assignment)), *(g for g, _ in found.values())],
                  axis=0)  # fmt: skip
    for name, (gain, took) in found.items():
        yield {
            "method": name,
            "instances": 8,
            "seconds_per_instance": took,
            "gap_mean": float(np.mean(1 - gain / best)),
        }


def advice() -> Iterator[Row]:
    """How far prices and reduced gains can be believed, around 60 plans of reduced-greedy."""
    instances = _sample(EdgeScenario(), jax.random.key(4), 60)
    plans = np.asarray(apply_method("reduced-greedy", instances).assignment)
    told = [advise(taken(instances, i), plans[:, i])
            for i in range(60)]  # fmt: skip
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


if __name__ == "__main__":
    sys.exit(main())
