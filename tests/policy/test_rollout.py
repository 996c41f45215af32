"""Rollouts: actions follow the policy and the law, samples lie where they are said to lie."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import describe, observe, reset
from episodes import numpy, one, replay, world
from scipy import stats

from offload_jax.env.config import EnvConfig
from offload_jax.env.environment import Snapshot
from offload_jax.policy.policy import Policy
from offload_jax.policy.rollout import begin, play, repeat, split_samples
from offload_jax.policy.rollout import record as recorded
from offload_jax.policy.sampling import greedy_action, sample_action
from offload_jax.policy.transformer import Transformer

NETWORK = Transformer(width=16, layers=1, heads=2)
SAMPLES = 3
INSTANCES = 8
pytestmark = pytest.mark.fast


def test_samples_follow_the_softmax():
    """Chi-square over 200,000 draws; the illegal actions never come."""
    p = np.array([0.0, 0.5, 0.0, 0.25, 0.15, 0.0, 0.0999, 0.0001, 0.0])
    with np.errstate(divide="ignore"):
        logits = jnp.asarray(np.log(p), jnp.float32) - 20
    draws = 200_000
    actions = jax.jit(sample_action)(jnp.tile(logits, (draws, 1)), jax.random.key(0))
    counts = np.bincount(np.asarray(actions), minlength=p.size)
    assert counts[p == 0].sum() == 0
    assert stats.chisquare(counts[p > 0], draws * p[p > 0]).pvalue > 1e-3
    again = jax.jit(sample_action)(jnp.tile(logits, (draws, 1)), jax.random.key(0))
    np.testing.assert_array_equal(actions, again)


def adversarial(rows: int, actions: int) -> jax.Array:
    """Rows of wild logits, between none and all but one of them illegal."""
    draw = np.random.default_rng(0)
    scale = draw.choice([1e-3, 1.0, 30.0, 1e4], (rows, 1))
    logits = draw.normal(size=(rows, actions)) * scale
    legal = draw.random((rows, actions)) < draw.choice([0.0, 0.1, 0.5, 0.9], (rows, 1))
    legal[np.arange(rows), draw.integers(0, actions, rows)] = True
    return jnp.asarray(np.where(legal, logits, -np.inf), jnp.float32)


@pytest.mark.parametrize("sums", ["serial", "parallel"])
@pytest.mark.parametrize("draw", [0.0, 2.0**-24, 0.5, 1 - 2.0**-23])
def test_an_illegal_action_is_never_returned(monkeypatch, draw, sums):
    """At the extremes of the uniform draw; also with sums that round as on parallel hardware,
    where the running sum is not monotone and may rise at an action of probability 0."""
    logits = adversarial(4000, 145)
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape: jnp.full(shape, draw))
    if sums == "parallel":
        scan = partial(jax.lax.associative_scan, jnp.add)
        monkeypatch.setattr(jnp, "cumsum", lambda x, axis: scan(x, axis=axis))
    actions = np.asarray(sample_action(logits, jax.random.key(0)))
    p = np.asarray(jax.nn.softmax(logits, axis=-1))
    assert np.all(np.take_along_axis(p, actions[:, None], axis=1) > 0)
    possible = p > 0
    if draw == 0:
        np.testing.assert_array_equal(actions, np.argmax(possible, axis=1))
    single = possible.sum(axis=1) == 1
    assert single.mean() > 0.1
    np.testing.assert_array_equal(actions[single], np.argmax(possible, axis=1)[single])


def test_where_the_running_sum_rises_at_an_illegal_action(monkeypatch):
    """The draw is put exactly there: a clamp to the last legal action would not be enough."""
    logits = adversarial(4000, 145)
    p = jax.nn.softmax(logits, axis=-1)
    sums = np.asarray(jax.lax.associative_scan(jnp.add, p, axis=-1))
    rows, where = np.nonzero((np.diff(sums, axis=1) > 0) & (np.asarray(p)[:, 1:] == 0))
    assert rows.size > 100
    draws = jnp.asarray(sums[rows, where] / sums[rows, -1])
    scan = partial(jax.lax.associative_scan, jnp.add)
    monkeypatch.setattr(jnp, "cumsum", lambda x, axis: scan(x, axis=axis))
    actions = np.asarray(sample_action(logits[rows], draws))
    assert np.all(np.asarray(p)[rows, actions] > 0)


def test_greedy_takes_the_most_likely():
    logits = jnp.array([[[0.0, 3.0, -jnp.inf], [-jnp.inf, -1e30, -jnp.inf]]])
    np.testing.assert_array_equal(greedy_action(logits, jax.random.key(0)), [[1, 1]])


def test_samples_lie_fastest_along_the_last_axis(instances):
    twice = repeat(instances, 2)
    np.testing.assert_array_equal(twice.steps[:4], instances.steps[np.array([0, 0, 1, 1])])
    moved = split_samples(twice, 2)
    assert moved.accuracy_floor.shape == (INSTANCES, 2, instances.num_users, 4)
    for sample in range(2):
        np.testing.assert_array_equal(
            moved.accuracy_floor[3, sample], instances.accuracy_floor[..., 3]
        )
    own = split_samples({"a": jnp.arange(12).reshape(2, 6)}, 2)["a"]
    np.testing.assert_array_equal(own[1], [[2, 8], [3, 9]])


@partial(jax.jit, static_argnames=("order", "samples", "choose", "record"))
def rolled(params, instances, key, order, samples, choose, record=True):
    policy = Policy(params, NETWORK, Snapshot(order=order))
    episodes = begin(policy, instances, samples)
    if record:
        return recorded(policy, episodes, choose, key)
    return play(policy, episodes, choose, key), None


@pytest.fixture(scope="module")
def instances():
    return world("edge", INSTANCES)


@pytest.fixture(scope="module")
def params(instances):
    instance = one(instances, 0)
    return jax.jit(NETWORK.init)(
        jax.random.key(0), describe(instance), observe(instance, reset(instance))
    )


@pytest.fixture(scope="module", params=["arrival", "adaptive"])
def sampled(request, instances, params):
    """(order, final state, transitions), in NumPy."""
    roll = rolled(params, instances, jax.random.key(7), request.param, SAMPLES, sample_action)
    return request.param, *numpy(roll)


def test_recording_changes_no_action(sampled, params, instances):
    order, final, _ = sampled
    key = jax.random.key(7)
    silent, nothing = rolled(params, instances, key, order, SAMPLES, sample_action, False)
    assert nothing is None
    np.testing.assert_array_equal(silent.assignment, final.assignment)
    np.testing.assert_allclose(silent.gain, final.gain, rtol=1e-5, atol=1e-5)


def test_the_record_is_what_happened(sampled, instances):
    """Replaying the actions gives the recorded rewards and the final state, sample by sample."""
    order, final, batch = sampled
    steps = instances.num_users
    assert batch.action.shape == (steps, INSTANCES, SAMPLES)
    repeated = repeat(instances, SAMPLES)
    actions = jnp.asarray(batch.action.reshape(steps, -1))
    states, rewards = numpy(replay(repeated, actions, EnvConfig(order=order)))
    users = np.asarray(repeated.mask).sum(axis=0)  # rewards are in s, those of `step` in scores
    scores = (0.1 * batch.reward.reshape(steps, -1) / users).reshape(batch.reward.shape)
    np.testing.assert_allclose(rewards.reshape(batch.reward.shape), scores, atol=1e-5)
    np.testing.assert_array_equal(states.assignment[-1], final.assignment)
    np.testing.assert_allclose(batch.reward.sum(axis=0).reshape(-1), final.gain, atol=1e-4)
    columns = np.asarray(repeated.alpha).reshape(steps, INSTANCES, SAMPLES)
    assert np.all(columns == np.asarray(instances.alpha)[..., None])
    assert np.mean(np.std(batch.reward.sum(axis=0), axis=1) > 1e-4) > 0.5  # samples differ
    mask = batch.observation.mask
    assert np.take_along_axis(mask, batch.action[..., None], axis=-1).all()
    np.testing.assert_array_equal(batch.real, mask.sum(axis=-1) > 1)
    assert 0.2 < batch.real.mean() < 0.95
    assert not batch.reward[~batch.real].any()


def test_log_probs_and_values_are_the_networks(sampled, params, instances):
    _, _, batch = sampled
    policy = Policy(params, NETWORK, Snapshot())
    again = jax.jit(lambda seen: policy.decode_steps(policy.encode(instances), seen))
    logits, values = numpy(again(jax.tree.map(jnp.asarray, batch.observation)))
    legal = np.where(np.isfinite(logits), np.exp(logits - logits.max(axis=-1, keepdims=True)), 0)
    p = legal / legal.sum(axis=-1, keepdims=True)
    taken = np.take_along_axis(p, batch.action[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(np.log(taken), batch.log_prob, atol=1e-4)
    np.testing.assert_allclose(values, batch.value, atol=1e-4)
    np.testing.assert_allclose(batch.log_prob[~batch.real], 0, atol=1e-6)
    assert batch.log_prob[batch.real].std() > 0.1


def test_greedy_episodes_need_no_luck(params, instances):
    first, second = (
        rolled(params, instances, jax.random.key(k), "arrival", 2, greedy_action)[0] for k in (1, 2)
    )
    np.testing.assert_array_equal(first.assignment, second.assignment)
    np.testing.assert_array_equal(first.assignment[:, ::2], first.assignment[:, 1::2])


def test_a_chooser_sees_legal_logits_and_its_own_key(params, instances):
    """The contract of choosers: (instances, samples, actions), minus infinity where illegal."""
    seen = []

    def choose(logits, key):
        seen.append((logits.shape, key))
        return jnp.argmin(jnp.where(jnp.isfinite(logits), logits, jnp.inf), axis=-1)

    unlikely, batch = rolled(params, instances, jax.random.key(0), "arrival", SAMPLES, choose)
    assert seen[0][0] == (INSTANCES, SAMPLES, instances.num_batches + 1)
    assert jnp.issubdtype(seen[0][1].dtype, jax.dtypes.prng_key)
    mask = np.asarray(batch.observation.mask)
    assert np.take_along_axis(mask, np.asarray(batch.action)[..., None], axis=-1).all()
    assert np.all(np.asarray(unlikely.load) <= np.asarray(repeat(instances, SAMPLES).capacity))
