"""Provably optimal plans against enumeration and the golden file."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import evaluate
from episodes import numpy, sample, world
from paths import GOLDEN

from offload_jax.files.records import read_instances
from offload_jax.methods.exact import refuse_top_b, top_b
from offload_jax.problem.instance import from_record, stack, toy
from offload_jax.problem.scenario import PaperScenario

FILE = GOLDEN / "paper.json"

planned = jax.jit(top_b)


@pytest.mark.parametrize("capacity", [3, 18])
def test_top_b_is_the_best_of_all_assignments(x64, capacity):
    """2^6 plans of each of 24 instances of 2 to 6 users, with room for 3 or for all."""
    scenario = PaperScenario(num_users=(2, 4, 6), edge_gpus=(4, 8), capacity=18)
    instances = sample(scenario, jax.random.key(0), 24)
    instances = replace(instances, capacity=jnp.full_like(instances.capacity, capacity))
    plans = jnp.array(list(product((0, 1), repeat=6)), jnp.int32)
    many = jax.tree.map(lambda x: jnp.tile(x, (1,) * (x.ndim - 1) + (len(plans),)), instances)
    outcome = numpy(evaluate(many, jnp.repeat(plans.T, 24, axis=-1)))
    gains = np.where(outcome.feasible, outcome.gain, -np.inf).reshape(-1, 24)
    mine = planned(instances)
    assert not np.asarray(mine)[~np.asarray(instances.mask)].any()
    best = numpy(evaluate(instances, mine))
    assert best.feasible.all()
    np.testing.assert_allclose(best.gain, gains.max(axis=0), rtol=1e-9)
    granted = np.asarray(mine).sum(axis=0)
    assert len(set(granted.tolist())) > 1
    assert np.all(best.gain > 0)


def test_top_b_finds_the_golden_optima(x64):
    records = read_instances(FILE)
    assert len(records) == 20
    instances = stack([from_record(record) for record in records])
    assert np.asarray(instances.mask).sum(axis=0).tolist() == [n for n in (4, 8, 12, 16, 20)
                                                               for _ in range(4)]  # fmt: skip
    outcome = numpy(evaluate(instances, planned(instances)))
    wanted = [record.optimum.objective for record in records]
    np.testing.assert_allclose(outcome.objective, wanted, rtol=0, atol=1e-6)


@pytest.mark.fast
def test_one_instance_is_a_column_of_many():
    instances = world("paper", 8)
    many = np.asarray(planned(instances))
    single = jax.tree.map(lambda x: x[..., 3], instances)
    np.testing.assert_array_equal(planned(single), many[:, 3])
    worthless = replace(instances, payload=1e6 * instances.payload)
    assert not np.asarray(planned(worthless)).any()  # the radio costs more than any grant gains


@pytest.mark.fast
def test_top_b_refuses_what_it_cannot_prove():
    instance = jax.tree.map(lambda x: x[..., 0], world("paper", 8))
    assert refuse_top_b(instance) is None
    assert "exactly one batch; the instance has 2" in refuse_top_b(toy()[0])
    padding = jnp.where(instance.mask, 1.0, 7.0)
    assert not np.asarray(instance.mask).all()
    assert refuse_top_b(replace(instance, demand=padding)) is None
    assert "every demand to be 1" in refuse_top_b(replace(instance, demand=padding.at[0].set(2)))
    assert "without a budget" in refuse_top_b(replace(instance, budget=jnp.ones(1)))
