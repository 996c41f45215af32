"""Features: without units, finite, blind to padding, read off the state without a solve."""

from __future__ import annotations

from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import describe, observe, reset
from episodes import (
    ORDERS,
    numpy,
    one,
    permute_users,
    play,
    replay,
    sample,
    scale_times,
    spoil_padding,
    world,
)

from offload_jax.env.config import EnvConfig
from offload_jax.env.description import ROOM, local_time
from offload_jax.env.state import action_mask
from offload_jax.plans.reduced_gains import reply_gains
from offload_jax.problem.instance import toy
from offload_jax.problem.scenario import PRESETS

seen = jax.jit(lambda instances, state, env: (describe(instances), observe(instances, state, env)),
           static_argnums=2)  # fmt: skip


def middle(instances, order, step=None):
    """(state in the middle of random episodes, the actions that led there, settings)."""
    env = EnvConfig(order=order)
    turns = play(instances, jax.random.key(1), order, True)
    step = instances.num_users // 2 if step is None else step
    return jax.tree.map(lambda x: x[step], turns.before), turns.action, env


def differences(first, second):
    """Fields that differ, relative 1e-4 (absolute 1e-5), as in float32 they may not."""
    chex.assert_trees_all_equal_structs(first, second)
    chex.assert_trees_all_close(first, second, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["edge", "paper"])
