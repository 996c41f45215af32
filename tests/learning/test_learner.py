"""The learner: probe problems with known answers, its advantages, and its bookkeeping."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import describe, init, observe, reset
from episodes import WORLDS, numpy, scale_times, unchecked, world
from probes import GAINS, OPTIMA, ProbeScenario, probes

from offload_jax.env.description import local_time
from offload_jax.env.environment import Snapshot
from offload_jax.env.observation import in_sight
from offload_jax.learning import trajectories
from offload_jax.learning.algorithm import Collected, Learner
from offload_jax.learning.algorithms import ppo
from offload_jax.learning.algorithms.layer import Layer
from offload_jax.learning.algorithms.ppo import PPO, PPOCritic
from offload_jax.learning.algorithms.preference import Preference
from offload_jax.learning.algorithms.self_labelling import SelfLabelling
from offload_jax.learning.config import LearnerConfig
from offload_jax.learning.loss import loss
from offload_jax.learning.updates import collect, summarize, update
from offload_jax.policy.decoding import greedy_plan
from offload_jax.policy.rollout import begin, record
from offload_jax.policy.sampling import greedy_action, sample_action
from offload_jax.policy.transformer import Transformer
from offload_jax.splits import SplitsConfig

SMALL = Transformer(width=16, layers=1, heads=2)
UPDATES = 150
PROBE = LearnerConfig(updates=UPDATES, instances=24, samples=8, minibatches=2, lr=3e-3, entropy=0.2)
ALGORITHMS = {
    "ppo": PPO(),
    "critic": PPOCritic(gae_decay=0.9),
    "self-labelling": SelfLabelling(paths=2, temperature=2.0),
    "layer": Layer(weight=0.1),
}
SETTINGS = {
    name: Learner(ProbeScenario(), Snapshot(), SMALL, algorithm, PROBE)
    for name, algorithm in ALGORITHMS.items()
}


@partial(jax.jit, static_argnums=0)
def trained(learner, key):
    """(first state, last state, metrics of every update), in one program."""
    start = init(learner, key)
    last, metrics = jax.lax.scan(
        lambda state, _: update(learner, state), start, None, learner.config.updates
    )
    return start, last, metrics


@partial(jax.jit, static_argnums=0)
def greedy(learner, params, instances):
    """(assignment, gain) of the greedy episode, and the critic's value of its every state."""
    policy = learner.policy(params)
    final, batch = record(policy, begin(policy, instances, 1), greedy_action, None)
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
    learner = replace(SETTINGS["ppo"], network=replace(SMALL, dtype="bfloat16"))
    _, last, metrics = trained(learner, jax.random.key(0))
    plans, gain, _ = numpy(greedy(learner, last.params, probes()))
    assert [tuple(plan) for plan in plans.T] == list(OPTIMA)
    np.testing.assert_allclose(gain, GAINS, rtol=1e-4)
    leaves = jax.tree.leaves((last.params, last.optimizer, metrics))
    assert all(x.dtype == jnp.float32 for x in leaves if jnp.issubdtype(x.dtype, jnp.floating))


@pytest.mark.parametrize("order", ["sorted", "adaptive"])
def test_the_layers_gradient_alone_teaches_the_probes(order):
    """Its objective reaches the best gain, which is -1 in this unit, and samples follow."""
    alone, env = Layer(weight=1.0, surrogate=0.0), Snapshot(order=order)
    learner = replace(SETTINGS["ppo"], algorithm=alone, env=env)
    _, last, metrics = trained(learner, jax.random.key(0))
    plans, gain = numpy(jax.jit(greedy_plan)(learner.policy(last.params), probes()))
    assert [tuple(plan) for plan in plans.T] == list(OPTIMA)
    np.testing.assert_allclose(gain, GAINS, rtol=1e-4)
    layer, gains = np.asarray(metrics["layer"]), np.asarray(metrics["gain"])
    assert layer[0] > -0.9
    assert -1.001 <= layer[-1] < -0.9
    assert gains[-10:].mean() > gains[:10].mean()


