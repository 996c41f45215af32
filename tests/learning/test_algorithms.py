"""The learner's equations against numbers worked out by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offload_jax.learning.algorithms.ppo import (
    clipped_surrogate,
    forced_values,
    generalized_advantage,
    leave_one_out,
    value_error,
)
from offload_jax.learning.algorithms.preference import preference
from offload_jax.learning.algorithms.self_labelling import imitation
from offload_jax.learning.likelihood import entropy, log_prob

pytestmark = pytest.mark.fast

REWARDS = jnp.array([1.0, 0.0, 2.0])
VALUES = jnp.array([2.0, 1.0, 0.5])


def test_leave_one_out_by_hand():
    # 1 - (4 + 7) / 2, 4 - (1 + 7) / 2, 7 - (1 + 4) / 2
    np.testing.assert_allclose(leave_one_out(jnp.array([1.0, 4.0, 7.0])), [-4.5, 0.0, 4.5])
    np.testing.assert_allclose(leave_one_out(jnp.array([3.0, 5.0])), [-2.0, 2.0])


def test_leave_one_out_is_the_loop_and_sums_to_zero(x64):
    returns = np.random.default_rng(0).normal(size=(20, 7))
    mine = np.asarray(jax.jit(jax.vmap(leave_one_out))(jnp.asarray(returns)))
    for row, advantages in zip(returns, mine, strict=True):
        loop = [r - np.mean(np.delete(row, p)) for p, r in enumerate(row)]
        np.testing.assert_allclose(advantages, loop, atol=1e-13)
    np.testing.assert_allclose(mine.sum(axis=1), 0, atol=1e-13)


def test_gae_by_hand():
    # Errors r + V' - V: 1 + 1 - 2 = 0, 0 + 0.5 - 1 = -0.5, 2 + 0 - 0.5 = 1.5.
    one_step = generalized_advantage(REWARDS, VALUES, 0.0)
    np.testing.assert_allclose(one_step, [0.0, -0.5, 1.5])
    # Returns to go 3, 2, 2 less the values.
    whole = generalized_advantage(REWARDS, VALUES, 1.0)
    np.testing.assert_allclose(whole, [1.0, 1.0, 1.5])
    # 1.5; -0.5 + 0.75; 0 + 0.125.
    half = generalized_advantage(REWARDS, VALUES, 0.5)
    np.testing.assert_allclose(half, [0.125, 0.25, 1.5])


def test_gae_over_streams_and_decays():
    """Under jit and vmap, the decay traced: between one-step errors and returns minus values."""
    draw = np.random.default_rng(1).normal(size=(2, 5, 8)).astype(np.float32)
    many = jax.jit(jax.vmap(generalized_advantage, in_axes=(0, 0, None)))
    rewards, values = (jnp.asarray(x) for x in draw)
    to_go = np.cumsum(draw[0][:, ::-1], axis=1)[:, ::-1]
    np.testing.assert_allclose(many(rewards, values, 1.0), to_go - draw[1], atol=1e-5)
    following = np.append(draw[1][:, 1:], np.zeros((5, 1)), axis=1)
    errors = draw[0] + following - draw[1]
    np.testing.assert_allclose(many(rewards, values, 0.0), errors, atol=1e-6)
    weights = 0.7 ** np.arange(8)
    loop = [[errors[i, t:] @ weights[: 8 - t] for t in range(8)] for i in range(5)]
    np.testing.assert_allclose(many(rewards, values, 0.7), loop, atol=1e-5)


def test_steps_without_a_choice_are_worth_what_follows():
    free = jnp.array([True, False, True, False, False])
    values = jnp.array([5.0, 99.0, 3.0, 99.0, 99.0])
    rewards = jnp.array([1.0, 2.0, 4.0, 0.0, 8.0])
    worth = forced_values(values, rewards, free)
    np.testing.assert_allclose(worth, [5.0, 2.0 + 3.0, 3.0, 8.0, 8.0])
    # Their one-step errors vanish: for every decay they only hand the later advantages on.
    errors = generalized_advantage(rewards, worth, 0.0)
    np.testing.assert_allclose(errors, [1.0 + 5.0 - 5.0, 0.0, 4.0 + 8.0 - 3.0, 0.0, 0.0])
    np.testing.assert_array_equal(forced_values(values, rewards, jnp.ones(5, bool)), values)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.0, 2.0, -2.0, -2.0),  # on policy: the policy gradient
        (1.1, 2.0, -2.2, -2.2),  # inside the clip
        (1.5, 2.0, -2.4, 0.0),  # a good action is already likely enough
        (0.5, 2.0, -1.0, -1.0),  # a good action became unlikely: no clip
        (0.5, -2.0, 1.6, 0.0),  # a bad action is already unlikely enough
        (1.5, -2.0, 3.0, 3.0),  # a bad action became likely: no clip
    ],
)
def test_clipped_surrogate(ratio, advantage, loss, slope):
    value, gradient = jax.jit(jax.value_and_grad(clipped_surrogate))(
        jnp.log(ratio), jnp.asarray(advantage), 0.2
    )
    assert float(value) == pytest.approx(loss, rel=1e-6)
    assert float(gradient) == pytest.approx(slope, rel=1e-5)  # d ratio / d log ratio = ratio


def test_value_error_is_half_the_square():
    value, slope = jax.value_and_grad(value_error)(jnp.asarray(1.5), jnp.asarray(-0.5))
    assert float(value) == pytest.approx(2.0)
    assert float(slope) == pytest.approx(2.0)


def test_entropy_counts_legal_actions_only():
    legal = jnp.array([True, False, True, True, False, True])
    uniform = jnp.where(legal, 3.0, -jnp.inf)
    assert float(entropy(uniform)) == pytest.approx(np.log(4), rel=1e-6)
    assert float(entropy(jnp.array([-jnp.inf, 7.0, -jnp.inf]))) == pytest.approx(0.0)
    p = np.array([0.7, 0.2, 0.1])
    logits = jnp.asarray(np.append(np.log(p) + 5, -np.inf), jnp.float32)
    assert float(entropy(logits)) == pytest.approx(-np.sum(p * np.log(p)), rel=1e-5)
    slopes = np.asarray(jax.grad(entropy)(logits))
    wanted = -p * (np.log(p) - np.sum(p * np.log(p)))  # dH / dlogit_i = -p_i (log p_i + H)
    np.testing.assert_allclose(slopes, np.append(wanted, 0.0), atol=1e-6)


def test_log_prob_is_the_taken_actions():
    logits = jnp.array([[0.0, jnp.log(3.0), -jnp.inf], [-jnp.inf, 2.0, 2.0]])
    taken = jax.jit(jax.vmap(log_prob))(logits, jnp.array([1, 2]))
    np.testing.assert_allclose(np.exp(taken), [0.75, 0.5], rtol=1e-6)
    slopes = np.asarray(jax.grad(lambda x: log_prob(x, jnp.asarray(1)))(logits[0]))
    np.testing.assert_allclose(slopes, [-0.25, 0.25, 0.0], atol=1e-6)


def test_preference() -> None:
    """By hand: the best against two worse ones; a plan as good as the best counts for nothing."""
    log_probs, returns = jnp.log(jnp.asarray([0.5, 0.25, 0.2, 0.05])), jnp.asarray([1.0, 3, 2, 3])
    wanted = np.mean(np.log1p(np.exp(-0.5 * np.log([0.25 / 0.5, 0.25 / 0.2]))))
    np.testing.assert_allclose(preference(log_probs, returns, 0.5), wanted, rtol=1e-6)
    assert preference(log_probs, jnp.ones(4), 0.5) == 0


def test_imitation_by_hand():
    """Wanted are 0.2 + 0.5 of the probability; an illegal action has none and gets no gradient."""
    logits = jnp.log(jnp.array([0.2, 0.3, 0.5, 0.0]))
    wanted = jnp.array([True, False, True, False])
    loss, slope = jax.value_and_grad(imitation)(logits, wanted)
    np.testing.assert_allclose(loss, -np.log(0.7), rtol=1e-6)
    # softmax - softmax among the wanted
    np.testing.assert_allclose(slope, [0.2 - 2 / 7, 0.3, 0.5 - 5 / 7, 0], atol=1e-6)
