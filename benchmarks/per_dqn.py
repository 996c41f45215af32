"""The paper's own agent beside ours: `python -m benchmarks.per_dqn`.

A network for each cell (N users, E edge GPUs), trained as published on one fixed instance, or on
fresh ones; our learner trains one network for all cells and is judged on the same instances. What
is as published, and what could not be, says `per_dqn_agent`. Training costs are core-seconds (of
this process, whatever else the machine does), without compiling. Processes with different N may
share an output file.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Group:
    """Agents that are trained side by side: all cells and seeds of a number of users."""

    cells: tuple[Cell, ...]
    seeds: tuple[int, ...]
    data: Data
    episodes: int

    def run(self) -> list[suite.Row]:
        """A row for each agent."""
        who = [(cell, seed) for cell in self.cells for seed in self.seeds]
        pools = stacked([cell.pool(self.data, seed) for cell, seed in who])
        fixed, fresh = (stacked([getattr(c, name) for c, _ in who]) for name in ("fixed", "fresh"))
        keys = jax.random.split(jax.random.key(0), len(who))
        keys = jnp.stack([jax.random.fold_in(k, s) for k, (_, s) in zip(keys, who, strict=True)])
        agents = jax.jit(jax.vmap(per_dqn_agent.begin))(pools, keys)
        agents, curve = self._train(agents, pools, fixed)
        last = gaps(agents, fresh).mean(axis=1)
        plan_s = per_dqn_ours.seconds_of(lambda: per_dqn_agent.greedy_gains(agents, fresh))
        return [
            {
                "users": cell.users,
                "gpus": cell.gpus,
                "seed": seed,
                "data": self.data,
                "episodes": self.episodes,
                "agents_at_once": len(who),
                "train_s": curve[-1][1],
                "plan_ms": 1e3 * plan_s / last.size / fresh.alpha.shape[-1],
                "gap_fixed": float(curve[-1][2][i]),
                "gap_fresh": float(last[i]),
                "curve": [[n, s, float(gap[i])] for n, s, gap in curve],
            }
            for i, (cell, seed) in enumerate(who)
        ]

    def _train(
        self, agents: per_dqn_agent.Agent, pools: Instance, fixed: Instance
    ) -> tuple[per_dqn_agent.Agent, list[tuple[int, float, np.ndarray]]]:
        """The agents at the end; (episodes, core-seconds, gaps on fixed instances) on the way."""
        step = per_dqn_agent.train.lower(agents, pools, jnp.int32(0), self.episodes).compile()
        curve, seconds, chunk = [], 0.0, per_dqn_agent.CHUNK
        for number in range(0, self.episodes, chunk):
            begun = time.process_time()
            agents = jax.block_until_ready(step(agents, pools, jnp.int32(number)))
            seconds += time.process_time() - begun
            found = gaps(agents, fixed)[:, 0]
            curve.append((number + chunk, seconds, found))
            print(
                f"N {self.cells[0].users}, {self.data}, episode {number + chunk:,}: "
                f"{seconds:.0f} s, gaps {' '.join(f'{100 * gap:.2f}' for gap in found)} %",
                flush=True,
            )
        return agents, curve


def gaps(agents: per_dqn_agent.Agent, pools: Instance) -> np.ndarray:
    """Gaps of the greedy plans to the optimum, for every instance of each agent's pool."""
    best = jax.jit(jax.vmap(optimum))(pools)
    return np.asarray(model.gap(best, per_dqn_agent.greedy_gains(agents, pools)))


@dataclass(frozen=True)
class Arguments:
    """Train the paper's agent, PER-DQN, as published, beside our learner. Hours on two cores."""

    users: tuple[int, ...] = (4, 8, 12, 16, 20)
    """Numbers of users N; the four E of one N are trained side by side."""
    data: tuple[Data, ...] = ("fixed",)
    """What an agent trains on: one instance, as published, or fresh ones of its cell."""
    seeds: tuple[int, ...] = (0,)
    """Of the agents, side by side."""
    episodes: int = per_dqn_agent.EPISODES
    """Of a training; as published 30,000."""
    out: Path = OUT
    """JSON file to write, after every N; what it has already is not trained again."""


def main(words: Sequence[str] | None = None) -> int:
    """0 good, 2 refused."""
    parsed = tyro.cli(Arguments, args=words, prog="python -m benchmarks.per_dqn")
    out = parsed.out
    try:
        check(parsed)
    except suite.UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not out.exists():
        ours = per_dqn_ours.trained(cells_of(Arguments().users))
        replace_file(out, json.dumps({"ours": ours, "rows": []}, indent=1) + "\n")
    found = json.loads(out.read_text(encoding="utf-8"))
    for data in parsed.data:
        for users in parsed.users:
            known = {(r["users"], r["data"], r["seed"]) for r in found["rows"]}
            seeds = tuple(seed for seed in parsed.seeds if (users, data, seed) not in known)
            if not seeds:
                continue
            group = Group(tuple(cells_of([users])), seeds, data, parsed.episodes)
            about = {"provenance": suite.provenance()}
            rows = [row | about for row in group.run()]
            found = json.loads(out.read_text(encoding="utf-8"))  # others may have added theirs
            found["rows"] += rows
            replace_file(out, json.dumps(found, indent=1) + "\n")
            write_pages(found, out)
    return 0


def check(parsed: Arguments) -> None:
    """Raises UsageError before anything is trained."""
    suite.checked_out(parsed.out)
    allowed, chunk = Arguments().users, per_dqn_agent.CHUNK
    if not parsed.users or not set(parsed.users) <= set(allowed):
        raise suite.UsageError(f"users is {parsed.users}; must be among {allowed}")
    if parsed.episodes < 1 or parsed.episodes % chunk:
        raise suite.UsageError(f"episodes is {parsed.episodes}; must be a multiple of {chunk}")


if __name__ == "__main__":
    sys.exit(main())
