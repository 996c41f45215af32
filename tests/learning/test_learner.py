"""The learner: probe problems with known answers, its advantages, and its bookkeeping."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from episodes import WORLDS, jit, numpy, scale_times, unchecked, world
from probes import GAINS, OPTIMA, ProbeScenario, probes

from offload_jax.env.config import EnvConfig
from offload_jax.env.description import describe, local_time
from offload_jax.env.observation import in_sight, observe
from offload_jax.env.step import reset
from offload_jax.learning import loss
from offload_jax.learning.config import Learner, LearnerConfig
from offload_jax.learning.learner import collect, init, update
from offload_jax.policy.network import NetworkConfig
from offload_jax.policy.rollout import decode, encode, unroll
from offload_jax.policy.sampling import greedy_action, sample_action

SMALL = NetworkConfig(width=16, layers=1, heads=2)
UPDATES = 150
PROBE = LearnerConfig(updates=UPDATES, instances=24, samples=8, minibatches=2, lr=3e-3, entropy=0.2)
SETTINGS = {
    "shared": Learner(ProbeScenario(), EnvConfig(), SMALL, PROBE),
    "critic": Learner(
        ProbeScenario(), EnvConfig(), SMALL, replace(PROBE, baseline="critic", gae_decay=0.9)
    ),
    "imitation": Learner(
        ProbeScenario(),
        EnvConfig(),
        SMALL,
        replace(PROBE, objective="imitation", labels="best-sample", paths=2, temperature=2.0),
    ),
}


begin = jit(init, static_argnums=0)


@partial(jit, static_argnums=0)
def trained(learner, key):
    """(first state, last state, metrics of every update), in one program."""
    start = init(learner, key)
    last, metrics = jax.lax.scan(
        lambda state, _: update(learner, state), start, None, learner.config.updates
    )
    return start, last, metrics


@partial(jit, static_argnums=0)
def greedy(learner, params, instances):
    """(assignment, gain) of the greedy episode, and the critic's value of its every state."""
    final, batch = unroll(
        learner.module(), params, instances, 1, jax.random.key(0), greedy_action, learner.env
    )
    return final.assignment, final.gain, batch.value[..., 0]


@pytest.fixture(scope="module", params=SETTINGS)
def school(request):
    learner = SETTINGS[request.param]
    return learner, *trained(learner, jax.random.key(0))


def test_the_probes_are_what_they_claim():
    """By enumeration of all plans; and the best myopic start of the second one is the trap."""
    from itertools import product

    from offload_jax.plans.outcome import evaluate

    plans = jnp.array(list(product(range(3), repeat=3))).T
    valued = jax.jit(jax.vmap(evaluate, in_axes=(None, -1), out_axes=-1))
    for kind, (optimum, gain) in enumerate(zip(OPTIMA, GAINS, strict=True)):
        instance = jax.tree.map(lambda x, kind=kind: x[..., kind], probes())
        outcome = numpy(valued(instance, plans))
        gains = np.where(outcome.feasible, outcome.gain, -np.inf)
        assert tuple(plans[:, np.argmax(gains)].tolist()) == optimum
        assert np.max(gains) == pytest.approx(gain, rel=1e-5)
        assert np.sort(gains)[-2] < gain - 0.5


def test_it_learns_the_probes(school):
    """(a) the toy, (b) the trap of a first user, (c) telling the trap from its opposite."""
    learner, start, last, _ = school
    before, first_gain, _ = numpy(greedy(learner, start.params, probes()))
    assert tuple(before[:, 1]) == (1, 0, 0)  # the untrained policy is trapped
    after, gain, _ = numpy(greedy(learner, last.params, probes()))
    assert [tuple(plan) for plan in after.T] == list(OPTIMA)
    np.testing.assert_allclose(gain, GAINS, rtol=1e-4)
    assert first_gain[1] < gain[1] - 1


