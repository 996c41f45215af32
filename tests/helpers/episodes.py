"""Small worlds, and episodes of random actions in them, for tests of everything that decides."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from offload_jax.env.config import EnvConfig
from offload_jax.env.state import State, action_mask
from offload_jax.env.step import reset, step
from offload_jax.learning.trajectories import sample_instances
from offload_jax.problem.instance import Instance
from offload_jax.problem.scenario import EdgeScenario, PaperScenario

ORDERS = ("arrival", "sorted", "adaptive")
# Small enough to compile fast, tight enough that capacities and budgets bind.
WORLDS = {
    "paper": PaperScenario(num_users=(2, 3, 5), edge_gpus=(4, 8), capacity=2),
    "edge": EdgeScenario(
        num_users=(3, 4, 6), batches=4, servers=2, models=2, budget=0.5, capacity_factor=4.0
    ),
}
COUNT = 64  # instances of a world

_USER_FIELDS = (
    "local_step", "alpha", "wait", "demand", "payload", "spectral_efficiency", "split_min",
    "accuracy_local", "accuracy_floor", "accuracy_slope", "accuracy_centre", "mask",
)  # fmt: skip
_BATCH_FIELDS = ("intercept", "capacity", "server")

sample = jax.jit(sample_instances, static_argnums=(0, 2))


def world(name: str, count: int = COUNT, seed: int = 0) -> Instance:
    """`count` instances of a world (batch last), users padded."""
    return sample(WORLDS[name], jax.random.key(seed), count)


class Turn(NamedTuple):
    """One step of an episode; `play` stacks them along a first axis ``steps``."""

    before: State
    mask: Any
    action: Any
    after: State
    dense: Any  # reward
    terminal: Any  # reward of the same step under the other setting


@partial(jax.jit, static_argnames="order")
def play(instances: Instance, key, order: str, legal: bool = True) -> Turn:
    """Episodes of uniformly random actions: legal ones, or any."""
    env, late = EnvConfig(order=order), EnvConfig(order=order, reward="terminal")

    def decide(state, key):
        mask = action_mask(instances, state, env)
        luck = jnp.where(mask | ~jnp.asarray(legal), jax.random.uniform(key, mask.shape), -1)
        action = jnp.argmax(luck, axis=0)
        after, dense = step(instances, state, action, env)
        _, terminal = step(instances, state, action, late)
        return after, Turn(state, mask, action, after, dense, terminal)

    keys = jax.random.split(key, instances.num_users)
    return jax.lax.scan(decide, reset(instances, env), keys)[1]


@partial(jax.jit, static_argnames="env")
def replay(instances: Instance, actions, env: EnvConfig) -> tuple[State, Any]:
    """The states after, and the rewards of, the given actions (steps, *batch)."""

    def decide(state, action):
        after, reward = step(instances, state, action, env)
        return after, (after, reward)

    return jax.lax.scan(decide, reset(instances, env), actions)[1]


def unchecked(config, **changes):
    """A copy of a frozen config with fields set past the type checks, which only tests have."""
    changed = copy.copy(config)
    for name, value in changes.items():
        object.__setattr__(changed, name, value)
    return changed


# What follows computes in NumPy: JAX would compile every operation of every shape.


def numpy(tree):
    return jax.tree.map(np.asarray, tree)


def one(tree, index: int):
    """One instance (or state, ...) of a batch-last tree."""
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x)[..., index]), tree)


def permute_users(instance: Instance, order) -> Instance:
    """The users stored in another order: user j is what user order[j] was."""
    return _changed(instance, _USER_FIELDS, lambda x: x[np.asarray(order)])


def permute_batches(instance: Instance, order) -> Instance:
    """The batches stored in another order, hosted by the same servers."""
    moved = _changed(instance, _BATCH_FIELDS, lambda x: x[order])
    tables = ("accuracy_floor", "accuracy_slope", "accuracy_centre")
    moved = _changed(moved, tables, lambda x: x[:, order])
    return _changed(moved, ("interference",), lambda x: x[order][:, order])


def scale_times(instance: Instance, factor: float) -> Instance:
    """The same instance in another unit of time."""
    times = ("local_step", "alpha", "wait", "payload", "intercept", "interference", "budget")
    return _changed(instance, times, lambda x: factor * x)


def spoil_padding(instance: Instance, garbage: float) -> Instance:
    """Padded users filled with garbage, except for the mask."""
    mask = np.asarray(instance.mask)

    def spoiled(x):
        return np.where(mask if x.ndim == mask.ndim else mask[:, None], x, x.dtype.type(garbage))

    return _changed(instance, [name for name in _USER_FIELDS if name != "mask"], spoiled)


def _changed(instance: Instance, names, change) -> Instance:
    fields = {name: change(np.asarray(getattr(instance, name))) for name in names}
    return replace(instance, **{name: jnp.asarray(x) for name, x in fields.items()})
