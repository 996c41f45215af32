"""Upper bounds: above every plan, close where they can be, whatever the time."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import feasible_gain
from episodes import numpy, one, sample, world
from test_search import degenerate

from offload_jax.methods import METHODS
from offload_jax.methods.bound import BoundConfig, upper_bound
from offload_jax.methods.enumeration import enumerate_all
from offload_jax.problem.instance import stack, toy
from offload_jax.problem.scenario import EdgeScenario, PaperScenario

COUNT = 8
SHORT = BoundConfig(rounds=300)


def changed() -> dict[str, object]:
    """The small edge world, and variants of what the bound treats differently."""
    plain = world("edge", COUNT)
    across = plain.interference + 0.2 * jnp.max(plain.interference)
    return {
        "plain": plain,
        "half images": replace(plain, demand=plain.demand + 0.5),
        "across servers": replace(plain, interference=across),
        "no budget": replace(plain, budget=jnp.full_like(plain.budget, jnp.inf)),
        "slow radio": replace(plain, bandwidth=plain.bandwidth / 300),
        "slow servers": replace(plain, intercept=plain.intercept + 0.5),  # s; little is gained
        "one server empty": replace(plain, server=jnp.ones_like(plain.server)),
    }


@pytest.mark.parametrize("case", changed())
def test_no_plan_is_above(case) -> None:
    instances = changed()[case]
    plans = jnp.stack([enumerate_all(one(instances, i)) for i in range(COUNT)], axis=-1)
    best = np.asarray(feasible_gain(instances, plans))
    start = jax.jit(METHODS["reduced-greedy"].assign)(instances)  # it need not be the best plan
    bound = upper_bound(instances, start, config=SHORT)
    assert np.all(bound >= best * (1 - 1e-6))


@pytest.mark.parametrize(
    ("scenario", "method", "gap"),
    [
        (EdgeScenario(num_users=(10, 16)), "greedy", 0.04),
        (PaperScenario(num_users=(8, 16)), "top-b", 1e-3),
    ],
)
def test_is_close_in_the_shipped_scenarios(scenario, method, gap) -> None:
    instances = sample(scenario, jax.random.key(0), 4)
    plan = jax.jit(METHODS[method].assign)(instances)
    best = np.asarray(feasible_gain(instances, plan))
    bound = upper_bound(instances, plan, config=SHORT)
    assert np.all(bound >= best * (1 - 1e-6))
    assert np.mean(bound / best - 1) < gap


def test_time_ends_it_early_and_the_bound_holds() -> None:
    instances = world("edge", COUNT)
    nobody = jnp.zeros_like(instances.alpha, jnp.int32)
    early = upper_bound(instances, nobody, budget_s=1e-3)
    late = upper_bound(instances, nobody, config=SHORT)
    best = np.asarray(feasible_gain(instances, jax.jit(METHODS["greedy"].assign)(instances)))
    assert np.all(early >= best)
    assert np.all(late >= best)
    assert late.mean() < early.mean()


def test_degenerate_instances() -> None:
    for case, instances in degenerate(COUNT).items():
        plan = jax.jit(METHODS["greedy"].assign)(instances)
        bound = upper_bound(instances, plan, config=BoundConfig(rounds=100))
        assert np.all(np.isfinite(bound)), case
        assert np.all(bound >= np.asarray(feasible_gain(instances, plan)) * (1 - 1e-6)), case


def test_instances_of_different_servers_in_one_batch() -> None:
    first = toy()[0]
    second = replace(first, budget=jnp.array([0.5, 0.5]), server=jnp.array([0, 1], jnp.int32))
    first = replace(first, budget=jnp.array([jnp.inf, jnp.inf]))
    both = stack([first, second, first])
    plans = numpy(jax.jit(METHODS["greedy"].assign)(both))
    bound = upper_bound(both, jnp.asarray(plans), config=SHORT)
    np.testing.assert_allclose(bound[0], bound[2], rtol=1e-5)
    np.testing.assert_allclose(bound[0], 8.0, rtol=0.15)  # 5.6 + 2.4 s by hand