@pytest.mark.slow  # CPUs compute in bfloat16 slowly
def test_it_learns_in_bfloat16():
    """The same optima; everything outside the network is still float32."""
    learner = replace(SETTINGS["shared"], network=replace(SMALL, dtype="bfloat16"))
    _, last, metrics = trained(learner, jax.random.key(0))
    plans, gain, _ = numpy(greedy(learner, last.params, probes()))
    assert [tuple(plan) for plan in plans.T] == list(OPTIMA)
    np.testing.assert_allclose(gain, GAINS, rtol=1e-4)
    leaves = jax.tree.leaves((last.params, last.optimizer, metrics))
    assert all(x.dtype == jnp.float32 for x in leaves if jnp.issubdtype(x.dtype, jnp.floating))


@pytest.mark.parametrize("layer", [{"layer": 0.1}, {"layer": 1.0, "objective": "layer"}])
def test_a_one_shot_policy_learns_the_probes_too(layer):
    """With a little of the layer's gradient beside, and from nothing else."""
    env = EnvConfig(one_shot=True, reward="terminal")
    learner = Learner(ProbeScenario(), env, SMALL, replace(PROBE, **layer))
    _, last, _ = trained(learner, jax.random.key(0))
    plans, gain, _ = numpy(greedy(learner, last.params, probes()))
    assert [tuple(plan) for plan in plans.T] == list(OPTIMA)
    np.testing.assert_allclose(gain, GAINS, rtol=1e-4)


def test_the_critic_knows_what_follows(school):
    """Of greedy episodes of a learnt policy: gains still to come, in all-local times."""
    learner, _, last, metrics = school
    if learner.config.baseline == "shared":
        assert np.all(np.asarray(metrics.value_error) == 0)  # there is none
        return
    _, gain, values = numpy(greedy(learner, last.params, probes()))
    returns = gain / (3 * np.asarray(local_time(probes())))
    np.testing.assert_allclose(values[0], returns, atol=0.03)
    assert np.ptp(returns) > 0.15
    assert float(metrics.value_error[-1]) < 0.1 * float(metrics.value_error[0])


def test_metrics_are_finite_and_tell_the_story(school):
    _, start, last, metrics = school
    chex.assert_tree_all_finite((metrics, last.params))
    series = numpy(metrics)
    assert int(start.step) == 0
    assert int(last.step) == UPDATES
    assert series.gain[-10:].mean() > series.gain[:10].mean() + 0.02
    assert np.all(series.best_of_samples >= series.gain - 1e-6)  # sums in another order
    assert 0 < series.entropy[-1] < series.entropy[0] < np.log(3)
    assert np.all(series.grad_norm > 0)
    # The score is 0.1 U / N: of the optimal plans once everything is learnt.
    worth = np.asarray(probes().alpha * probes().accuracy_local).sum(axis=0)
    local = np.asarray(probes().wait + 10 * probes().local_step).sum(axis=0)
    best = 0.1 / 3 * (np.array(GAINS) + worth - local)
    assert best.min() <= series.score[-1] <= best.max()
    assert series.score[-1] == pytest.approx(best.mean(), abs=0.05)


def test_updates_are_deterministic_and_traced_once():
    learner = SETTINGS["shared"]
    chex.clear_trace_counter()
    counted = jit(chex.assert_max_traces(lambda state: update(learner, state), n=1))
    first = begin(learner, jax.random.key(1))
    second, metrics = counted(first)
    chex.assert_trees_all_equal(counted(first), (second, metrics))
    third, _ = counted(second)
    assert int(third.step) == 2
    assert not jnp.array_equal(jax.random.key_data(third.key), jax.random.key_data(second.key))
    leaves = zip(*(jax.tree.leaves(state.params) for state in (first, second)), strict=True)
    assert any(not np.array_equal(a, b) for a, b in leaves)


