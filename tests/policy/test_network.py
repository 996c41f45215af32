"""The actor-critic: equivariant, blind to padding and units, for any numbers of users, batches."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import describe, observe, reset
from episodes import (
    numpy,
    one,
    permute_batches,
    permute_users,
    play,
    replay,
    sample,
    scale_times,
    spoil_padding,
    unchecked,
    world,
)

from offload_jax.env.config import EnvConfig
from offload_jax.env.description import LEVELS
from offload_jax.env.observation import STEP_FEATURES
from offload_jax.env.state import num_actions
from offload_jax.policy.network import UNSEEN
from offload_jax.policy.transformer import ActorCritic, Sight, Transformer
from offload_jax.problem.instance import pad_users, toy
from offload_jax.problem.scenario import EdgeScenario

NETWORK = ActorCritic(Transformer(width=16, layers=2, heads=4))
ENVS = {
    "arrival": EnvConfig(),
    "adaptive": EnvConfig(order="adaptive"),
    "candidates": EnvConfig(order="adaptive", candidates=5),
}
apply = jax.jit(NETWORK.apply, static_argnames="method")
each_env = pytest.mark.parametrize("env", ENVS.values(), ids=ENVS)
pytestmark = pytest.mark.fast


@pytest.fixture(scope="module")
def params():
    """Parameters all of which matter: initial ones with noise, so that no head is close to 0."""
    instance = one(world("edge"), 0)
    return noisy(describe(instance), observe(instance, reset(instance)))


@jax.jit
def noisy(*shown):
    leaves, shape = jax.tree.flatten(NETWORK.init(jax.random.key(0), *shown))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noise = [0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(shape, [x + y for x, y in zip(leaves, noise, strict=True)])


@partial(jax.jit, static_argnums=3)
def outputs(params, instance, state, env):
    """(logits, value) of one instance."""
    return NETWORK.apply(params, describe(instance), observe(instance, state, env))


def middle(env, seed=0):
    """(instance with padding, state in the middle of its episode)."""
    instances = world("edge", seed=seed)
    index = int(np.argmax(np.asarray(instances.mask).sum(axis=0) == 4))
    turns = play(instances, jax.random.key(1), env.order, True)
    state = one(jax.tree.map(lambda x: x[2], turns.before), index)
    assert not bool(state.stopped)
    return one(instances, index), state


def by_pair(logits, env, batches):
    """Logits of the grants, (candidates, batches), and of the rest (deny or stop)."""
    logits = np.asarray(logits)
    last = env.order == "adaptive"
    grants, other = (logits[:-1], logits[-1]) if last else (logits[1:], logits[0])
    return grants.reshape(-1, batches), other


def moved_users(state, stored):
    names = ("assignment", "decided", "turn", "split")
    return replace(state, **{name: getattr(state, name)[stored] for name in names})


@each_env
def test_one_logit_per_action_minus_infinity_where_illegal(params, env):
    instance, state = middle(env)
    logits, value = outputs(params, instance, state, env)
    mask = np.asarray(observe(instance, state, env).mask)
    assert logits.shape == (num_actions(instance.num_users, 4, env),) == mask.shape
    np.testing.assert_array_equal(np.isfinite(logits), mask)
    assert np.all(np.asarray(logits)[~mask] == -np.inf)
    assert value.shape == ()
    assert np.isfinite(value)
    assert 1 < mask.sum() < mask.size
    assert np.std(np.asarray(logits)[mask]) > 0.1


@each_env
def test_padding_changes_nothing(params, env):
    instance, state = middle(env)
    logits, value = outputs(params, instance, state, env)
    spoiled = outputs(params, spoil_padding(instance, jnp.nan), state, env)
    np.testing.assert_array_equal(logits, spoiled[0])
    np.testing.assert_array_equal(value, spoiled[1])
    # More padding: the state of the same decisions in an instance padded further.
    wider = pad_users(instance, instance.num_users + 3)
    padded = {
        name: jnp.pad(getattr(state, name), (0, 3), constant_values=fill)
        for name, fill in {"assignment": 0, "decided": 1, "turn": 9, "split": 50}.items()
    }
    others, same = outputs(params, wider, replace(state, **padded), env)
    kept = logits.shape[0] - 1
    if env.order == "adaptive":
        assert np.all(np.asarray(others[kept:-1]) == -np.inf)
        others = jnp.append(others[:kept], others[-1])
    np.testing.assert_allclose(logits, others, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(value, same, rtol=1e-4, atol=1e-5)


@each_env
def test_storage_order_of_users(params, env):
    """Arrival: the current user's logits stay; adaptive: logits move with their users."""
    instance, state = middle(env)
    stored = np.random.default_rng(0).permutation(instance.num_users)
    logits, value = outputs(params, instance, state, env)
    moved = permute_users(instance, stored)
    others, same = outputs(params, moved, moved_users(state, stored), env)
    (grants, other), (grants_moved, other_moved) = (by_pair(x, env, 4) for x in (logits, others))
    wanted = grants[stored] if env.order == "adaptive" else grants
    np.testing.assert_allclose(grants_moved, wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose([other, value], [other_moved, same], rtol=1e-4, atol=1e-5)
    mine, theirs = (numpy(apply(params, describe(i), method="encode")) for i in (instance, moved))
    real = np.asarray(moved.mask)
    for name in ("users", "pairs"):
        first, second = getattr(mine, name)[stored], getattr(theirs, name)
        np.testing.assert_allclose(first[real], second[real], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(mine.batches, theirs.batches, rtol=1e-3, atol=1e-4)


@each_env
def test_storage_order_of_batches(params, env):
    """A batch's logits move with it, its server included."""
    instance, state = middle(env)
    stored = np.array([2, 0, 3, 1])
    place = np.append(0, np.argsort(stored) + 1)  # assignment 0 stays
    moved = replace(state, assignment=jnp.asarray(place)[state.assignment], load=state.load[stored])
    logits, value = outputs(params, instance, state, env)
    others, same = outputs(params, permute_batches(instance, stored), moved, env)
    (grants, other), (grants_moved, other_moved) = (by_pair(x, env, 4) for x in (logits, others))
    np.testing.assert_allclose(grants_moved, grants[:, stored], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose([other, value], [other_moved, same], rtol=1e-4, atol=1e-5)
    spread = np.ptp(grants[np.isfinite(grants).all(axis=1)], axis=1)
    assert np.max(spread, initial=0.5) > 0.1


@each_env
def test_units_change_no_logit(params, env):
    instance, state = middle(env)
    scaled = replace(state, split=state.split, gain=3.7 * state.gain)
    logits, value = outputs(params, instance, state, env)
    others, same = outputs(params, scale_times(instance, 3.7), scaled, env)
    np.testing.assert_allclose(logits, others, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(value, same, rtol=1e-3, atol=1e-3)


@each_env
def test_other_numbers_of_users_and_batches(params, env):
    """Parameters made for 6 users and 4 batches work for 9 and 5, and for one user alone."""
    larger = EdgeScenario(num_users=(9,), batches=5, servers=3, models=2)
    nine = one(sample(larger, jax.random.key(5), 1), 0)
    alone = jax.tree.map(jnp.asarray, toy()[0])
    alone = permute_users(alone, np.array([1]))
    for instance, actions in ((nine, num_actions(9, 5, env)), (alone, 3)):
        logits, value = outputs(params, instance, reset(instance, env), env)
        assert logits.shape == (actions,)
        assert np.isfinite(logits).all()
        assert np.isfinite(value)


@each_env
def test_one_user_alone_is_a_user_among_padding(params, env):
    """The layout of the actions does not depend on N: one user, one batch to fit in."""
    alone = permute_users(jax.tree.map(jnp.asarray, toy()[0]), np.array([0]))  # fits batch 1 only
    wider = pad_users(alone, 2)
    logits, others = (np.asarray(outputs(params, i, reset(i, env), env)[0]) for i in (alone, wider))
    grants, other = by_pair(logits, env, 2)
    wanted, same = by_pair(others, env, 2)
    np.testing.assert_allclose(grants[0], wanted[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(other, same, rtol=1e-4, atol=1e-5)
    assert np.isfinite(grants).tolist() == [[True, False]]
    states, _ = replay(alone, jnp.array([np.nanargmax(np.where(logits == other, -9, logits))]), env)
    assert int(states.assignment[0, 0]) == 1


@each_env
def test_encoding_once_and_decoding_is_the_whole(params, env):
    instance, state = middle(env)
    observation = observe(instance, state, env)
    encoding = apply(params, describe(instance), method="encode")
    logits, value = apply(params, encoding, observation, method="decode")
    whole, same = apply(params, describe(instance), observation)
    np.testing.assert_allclose(logits, whole, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(value, same, rtol=1e-5, atol=1e-5)


@each_env
def test_every_parameter_has_a_finite_gradient(params, env):
    """Through masked actions and padded users; each of them moves the logits or the value."""
    instance, state = middle(env)
    description, observation = describe(instance), observe(instance, state, env)

    def total(params):
        logits, value = NETWORK.apply(params, description, observation)
        return jnp.sum(jnp.where(observation.mask, jax.nn.log_softmax(logits), 0) ** 2) + value**2

    grads = jax.jit(jax.grad(total))(params)
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(grad).all(), path
        # A shift of all keys of an attention changes nothing.
        if "DenseGeneral_1" in str(path) and "bias" in str(path):
            continue
        assert np.abs(grad).max() > 1e-7, path


def test_the_residual_is_the_reduced_gain(params):
    """With heads at 0 the logits of grants are temperature times reduced gain; without, 0."""
    env = ENVS["arrival"]
    instance, state = middle(env)
    observation = observe(instance, state, env)
    silent = jax.tree.map(jnp.zeros_like, params)
    silent["params"]["temperature"] = jnp.asarray(4.0)
    logits, _ = apply(silent, describe(instance), observation)
    legal = np.asarray(observation.mask)[1:]
    wanted = 4 * np.asarray(observation.reduced)[0][legal]
    np.testing.assert_allclose(np.asarray(logits)[1:][legal], wanted, rtol=1e-5)
    plain = ActorCritic(replace(NETWORK.config, residual=False))
    logits, _ = jax.jit(plain.apply)(silent, describe(instance), observation)
    assert not np.asarray(logits)[np.asarray(observation.mask)].any()


def test_sizes_are_checked():
    Transformer().validate()
    for field in ("width", "layers", "heads"):
        with pytest.raises(ValueError, match=rf"network\.{field} is 0; must be at least 1"):
            replace(Transformer(), **{field: 0}).validate()
    with pytest.raises(ValueError, match=r"network\.heads is 3; must divide network\.width \(64\)"):
        Transformer(heads=3).validate()
    with pytest.raises(
        ValueError, match=r"network\.blind is .*must be among reduced-gains, prices"
    ):
        unchecked(Transformer(), blind=("price",)).validate()
    with pytest.raises(ValueError, match=r"network\.residual is True; must be false with network"):
        Transformer(blind=("reduced-gains",)).validate()


def test_candidates_have_the_logits_that_they_have_among_all(params):
    """The others are legal and never taken, at whatever temperature."""
    few = ENVS["candidates"]
    instance, state = middle(few)
    some, all_of_them = (
        np.asarray(outputs(params, instance, state, env)[0]) for env in (few, ENVS["adaptive"])
    )
    observation = observe(instance, state, few)
    chosen = np.asarray(observation.chosen)
    chosen = chosen[np.asarray(observation.mask)[chosen]]
    assert len(chosen) == few.candidates
    np.testing.assert_allclose(some[chosen], all_of_them[chosen], rtol=1e-4, atol=1e-5)
    others = np.isfinite(some[:-1])
    others[chosen] = False
    assert others.any()
    seen = np.append(some[chosen], some[-1])
    np.testing.assert_allclose(some[:-1][others], seen.min() + UNSEEN, rtol=1e-5)


@pytest.mark.parametrize("sight", get_args(Sight))
def test_what_is_hidden_changes_no_logit(params, sight):
    """And nothing else is hidden: a change of any other feature does."""
    env = ENVS["adaptive"]
    instance, state = middle(env)
    description, observation = describe(instance), observe(instance, state, env)
    blind = ActorCritic(replace(NETWORK.config, blind=(sight,), residual=False))
    apply = jax.jit(lambda d, o: blind.apply(params, d, o)[0])
    before = apply(description, observation)
    gains = ["reduced", "gain", "ahead", "wanting", "hope", "regret", "lead"]
    hidden = {"prices": ["price"], "reduced-gains": gains}.get(sight, [])
    for i, name in enumerate(STEP_FEATURES):
        changed = replace(observation, pairs=observation.pairs.at[:, :, i].add(0.5))
        same = np.array_equal(apply(description, changed), before)
        assert same == (name in hidden), name
    columns = description.pairs.shape[2]
    hidden = {"pairs": range(columns), "level-gains": range(len(LEVELS))}.get(sight, [])
    for i in range(columns):
        changed = replace(description, pairs=description.pairs.at[:, :, i].add(0.5))
        assert np.array_equal(apply(changed, observation), before) == (i in hidden), i


NARROW = ActorCritic(Transformer(width=16, layers=2, heads=4, dtype="bfloat16"))


@partial(jax.jit, static_argnums=3)
def narrow_outputs(params, instance, state, env):
    """What the bfloat16 network makes of the same parameters, and its encoding."""
    description = describe(instance)
    encoding = NARROW.apply(params, description, method="encode")
    return NARROW.apply(params, description, observe(instance, state, env)), encoding


@each_env
def test_bfloat16_is_close_and_stays_inside(params, env):
    instance, state = middle(env)
    logits, value = numpy(outputs(params, instance, state, env))
    (narrow, narrow_value), encoding = narrow_outputs(params, instance, state, env)
    assert (narrow.dtype, narrow_value.dtype) == (jnp.float32, jnp.float32)
    assert encoding.users.dtype == encoding.pairs.dtype == jnp.bfloat16
    legal = np.isfinite(logits)
    np.testing.assert_array_equal(np.isfinite(narrow), legal)
    error = np.abs(np.asarray(narrow)[legal] - logits[legal]).max()
    assert 0 < error < 0.1 * np.ptp(logits[legal])  # bfloat16 has 8 bits: 0.4 % of each number
    assert float(narrow_value) == pytest.approx(float(value), rel=0.1, abs=0.05)


def test_bfloat16_keeps_its_parameters_in_float32():
    instance = one(world("edge"), 0)
    seen = observe(instance, reset(instance))
    fresh = jax.eval_shape(NARROW.init, jax.random.key(0), describe(instance), seen)
    assert {leaf.dtype for leaf in jax.tree.leaves(fresh)} == {jnp.dtype("float32")}
    with pytest.raises(
        ValueError, match=r"network\.dtype is 'float16'; must be one of float32, bf"
    ):
        unchecked(Transformer(), dtype="float16").validate()
