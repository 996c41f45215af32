"""-V(p) as an objective: whose probabilities p holds, what they are worth, and the gradient."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from episodes import WORLDS, world
from problems import EVALUATE

from offload_jax.env.config import EnvConfig
from offload_jax.env.observation import observe
from offload_jax.env.step import reset
from offload_jax.files.checks import ConfigError
from offload_jax.learning import learner as learning
from offload_jax.learning import loss
from offload_jax.learning.algorithms.layer import OVERLOAD, expected_loss, soft_assignment
from offload_jax.learning.config import Learner, LearnerConfig
from offload_jax.policy.network import NetworkConfig
from offload_jax.policy.rollout import decode, encode, split_samples, unroll
from offload_jax.policy.sampling import sample_action
from offload_jax.runs.config import parse_config
from offload_jax.splits import SOLVERS

pytestmark = pytest.mark.usefixtures("quick_compiler")

COUNT, CHOICES = 6, 5
ENVS = {
    "arrival": EnvConfig(),
    "adaptive": EnvConfig(order="adaptive"),
    "one-shot": EnvConfig(order="sorted", one_shot=True, reward="terminal"),
}


def decisions(env):
    """(instances, observations of every user's turn from the empty plan, logits of any size)."""
    instances = world("edge", COUNT)
    start = reset(instances, env)
    steps = 1 if env.order == "adaptive" else instances.num_users

    def look(time):
        return split_samples(observe(instances, replace(start, time=start.time + time), env), 1)

    seen = jax.vmap(look)(jnp.arange(steps))
    draws = np.random.default_rng(0).normal(size=seen.mask.shape)
    return instances, seen, jnp.where(seen.mask, jnp.asarray(draws), -jnp.inf)


@pytest.mark.parametrize("env", ENVS.values(), ids=ENVS)
def test_rows_are_the_users_own_probabilities(env) -> None:
    instances, seen, logits = decisions(env)
    p = np.asarray(soft_assignment(seen, logits))
    users = instances.num_users
    assert p.shape == (users, CHOICES, COUNT, 1)
    real = np.asarray(instances.mask)
    np.testing.assert_allclose(p.sum(axis=1)[..., 0][real], 1, rtol=1e-5)
    chances = np.asarray(jax.nn.softmax(logits, axis=-1))
    turn = np.asarray(reset(instances, env).turn)
    for i in range(COUNT):
        for user in np.flatnonzero(real[:, i]):
            if env.order == "adaptive":  # stopping weighs against every batch of the user
                row = np.asarray(logits)[0, i, 0]
                row = np.append(row[-1], row[:-1].reshape(users, -1)[user])
                wanted = np.exp(row) / np.exp(row).sum()
            else:
                wanted = chances[turn[user, i], i, 0]
            np.testing.assert_allclose(p[user, :, i, 0], wanted, rtol=1e-4, atol=1e-6)


def test_a_certain_policy_is_worth_its_plan() -> None:
    """In units of the best gain; and what is too much for a batch costs OVERLOAD."""
    env = ENVS["arrival"]
    instances, seen, _ = decisions(env)
    plan = np.random.default_rng(1).integers(0, CHOICES, instances.mask.shape)
    plan = np.where(instances.mask, plan, 0)
    taken = plan[:, :, None, None] == np.arange(CHOICES)
    unit = jnp.linspace(1.0, 3.0, COUNT)
    found = expected_loss(instances, seen, jnp.where(taken, 60.0, 0.0), unit, "native")[:, 0]
    load = np.stack([(np.where(plan == k, instances.demand, 0)).sum(axis=0) for k in range(1, 5)])
    over = np.maximum(load - np.asarray(instances.capacity), 0).sum(axis=0)
    demand = np.where(instances.mask, instances.demand, 0).sum(axis=0)
    worth = np.asarray(EVALUATE(instances, jnp.asarray(plan, jnp.int32)).gain)
    np.testing.assert_allclose(found, OVERLOAD * over / demand - worth / unit, rtol=2e-3, atol=1e-3)
    assert over.max() > 0


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_gradient_in_the_logits_is_that_of_differences(x64, solver) -> None:
    instances, seen, logits = decisions(ENVS["one-shot"])
    unit = jnp.full(COUNT, 3.0)

    @jax.jit
    def total(logits):
        return jnp.sum(expected_loss(instances, seen, logits, unit, solver))

    slope = jax.jit(jax.grad(total))(logits)
    legal = np.asarray(seen.mask)
    along = np.where(legal, np.random.default_rng(2).normal(size=legal.shape), 0)
    ends = [float(total(jnp.where(legal, logits + h * along, -jnp.inf))) for h in (1e-4, -1e-4)]
    found = float(np.sum(np.where(legal, slope, 0) * along))
    assert found == pytest.approx((ends[0] - ends[1]) / 2e-4, rel=1e-4, abs=1e-5)
    assert abs(found) > 1e-2


def test_stopping_is_not_taught() -> None:
    """In adaptive order it ends the plan for all: pairs get a gradient, its logit none."""
    instances, seen, logits = decisions(ENVS["adaptive"])
    unit = jnp.ones(COUNT)
    slope = jax.grad(lambda x: jnp.sum(expected_loss(instances, seen, x, unit, "native")))(logits)
    assert np.all(np.asarray(slope)[..., -1] == 0)
    assert np.abs(np.asarray(slope)[..., :-1]).max() > 1e-3


@pytest.mark.parametrize("env", [replace(ENVS["adaptive"], candidates=2), ENVS["one-shot"]])
def test_in_training_it_is_of_the_empty_plan(env) -> None:
    """Of all users and pairs, whatever a sample decided before and a policy looks at."""
    config = LearnerConfig(instances=COUNT, samples=3, layer=1.0, objective="layer")
    learner = Learner(WORLDS["edge"], env, NetworkConfig(width=16, layers=1, heads=2), config)
    network, params = learner.module(), learning.init(learner, jax.random.key(0)).params
    instances, seen, _ = decisions(replace(env, candidates=0))
    final, batch = unroll(network, params, instances, 3, jax.random.key(1), sample_action, env)
    _, parts = loss.loss(learner, params, instances, batch, None, jnp.zeros(()))
    encoding = encode(network, params, instances)
    logits = jnp.stack(
        [
            decode(network, params, encoding, jax.tree.map(lambda x, t=t: x[t], seen))[0]
            for t in range(len(seen.mask))
        ]
    )
    unit = loss.best_gain(instances, final.gain.reshape(COUNT, 3))
    wanted = jnp.mean(expected_loss(instances, seen, logits, unit, env.solver))
    assert float(parts["layer"]) == pytest.approx(float(wanted), rel=1e-4)


@pytest.mark.parametrize("env", ENVS.values(), ids=ENVS)
def test_it_is_part_of_an_update(env) -> None:
    """Inside the jitted program: parameters end elsewhere with it, and all numbers are finite."""
    network = NetworkConfig(width=16, layers=1, heads=2)
    ends = []
    for changes in ({}, {"layer": 1.0}, {"layer": 1.0, "objective": "layer", "entropy": 0.0}):
        config = LearnerConfig(instances=4, samples=3, updates=1, **changes)
        learner = Learner(WORLDS["edge"], env, network, config)
        run = jax.jit(partial(learning.update, learner))
        state, metrics = run(learning.init(learner, jax.random.key(0)))
        assert bool(metrics.sound)
        assert (float(metrics.layer) != 0) == ("layer" in changes)
        ends.append(jax.flatten_util.ravel_pytree(state.params)[0])
    assert float(metrics.layer) == pytest.approx(float(metrics.loss))  # alone, at weight 1
    for i, j in ((0, 1), (1, 2), (0, 2)):
        assert np.abs(ends[i] - ends[j]).max() > 1e-5


@pytest.mark.fast
def test_rules_of_ones_own_are_refused() -> None:
    text = (
        "splits: {constraints: ['latency <= 9'], solver: cvxpylayers-moreau}\nlearner: {layer: 1}"
    )
    with pytest.raises(ConfigError, match=r"learner\.layer is 1\.0; must be 0 with splits\.constr"):
        parse_config(text)
