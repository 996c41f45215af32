"""The paper's own agent beside ours: `python -m benchmarks.per_dqn`.

A network for each cell (N users, E edge GPUs), trained as published on one fixed instance, or on
fresh ones; our shipped policy, one network for all cells, decides the same instances. What is as
published, and what could not be, says `per_dqn_agent`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from benchmarks import per_dqn_agent, suite
from offload_jax import model, runs
from offload_jax.documents import replace_file
from offload_jax.instance import Instance
from offload_jax.policies import greedy_plan
from offload_jax.scenario import PaperScenario

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "benchmarks" / "results" / "per_dqn.json"
FRESH = 1024  # instances of a cell that a trained network is judged on
INSTANCE_SEED = 1234
POOL = 4096  # instances that training on fresh ones draws from
Data = Literal["fixed", "fresh"]


def pool_of(scenario: PaperScenario, seed: int, data: Data) -> Instance:
    """What an agent trains on: one instance, the same for all seeds, or many (batch last)."""
    if data == "fixed":
        keys = jax.random.key(INSTANCE_SEED)[None]
    else:
        keys = jax.random.split(jax.random.fold_in(jax.random.key(INSTANCE_SEED), seed), POOL)
    return jax.jit(jax.vmap(scenario.sample, out_axes=-1))(keys)


def _stacked(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *x: jnp.stack(x), *trees)


@dataclass(frozen=True)
class Group:
    """Agents that are trained side by side: all E and seeds of a number of users."""

    users: int
    gpus: tuple[int, ...]
    seeds: tuple[int, ...]
    data: Data
    episodes: int

    def run(self) -> list[suite.Row]:
        """A row for each agent."""
        who = [(e, seed) for e in self.gpus for seed in self.seeds]
        cells = [PaperScenario(num_users=(self.users,), edge_gpus=(e,)) for e, _ in who]
        pools, fixed, fresh = (
            _stacked([make(cell, seed) for cell, (_, seed) in zip(cells, who, strict=True)])
            for make in (
                partial(pool_of, data=self.data),
                lambda cell, _: pool_of(cell, 0, "fixed"),
                lambda cell, _: _judged(cell),
            )
        )
        keys = jax.random.split(jax.random.key(0), len(who))
        keys = jnp.stack([jax.random.fold_in(k, s) for k, (_, s) in zip(keys, who, strict=True)])
        agents = jax.jit(jax.vmap(per_dqn_agent.begin))(pools, keys)
        agents, curve = self._train(agents, pools, fixed)
        last = np.asarray(per_dqn_agent.gaps(agents, fresh)).mean(axis=1)
        return [
            {
                "users": self.users,
                "gpus": e,
                "seed": seed,
                "data": self.data,
                "episodes": self.episodes,
                "agents_at_once": len(who),
                "train_s": curve[-1][1],
                "gap_fixed": float(curve[-1][2][i]),
                "gap_fresh": float(last[i]),
                "curve": [[n, s, float(gap[i])] for n, s, gap in curve],
            }
            for i, (e, seed) in enumerate(who)
        ]

    def _train(
        self, agents: per_dqn_agent.Agent, pools: Instance, fixed: Instance
    ) -> tuple[per_dqn_agent.Agent, list[tuple[int, float, np.ndarray]]]:
        """The agents at the end; (episodes, seconds, gaps on the fixed instance) on the way."""
        step = per_dqn_agent.train.lower(agents, pools, jnp.int32(0), self.episodes).compile()
        curve, seconds, chunk = [], 0.0, per_dqn_agent.CHUNK
        for number in range(0, self.episodes, chunk):
            begun = time.perf_counter()
            agents = jax.block_until_ready(step(agents, pools, jnp.int32(number)))
            seconds += time.perf_counter() - begun
            found = np.asarray(per_dqn_agent.gaps(agents, fixed))[:, 0]
            curve.append((number + chunk, seconds, found))
            print(
                f"N {self.users}, {self.data}, episode {number + chunk:,}: {seconds:.0f} s, "
                f"gaps {' '.join(f'{100 * gap:.2f}' for gap in found)} %",
                flush=True,
            )
        return agents, curve


def _judged(cell: PaperScenario) -> Instance:
    """Instances of a cell that nobody trains on."""
    keys = jax.random.split(jax.random.key(INSTANCE_SEED + 1), FRESH)
    return jax.jit(jax.vmap(cell.sample, out_axes=-1))(keys)


def ours(groups: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """Our shipped policy on the same instances: its gaps by cell, and what its training took."""
    policy = runs.load_policy("paper")
    rows = []
    for users, gpus in groups:
        cell = PaperScenario(num_users=(users,), edge_gpus=(gpus,))
        found = {}
        for name, pool in (("fixed", pool_of(cell, 0, "fixed")), ("fresh", _judged(cell))):
            gaps = model.gap(per_dqn_agent.optimum(pool), greedy_plan(policy, pool)[1])
            found[f"gap_{name}"] = float(jnp.mean(gaps))
        rows.append({"users": users, "gpus": gpus, **found})
    about = json.loads((ROOT / "benchmarks/results/paper/run.json").read_text())
    return {"train_s": sum(start["seconds"] for start in about["starts"]), "cells": rows}


@dataclass(frozen=True)
class Arguments:
    """Train the paper's agent, PER-DQN, as published, beside our policy. Hours on two cores."""

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
    found = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {"rows": []}
    for data in parsed.data:
        for users in parsed.users:
            known = {(r["users"], r["data"], r["seed"]) for r in found["rows"]}
            seeds = tuple(seed for seed in parsed.seeds if (users, data, seed) not in known)
            if not seeds:
                continue
            group = Group(users, PaperScenario().edge_gpus, seeds, data, parsed.episodes)
            about = {"provenance": suite.provenance()}
            found["rows"] += [row | about for row in group.run()]
            found["ours"] = ours([(r["users"], r["gpus"]) for r in found["rows"]])
            replace_file(out, json.dumps(found, indent=1) + "\n")
            replace_file(out.with_suffix(".md"), table(found))
    return 0


