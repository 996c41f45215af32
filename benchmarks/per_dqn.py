"""The paper's own agent in our environment: `python -m benchmarks.per_dqn --out FILE.json`.

PER-DQN with the settings of the public reference implementation of arXiv 2411.15781, a network for
each cell (N users, E edge GPUs), trained as published on one fixed instance, and on fresh ones.
Beside it our shipped policy, one network for all cells, on the same instances. What is not
published (how exploration cools, exponents of priorities and weights) is chosen here and marked.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import flashbax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import linen as nn
from flax import struct
from jax import Array

from benchmarks import suite
from offload_jax import model, runs
from offload_jax.baselines import assigner
from offload_jax.documents import replace_file
from offload_jax.env import EnvConfig, State, action_mask, reset, settle, step_unsolved
from offload_jax.instance import Instance
from offload_jax.policies import greedy_plan
from offload_jax.scenario import PaperScenario
from offload_jax.types import Key
from offload_jax.value import evaluate

ENV = EnvConfig(order="arrival", reward="terminal")
WIDTH = 20  # users that the network has inputs for
BATCH, TERMINAL = 128, 16  # transitions of an update, and how many of them end an episode (1/8)
CAPACITY, WARM_UP = 400_000, 5_000  # transitions
EPISODES, TARGET_EVERY = 30_000, 2_000  # episodes; updates between copies to the target network
HOT, COLD = 4.0, 0.01  # temperatures of exploration; it cools geometrically (not published)
PRIORITY, WEIGHT = 0.6, 0.4  # exponents of priorities and of importance weights (not published)
CHUNK = 250  # episodes of one call
FRESH = 1024  # instances of a cell that a trained network is judged on
INSTANCE_SEED = 1234
POOL = 4096  # instances that training on fresh ones draws from
Data = Literal["fixed", "fresh"]


class QNetwork(nn.Module):
    """Values of denying and granting the current user: 126 inputs, three layers of 256."""

    @nn.compact
    def __call__(self, status: Array, users: Array, overall: Array) -> Array:
        x = jnp.concatenate([nn.Embed(4, 3)(status), users], axis=1)
        x = jnp.concatenate([x.reshape(-1), overall])
        for _ in range(3):
            x = nn.leaky_relu(nn.Dense(256)(x))
        return nn.Dense(2)(x)


@struct.dataclass
class Item:
    """A decision as it is remembered: what the network saw follows from it and its instance."""

    instance: Array  # (*items), of the pool
    user: Array  # (*items), who was decided
    granted: Array  # (*items, users), before the decision
    action: Array  # (*items)
    reward: Array  # (*items)


@struct.dataclass
class Agent:
    """All that training changes."""

    params: Any
    target: Any
    optimizer: Any
    inner: Any  # memory of decisions that others follow
    last: Any  # memory of last decisions
    key: Key
    updates: Array


_NETWORK = QNetwork()
_OPTIMIZER = optax.chain(
    optax.clip_by_global_norm(2.0), optax.add_decayed_weights(4e-4), optax.adam(1e-4)
)


def _memory(batch: int) -> Any:
    return flashbax.make_prioritised_item_buffer(
        CAPACITY, 1, batch, add_sequences=True, priority_exponent=PRIORITY
    )


_INNER, _LAST = _memory(BATCH - TERMINAL), _memory(TERMINAL)


def values(
    params: Any,
    pool: Instance,
    number: Array,
    user: Array,
    granted: Array,
) -> Array:
    """Q of both actions; granting is minus infinity where the batch is full."""
    instance = jax.tree.map(lambda x: x[..., number], pool)
    place = jnp.arange(instance.num_users)
    real = place < model.num_real_users(instance)
    status = jnp.where(place == user, 1, jnp.where(place > user, 0, jnp.where(granted, 2, 3)))
    shown = jnp.stack([0.01 * instance.alpha, instance.local_step, instance.wait], axis=1)
    shown = jnp.where(real[:, None], shown, 0)

    def padded(x: Array) -> Array:
        # The current user first, the others as they follow, in a circle.
        x = jnp.roll(x, -user, axis=0)
        return jnp.pad(x, [(0, WIDTH - x.shape[0]), *[(0, 0)] * (x.ndim - 1)])

    count = jnp.sum(granted)
    left = instance.capacity[0] - count
    overall = jnp.stack(
        [
            0.1 * left,
            0.1 * (model.num_real_users(instance) - user),
            0.1 * count,
            0.1 * (user - count),
            100 * instance.interference[0, 0],
            100 * instance.intercept[0],
        ]
    )
    found = _NETWORK.apply(params, padded(status), padded(shown), overall)
    return jnp.where(jnp.array([True, left >= 1]), found, -jnp.inf)


def play(
    params: Any, pool: Instance, number: Array, temperature: Any, key: Key
) -> tuple[State, Item]:
    """An episode: its final state, and its decisions along a first axis."""
    instance = jax.tree.map(lambda x: x[..., number], pool)

    def decide(state: State, key: Key) -> tuple[State, tuple[Array, ...]]:
        granted = state.assignment > 0
        found = values(params, pool, number, state.time, granted)
        found = jnp.where(action_mask(instance, state, ENV), found, -jnp.inf)
        action = jax.random.categorical(key, found / temperature)
        return step_unsolved(instance, state, action, ENV), (state.time, granted, action)

    keys = jax.random.split(key, instance.num_users)
    state, (user, granted, action) = jax.lax.scan(decide, reset(instance, ENV), keys)
    outcome = evaluate(instance, state.assignment)
    reward = 0.1 * instance.alpha * outcome.accuracy
    reward = reward.at[-1].add(-0.1 * jnp.sum(outcome.latency))
    numbers = jnp.full(instance.num_users, number)
    return settle(instance, state, ENV), Item(numbers, user, granted, action, reward)


def learn(agent: Agent, pool: Instance) -> Agent:
    """An update from 112 decisions and 16 last ones."""
    key, inner_key, last_key = jax.random.split(agent.key, 3)
    drawn = _INNER.sample(agent.inner, inner_key), _LAST.sample(agent.last, last_key)
    inner, last = (one.experience for one in drawn)
    items = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), inner, last)
    after = items.granted.at[jnp.arange(BATCH), items.user].set(items.action == 1)
    following = jax.vmap(partial(values, agent.target, pool))(items.instance, items.user + 1, after)
    more = jnp.arange(BATCH) < BATCH - TERMINAL
    wanted = items.reward + jnp.where(more, jnp.max(following, axis=1), 0)
    # Importance weights within each memory, the largest one 1.
    weights = [(1 / jnp.maximum(one.probabilities, 1e-12)) ** WEIGHT for one in drawn]
    weight = jnp.concatenate([w / jnp.max(w) for w in weights])

    def loss(params: Any) -> tuple[Array, Array]:
        found = jax.vmap(partial(values, params, pool))(items.instance, items.user, items.granted)
        error = jnp.take_along_axis(found, items.action[:, None], axis=1)[:, 0] - wanted
        return jnp.mean(weight * error**2), jnp.abs(error) + 1e-6

    grads, priority = jax.grad(loss, has_aux=True)(agent.params)
    changes, optimizer = _OPTIMIZER.update(grads, agent.optimizer, agent.params)
    params = optax.apply_updates(agent.params, changes)
    updates = agent.updates + 1
    copied = updates % TARGET_EVERY == 0
    split = BATCH - TERMINAL
    return Agent(
        params=params,
        target=jax.tree.map(lambda new, old: jnp.where(copied, new, old), params, agent.target),
        optimizer=optimizer,
        inner=_INNER.set_priorities(agent.inner, drawn[0].indices, priority[:split]),
        last=_LAST.set_priorities(agent.last, drawn[1].indices, priority[split:]),
        key=key,
        updates=updates,
    )


def begin(pool: Instance, key: Key) -> Agent:
    """Fresh parameters and empty memories."""
    params_key, key = jax.random.split(key)
    users = pool.num_users
    params = _NETWORK.init(
        params_key, jnp.zeros(WIDTH, jnp.int32), jnp.zeros((WIDTH, 3)), jnp.zeros(6)
    )
    zero = jnp.int32(0)
    item = Item(zero, zero, jnp.zeros(users, bool), zero, jnp.zeros(()))
    return Agent(
        params, params, _OPTIMIZER.init(params), _INNER.init(item), _LAST.init(item), key, zero
    )


@partial(jax.jit, donate_argnums=0, static_argnums=3)
def train(agents: Agent, pools: Instance, episode: Array, episodes: int) -> Agent:
    """CHUNK of `episodes` of every agent (first axis), an update for each of their decisions."""

    def one_episode(agent: Agent, pool: Instance, number: Array) -> Agent:
        users = pool.num_users
        cooled = HOT * (COLD / HOT) ** (number / episodes)
        key, draw, roll = jax.random.split(agent.key, 3)
        chosen = jax.random.randint(draw, (), 0, pool.alpha.shape[-1])
        _, items = play(agent.params, pool, chosen, cooled, roll)
        inner, last = _split(items)
        agent = replace(
            agent,
            key=key,
            inner=_INNER.add(agent.inner, inner),
            last=_LAST.add(agent.last, last),
        )
        warm = number * users >= WARM_UP
        return jax.lax.fori_loop(
            0, jnp.where(warm, users, 0), lambda _, agent: learn(agent, pool), agent
        )

    def all_of_them(agents: Agent, number: Array) -> tuple[Agent, None]:
        return jax.vmap(one_episode, in_axes=(0, 0, None))(agents, pools, number), None

    return jax.lax.scan(all_of_them, agents, episode + jnp.arange(CHUNK))[0]


def _split(items: Item) -> tuple[Item, Item]:
    """The decisions that others follow, and the last one."""
    return jax.tree.map(lambda x: x[:-1], items), jax.tree.map(lambda x: x[-1:], items)


@jax.jit
def gaps(agents: Agent, pools: Instance) -> Array:
    """Gaps of the greedy plans to the optimum, for every instance of each agent's pool."""

    def one(agent: Agent, pool: Instance) -> Array:
        numbers = jnp.arange(pool.alpha.shape[-1])
        final = jax.vmap(lambda n: play(agent.params, pool, n, 1e-6, agent.key)[0])(numbers)
        best = evaluate(pool, assigner("top-b")(pool)).gain
        return model.gap(best, final.gain)

    return jax.vmap(one)(agents, pools)


