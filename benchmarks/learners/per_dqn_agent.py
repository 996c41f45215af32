"""PER-DQN as the public reference implementation of arXiv 2411.15781 has it, in our environment.

Two prioritised memories, of decisions that others follow and of last ones. What we do not know of
it is ours: how exploration cools (softmax only), the exponents of priorities and of importance
weights (normalised within each memory), one target network and squared errors, an update for every
decision of an episode after it, padding behind the last user. An episode here has N decisions,
denials where the batch is full; there it ends when it is full. Rewards are those of our equations:
the code multiplies by the spectral efficiency where the paper divides. A new item gets the largest
priority so far rounded down, for flashbax 0.1.3 keeps it in an integer.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import flashbax
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from jax import Array

from offload_jax.env.config import EnvConfig
from offload_jax.env.state import State
from offload_jax.env.step import decided, reset
from offload_jax.plans.outcome import Outcome, evaluate
from offload_jax.problem import equations
from offload_jax.problem.instance import Instance
from offload_jax.problem.types import Key

ENV = EnvConfig(order="arrival", reward="terminal")
WIDTH = 20  # users that the network has inputs for
BATCH, TERMINAL = 128, 16  # transitions of an update, and how many of them end an episode (1/8)
CAPACITY, WARM_UP = 400_000, 5_000  # transitions
EPISODES, TARGET_EVERY = 30_000, 2_000  # episodes; updates between copies to the target network
HOT, COLD = 4.0, 0.01  # temperatures of exploration; it cools geometrically
PRIORITY, WEIGHT = 0.6, 0.4  # exponents of priorities and of importance weights
CHUNK = 250  # episodes of one call


class QNetwork(nn.Module):
    """Values of denying and granting the current user: 126 inputs, three layers of 256."""

    @nn.compact
    def __call__(self, status: Array, users: Array, overall: Array) -> Array:
        seen = nn.Embed(4, 3, embedding_init=nn.initializers.normal(1.0))(status)
        x = jnp.concatenate([jnp.concatenate([seen, users], axis=1).reshape(-1), overall])
        for _ in range(3):
            x = nn.leaky_relu(_dense(256, x.size)(x))
        return _dense(2, x.size)(x)


def _dense(features: int, inputs: int) -> nn.Dense:
    """A layer that starts as torch's do: all uniform in +-1 / sqrt(inputs)."""

    def start(key: Key, shape: Any, dtype: Any) -> Array:
        return jax.random.uniform(key, shape, dtype, -1, 1) / jnp.sqrt(inputs)

    return nn.Dense(features, kernel_init=start, bias_init=start)


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
    played: Array  # the largest gain (s) of an episode


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
    real = place < equations.num_real_users(instance)
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
            0.1 * (equations.num_real_users(instance) - user),
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
) -> tuple[Outcome, Item]:
    """An episode: what its plan is worth, and its decisions along a first axis."""
    instance = jax.tree.map(lambda x: x[..., number], pool)

    def decide(state: State, key: Key) -> tuple[State, tuple[Array, ...]]:
        granted = state.assignment > 0
        found = values(params, pool, number, state.time, granted)
        action = jax.random.categorical(key, found / temperature)
        after = decided(instance, state, action, ENV)
        after = replace(after, load=equations.place(instance, after.assignment).load)
        return after, (state.time, granted, action)

    keys = jax.random.split(key, instance.num_users)
    state, (user, granted, action) = jax.lax.scan(decide, reset(instance, ENV), keys)
    outcome = evaluate(instance, state.assignment)
    reward = 0.1 * instance.alpha * outcome.accuracy
    reward = reward.at[-1].add(-0.1 * jnp.sum(outcome.latency))
    numbers = jnp.full(instance.num_users, number)
    return outcome, Item(numbers, user, granted, action, reward)


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
    # Importance weights within each memory, the largest one 1. Rounding in the sums of priorities
    # draws an item that is none once in a million times.
    there = [one.probabilities > 0 for one in drawn]
    weights = [
        jnp.where(real, jnp.maximum(one.probabilities, 1e-12) ** -WEIGHT, 0)
        for real, one in zip(there, drawn, strict=True)
    ]
    weight = jnp.concatenate([w / jnp.max(w) for w in weights])

    def loss(params: Any) -> tuple[Array, Array]:
        found = jax.vmap(partial(values, params, pool))(items.instance, items.user, items.granted)
        error = jnp.take_along_axis(found, items.action[:, None], axis=1)[:, 0] - wanted
        return jnp.mean(weight * error**2), jnp.abs(error) + 1e-6

    grads, priority = jax.grad(loss, has_aux=True)(agent.params)
    changes, optimizer = _OPTIMIZER.update(grads, agent.optimizer, agent.params)
    priority = jnp.where(jnp.concatenate(there), priority, 0)
    params = optax.apply_updates(agent.params, changes)
    updates = agent.updates + 1
    copied = updates % TARGET_EVERY == 0
    split = BATCH - TERMINAL
    return replace(
        agent,
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
        params=params,
        target=params,
        optimizer=_OPTIMIZER.init(params),
        inner=_INNER.init(item),
        last=_LAST.init(item),
        key=key,
        updates=zero,
        played=jnp.float32(-jnp.inf),
    )


@partial(jax.jit, donate_argnums=0, static_argnums=3)
def train(agent: Agent, pool: Instance, episode: Array, episodes: int) -> Agent:
    """CHUNK of `episodes`, an update for each of their decisions."""
    users = pool.num_users

    def one_episode(agent: Agent, number: Array) -> tuple[Agent, None]:
        cooled = HOT * (COLD / HOT) ** (number / episodes)
        key, draw, roll = jax.random.split(agent.key, 3)
        chosen = jax.random.randint(draw, (), 0, pool.alpha.shape[-1])
        outcome, items = play(agent.params, pool, chosen, cooled, roll)
        inner, last = _split(items)
        agent = replace(
            agent,
            key=key,
            inner=_INNER.add(agent.inner, inner),
            last=_LAST.add(agent.last, last),
            played=jnp.maximum(agent.played, outcome.gain),
        )
        updates = jnp.where(number * users >= WARM_UP, users, 0)
        return jax.lax.fori_loop(0, updates, lambda _, agent: learn(agent, pool), agent), None

    return jax.lax.scan(one_episode, agent, episode + jnp.arange(CHUNK))[0]


def _split(items: Item) -> tuple[Item, Item]:
    """The decisions that others follow, and the last one."""
    return jax.tree.map(lambda x: x[:-1], items), jax.tree.map(lambda x: x[-1:], items)


@jax.jit
def greedy_gains(agent: Agent, pool: Instance) -> Array:
    """Gains (s) of the greedy plans, for every instance of the pool."""
    numbers = jnp.arange(pool.alpha.shape[-1])
    return jax.vmap(lambda n: play(agent.params, pool, n, 1e-6, agent.key)[0].gain)(numbers)
