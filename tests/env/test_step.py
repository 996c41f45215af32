"""The environment: rewards telescope, capacities hold, every order and action does what it says."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import evaluate, gain_of, reset
from episodes import (
    COUNT,
    ORDERS,
    numpy,
    one,
    permute_users,
    play,
    replay,
    spoil_padding,
    unchecked,
    world,
)

from offload_jax.env.config import EnvConfig
from offload_jax.env.state import action_mask, leading_to, num_actions
from offload_jax.env.step import release, step
from offload_jax.methods.heuristics import reduced_greedy
from offload_jax.plans.outcome import objective_denied
from offload_jax.plans.reduced_gains import reduced_gains
from offload_jax.problem import equations
from offload_jax.problem.instance import toy
from offload_jax.splits import NATIVE


@jax.jit
def gains_when_empty(instances):
    state = reset(instances)
    placed = equations.place(instances, state.assignment)
    return reduced_gains(instances, placed, state.split, state.price)


def judged(instances, turns):
    """The outcome of every state's assignment, leaves (steps, ..., instances)."""
    assignment = turns.after.assignment
    steps = assignment.shape[0]
    many = jax.tree.map(lambda x: jnp.tile(x, (1,) * (x.ndim - 1) + (steps,)), instances)
    flat = np.moveaxis(assignment, 0, 1).reshape(assignment.shape[1], -1)
    outcome = numpy(evaluate(many, jnp.asarray(flat)))
    return jax.tree.map(
        lambda x: np.moveaxis(x.reshape(*x.shape[:-1], steps, COUNT), -2, 0), outcome
    )


@pytest.fixture(
    scope="module",
    params=[
        *(pytest.param(("edge", order), marks=pytest.mark.fast) for order in ORDERS),
        *(("paper", order) for order in ORDERS),
    ],
    ids="-".join,
)
def legal(request):
    """(order, instances, turns of random legal actions, outcomes of the states after them)."""
    name, order = request.param
    instances = world(name)
    turns = numpy(play(instances, jax.random.key(1), order, True))
    return order, instances, turns, judged(instances, turns)


def worth_of_times(instances):
    """sum of alpha + T l over real users: the scale that float errors of U are judged by, s."""
    terms = instances.alpha + instances.steps * instances.local_step
    return np.asarray(jnp.sum(jnp.where(instances.mask, terms, 0), axis=0))


def assert_telescopes(instances, turns, outcome, tolerance):
    """Sums of both rewards against score(final) - score(denied), errors relative to the scale."""
    denied = np.asarray(equations.score(instances, objective_denied(instances, NATIVE)))
    wanted = outcome.score[-1] - denied
    scale = worth_of_times(instances) * 0.1 / np.asarray(instances.mask).sum(axis=0)
    for reward in (turns.dense, turns.terminal):
        assert np.max(np.abs(reward.sum(axis=0) - wanted) / scale) < tolerance
    assert np.all(turns.terminal[:-1] == 0)
    assert np.mean(np.abs(wanted) > 1e-3) > 0.5  # there is something to sum
    assert np.mean(np.abs(turns.dense[:-1]) > 1e-3) > 0.1


def test_rewards_telescope(legal):
    _, *episode = legal
    assert_telescopes(*episode, tolerance=1e-6)  # float32: the tolerance of section 4


@pytest.mark.parametrize(
    ("name", "order"), [("edge", "arrival"), ("edge", "adaptive"), ("paper", "sorted")]
)
def test_rewards_telescope_in_float64(x64, name, order):
    instances = world(name)
    assert instances.alpha.dtype == jnp.float64
    turns = numpy(play(instances, jax.random.key(2), order, True))
    assert_telescopes(instances, turns, judged(instances, turns), tolerance=1e-13)


def test_states_carry_the_solution_of_their_assignment(legal):
    """Undecided users count as denied: each state's numbers are those of its assignment."""
    _, instances, turns, outcome = legal
    state = turns.after
    assert np.max(np.abs(outcome.gain - state.gain) / worth_of_times(instances)) < 1e-6
    np.testing.assert_allclose(outcome.split, state.split, atol=2e-3)  # steps
    np.testing.assert_allclose(outcome.price, state.price, rtol=2e-3, atol=1e-4)
    assert outcome.feasible.all()
    assert np.all(state.assignment[~state.decided] == 0)