def check(parsed: Arguments) -> None:
    """Raises UsageError before anything is trained."""
    suite.checked_out(parsed.out)
    most, chunk = per_dqn_agent.WIDTH, per_dqn_agent.CHUNK
    if not parsed.users or not all(2 <= users <= most for users in parsed.users):
        raise suite.UsageError(f"users is {parsed.users}; must be numbers in 2..{most}")
    if parsed.episodes < 1 or parsed.episodes % chunk:
        raise suite.UsageError(f"episodes is {parsed.episodes}; must be a multiple of {chunk}")


def table(found: dict[str, Any]) -> str:
    """A line for each cell: means over seeds."""
    mine = {(row["users"], row["gpus"]): row for row in found["ours"]["cells"]}
    lines = [
        "| trained on | N | E | seeds | PER-DQN: gap there % | on fresh ones % | training s "
        "| ours: gap there % | on fresh ones % |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    cells = {(row["data"], row["users"], row["gpus"]) for row in found["rows"]}
    for data, users, gpus in sorted(cells):
        rows = [
            row
            for row in found["rows"]
            if (row["data"], row["users"], row["gpus"]) == (data, users, gpus)
        ]
        gaps = (np.mean([row[f"gap_{name}"] for row in rows]) for name in ("fixed", "fresh"))
        seconds = np.mean([row["train_s"] / row["agents_at_once"] for row in rows])
        own = mine[users, gpus]
        shown = [*gaps, own["gap_fixed"], own["gap_fresh"]]
        there, fresh, ours_there, ours_fresh = (f"{100 * gap:.3f}" for gap in shown)
        lines.append(
            f"| {data} | {users} | {gpus} | {len(rows)} | {there} | {fresh} | {seconds:,.0f} "
            f"| {ours_there} | {ours_fresh} |"
        )
    total = f"Ours: one network for all cells, {found['ours']['train_s']:.0f} s of training."
    return "\n".join(lines) + f"\n\n{total}\n"


if __name__ == "__main__":
    sys.exit(main())