# ---- cells


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
        agents = jax.jit(jax.vmap(begin))(pools, keys)
        agents, curve = self._train(agents, pools, fixed)
        last = np.asarray(gaps(agents, fresh)).mean(axis=1)
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
        self, agents: Agent, pools: Instance, fixed: Instance
    ) -> tuple[Agent, list[tuple[int, float, np.ndarray]]]:
        """The agents at the end; (episodes, seconds, gaps on the fixed instance) on the way."""
        step = train.lower(agents, pools, jnp.int32(0), self.episodes).compile()
        curve, seconds = [], 0.0
        for number in range(0, self.episodes, CHUNK):
            begun = time.perf_counter()
            agents = jax.block_until_ready(step(agents, pools, jnp.int32(number)))
            seconds += time.perf_counter() - begun
            found = np.asarray(gaps(agents, fixed))[:, 0]
            curve.append((number + CHUNK, seconds, found))
            print(
                f"N {self.users}, {self.data}, episode {number + CHUNK:,}: {seconds:.0f} s, "
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
            best = evaluate(pool, assigner("top-b")(pool)).gain
            found[f"gap_{name}"] = float(jnp.mean(model.gap(best, greedy_plan(policy, pool)[1])))
        rows.append({"users": users, "gpus": gpus, **found})
    about = json.loads((ROOT / "benchmarks/results/paper/run.json").read_text())
    return {"train_s": sum(start["seconds"] for start in about["starts"]), "cells": rows}


ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "benchmarks" / "results" / "per_dqn.json"


@dataclass(frozen=True)
class Arguments:
    """Train the paper's agent, PER-DQN, as published, beside our policy. Hours on two cores."""

    users: tuple[int, ...] = (4, 8, 12, 16, 20)
    """Numbers of users N; the four E of one N are trained side by side."""
    data: tuple[Data, ...] = ("fixed",)
    """What an agent trains on: one instance, as published, or fresh ones of its cell."""
    seeds: tuple[int, ...] = (0,)
    """Of the agents, side by side."""
    episodes: int = EPISODES
    """Of a training; as published 30,000."""
    out: Path = OUT
    """JSON file to write, after every N; what it has already is not trained again."""


def main(words: Sequence[str] | None = None) -> int:
    """Trains what the file lacks."""
    parsed = tyro.cli(Arguments, args=words, prog="python -m benchmarks.per_dqn")
    out = parsed.out
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