def test_capacities_bind_and_hold(legal):
    order, instances, turns, _ = legal
    capacity, demand = np.asarray(instances.capacity), np.asarray(instances.demand)
    for k in range(instances.num_batches):
        load = np.sum(np.where(turns.after.assignment == k + 1, demand, 0), axis=1)
        np.testing.assert_array_equal(load, turns.after.load[:, k])
        assert np.all(load <= capacity[k])
    before = turns.before
    if order == "adaptive":
        open_ = (~before.decided & ~before.stopped[:, None])[:, :, None]
        room = before.load[:, None] + demand[:, None] <= capacity
        wanted = np.append((open_ & room).reshape(len(room), -1, COUNT), True | room[:, 0, :1], 1)
    else:
        now = (before.turn == before.time[:, None]) & np.asarray(instances.mask)
        open_, size = now.any(axis=1, keepdims=True), np.sum(now * demand, axis=1)[:, None]
        room = before.load + size <= capacity
        wanted = np.append(True | room[:, :1], open_ & room, 1)
    np.testing.assert_array_equal(turns.mask, wanted)
    assert np.mean(room[np.broadcast_to(open_, room.shape)]) < 0.97  # some do not fit


def test_padded_steps_are_no_ops(legal):
    """N padded steps; once every real user is decided one action is left, which is idle."""
    order, instances, turns, _ = legal
    steps, users = turns.action.shape[0], np.asarray(instances.mask).sum(axis=0)
    assert steps == instances.num_users
    assert turns.mask.shape[1] == num_actions(steps, instances.num_batches, EnvConfig(order=order))
    np.testing.assert_array_equal(turns.after.time[-1], steps)
    if order == "adaptive":
        idle = turns.before.stopped | turns.before.decided.all(axis=1)
        assert np.all(turns.action[idle] == steps * instances.num_batches)
    else:
        idle = np.arange(steps)[:, None] >= users
        np.testing.assert_array_equal(idle, turns.before.decided.all(axis=1))
        assert turns.after.decided[-1].all()
        assert np.all(turns.action[idle] == 0)
    assert 0.1 < idle.mean() < 0.9
    assert np.all(np.sum(turns.mask, axis=1)[idle] == 1)
    assert np.all(turns.dense[idle] == 0)
    for name in ("assignment", "decided", "split"):
        before, after = (
            np.moveaxis(getattr(s, name), 1, -1)[idle] for s in (turns.before, turns.after)
        )
        np.testing.assert_array_equal(before, after)


def test_who_is_decided_when(legal):
    order, instances, turns, _ = legal
    newly = turns.after.decided & ~turns.before.decided  # (steps, users, instances)
    if order == "adaptive":
        assert np.all(newly.sum(axis=1) <= 1)
        return
    users = np.asarray(instances.mask).sum(axis=0)
    np.testing.assert_array_equal(newly.sum(axis=1), np.arange(newly.shape[0])[:, None] < users)
    worth = np.asarray(instances.wait)
    if order == "sorted":
        worth = np.max(gains_when_empty(instances), axis=1)
    decided = np.argmax(newly, axis=1)  # (steps, instances): which user
    sequence = np.take_along_axis(worth, decided, axis=0)
    falls = np.diff(sequence, axis=0) <= 1e-5
    assert np.all(falls | (np.arange(1, newly.shape[0])[:, None] >= users))


@pytest.mark.fast
@pytest.mark.parametrize("order", ORDERS)
def test_illegal_actions(order):
    """They deny the current user (arrival, sorted) or do nothing (adaptive)."""
    instances = world("edge")
    turns = numpy(play(instances, jax.random.key(1), order, False))
    allowed = np.take_along_axis(turns.mask, turns.action[:, None], axis=1)[:, 0]
    illegal = ~allowed
    assert 0.1 < illegal.mean() < 0.95
    assert np.all(turns.after.load <= np.asarray(instances.capacity))
    before, after = (np.moveaxis(s.assignment, 1, -1)[illegal] for s in (turns.before, turns.after))
    np.testing.assert_array_equal(before, after)  # undecided users hold 0 already
    assert np.all(turns.dense[illegal] == 0)
    newly = (turns.after.decided & ~turns.before.decided).sum(axis=1)
    real = np.arange(newly.shape[0])[:, None] < np.asarray(instances.mask).sum(axis=0)
    if order == "adaptive":
        assert np.all(newly[illegal] == 0)
        assert np.all((turns.after.stopped == turns.before.stopped)[illegal])
    else:
        np.testing.assert_array_equal(newly[illegal], real[illegal])
    # Whatever was legal was done.
    batch = turns.action % instances.num_batches + 1 if order == "adaptive" else turns.action
    grants = allowed & (newly == 1) & (batch > 0)
    done = (turns.after.assignment * (turns.after.decided & ~turns.before.decided)).sum(axis=1)
    np.testing.assert_array_equal(done[grants], batch[grants])
    assert grants.sum() > 50