def test_the_critic_knows_what_follows(school):
    """Of greedy episodes of a learnt policy: gains still to come, in all-local times."""
    learner, _, last, metrics = school
    if learner is not SETTINGS["critic"]:
        assert "value_error" not in metrics  # there is none
        return
    _, gain, values = numpy(greedy(learner, last.params, probes()))
    returns = gain / (3 * np.asarray(local_time(probes())))
    np.testing.assert_allclose(values[0], returns, atol=0.03)
    assert np.ptp(returns) > 0.15
    assert float(metrics["value_error"][-1]) < 0.1 * float(metrics["value_error"][0])


def test_metrics_are_finite_and_tell_the_story(school):
    _, start, last, metrics = school
    chex.assert_tree_all_finite((metrics, last.params))
    series = numpy(metrics)
    assert int(start.step) == 0
    assert int(last.step) == UPDATES
    assert series["gain"][-10:].mean() > series["gain"][:10].mean() + 0.02
    assert np.all(series["best_of_samples"] >= series["gain"] - 1e-6)  # sums in another order
    assert 0 < series["entropy"][-1] < series["entropy"][0] < np.log(3)
    assert np.all(series["grad_norm"] > 0)
    # The score is 0.1 U / N: of the optimal plans once everything is learnt.
    worth = np.asarray(probes().alpha * probes().accuracy_local).sum(axis=0)
    local = np.asarray(probes().wait + 10 * probes().local_step).sum(axis=0)
    best = 0.1 / 3 * (np.array(GAINS) + worth - local)
    assert best.min() <= series["score"][-1] <= best.max()
    assert series["score"][-1] == pytest.approx(best.mean(), abs=0.05)


@pytest.mark.fast
def test_the_score_counts_the_users_own_terms():
    """Of plans that gain nothing it is that of everybody denied: here less the longest wait."""
    solver = SplitsConfig("cvxpylayers-moreau", terms=("-max(latency)",)).to_solver()
    learner = replace(SETTINGS["ppo"], env=Snapshot(solver=solver))
    nothing = Collected(gain=jnp.zeros((3, 4)), decisions=None)
    shown = summarize(learner, probes(), nothing)
    local = np.asarray(probes().wait + probes().steps * probes().local_step)
    plain = np.asarray(probes().alpha * probes().accuracy_local) - local
    wanted = 0.1 / 3 * (plain.sum(axis=0) - local.max(axis=0))
    assert float(shown["score"]) == pytest.approx(wanted.mean(), rel=1e-5)


def test_updates_are_deterministic_and_traced_once():
    learner = SETTINGS["ppo"]
    chex.clear_trace_counter()
    counted = jax.jit(chex.assert_max_traces(lambda state: update(learner, state), n=1))
    first = init(learner, jax.random.key(1))
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


@pytest.fixture(scope="module", params=["ppo", "critic"])
def lucky(request):
    """(learner, parameters, instances with padding, what is collected of them)."""
    config = LearnerConfig(instances=8, samples=4, entropy=0.5)
    learner = Learner(WORLDS["edge"], Snapshot(), SMALL, ALGORITHMS[request.param], config)
    instances = world("edge", 8)
    state = init(learner, jax.random.key(0))
    return learner, state.params, instances, by_algorithm(learner, state.params, instances)


