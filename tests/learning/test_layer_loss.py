"""-V(p) as an objective: whose probabilities p holds, what they are worth, and the gradient."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import combinations
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import evaluate, init, observe, reset
from episodes import WORLDS, unchecked, world

from offload_jax.env.environment import Snapshot
from offload_jax.files.checks import ConfigError
from offload_jax.learning import updates
from offload_jax.learning.algorithm import Learner
from offload_jax.learning.algorithms.layer import OVERLOAD, Layer, soft_assignment, soft_loss
from offload_jax.learning.algorithms.ppo import PPO
from offload_jax.learning.config import LearnerConfig
from offload_jax.learning.loss import loss
from offload_jax.learning.trajectories import best_gain
from offload_jax.policy.rollout import split_samples
from offload_jax.policy.transformer import Transformer
from offload_jax.runs.config_file import parse_config
from offload_jax.splits import NATIVE, SOLVERS, solver_named

objective = jax.jit(soft_loss, static_argnums=4)
COUNT, CHOICES = 6, 5
ENVS = {
    "arrival": Snapshot(),
    "sorted": Snapshot(order="sorted"),
    "adaptive": Snapshot(order="adaptive"),
}


@partial(jax.jit, static_argnums=1)
def every_turn(instances, env):
    start = reset(instances, env)
    steps = 1 if env.order == "adaptive" else instances.num_users

    def look(time):
        return split_samples(observe(instances, replace(start, time=start.time + time), env), 1)

    return jax.vmap(look)(jnp.arange(steps))


def decisions(env):
    """(instances, observations of every user's turn from the empty plan, logits of any size)."""
    instances = world("edge", COUNT)
    seen = every_turn(instances, env)
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
    found = objective(instances, seen, jnp.where(taken, 60.0, 0.0), unit, NATIVE)[:, 0]
    load = np.stack([(np.where(plan == k, instances.demand, 0)).sum(axis=0) for k in range(1, 5)])
    over = np.maximum(load - np.asarray(instances.capacity), 0).sum(axis=0)
    demand = np.where(instances.mask, instances.demand, 0).sum(axis=0)
    worth = np.asarray(evaluate(instances, jnp.asarray(plan, jnp.int32)).gain)
    np.testing.assert_allclose(found, OVERLOAD * over / demand - worth / unit, rtol=2e-3, atol=1e-3)
    assert over.max() > 0


@pytest.mark.parametrize("solver", list(map(solver_named, SOLVERS)), ids=list(SOLVERS))
def test_the_gradient_in_the_logits_is_that_of_differences(x64, solver) -> None:
    instances, seen, logits = decisions(ENVS["sorted"])
    unit = jnp.full(COUNT, 3.0)

    @jax.jit
    def total(logits):
        return jnp.sum(objective(instances, seen, logits, unit, solver))

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
    total = jax.jit(lambda x: jnp.sum(objective(instances, seen, x, unit, NATIVE)))
    slope = jax.jit(jax.grad(total))(logits)
    assert np.all(np.asarray(slope)[..., -1] == 0)
    assert np.abs(np.asarray(slope)[..., :-1]).max() > 1e-3


def test_in_training_it_is_of_the_empty_plan() -> None:
    """Of all users and pairs, whatever a sample decided before and a policy looks at."""
    config, algorithm = LearnerConfig(instances=COUNT, samples=3), Layer(1.0, surrogate=0.0)
    network, env = (
        Transformer(width=16, layers=1, heads=2),
        Snapshot(order="adaptive", candidates=2),
    )
    learner = Learner(WORLDS["edge"], env, network, algorithm, config)
    params = init(learner, jax.random.key(0)).params
    policy, (instances, seen, _) = learner.policy(params), decisions(replace(env, candidates=0))

    @jax.jit
    def both():
        collected = algorithm.collect(learner, policy, instances, jax.random.key(1))
        _, parts = loss(learner, params, instances, collected, jnp.zeros(()))
        logits, _ = policy.decode_steps(policy.encode(instances), seen)
        unit = best_gain(learner, instances, collected.gain)
        return parts["layer"], jnp.mean(objective(instances, seen, logits, unit, env.solver))

    found, wanted = both()
    assert float(found) == pytest.approx(float(wanted), rel=1e-4)


@pytest.mark.parametrize("env", ENVS.values(), ids=ENVS)
def test_it_is_part_of_an_update(env) -> None:
    """Inside the jitted program: parameters end elsewhere with it, and all numbers are finite."""
    network, start, ends = Transformer(width=16, layers=1, heads=2), None, []
    for algorithm, entropy in (
        (PPO(), 0.01),
        (Layer(weight=1.0), 0.01),
        (Layer(weight=1.0, surrogate=0.0), 0.0),
    ):
        config = LearnerConfig(instances=4, samples=3, updates=1, entropy=entropy)
        learner = Learner(WORLDS["edge"], env, network, algorithm, config)
        start = start or init(learner, jax.random.key(0))  # the same for all
        state, metrics = jax.jit(partial(updates.update, learner))(start)
        assert bool(metrics["sound"])
        assert (metrics.get("layer", 0) != 0) == isinstance(algorithm, Layer)
        ends.append(jax.flatten_util.ravel_pytree(state.params)[0])
    assert float(metrics["layer"]) == pytest.approx(float(metrics["loss"]))  # alone, at weight 1
    for one, other in combinations(ends, 2):
        assert np.abs(one - other).max() > 1e-5


@pytest.mark.fast
def test_an_environment_of_ones_own_is_refused() -> None:
    algorithm, settings = Layer(), LearnerConfig(instances=4, samples=3)
    learner = Learner(WORLDS["edge"], ENVS["arrival"], Transformer(), algorithm, settings)
    algorithm.validate(learner)
    with pytest.raises(ValueError, match="with the environment SimpleNamespace"):
        algorithm.validate(unchecked(learner, env=SimpleNamespace()))


@pytest.mark.fast
def test_rules_of_ones_own_are_refused() -> None:
    splits = "splits: {constraints: ['latency <= 9'], solver: cvxpylayers-moreau}"
    text = f"{splits}\nalgorithm: {{kind: layer}}"
    with pytest.raises(ConfigError, match="algorithm is layer; must be another one with splits"):
        parse_config(text)