def by_luck(logits, key):
    """Legal actions at random whatever the logits, so that episodes can be repeated exactly."""
    return sample_action(jnp.where(jnp.isfinite(logits), 0.0, -jnp.inf), key)


@pytest.fixture(scope="module", params=["shared", "critic"])
def collected(request):
    """(learner, parameters, instances with padding, final state, transitions)."""
    config = LearnerConfig(
        baseline=request.param, instances=8, samples=4, gae_decay=0.9, entropy=0.5
    )
    learner = Learner(WORLDS["edge"], EnvConfig(), SMALL, config)
    instances = world("edge", 8)
    state = begin(learner, jax.random.key(0))
    return learner, state.params, instances, *rolled(learner, state.params, instances)


@partial(jit, static_argnums=0)
def rolled(learner, params, instances):
    return unroll(learner.module(), params, instances, 4, jax.random.key(3), by_luck, learner.env)


def test_advantages_in_formulas(collected):
    learner, _, instances, final, batch = collected
    targets = numpy(loss.advantages(learner, instances, final, batch))
    gains = np.asarray(final.gain).reshape(8, 4)
    unit = np.asarray(local_time(instances))[:, None]
    scale = np.maximum(gains.max(axis=1, keepdims=True), 0.01 * unit)
    others = (gains.sum(axis=1, keepdims=True) - gains) / 3
    if learner.config.baseline == "shared":
        wanted = np.broadcast_to((gains - others) / scale, batch.reward.shape)
        np.testing.assert_allclose(targets.advantage, wanted, atol=1e-5)
        return
    users = np.asarray(instances.mask).sum(axis=0)[:, None]
    reward, value, real = (np.asarray(x) for x in (batch.reward, batch.value, batch.real))
    reward = reward / (0.1 * unit)
    advantage, later, following = np.zeros_like(value), 0.0, 0.0
    for t in reversed(range(len(value))):
        worth = np.where(real[t], value[t], reward[t] + following)
        later = reward[t] + following - worth + 0.9 * later
        advantage[t], following = later, worth
        np.testing.assert_allclose(targets.value[t], later + worth, atol=1e-5)
    np.testing.assert_allclose(targets.advantage, advantage * unit * users / scale, atol=1e-4)


def test_the_critic_is_ignored_where_it_is_not_trained(collected):
    learner, _, instances, final, batch = collected
    nonsense = jnp.where(batch.real, batch.value, 1e6)
    first = loss.advantages(learner, instances, final, batch)
    second = loss.advantages(learner, instances, final, replace(batch, value=nonsense))
    assert 0.1 < np.mean(np.asarray(batch.real)) < 0.95
    np.testing.assert_array_equal(first.advantage, second.advantage)


def test_units_of_time_do_not_matter(collected):
    learner, params, instances, final, batch = collected
    scaled = scale_times(instances, 3.7)
    there, again = rolled(learner, params, scaled)
    np.testing.assert_array_equal(again.action, batch.action)
    mine = loss.advantages(learner, instances, final, batch)
    theirs = loss.advantages(learner, scaled, there, again)
    chex.assert_trees_all_close(mine, theirs, rtol=1e-3, atol=1e-3)
    assert np.std(np.asarray(mine.advantage)) > 0.1