def by_algorithm(learner, params, instances):
    """What an algorithm makes of trajectories by luck."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trajectories, "drawn", lambda learner: by_luck)
        collect = jax.jit(learner.algorithm.collect, static_argnums=0)
        return collect(learner, learner.policy(params), instances, jax.random.key(3))


def test_advantages_in_formulas(lucky):
    learner, _, instances, collected = lucky
    targets, gains, batch = numpy((collected.targets, collected.gain, collected.decisions))
    unit = np.asarray(local_time(instances))[:, None]
    scale = np.maximum(gains.max(axis=1, keepdims=True), 0.01 * unit)
    others = (gains.sum(axis=1, keepdims=True) - gains) / 3
    if learner.algorithm == PPO():
        wanted = np.broadcast_to((gains - others) / scale, batch.reward.shape)
        np.testing.assert_allclose(targets, wanted, atol=1e-5)
        return
    users = np.asarray(instances.mask).sum(axis=0)[:, None]
    reward, value, real = (np.asarray(x) for x in (batch.reward, batch.value, batch.real))
    reward = reward / (unit * users)
    advantage, later, following = np.zeros_like(value), 0.0, 0.0
    for t in reversed(range(len(value))):
        worth = np.where(real[t], value[t], reward[t] + following)
        later = reward[t] + following - worth + 0.9 * later
        advantage[t], following = later, worth
        np.testing.assert_allclose(targets.value[t], later + worth, atol=1e-5)
    np.testing.assert_allclose(targets.advantage, advantage * unit * users / scale, atol=1e-4)


def test_the_critic_is_ignored_where_it_is_not_trained(lucky, monkeypatch):
    learner, params, instances, collected = lucky
    real = collected.decisions.real
    assert 0.1 < np.mean(np.asarray(real)) < 0.95

    def with_nonsense(*given):
        found = trajectories.sampled(*given)
        value = jnp.where(found.decisions.real, found.decisions.value, 1e6)
        return replace(found, decisions=replace(found.decisions, value=value))

    monkeypatch.setattr(ppo, "sampled", with_nonsense)
    again = by_algorithm(learner, params, instances)
    assert np.max(np.asarray(again.decisions.value)) == 1e6
    mine, theirs = advantage_of(collected), advantage_of(again)
    np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5)  # of two programs


def advantage_of(collected):
    """Of PPO with either baseline."""
    return np.asarray(getattr(collected.targets, "advantage", collected.targets))


def test_units_of_time_do_not_matter(lucky):
    learner, params, instances, mine = lucky
    theirs = by_algorithm(learner, params, scale_times(instances, 3.7))
    np.testing.assert_array_equal(theirs.decisions.action, mine.decisions.action)
    chex.assert_trees_all_close(mine.targets, theirs.targets, rtol=1e-3, atol=1e-3)
    assert np.std(np.asarray(jax.tree.leaves(mine.targets)[0])) > 0.1


def test_the_loss_counts_real_decisions_only(lucky):
    """On policy: minus the mean advantage; its entropy that of the steps with a choice."""
    learner, params, instances, collected = lucky
    batch, targets = collected.decisions, collected.targets
    evaluate_loss = jax.jit(partial(loss, learner))
    total, parts = evaluate_loss(params, instances, collected, jnp.asarray(0.25))
    policy = learner.policy(params)
    seen = jax.jit(lambda o: policy.decode_steps(policy.encode(instances), o))
    logits, values = numpy(seen(batch.observation))
    real = np.asarray(batch.real)
    p = np.exp(logits - logits.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    entropies = -np.sum(np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0), axis=-1)
    assert parts["entropy"] == pytest.approx(entropies[real].mean(), rel=1e-4)
    assert entropies.mean() < 0.9 * entropies[real].mean()  # masked steps would count
    error, advantage = 0.0, targets
    if learner.algorithm != PPO():
        error, advantage = (
            np.mean((values - np.asarray(targets.value))[real] ** 2) / 2,
            targets.advantage,
        )
        assert parts["value_error"] == pytest.approx(error, rel=1e-3)
    wanted = -np.asarray(advantage)[real].mean() - 0.5 * 0.75 * parts["entropy"]
    wanted += 0.5 * error
    assert float(total) == pytest.approx(float(wanted), rel=1e-3, abs=1e-4)
    spoiled = jax.tree.map(lambda x: jnp.where(batch.real, x, 1e3), targets)
    spoiled = replace(collected, targets=spoiled)
    again, _ = evaluate_loss(params, instances, spoiled, jnp.asarray(0.25))
    assert float(again) == pytest.approx(float(total), rel=1e-5)


def test_nothing_out_of_sight_is_imitated():
    """With one candidate many plans lead elsewhere: such a step teaches nothing, not a lot."""
    config = replace(PROBE, instances=4, samples=2)
    env, algorithm = Snapshot(order="adaptive", candidates=1), SelfLabelling("local-search")
    learner = Learner(WORLDS["edge"], env, SMALL, algorithm, config)
    params = init(learner, jax.random.key(0)).params
    keys = jax.random.split(jax.random.key(1))
    instances, collected = jax.jit(partial(collect, learner))(params, *keys)
    batch = collected.decisions
    known = np.any(np.asarray(in_sight(batch.observation) & batch.wanted), axis=-1)
    assert 0.1 < known[np.asarray(batch.real)].mean() < 0.9
    _, parts = jax.jit(partial(loss, learner))(params, instances, collected, jnp.zeros(()))
    assert 0 < float(parts["loss"]) < 5  # an action out of sight has 50 nats


@pytest.mark.fast
def test_settings_are_checked():
    LearnerConfig().validate()
    for field, value, allowed in (
        ("updates", 0, "must be at least 1"),
        ("instances", 0, "must be at least 1"),
        ("samples", 0, "must be at least 1"),
        ("epochs", 0, "must be at least 1"),
        ("minibatches", 0, "must be at least 1"),
        ("minibatches", 3, r"must divide learner.instances \(128\)"),
        ("lr", 0.0, "must be finite and above 0"),
        ("lr", float("nan"), "must be finite and above 0"),
        ("max_grad_norm", float("inf"), "must be finite and above 0"),
        ("entropy", -1.0, "must be finite and at least 0"),
    ):
        with pytest.raises(ValueError, match=rf"learner\.{field} is .*{allowed}"):
            unchecked(LearnerConfig(), **{field: value}).validate()


@pytest.mark.fast
@pytest.mark.parametrize(
    ("algorithm", "field", "value", "allowed"),
    [
        (PPO(), "clip", -0.1, "must be finite and above 0"),
        (PPOCritic(), "clip", 0.0, "must be finite and above 0"),
        (PPOCritic(), "value", float("nan"), "must be finite and at least 0"),
        (PPOCritic(), "gae_decay", 1.5, r"must be in 0\.\.1"),
        (SelfLabelling(), "labels", "best", "must be one of best-sample, local-search"),
        (SelfLabelling(), "paths", 0, "must be at least 1"),
        (SelfLabelling(), "temperature", 0.0, "must be finite and above 0"),
        (Preference(), "sharpness", 0.0, "must be finite and above 0"),
        (Layer(), "weight", 0.0, "must be finite and above 0"),
        (Layer(), "surrogate", -1.0, "must be finite and at least 0"),
    ],
)
def test_settings_of_algorithms_are_checked(algorithm, field, value, allowed):
    learner = replace(SETTINGS["ppo"], algorithm=algorithm)
    algorithm.validate(learner)
    with pytest.raises(ValueError, match=rf"algorithm\.{field} is .*{allowed}"):
        unchecked(algorithm, **{field: value}).validate(learner)
    single = replace(learner, config=replace(PROBE, samples=1))
    SelfLabelling("local-search").validate(single)  # a search finds better ones
    if isinstance(algorithm, PPOCritic):
        algorithm.validate(single)
        return
    with pytest.raises(
        ValueError, match=r"learner\.samples is 1; must be at least 2 with algorithm"
    ):
        algorithm.validate(single)


def test_one_update_in_adaptive_order():
    config = replace(PROBE, updates=1)
    learner = Learner(ProbeScenario(), Snapshot(order="adaptive"), SMALL, PPO(), config)
    start, last, metrics = trained(learner, jax.random.key(0))
    chex.assert_tree_all_finite((last.params, metrics))
    assert describe(probes()).mask.all()
    assert observe(probes(), reset(probes(), learner.env), learner.env).mask.shape[0] == 7
    assert int(last.step) == int(start.step) + 1
