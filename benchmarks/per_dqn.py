"""The paper's own agent beside ours: `python -m benchmarks.per_dqn`.

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
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks import per_dqn_agent, per_dqn_ours, suite
from benchmarks.per_dqn_cells import Cell, Data, cells_of, optimum, stacked
from benchmarks.per_dqn_tables import write_pages
from offload_jax import model
from offload_jax.documents import replace_file
from offload_jax.instance import Instance

OUT = Path(__file__).resolve().parents[1] / "benchmarks" / "results" / "per_dqn.json"
OURS = (0, 1, 2)  # seeds
Trained = tuple[Cell, int]  # and its seed


@dataclass(frozen=True)
class Group:
    """Agents with the same number of users that are trained side by side."""

    agents: tuple[Trained, ...]
    data: Data
    episodes: int

    def run(self) -> list[suite.Row]:
        """A row for each agent."""
        cells = [cell for cell, _ in self.agents]
        pools = stacked([cell.pool(self.data, seed) for cell, seed in self.agents])
        fixed, fresh = stacked([c.fixed for c in cells]), stacked([c.fresh for c in cells])
        numbers = [(cell.users, cell.gpus, seed) for cell, seed in self.agents]
        keys = [jax.random.key(seed * 1000 + users * 20 + gpus) for users, gpus, seed in numbers]
        agents = jax.jit(jax.vmap(per_dqn_agent.begin))(pools, jnp.stack(keys))
        agents, curve = self._train(agents, pools, fixed, fresh)
        played = model.gap(_optima(fixed)[:, 0], agents.played)
        plan_s = per_dqn_ours.seconds_of(lambda: per_dqn_agent.greedy_gains(agents, fresh))
        return [
            {
                "users": users,
                "gpus": gpus,
                "seed": seed,
                "data": self.data,
                "episodes": self.episodes,
                "agents_at_once": len(numbers),
                "train_s": curve[-1][1],
                "plan_ms": 1e3 * plan_s / len(numbers) / fresh.alpha.shape[-1],
                "gap_played": float(played[i]) if self.data == "fixed" else None,
                "curve": [[n, s, *(float(gap[i]) for gap in both)] for n, s, *both in curve],
            }
            for i, (users, gpus, seed) in enumerate(numbers)
        ]

    def _train(
        self, agents: per_dqn_agent.Agent, pools: Instance, fixed: Instance, fresh: Instance
    ) -> tuple[per_dqn_agent.Agent, list[tuple[int, float, np.ndarray, np.ndarray]]]:
        """The agents at the end; (episodes, core-seconds, gaps fixed and fresh) on the way."""
        step = per_dqn_agent.train.lower(agents, pools, jnp.int32(0), self.episodes).compile()
        seconds, chunk = 0.0, per_dqn_agent.CHUNK
        curve = [(0, 0.0, gaps(agents, fixed), gaps(agents, fresh))]
        for number in range(0, self.episodes, chunk):
            begun = time.process_time()
            agents = jax.block_until_ready(step(agents, pools, jnp.int32(number)))
            seconds += time.process_time() - begun
            found = gaps(agents, fixed)
            curve.append((number + chunk, seconds, found, gaps(agents, fresh)))
            if (number + chunk) % (10 * chunk) == 0 or number + chunk == self.episodes:
                print(
                    f"{self._name}, episode {number + chunk:,}: {seconds:.0f} core-s, "
                    f"gaps {' '.join(f'{100 * gap:.2f}' for gap in found)} %",
                    flush=True,
                )
        return agents, curve

    @property
    def _name(self) -> str:
        gpus = ", ".join(str(cell.gpus) for cell, _ in self.agents)
        return f"N {self.agents[0][0].users}, E {gpus}, {self.data}"


def groups(parsed: Arguments) -> Iterator[Group]:
    """Side by side are all agents of one N; on CPUs, where that gains nothing, each is alone."""
    for data in parsed.data:
        for users in parsed.users:
            agents = [(cell, seed) for seed in parsed.seeds for cell in cells_of([users])]
            alone = jax.default_backend() == "cpu"
            for some in ([one] for one in agents) if alone else [agents]:
                yield Group(tuple(some), data, parsed.episodes)


def gaps(agents: per_dqn_agent.Agent, pools: Instance) -> np.ndarray:
    """Mean gaps of the greedy plans to the optimum, of each agent on its instances."""
    found = model.gap(_optima(pools), per_dqn_agent.greedy_gains(agents, pools))
    return np.asarray(jnp.mean(found, axis=1))


_optima = jax.jit(jax.vmap(optimum))


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
    parsed = tyro.cli(Arguments, args=words, prog="python -m benchmarks.per_dqn")
    try:
        check(parsed)
    except suite.UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        train(parsed)
    except KeyboardInterrupt:
        print("stopped\nthe same command goes on after the last finished agent", file=sys.stderr)
        return 130
    return 0


def train(parsed: Arguments) -> None:
    """Ours, then every agent that the file has not; written after each."""
    out = parsed.out
    if not out.exists():
        ours = per_dqn_ours.trained(cells_of(Arguments().users), OURS)
        replace_file(out, json.dumps({"ours": ours, "alone": [], "rows": []}, indent=1) + "\n")
    for data, users in product(parsed.data, parsed.users):
        agents = [(cell, seed) for cell in cells_of([users]) for seed in OURS]
        _add(out, "alone", per_dqn_ours.trained_alone(_left(out, "alone", data, agents), data))
    for group in groups(parsed):
        left = _left(out, "rows", group.data, group.agents)
        if left:
            _add(out, "rows", replace(group, agents=tuple(left)).run())
    if (found := suite.read(out))["rows"]:
        write_pages(found, out)


def _left(out: Path, kind: str, data: Data, agents: Sequence[Trained]) -> list[Trained]:
    """Those that the file has not."""
    rows = [row for row in suite.read(out)[kind] if row["data"] == data]
    known = [(Cell(row["users"], row["gpus"]), row["seed"]) for row in rows]
    return [agent for agent in agents if agent not in known]


def _add(out: Path, kind: str, rows: Iterable[suite.Row]) -> None:
    """Writes each row when it comes, and the pages once there is an agent."""
    for row in rows:
        with _one_writer(out.parent):
            found = suite.read(out)  # again: another process may have added its own
            found[kind].append(row | {"provenance": suite.provenance()})
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
    suite.checked_out(parsed.out)
    allowed, chunk = Arguments().users, per_dqn_agent.CHUNK
    for name in ("data", "seeds"):
        if not getattr(parsed, name):
            raise suite.UsageError(f"{name} is empty; must have at least one")
    if not parsed.users or not set(parsed.users) <= set(allowed):
        raise suite.UsageError(f"users is {parsed.users}; must be among {allowed}")
    if parsed.episodes < 1 or parsed.episodes % chunk:
        raise suite.UsageError(f"episodes is {parsed.episodes}; must be a multiple of {chunk}")
    if parsed.out.exists():
        found = suite.read(parsed.out)
        if missing := {"ours", "alone", "rows"} - found.keys():
            raise suite.UsageError(
                f"{parsed.out} has no {', '.join(sorted(missing))}; "
                "must be a file of this benchmark"
            )
        other = {row["episodes"] for row in found["rows"]} - {parsed.episodes}
        if other:
            raise suite.UsageError(
                f"episodes is {parsed.episodes}; must be {other.pop()}, as in {parsed.out}"
            )


if __name__ == "__main__":
    sys.exit(main())
