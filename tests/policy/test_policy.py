"""A policy as something that decides: plans that run, whatever the padding; more samples help."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import evaluate, gain_of
from episodes import WORLDS, one, sample, world

from offload_jax.env.environment import Snapshot
from offload_jax.learning import updates
from offload_jax.learning.algorithm import Learner
from offload_jax.learning.algorithms.ppo import PPO
from offload_jax.learning.config import LearnerConfig
from offload_jax.policy.decoding import best_of, decide, greedy_plan
from offload_jax.policy.policy import Policy
from offload_jax.policy.transformer import Transformer


@pytest.fixture(scope="module")
def policy() -> Policy:
    network = Transformer(width=16, layers=1, heads=2, residual=False)  # far from a good one
    learner = Learner(WORLDS["edge"], Snapshot(), network, PPO(), LearnerConfig())
    return Policy(
        jax.jit(updates.init, static_argnums=0)(learner, jax.random.key(1)).params,
        network,
        learner.env,
    )


def test_more_samples_never_hurt(policy) -> None:
    instances, key = world("edge"), jax.random.key(0)
    greedy, worth = greedy_plan(policy, instances)
    best, most = best_of(policy, instances, 8, key)
    np.testing.assert_allclose(worth, gain_of(instances, greedy), atol=1e-4)
    np.testing.assert_allclose(most, gain_of(instances, best), atol=1e-4)
    assert np.all(np.asarray(most) >= np.asarray(worth))
    assert np.mean(np.asarray(most) > np.asarray(worth) + 1e-3) > 0.3
    assert np.all(np.asarray(evaluate(instances, best).feasible))
    np.testing.assert_array_equal(best, best_of(policy, instances, 8, key)[0])
    np.testing.assert_array_equal(greedy, best_of(policy, instances, 1, key)[0])
    with pytest.raises(ValueError, match="samples is 0; must be at least 1"):
        best_of(policy, instances, 0, key)


def test_plans_do_not_depend_on_who_else_is_decided(policy) -> None:
    instances = [one(world("edge"), i) for i in range(5)]
    alone = decide(policy, instances)
    larger = one(sample(WORLDS["edge"], jax.random.key(9), 1), 0)
    together = decide(policy, [*instances, jax.tree.map(jnp.asarray, larger)])
    for plan, again, instance in zip(alone, together, instances, strict=False):
        users = int(np.sum(np.asarray(instance.mask)))
        assert len(plan.assignment) == len(plan.integer_split) == users
        assert tuple(plan.assignment) == tuple(again.assignment)
        assert plan.method == "policy"
        assert plan.integer_objective <= plan.objective + 1e-5 * abs(plan.objective)
        wanted = evaluate(instance, greedy_plan_of(policy, instance))
        assert plan.objective == pytest.approx(float(wanted.objective), rel=1e-5)


def greedy_plan_of(policy, instance):
    return greedy_plan(policy, jax.tree.map(lambda x: x[..., None], instance))[0][:, 0]
