"""Decodings beyond sampling are feasible and no worse; policies in files decide the same."""

from __future__ import annotations

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from episodes import world

from offload_jax import decoding, shipped
from offload_jax import learner as learning
from offload_jax.config import ConfigError, from_settings
from offload_jax.decoding import refine
from offload_jax.gains import feasible_gain, gains_of
from offload_jax.policies import Policy, best_of

pytestmark = pytest.mark.usefixtures("quick_compiler")
CONFIG = from_settings(
    {"scenario": {"kind": "edge", "num_users": [4, 6]}, "network": {"width": 8, "heads": 2}}, "test"
)


@pytest.fixture(scope="module")
def policy() -> Policy:
    state = learning.init(CONFIG.to_learner(), jax.random.key(0))
    return Policy(state.params, CONFIG.network, CONFIG.to_env(), temperature=2.0)


@pytest.mark.parametrize("refinement", ["orders", "local-search", "re-deciding"])
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
    assert decoding._best_different(plans, gains, 3)[0, 0].tolist() == [1, 0, 3]


def test_a_saved_policy_decides_the_same(policy, tmp_path) -> None:
    folder = tmp_path / "mine"
    shipped.save(folder, policy, CONFIG, {"commit": "none"}, "# A policy\n")
    loaded, config = shipped.load(folder)
    assert (config.scenario, config.network) == (CONFIG.scenario, CONFIG.network)
    assert loaded.temperature == 2.0
    instances = world("edge")
    mine, theirs = (best_of(p, instances, 1, jax.random.key(0))[0] for p in (policy, loaded))
    np.testing.assert_array_equal(mine, theirs)
    assert gains_of(instances, theirs).shape == (instances.mask.shape[-1],)
    with pytest.raises(ConfigError, match="must be a new or empty folder"):
        shipped.save(folder, policy, CONFIG, {}, "")


def test_a_policy_that_is_not_as_it_was_written_is_refused(policy, tmp_path) -> None:
    folder = tmp_path / "mine"
    shipped.save(folder, policy, CONFIG, {}, "# A policy\n")
    document = json.loads((folder / "policy.json").read_text())
    (folder / "policy.json").write_text(json.dumps({**document, "temperature": 9.0}))
    with pytest.raises(shipped.PolicyError, match=r"policy.json has changed"):
        shipped.load(folder)
    with pytest.raises(ConfigError, match="must be a policy folder or one of"):
        shipped.load(tmp_path / "nowhere")
