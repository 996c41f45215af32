"""Decodings beyond sampling are feasible and never worse than greedy."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import feasible_gain
from episodes import world

from offload_jax.methods.refine import _best_different, refine
from offload_jax.policy.decoding import best_of
from offload_jax.policy.policy import Policy
from offload_jax.runs.config_file import from_settings
from offload_jax.runs.train import initial_state

CONFIG = from_settings(
    {"scenario": {"kind": "edge", "num_users": [4, 6]}, "network": {"width": 8, "heads": 2}}, "test"
)


@pytest.fixture(scope="module")
def policy() -> Policy:
    state = initial_state(CONFIG)
    return Policy(state.params, CONFIG.network, CONFIG.to_env(), temperature=2.0)


@pytest.mark.parametrize("refinement", ["orders", "local-search", "tabu", "re-deciding"])
def test_refined_plans_are_feasible_and_no_worse_than_greedy(policy, refinement) -> None:
    instances = world("edge")
    _, greedy = best_of(policy, instances, 1, jax.random.key(0))
    found = refine(policy, instances, 3, refinement, jax.random.key(1))
    gains = np.asarray(feasible_gain(instances, found.assignment))
    assert np.all(np.isfinite(gains))
    assert np.all(gains >= np.asarray(greedy) - 1e-4 * np.abs(greedy))
    assert found.seconds > 0


def test_orders_are_for_policies_in_order_of_arrival(policy) -> None:
    adaptive = replace(policy, env=replace(policy.env, order="adaptive"))
    with pytest.raises(ValueError, match="does not apply: the policy's order is adaptive"):
        refine(adaptive, world("edge"), 3, "orders", jax.random.key(0))


def test_the_best_different_plans_come_first() -> None:
    gains = jnp.asarray([[3.0, 5.0, 5.0, 1.0]])
    plans = jnp.arange(4)[None, None]
    assert _best_different(plans, gains, 3)[0, 0].tolist() == [1, 0, 3]