@pytest.mark.fast
def test_a_stop_denies_the_rest():
    instance, _, _ = toy()
    env = EnvConfig(order="adaptive")
    states, rewards = numpy(replay(instance, jnp.array([0, 6, 3]), env))  # user 0 in 1, stop, -
    np.testing.assert_allclose(rewards, [0.1 / 3 * 5.6, 0, 0], rtol=1e-6)
    np.testing.assert_array_equal(states.assignment[-1], [1, 0, 0])
    np.testing.assert_array_equal(states.stopped, [False, True, True])
    after = one(jax.tree.map(lambda x: np.moveaxis(x, 0, -1), states), 1)
    mask = np.asarray(action_mask(instance, jax.tree.map(jnp.asarray, after), env))
    np.testing.assert_array_equal(mask, [False] * 6 + [True])


@pytest.mark.fast
@pytest.mark.parametrize("order", ["arrival", "adaptive"])
def test_actions_that_do_not_exist_change_nothing(order):
    instance, _, _ = toy()
    env = EnvConfig(order=order)
    bad = jnp.array([-1, num_actions(3, 2, env), -7])
    states, rewards = numpy(replay(instance, bad, env))
    assert not states.assignment.any()
    assert not states.stopped.any()
    assert not rewards.any()


@pytest.mark.fast
@pytest.mark.parametrize("order", ["arrival", "adaptive"])
def test_an_episode_worked_out_by_hand(order):
    """The toy's optimum, decision by decision: 8 (l - s) for each granted user."""
    instance, optimum, _ = toy()
    env = EnvConfig(order=order)
    actions = {"arrival": [1, 2, 0], "adaptive": [3, 0, 6]}[order]  # user 1 in 2, user 0 in 1, stop
    gains = {"arrival": [5.6, 2.4, 0], "adaptive": [2.4, 5.6, 0]}[order]
    states, rewards = numpy(replay(instance, jnp.array(actions), env))
    np.testing.assert_allclose(rewards, 0.1 / 3 * np.array(gains), atol=1e-6)
    np.testing.assert_array_equal(states.assignment[-1], optimum)
    np.testing.assert_allclose(states.split[-1], [2, 2, 10], rtol=1e-6)
    np.testing.assert_array_equal(states.load[-1], [2, 1])
    np.testing.assert_allclose(states.gain[-1], 8.0, rtol=1e-6)


@pytest.mark.parametrize("order", ["arrival", "adaptive"])
def test_batch_last_vmap_and_single_instances_agree(order):
    instances, env = world("edge"), EnvConfig(order=order)
    turns = play(instances, jax.random.key(1), order, True)
    batch_last = numpy(replay(instances, turns.action, env))
    mapped = jax.vmap(lambda i, a: replay.__wrapped__(i, a, env), in_axes=-1, out_axes=-1)
    vmapped = numpy(jax.jit(mapped)(instances, turns.action))
    for index in range(3):
        single = numpy(replay(one(instances, index), turns.action[:, index], env))
        for other in (batch_last, vmapped):
            chex.assert_trees_all_close(one(other, index), single, rtol=1e-4, atol=2e-3)
    chex.assert_trees_all_close(batch_last, vmapped, rtol=1e-4, atol=2e-3)