@pytest.mark.parametrize("order", ["arrival", "adaptive"])
def test_units_do_not_matter(name, order):
    """All times and alphas times 3.7: the same numbers, initially and in the middle."""
    instances = world(name)
    state, actions, env = middle(instances, order)
    scaled = scale_times(instances, 3.7)
    states, _ = replay(scaled, actions, env)
    there = jax.tree.map(lambda x: x[instances.num_users // 2 - 1], states)
    np.testing.assert_allclose(there.gain, 3.7 * state.gain, rtol=1e-4, atol=1e-4)
    differences(seen(instances, state, env), seen(scaled, there, env))
    assert np.std(np.asarray(observe(instances, state, env).pairs[:, :, 0])) > 0.01


@pytest.mark.fast
@pytest.mark.parametrize("order", ["arrival", "adaptive"])
def test_padded_numbers_and_storage_do_not_matter(order):
    instances = world("edge")
    state, _, env = middle(instances, order)
    before = seen(instances, state, env)
    for garbage in (jnp.nan, jnp.inf, -1e30):
        after = seen(spoil_padding(instances, garbage), state, env)
        chex.assert_trees_all_equal(before, after)
    padded = ~np.asarray(instances.mask)
    assert 0.1 < padded.mean() < 0.6
    for table in (before[0].users, before[0].pairs):
        assert not np.moveaxis(np.asarray(table), -1, 1)[padded].any()

    stored = np.random.default_rng(0).permutation(instances.num_users)
    moved = replace(state, **{k: getattr(state, k)[stored]
                              for k in ("assignment", "decided", "turn", "split")})  # fmt: skip
    description, observation = seen(permute_users(instances, stored), moved, env)
    by_user = {"users", "pairs", "mask", "current", "undecided", "granted"}
    if order == "adaptive":
        by_user |= {"reduced"}
    else:
        by_user -= {"pairs", "mask"}
    for tree, other, names in (
        (before[0], description, {"users", "pairs", "mask"}),
        (before[1], observation, by_user - {"mask"}),
    ):
        for field, value in vars(tree).items():
            if field in ("adaptive", "chosen") or (field == "mask" and tree is before[1]):
                continue
            wanted = np.asarray(value)[stored] if field in names else value
            np.testing.assert_allclose(getattr(other, field), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("preset", PRESETS)
def test_finite_in_every_scenario(preset):
    instances = sample(PRESETS[preset], jax.random.key(2), 4)
    for order in ORDERS if preset == "edge" else ("arrival",):
        env = EnvConfig(order=order)
        description, observation = seen(instances, reset(instances, env), env)
        chex.assert_tree_all_finite((description, observation))
        largest = max(float(jnp.max(jnp.abs(x))) for x in
                      (description.users, description.batches, description.pairs,
                       observation.pairs, observation.overall))  # fmt: skip
        assert 1 < largest < 100  # of the order of 1, as networks like it


@pytest.mark.fast
def test_room_for_everybody_is_room_for_everybody():
    """However a capacity without a limit is written."""
    instances = world("edge")
    plenty = ROOM * jnp.sum(instances.demand, axis=0, where=instances.mask)
    found = [
        describe(replace(instances, capacity=jnp.broadcast_to(most, instances.capacity.shape)))
        for most in (plenty, 1e30, jnp.inf)
    ]
    chex.assert_trees_all_close(*found, rtol=1e-6)
    chex.assert_tree_all_finite(found)


@pytest.mark.fast
@pytest.mark.parametrize("order", ORDERS)
def test_finite_along_whole_episodes(order):
    instances = world("edge")
    for step in (0, instances.num_users - 1):  # the last one is padding for most
        state, _, env = middle(instances, order, step)
        chex.assert_tree_all_finite(seen(instances, state, env))


@pytest.mark.fast
def test_observing_solves_nothing():
    """The solver's loops and branches appear in a step, and not in an observation."""
    instance, _, _ = toy()
    state = reset(instance)
    program = str(jax.make_jaxpr(lambda s: (describe(instance), observe(instance, s)))(state))
    assert not any(word in program for word in ("while[", "cond[", "scan["))


@pytest.mark.fast
def test_numbers_worked_out_by_hand():
    """The toy after its user 0 joined batch 1; user 1 (l = 0.5 s, T = 10, 1 image) is next."""
    instance, _, _ = toy()
    env = EnvConfig()
    states, _ = replay(instance, jnp.array([1]), env)
    state = jax.tree.map(lambda x: x[0], states)
    assert float(local_time(instance)) == pytest.approx(5.5)  # 10 (1 + 0.5 + 0.15) / 3
    seen = numpy(observe(instance, state, env))
    np.testing.assert_array_equal(seen.current, [0, 1, 0])
    np.testing.assert_array_equal(seen.undecided, [0, 1, 1])
    np.testing.assert_array_equal(seen.granted, [1, 0, 0])
    np.testing.assert_array_equal(seen.mask, [True, False, True])  # batch 1 is full
    # Own gains 8 (l - s'): s' = 0.4 s in batch 1, where user 0 loses 8 steps of 0.1 s; 0.2 s in 2.
    gains = np.array([8 * (0.5 - 0.4) - 0.8, 8 * (0.5 - 0.2)])
    np.testing.assert_allclose(seen.reduced, [gains / 5.0], atol=1e-6)
    own, unit, ahead, wanting, hope, filled, size, step, price, regret, lead = np.moveaxis(
        seen.pairs[0], -1, 0
    )
    np.testing.assert_allclose(own, gains / 5.0, atol=1e-6)
    np.testing.assert_allclose(unit, gains / 5.5, atol=1e-6)
    np.testing.assert_allclose(ahead, [0, 0], atol=1e-6)  # user 2 gains less
    np.testing.assert_allclose(wanting[1], 1 / 2, atol=1e-6)  # user 1 alone would gain in batch 2
    np.testing.assert_allclose(hope[1], 2.4 / (3 * 5.5), atol=1e-6)
    np.testing.assert_allclose(filled, [1, 0])
    np.testing.assert_allclose(size, [1, 1 / 2])
    np.testing.assert_allclose(step, [0.3 * 10 / 5, 0.1 * 10 / 5], atol=1e-6)
    np.testing.assert_allclose(price, [0, 0])
    # Batch 1 is full, so whoever is not granted in 2 is denied; and user 2 gains nothing there.
    np.testing.assert_allclose(regret, (gains - [gains[1], 0]) / 5.0, atol=1e-6)
    np.testing.assert_allclose(lead, gains / 5.5, atol=1e-6)
    overall = [2 / 3, 1 / 3, 5.6 / (3 * 5.5), 2 / (0 + 1 + 1), np.log(3)]
    np.testing.assert_allclose(seen.overall, overall, rtol=1e-6)
    description = numpy(describe(instance))
    np.testing.assert_allclose(
        description.users[:, 0], np.log([10 / 5.5, 5 / 5.5, 1.5 / 5.5]), rtol=1e-6
    )
    np.testing.assert_allclose(description.users[:, 3], np.log(np.array([2, 1, 1]) * 3 / 4))
    np.testing.assert_allclose(description.batches[:, 2], [2 / 4, 1 / 4])
    # Level 1: batch 1 carries its 2 images, batch 2 its 1; the user comes on top.
    np.testing.assert_allclose(
        description.pairs[1, :, 4], [8 * (0.5 - 0.4) / 5, 8 * (0.5 - 0.3) / 5], atol=1e-6
    )


@pytest.mark.fast
@pytest.mark.parametrize("order", ["arrival", "adaptive"])
def test_the_state_is_shown_as_it_is(order):
    instances = world("edge")
    state, _, env = middle(instances, order)
    observation = numpy(seen(instances, state, env)[1])
    assert observation.adaptive == (order == "adaptive")
    np.testing.assert_array_equal(observation.mask, action_mask(instances, state, env))
    mask, decided = np.asarray(instances.mask), np.asarray(state.decided)
    current = mask & (np.asarray(state.turn) == np.asarray(state.time)) & (order != "adaptive")
    np.testing.assert_array_equal(observation.current, current)
    np.testing.assert_array_equal(observation.undecided, ~decided & ~np.asarray(state.stopped))
    np.testing.assert_array_equal(observation.granted, np.asarray(state.assignment) > 0)
    assert observation.pairs.shape[0] == (instances.num_users if order == "adaptive" else 1)
    # An empty server at its price: the reduced gain is the user's own reply less the air it costs.
    empty = one(world("edge"), 0)
    start = reset(empty, env)
    own = reply_gains(empty, empty.intercept, jnp.zeros(4), jnp.zeros(()))
    shares = np.asarray(own / (empty.steps * empty.local_step)[:, None])
    wanted = np.where(np.asarray(empty.mask)[:, None], shares, 0)
    first = int(np.argmax(np.asarray(start.turn) == 0))
    wanted = wanted if order == "adaptive" else wanted[first : first + 1]
    np.testing.assert_allclose(observe(empty, start, env).reduced, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.fast
@pytest.mark.parametrize("candidates", [5, 99])
def test_candidates_are_the_pairs_of_largest_reduced_gain(candidates):
    """Each with the features that it has among all pairs."""
    instances = world("edge")
    state, _, env = middle(instances, "adaptive")
    everything = numpy(seen(instances, state, env)[1])
    few = numpy(seen(instances, state, replace(env, candidates=candidates))[1])
    number = min(candidates, instances.num_users * 4)
    assert few.pairs.shape[:2] == (candidates, 1)
    assert np.all(few.chosen[number:] == instances.num_users * 4 - 1)
    few = replace(few, chosen=few.chosen[:number], pairs=few.pairs[:number])
    np.testing.assert_array_equal(few.mask, everything.mask)
    for i in range(instances.mask.shape[-1]):
        legal = everything.mask[:-1, i]
        reduced = np.where(legal, everything.reduced[..., i].reshape(-1), -np.inf)
        chosen = few.chosen[:, i]
        some = legal[chosen]  # where fewer are legal, others fill up
        assert some.sum() == min(number, legal.sum())
        assert len(set(chosen)) == number
        np.testing.assert_array_equal(
            np.sort(reduced[chosen][some]), np.sort(reduced[legal])[-some.sum() or len(reduced) :]
        )
        pairs = np.moveaxis(everything.pairs[..., i], 2, 0).reshape(few.pairs.shape[2], -1)
        np.testing.assert_allclose(few.pairs[:, 0, :, i], pairs[:, chosen].T, rtol=1e-4, atol=1e-5)
