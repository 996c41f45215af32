"""The paper's own agent beside ours: `python -m benchmarks.learners.per_dqn`.

A network for each cell (N users, E edge GPUs), trained as published on one fixed instance, or on
fresh ones; our learner trains such networks on the same, and one network for all cells. All are
judged on the same instances. What is as published, and what could not be, says `per_dqn_agent`.
Training costs are core-seconds of the process, without compiling. Once the network for all cells
is in the output file, processes with different N may share it.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import jax
import jax.numpy as jnp
import tyro

from benchmarks import parts
from benchmarks.common import ROOT, Row, UsageError, checked_out, provenance, read
from benchmarks.learners import per_dqn_agent, per_dqn_ours
from benchmarks.learners.per_dqn_cells import Cell, Data, cells_of, optimum
from benchmarks.learners.per_dqn_tables import WHERE, write_pages
from offload_jax.files.disk import replace_file
from offload_jax.problem import equations
from offload_jax.problem.instance import Instance

OUT = ROOT / "benchmarks" / "results" / "per_dqn.json"
OURS = (0, 1, 2)  # seeds
Trained = tuple[Cell, int]  # and its seed


def row_of(cell: Cell, seed: int, data: Data, episodes: int) -> Row:
    """Trains an agent; what it cost, and how good it was on the way."""
    pool, fresh = cell.pool(data, seed), cell.fresh
    key = jax.random.key(seed * 1000 + cell.users * 20 + cell.gpus)
    agent, curve = _train(jax.jit(per_dqn_agent.begin)(pool, key), cell, pool, episodes, data)
    played = float(equations.gap(optimum(cell.fixed)[0], agent.played))
    plan_s = per_dqn_ours.seconds_of(lambda: per_dqn_agent.greedy_gains(agent, fresh))
    return {
        "users": cell.users,
        "gpus": cell.gpus,
        "seed": seed,
        "data": data,
        "episodes": episodes,
        "train_s": curve[-1][1],
        "plan_ms": 1e3 * plan_s / fresh.alpha.shape[-1],
        "gap_played": played if data == "fixed" else None,
        "curve": curve,
    }


def _train(
    agent: per_dqn_agent.Agent, cell: Cell, pool: Instance, episodes: int, data: Data
) -> tuple[per_dqn_agent.Agent, list[tuple[int, float, float, float]]]:
    """The agent at its end; (episodes, core-seconds, gaps fixed and fresh) on the way."""
    step = per_dqn_agent.train.lower(agent, pool, jnp.int32(0), episodes).compile()
    judges = [_judge(cell.fixed), _judge(cell.fresh)]
    seconds, chunk = 0.0, per_dqn_agent.CHUNK
    curve = [(0, 0.0, *(judge(agent) for judge in judges))]
    for number in range(0, episodes, chunk):
        begun = time.process_time()
        agent = jax.block_until_ready(step(agent, pool, jnp.int32(number)))
        seconds += time.process_time() - begun
        curve.append((number + chunk, seconds, *(judge(agent) for judge in judges)))
        if (number + chunk) % (10 * chunk) == 0 or number + chunk == episodes:
            print(
                f"N {cell.users}, E {cell.gpus}, {data}, episode {number + chunk:,}: "
                f"{seconds:.0f} core-s, gap {100 * curve[-1][2 + WHERE.index(data)]:.2f} %",
                flush=True,
            )
    return agent, curve


def _judge(instances: Instance) -> Callable[[per_dqn_agent.Agent], float]:
    """Mean gap of an agent's greedy plans to the optimum."""
    best = optimum(instances)
    return lambda agent: float(
        jnp.mean(equations.gap(best, per_dqn_agent.greedy_gains(agent, instances)))
    )


@dataclass(frozen=True)
class Arguments:
    """Train the paper's agent, PER-DQN, as published, beside our learner. Hours on two cores."""

    users: tuple[int, ...] = (4, 8, 12, 16, 20)
    """Numbers of users N, each with all four E."""
    data: tuple[Data, ...] = ("fixed",)
    """What an agent trains on: one instance, as published, or fresh ones of its cell."""
    seeds: tuple[int, ...] = (0,)
    """Of the agents."""
    episodes: int = per_dqn_agent.EPISODES
    """Of a training; as published 30,000."""
    out: Path = OUT
    """JSON file to write, after every agent; what it has already is not trained again."""


def main(words: Sequence[str] | None = None) -> int:
    """0 good, 2 refused, 130 stopped."""
    parsed = tyro.cli(Arguments, args=words, prog="python -m benchmarks.learners.per_dqn")
    told = "the same command goes on after the last finished agent"
    return parts.status_of(partial(_main, parsed), told)


def _main(parsed: Arguments) -> int:
    check(parsed)
    train(parsed)
    return 0


def train(parsed: Arguments) -> None:
    """Ours, then the agents that the file has not, for each N; written after each."""
    out = parsed.out
    if not out.exists():
        ours = per_dqn_ours.trained(cells_of(Arguments().users), OURS)
        replace_file(out, json.dumps({"ours": ours, "alone": [], "rows": []}, indent=1) + "\n")
    for data, users in product(parsed.data, parsed.users):
        agents = [(cell, seed) for cell in cells_of([users]) for seed in OURS]
        _add(out, "alone", per_dqn_ours.trained_alone(_left(out, "alone", data, agents), data))
        agents = [(cell, seed) for seed in parsed.seeds for cell in cells_of([users])]
        left = _left(out, "rows", data, agents)
        _add(out, "rows", (row_of(*agent, data, parsed.episodes) for agent in left))
    if (found := read(out))["rows"]:
        write_pages(found, out)


def _left(out: Path, kind: str, data: Data, agents: Sequence[Trained]) -> list[Trained]:
    """Those that the file has not."""
    rows = [row for row in read(out)[kind] if row["data"] == data]
    known = [(Cell(row["users"], row["gpus"]), row["seed"]) for row in rows]
    return [agent for agent in agents if agent not in known]


def _add(out: Path, kind: str, rows: Iterable[Row]) -> None:
    """Writes each row when it comes, and the pages once there is an agent."""
    for row in rows:
        with _one_writer(out.parent):
            found = read(out)  # again: another process may have added its own
            found[kind].append(row | {"provenance": provenance()})
            replace_file(out, json.dumps(found, indent=1) + "\n")
        if found["rows"]:
            write_pages(found, out)


@contextmanager
def _one_writer(folder: Path) -> Iterator[None]:
    """One process at a time; the others wait."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def check(parsed: Arguments) -> None:
    """Raises UsageError before anything is trained."""
    checked_out(parsed.out)
    allowed, chunk = Arguments().users, per_dqn_agent.CHUNK
    for name in ("data", "seeds"):
        if not getattr(parsed, name):
            raise UsageError(f"{name} is empty; must have at least one")
    if not parsed.users or not set(parsed.users) <= set(allowed):
        raise UsageError(f"users is {parsed.users}; must be among {allowed}")
    if parsed.episodes < 1 or parsed.episodes % chunk:
        raise UsageError(f"episodes is {parsed.episodes}; must be a multiple of {chunk}")
    if parsed.out.exists():
        found = read(parsed.out)
        if missing := {"ours", "alone", "rows"} - found.keys():
            raise UsageError(
                f"{parsed.out} has no {', '.join(sorted(missing))}; "
                "must be a file of this benchmark"
            )
        other = {row["episodes"] for row in found["rows"]} - {parsed.episodes}
        if other:
            raise UsageError(
                f"episodes is {parsed.episodes}; must be {other.pop()}, as in {parsed.out}"
            )


if __name__ == "__main__":
    sys.exit(main())