@pytest.mark.parametrize("order", ORDERS)
def test_storage_order_and_padding_mean_nothing(order):
    """Users stored in another order, padding full of garbage: the same episode."""
    instances, env = world("edge"), EnvConfig(order=order)
    users, batches = instances.num_users, instances.num_batches
    actions = play(instances, jax.random.key(1), order, True).action
    states, rewards = numpy(replay(instances, actions, env))
    stored = np.random.default_rng(0).permutation(users)
    moved = spoil_padding(permute_users(instances, stored), jnp.nan)
    if order == "adaptive":
        place = jnp.append(jnp.argsort(stored), users)  # where each user went; the stop stays
        actions = place[actions // batches] * batches + actions % batches
    others, same = numpy(replay(moved, actions, env))
    np.testing.assert_array_equal(states.assignment[:, stored], others.assignment)
    np.testing.assert_allclose(rewards, same, rtol=1e-4, atol=1e-6)
    assert (others.assignment > 0).any(axis=1).mean() > 0.5
    if order != "adaptive":
        real = np.asarray(moved.mask)
        padded_turns = np.where(real, users, others.turn[0])
        assert np.all(padded_turns >= real.sum(axis=0))  # padded users come last


@pytest.mark.fast
def test_a_smoke_episode_is_traced_once_finite_and_deterministic():
    instance, env = one(world("edge"), 0), EnvConfig()
    chex.clear_trace_counter()
    go = jax.jit(chex.assert_max_traces(lambda s, a: step(instance, s, a, env), n=1))

    def episode():
        states = [reset(instance, env)]
        for time in range(instance.num_users):
            state, reward = go(states[-1], jnp.int32(time % 3))
            states.append(state)
            chex.assert_tree_all_finite((state, reward))
        return states

    first, second = episode(), episode()
    chex.assert_trees_all_equal(first, second)
    assert float(first[-1].gain) != 0


@pytest.mark.fast
@pytest.mark.parametrize("order", ["arrival", "adaptive"])
def test_released_users_are_decided_again_and_nobody_else(order):
    env, instances = EnvConfig(order=order), world("edge")
    plan = jax.jit(reduced_greedy)(instances)
    released = instances.mask & (jnp.arange(instances.num_users)[:, None] % 2 == 0)
    state = jax.jit(release, static_argnums=3)(instances, plan, released, env)
    kept = jnp.where(released, 0, plan)
    np.testing.assert_array_equal(state.assignment, kept)
    np.testing.assert_array_equal(state.decided, ~released)
    np.testing.assert_allclose(state.gain, gain_of(instances, kept), atol=1e-5)
    if order == "adaptive":
        mask = np.asarray(action_mask(instances, state, env))[:-1]
        open_users = mask.reshape(instances.num_users, instances.num_batches, -1).any(axis=1)
        assert open_users.any()
        assert not open_users[~np.asarray(released)].any()
        return
    whole = reset(instances, env).turn
    for i in range(COUNT):  # in the order they have, without gaps
        again = np.flatnonzero(np.asarray(released)[:, i])
        by_turn = again[np.argsort(np.asarray(whole)[again, i])]
        np.testing.assert_array_equal(np.asarray(state.turn)[by_turn, i], np.arange(len(again)))
        others = np.asarray(state.turn)[~np.asarray(released)[:, i], i]
        assert np.all(others >= len(again))


@pytest.mark.fast
@pytest.mark.parametrize("order", ["arrival", "adaptive"])
def test_releasing_everybody_leaves_padding_out(order):
    """Whoever asks for all users starts over with the real ones: padding has nothing to decide."""
    env, instances = EnvConfig(order=order), world("edge")
    assert not instances.mask.all()
    plan = jax.jit(reduced_greedy)(instances)
    everybody = jnp.ones_like(instances.mask)
    state = jax.jit(release, static_argnums=3)(instances, plan, everybody, env)
    start = reset(instances, env)
    np.testing.assert_array_equal(state.decided, start.decided)
    np.testing.assert_array_equal(
        action_mask(instances, state, env), action_mask(instances, start, env)
    )


@pytest.mark.parametrize("order", ORDERS)
def test_whatever_leads_to_a_plan_ends_there(order):
    """Random actions among those; in adaptive order all users left in the plan, then the stop."""
    env, instances = EnvConfig(order=order), world("edge")
    plan = jax.jit(reduced_greedy)(instances)

    def turn(state, key):
        wanted, legal = leading_to(instances, state, plan, env), action_mask(instances, state, env)
        draws = jnp.where(wanted, jax.random.uniform(key, wanted.shape), -1)
        after, _ = step(instances, state, jnp.argmax(draws, axis=0), env)
        left = jnp.sum((plan > 0) & ~state.decided, axis=0)
        return after, (wanted, legal, jnp.maximum(left, 1) if order == "adaptive" else 1)

    keys = jax.random.split(jax.random.key(1), instances.num_users)
    last, turns = jax.jit(jax.lax.scan, static_argnums=0)(turn, reset(instances, env), keys)
    np.testing.assert_array_equal(last.assignment, plan)
    wanted, legal, number = map(np.asarray, turns)
    assert not np.any(wanted & ~legal)
    np.testing.assert_array_equal(wanted.sum(axis=1), number if order == "adaptive" else 1)


def test_settings_are_checked():
    instance, _, _ = toy()
    for wrong, message in (
        (EnvConfig(order="adaptive", candidates=-1), "candidates is -1; must be .*at least 0"),
        (EnvConfig(candidates=8), "candidates is 8; must be 0 with order arrival"),
    ):
        with pytest.raises(ValueError, match=rf"env\.{message}"):
            wrong.validate()
    EnvConfig().validate()
    EnvConfig(order="adaptive", reward="terminal").validate()
    for field, allowed in {
        "order": "arrival, sorted, adaptive",
        "reward": "dense, terminal",
    }.items():
        wrong, message = unchecked(EnvConfig(), **{field: "best"}), rf"env\.{field} is 'best'"
        with pytest.raises(ValueError, match=f"{message}; must be one of {allowed}"):
            wrong.validate()
        with pytest.raises(ValueError, match=message):
            reset(instance, wrong)
        with pytest.raises(ValueError, match=message):
            step(instance, reset(instance), jnp.int32(0), wrong)
    names = "native, cvxpylayers-moreau, cvxpylayers-diffcp"
    with pytest.raises(ValueError, match=rf"env\.solver is 'best'; must be one of {names}"):
        EnvConfig(solver="best")
