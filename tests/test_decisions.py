"""Episodes, rules, learning: rewards add up, rules do what they say, learning finds the optimum."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offload_jax import env as environment
from offload_jax import schema
from offload_jax.baselines import METHODS
from offload_jax.env import EnvConfig
from offload_jax.gains import gain_of
from offload_jax.instance import from_record, stack
from offload_jax.rollout import sample_action
from offload_jax.scenario import EdgeScenario
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
