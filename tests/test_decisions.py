"""Episodes, rules, learning: rewards add up, rules do what they say, learning finds the optimum."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offload_jax import env as environment
from offload_jax import learner as learning
from offload_jax import schema
from offload_jax.baselines import METHODS, solve
from offload_jax.env import EnvConfig
from offload_jax.gains import exact_gains, gain_of
from offload_jax.instance import Instance, from_record, stack, toy
from offload_jax.learner import Learner, LearnerConfig
from offload_jax.networks import NetworkConfig
from offload_jax.policies import Policy, best_of, decide, greedy_plan
from offload_jax.rollout import sample_action
from offload_jax.scenario import EdgeScenario, PaperScenario
from offload_jax.value import evaluate

RECORDS = schema.read_instances(Path(__file__).parent / "golden" / "paper.json")
SMALL = EdgeScenario(num_users=(3, 5), batches=2, servers=1, models=2, budget=1.0)


@pytest.mark.fast
@pytest.mark.parametrize("order", ["arrival", "adaptive"])
def test_rewards_add_up_and_capacities_hold(order, x64) -> None:
    instances = jax.vmap(SMALL.sample, out_axes=-1)(jax.random.split(jax.random.key(0), 32))

    def episode(reward: str):
        config = EnvConfig(order=order, reward=reward)

        def act(state, key):
            mask = environment.action_mask(instances, state, config)
            logits = jnp.where(mask, 0.0, -jnp.inf).T
            action = sample_action(logits, key)
            state, reward = environment.step(instances, state, action, config)
            return state, (reward, mask)

        start = environment.reset(instances, config)
        return jax.lax.scan(act, start, jax.random.split(jax.random.key(1), 5))

    final, (dense, masks) = jax.jit(episode, static_argnums=0)("dense")
    _, (terminal, _) = jax.jit(episode, static_argnums=0)("terminal")
    outcome = jax.jit(evaluate)(instances, final.assignment)
    users = jnp.sum(instances.mask, axis=0)
    np.testing.assert_allclose(jnp.sum(dense, axis=0), 0.1 * outcome.gain / users, atol=1e-9)
    np.testing.assert_allclose(jnp.sum(terminal, axis=0), jnp.sum(dense, axis=0), atol=1e-9)
    assert bool(jnp.all(terminal[:-1] == 0))
    assert bool(jnp.all(final.load <= instances.capacity))
    np.testing.assert_allclose(final.split, outcome.split, atol=1e-7)
    assert bool(jnp.all(jnp.where(instances.mask, True, final.assignment == 0)))
    if order == "arrival":  # padded steps have one legal action and no reward
        padded = np.arange(5)[:, None] >= np.asarray(users)
        assert np.all(np.asarray(jnp.sum(masks, axis=1))[padded] == 1)
        assert np.all(np.asarray(dense)[padded] == 0)


@pytest.mark.fast
def test_sampling_never_returns_an_illegal_action() -> None:
    logits = jnp.array([[0.0, -jnp.inf, 2.0, -jnp.inf], [-jnp.inf, -jnp.inf, -80.0, -jnp.inf]])
    many = jnp.broadcast_to(logits[:, None], (2, 40_000, 4))
    drawn = np.asarray(sample_action(many, jax.random.key(0)))
    share = np.mean(drawn[0] == 2)
    assert abs(share - np.exp(2) / (1 + np.exp(2))) < 0.01
    assert set(drawn[0]) == {0, 2}
    assert set(drawn[1]) == {2}


def test_rules_on_the_golden_instances(x64) -> None:
    batch = stack([from_record(record) for record in RECORDS])
    best = np.array([record.optimum.objective - record.optimum.deny_all for record in RECORDS])
    for name in ("top-b", "greedy", "reduced-greedy"):
        gains = gain_of(batch, jax.jit(METHODS[name].assign)(batch))
        np.testing.assert_allclose(gains, best, rtol=1e-9, err_msg=name)
    for name in ("deny", "grant", "myopic"):
        assert np.all(np.asarray(gain_of(batch, METHODS[name].assign(batch))) <= best + 1e-9), name


def test_reduced_gains_lead_to_what_exact_ones_find() -> None:
    scenario = EdgeScenario(num_users=(20,))
    instances = jax.vmap(scenario.sample, out_axes=-1)(jax.random.split(jax.random.key(2), 30))
    exact = gain_of(instances, jax.jit(METHODS["greedy"].assign)(instances))
    reduced = gain_of(instances, jax.jit(METHODS["reduced-greedy"].assign)(instances))
    share = np.asarray(reduced / exact)
    assert share.mean() >= 0.995
    assert share.min() >= 0.97
    # Nothing is left to gain where exact greedy stopped.
    one = jax.tree.map(lambda x: x[..., 0], instances)
    final = METHODS["greedy"].assign(jax.tree.map(lambda x: x[..., None], one))[:, 0]
    assert float(jnp.max(exact_gains(one, final))) <= 0


@pytest.mark.fast
def test_solve_gives_a_plan_that_runs() -> None:
    instance, plan, best = toy()
    found = solve(instance, "greedy")
    assert tuple(found.assignment) == tuple(plan)
    assert tuple(found.integer_split) == (2, 2, 10)
    np.testing.assert_allclose([found.objective, found.integer_objective], best, rtol=1e-6)
    with pytest.raises(ValueError, match="needs exactly one batch"):
        solve(instance, "top-b")
    with pytest.raises(ValueError, match="must be one of deny"):
        solve(instance, "magic")


@dataclass(frozen=True)
class ToyScenario:
    """Always the toy instance."""

    kind: str = "toy"
    max_users: int = 3
    num_batches: int = 2

    def sample(self, key: jax.Array) -> Instance:
        del key
        return toy()[0]


@pytest.mark.parametrize("baseline", ["shared", "critic"])
def test_learning_finds_the_optimum_of_the_toy(baseline) -> None:
    learner = Learner(
        ToyScenario(),  # type: ignore[arg-type]
        EnvConfig(),
        NetworkConfig(width=16, layers=1, heads=2, residual=False),
        LearnerConfig(baseline=baseline, updates=60, instances=8, samples=8, lr=5e-3),
    )
    update = jax.jit(learning.update, static_argnums=0)
    state = learning.init(learner, jax.random.key(0))
    start = state.params
    for _ in range(60):
        state, metrics = update(learner, state)
        assert bool(jnp.isfinite(metrics.loss))
    instance, plan, _ = toy()
    batch = jax.tree.map(lambda x: x[..., None], instance)
    policy = Policy(state.params, learner.network, learner.env)
    assert tuple(np.asarray(greedy_plan(policy, batch)[0])[:, 0]) == tuple(plan)
    assert not all(
        jax.tree.leaves(jax.tree.map(lambda a, b: bool(jnp.all(a == b)), start, state.params))
    )


def test_policies_ignore_padding_and_units() -> None:
    scenario = PaperScenario(num_users=(4, 6))
    learner = Learner(scenario, EnvConfig(), NetworkConfig(width=16, layers=1), LearnerConfig())
    params = learning.init(learner, jax.random.key(1)).params
    policy = Policy(params, learner.network, learner.env)
    instances = [scenario.sample(jax.random.key(i)) for i in range(6)]
    plans = decide(policy, instances)
    longer = decide(policy, [*instances, PaperScenario(num_users=(9,)).sample(jax.random.key(9))])
    for short, padded in zip(plans, longer, strict=False):
        assert tuple(short.assignment) == tuple(padded.assignment)
    batch = stack(instances)
    times = ("local_step", "alpha", "wait", "payload", "intercept", "interference", "budget")
    from dataclasses import replace

    slower = replace(batch, **{name: 2.0 * getattr(batch, name) for name in times})
    assert bool(jnp.all(greedy_plan(policy, slower)[0] == greedy_plan(policy, batch)[0]))
    assert bool(
        jnp.all(best_of(policy, batch, 8, jax.random.key(0))[1] >= greedy_plan(policy, batch)[1])
    )