def test_the_loss_counts_real_decisions_only(collected):
    """On policy: minus the mean advantage; its entropy that of the steps with a choice."""
    learner, params, instances, final, batch = collected
    targets = loss.advantages(learner, instances, final, batch)
    evaluate_loss = jit(partial(loss.loss, learner))
    total, parts = evaluate_loss(params, instances, batch, targets, jnp.asarray(0.25))
    encoding = encode(learner.module(), params, instances)
    seen = jax.vmap(lambda o: decode(learner.module(), params, encoding, o))
    logits, values = numpy(jit(seen)(batch.observation))
    real = np.asarray(batch.real)
    p = np.exp(logits - logits.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    entropies = -np.sum(np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0), axis=-1)
    assert parts["entropy"] == pytest.approx(entropies[real].mean(), rel=1e-4)
    assert entropies.mean() < 0.9 * entropies[real].mean()  # masked steps would count
    error = 0.5 * np.mean((values - np.asarray(targets.value))[real] ** 2)
    error = error if learner.config.baseline == "critic" else 0
    assert parts["value_error"] == pytest.approx(error, rel=1e-3)
    wanted = -np.asarray(targets.advantage)[real].mean() - 0.5 * 0.75 * parts["entropy"]
    wanted += 0.5 * error
    assert float(total) == pytest.approx(float(wanted), rel=1e-3, abs=1e-4)
    spoiled = jax.tree.map(lambda x: jnp.where(batch.real, x, 1e3), targets)
    again, _ = evaluate_loss(params, instances, batch, spoiled, jnp.asarray(0.25))
    assert float(again) == pytest.approx(float(total), rel=1e-5)


def test_nothing_out_of_sight_is_imitated():
    """With one candidate many plans lead elsewhere: such a step teaches nothing, not a lot."""
    config = replace(PROBE, instances=4, samples=2, objective="imitation", labels="local-search")
    env = EnvConfig(order="adaptive", candidates=1)
    learner = Learner(WORLDS["edge"], env, SMALL, config)
    params = init(learner, jax.random.key(0)).params
    keys = jax.random.split(jax.random.key(1))
    instances, _, batch = jit(partial(collect, learner))(params, *keys)
    known = np.any(np.asarray(in_sight(batch.observation) & batch.wanted), axis=-1)
    assert 0.1 < known[np.asarray(batch.real)].mean() < 0.9
    _, parts = jit(partial(loss.loss, learner))(params, instances, batch, None, jnp.zeros(()))
    assert 0 < float(parts["loss"]) < 5  # an action out of sight has 50 nats


@pytest.mark.fast
def test_settings_are_checked():
    LearnerConfig().validate()
    LearnerConfig(baseline="critic", samples=1).validate()
    for field, value, allowed in (
        ("baseline", "best", "must be one of shared, critic"),
        ("updates", 0, "must be at least 1"),
        ("instances", 0, "must be at least 1"),
        ("samples", 0, "must be at least 1"),
        ("epochs", 0, "must be at least 1"),
        ("minibatches", 0, "must be at least 1"),
        ("minibatches", 3, r"must divide learner.instances \(128\)"),
        ("samples", 1, "must be at least 2 with learner.baseline shared"),
        ("lr", 0.0, "must be finite and above 0"),
        ("lr", float("nan"), "must be finite and above 0"),
        ("max_grad_norm", float("inf"), "must be finite and above 0"),
        ("clip", -0.1, "must be finite and above 0"),
        ("entropy", -1.0, "must be finite and at least 0"),
        ("value", float("nan"), "must be finite and at least 0"),
        ("gae_decay", 1.5, r"must be in 0\.\.1"),
        ("objective", "best", "must be one of surrogate, preference, imitation, layer"),
        ("layer", -1.0, "must be finite and at least 0"),
    ):
        with pytest.raises(ValueError, match=rf"learner\.{field} is .*{allowed}"):
            unchecked(LearnerConfig(), **{field: value}).validate()
    with pytest.raises(
        ValueError, match=r"learner\.layer is 0\.0; must be above 0 with learner\.obj"
    ):
        LearnerConfig(objective="layer").validate()


def test_one_update_in_adaptive_order():
    learner = Learner(
        ProbeScenario(), EnvConfig(order="adaptive"), SMALL, replace(PROBE, updates=1)
    )
    start, last, metrics = trained(learner, jax.random.key(0))
    chex.assert_tree_all_finite((last.params, metrics))
    assert describe(probes()).mask.all()
    assert observe(probes(), reset(probes(), learner.env), learner.env).mask.shape[0] == 7
    assert int(last.step) == int(start.step) + 1
