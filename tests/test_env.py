"""The environment: rewards telescope, capacities hold, orders and illegal actions do what they say."""

from __future__ import annotations

from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from episodes import (
    COUNT,
    ORDERS,
    jit,
    numpy,
    one,
    permute_users,
    play,
    replay,
    spoil_padding,
    world,
)

from offload_jax import model
from offload_jax.env import EnvConfig, action_mask, num_actions, reset, step
from offload_jax.gains import reduced_gains
from offload_jax.instance import toy
from offload_jax.value import evaluate

evaluated = jit(evaluate)


@pytest.fixture(
    scope="module",
    params=[
        *(pytest.param(("edge", order), marks=pytest.mark.fast) for order in ORDERS),
        *(("paper", order) for order in ORDERS),
    ],
    ids="-".join,
)
def legal(request):
    """(order, instances, turns of random legal actions)."""
    name, order = request.param
    instances = world(name)
    return order, instances, numpy(play(instances, jax.random.key(1), order))


def worth_of_times(instances):
    """sum of alpha + T l over real users: the scale that float errors of U are judged by, s."""
    terms = instances.alpha + instances.steps * instances.local_step
    return np.asarray(jnp.sum(jnp.where(instances.mask, terms, 0), axis=0))


def assert_telescopes(instances, turns, tolerance):
    """Sums of both rewards against score(final) - score(denied), errors relative to the scale."""
    final = jnp.asarray(turns.after.assignment[-1])
    denied = model.score(instances, model.objective_denied(instances))
    wanted = np.asarray(evaluated(instances, final).score - denied)
    scale = worth_of_times(instances) * 0.1 / np.asarray(instances.mask).sum(axis=0)
    for reward in (turns.dense, turns.terminal):
        assert np.max(np.abs(reward.sum(axis=0) - wanted) / scale) < tolerance
    assert np.all(turns.terminal[:-1] == 0)
    assert np.mean(np.abs(wanted) > 1e-3) > 0.5  # there is something to sum
    assert np.mean(np.abs(turns.dense[:-1]) > 1e-3) > 0.1


def test_rewards_telescope(legal):
    _, instances, turns = legal
    assert_telescopes(instances, turns, tolerance=1e-6)  # float32: the tolerance of section 4


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", ["edge", "paper"])
def test_rewards_telescope_in_float64(x64, name, order):
    instances = world(name)
    assert instances.alpha.dtype == jnp.float64
    turns = numpy(play(instances, jax.random.key(2), order))
    assert_telescopes(instances, turns, tolerance=1e-14)


def test_states_carry_the_solution_of_their_assignment(legal):
    """Undecided users count as denied: each state's numbers are those of its assignment."""
    _, instances, turns = legal
    state = turns.after
    steps = state.assignment.shape[0]
    many = jax.tree.map(lambda x: jnp.tile(x, (1,) * (x.ndim - 1) + (steps,)), instances)
    flat = np.moveaxis(state.assignment, 0, 1).reshape(state.assignment.shape[1], -1)
    outcome = numpy(evaluated(many, jnp.asarray(flat)))

    def by_step(x):
        return np.moveaxis(x.reshape(*x.shape[:-1], steps, COUNT), -2, 0)

    scale = worth_of_times(instances)
    assert np.max(np.abs(by_step(outcome.gain) - state.gain) / scale) < 1e-6
    np.testing.assert_allclose(by_step(outcome.split), state.split, atol=2e-3)  # steps
    np.testing.assert_allclose(by_step(outcome.price), state.price, rtol=2e-3, atol=1e-4)
    assert outcome.feasible.all()
    assert np.all(state.assignment[~state.decided] == 0)


def test_capacities_bind_and_hold(legal):
    _, instances, turns = legal
    capacity, demand = np.asarray(instances.capacity), np.asarray(instances.demand)
    for k in range(instances.num_batches):
        inside = turns.after.assignment == k + 1
        load = np.sum(np.where(inside, demand, 0), axis=1)
        np.testing.assert_array_equal(load, turns.after.load[:, k])
        assert np.all(load <= capacity[k])
    free = ~turns.before.decided if legal[0] == "adaptive" else None
    if free is not None:
        users, batches = instances.num_users, instances.num_batches
        grants = turns.mask[:, :-1].reshape(-1, users, batches, COUNT)
        room = turns.before.load[:, None] + demand[:, None] <= capacity
        wanted = (free & ~turns.before.stopped[:, None])[:, :, None] & room
        np.testing.assert_array_equal(grants, wanted)
        assert np.mean(room[np.broadcast_to(free[:, :, None], room.shape)]) < 0.97  # some do not fit
    else:
        now = (turns.before.turn == turns.before.time[:, None]) & np.asarray(instances.mask)
        real, size = now.any(axis=1), np.sum(now * demand, axis=1)
        room = real[:, None] & (turns.before.load + size[:, None] <= capacity)
        np.testing.assert_array_equal(turns.mask[:, 1:], room)
        assert turns.mask[:, 0].all()
        assert np.mean(room[np.broadcast_to(real[:, None], room.shape)]) < 0.97


def test_padded_steps_are_no_ops(legal):
    """N padded steps; what is left when every real user is decided has one action, which is idle."""
    order, instances, turns = legal
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
    order, instances, turns = legal
    newly = turns.after.decided & ~turns.before.decided  # (steps, users, instances)
    if order == "adaptive":
        assert np.all(newly.sum(axis=1) <= 1)
        return
    users = np.asarray(instances.mask).sum(axis=0)
    np.testing.assert_array_equal(newly.sum(axis=1), np.arange(newly.shape[0])[:, None] < users)
    worth = np.asarray(instances.wait)
    if order == "sorted":
        denied = jnp.zeros(instances.alpha.shape, jnp.int32)
        empty, free = model.place(instances, denied), evaluated(instances, denied)
        worth = np.max(reduced_gains(instances, empty, free.split, free.price), axis=1)
    decided = np.argmax(newly, axis=1)  # (steps, instances): which user
    sequence = np.take_along_axis(worth, decided, axis=0)
    falls = np.diff(sequence, axis=0) <= 1e-5
    assert np.all(falls | (np.arange(1, newly.shape[0])[:, None] >= users))


@pytest.mark.fast
@pytest.mark.parametrize("order", ORDERS)
def test_illegal_actions(order):
    """They deny the current user (arrival, sorted) or do nothing (adaptive)."""
    instances = world("edge")
    turns = numpy(play(instances, jax.random.key(3), order, False))
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
