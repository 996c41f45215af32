"""The model: golden optima reproduced, every equation against plain loops, symmetries."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import evaluate, sample_one
from episodes import permute_users, sample, scale_times, spoil_padding
from paths import GOLDEN

from offload_jax.files.records import read_instances
from offload_jax.plans import outcome as outcomes
from offload_jax.problem import equations
from offload_jax.problem.instance import Instance, from_record, pad_users, stack, toy
from offload_jax.problem.scenario import EdgeScenario, PaperScenario

RECORDS = [r for name in ("paper", "edge") for r in read_instances(GOLDEN / f"{name}.json")]


@pytest.mark.parametrize("bits", [32, 64])
def test_golden_optima(bits) -> None:
    assert len(RECORDS) == 32
    groups: dict[tuple, list] = {}
    for record in RECORDS:
        groups.setdefault((len(record.capacity), len(record.budget)), []).append(record)
    with jax.enable_x64(bits == 64):
        for records in groups.values():
            batch = stack([from_record(r) for r in records])
            width = batch.num_users
            plans = [np.pad(r.optimum.assignment, (0, width - len(r.alpha))) for r in records]
            outcome = evaluate(batch, jnp.asarray(np.stack(plans, axis=1), jnp.int32))
            for i, record in enumerate(records):
                best = record.optimum
                scale = np.sum(record.alpha + record.steps * record.local_step)
                error = abs(float(outcome.objective[i]) - best.objective)
                assert error <= (1e-9 * abs(best.objective) if bits == 64 else 1e-6 * scale)
                gain = best.objective - best.deny_all
                assert abs(float(outcome.gain[i]) - gain) <= (1e-9 if bits == 64 else 5e-6) * abs(
                    gain
                )
                split = np.asarray(outcome.split)[: len(record.alpha), i]
                assert np.max(np.abs(split - best.split)) <= (1e-4 if bits == 64 else 1e-3)
                assert bool(outcome.feasible[i])
                assert int(outcome.status[i]) == 0


def test_edge_optima_by_enumeration(x64) -> None:
    record = next(r for r in RECORDS if r.name.startswith("edge-N5-M3-G1"))
    instance = from_record(record)
    plans = np.stack(np.unravel_index(np.arange(4**5), (4,) * 5)).astype(np.int32)
    many = jax.tree.map(lambda x: jnp.broadcast_to(x[..., None], (*x.shape, 4**5)), instance)
    outcome = evaluate(many, jnp.asarray(plans))
    values = np.where(outcome.feasible, outcome.objective, -np.inf)
    np.testing.assert_allclose(values.max(), record.optimum.objective, rtol=1e-9)
    assert tuple(plans[:, values.argmax()]) == tuple(record.optimum.assignment)


def by_loops(instance: Instance, assignment, split) -> float:
    """Equations (1)-(5) and (7), user by user."""
    i = {name: np.asarray(value, float) for name, value in vars(instance).items()}
    batches = len(i["intercept"])
    load, granted = np.zeros(batches), 0
    for user, k in enumerate(assignment):
        if k and i["mask"][user]:
            load[k - 1] += i["demand"][user]
            granted += 1
    total = 0.0
    for user, k in enumerate(assignment):
        if not i["mask"][user]:
            continue
        steps, n, own = i["steps"], split[user], i["local_step"][user]
        if not k:
            total += i["alpha"][user] * i["accuracy_local"][user] - i["wait"][user] - steps * own
            continue
        k -= 1
        time = i["intercept"][k] + sum(i["interference"][k, q] * load[q] for q in range(batches))
        air = i["payload"][user] * granted / (i["bandwidth"] * i["spectral_efficiency"][user])
        late = i["wait"][user] + air + (steps - n) * time + n * own
        floor, slope = i["accuracy_floor"][user, k], i["accuracy_slope"][user, k]
        sig = lambda x, a=slope, b=i["accuracy_centre"][user, k]: 1 / (1 + np.exp(-a * (x - b)))  # noqa: E731
        kept = floor + (i["accuracy_local"][user] - floor) * sig(n) / sig(steps)
        total += i["alpha"][user] * kept - late
    return total


@pytest.mark.fast
@pytest.mark.parametrize(
    "scenario",
    [PaperScenario(), EdgeScenario(num_users=(3, 8), batches=4, servers=2)],
    ids=lambda scenario: scenario.kind,
)
def test_every_equation_by_loops(scenario, x64) -> None:
    instances = sample(scenario, jax.random.key(3), 12)
    draw = np.random.default_rng(0)
    shape = (scenario.max_users, 12)
    plans = jnp.asarray(draw.integers(0, scenario.num_batches + 1, shape), jnp.int32)
    outcome = evaluate(instances, plans)
    for i in range(12):
        one = jax.tree.map(lambda x, i=i: x[..., i], instances)
        wanted = by_loops(one, np.asarray(plans[:, i]), np.asarray(outcome.split[:, i]))
        np.testing.assert_allclose(outcome.objective[i], wanted, rtol=1e-10)
        denied = by_loops(one, np.zeros(shape[0], int), np.full(shape[0], float(one.steps)))
        np.testing.assert_allclose(outcome.objective[i] - outcome.gain[i], denied, rtol=1e-10)
        real = float(jnp.sum(one.mask))
        np.testing.assert_allclose(outcome.score[i], 0.1 * wanted / real, rtol=1e-10)
        placed = equations.place(one, plans[:, i])
        use = np.zeros(one.num_servers)
        for user, k in enumerate(np.asarray(plans[:, i])):
            if k and bool(one.mask[user]):
                rate = float(one.interference[k - 1, k - 1] * one.demand[user])
                use[int(one.server[k - 1])] += rate * float(one.steps - outcome.split[user, i])
        np.testing.assert_allclose(
            equations.server_use(one, placed, outcome.split[:, i]), use, atol=1e-9
        )
        assert np.all(use <= np.asarray(one.budget) + 1e-9)


def test_symmetries(x64) -> None:
    instance = sample_one(EdgeScenario(num_users=(9,)), jax.random.key(1))
    plan = jnp.asarray(np.random.default_rng(1).integers(0, 7, 9), jnp.int32)
    base = evaluate(instance, plan)
    order = jnp.asarray(np.random.default_rng(2).permutation(9))
    turned = evaluate(permute_users(instance, order), plan[order])
    np.testing.assert_allclose(turned.objective, base.objective, rtol=1e-12)
    np.testing.assert_allclose(turned.split, base.split[order], atol=1e-9)
    padded = evaluate(pad_users(instance, 14), jnp.pad(plan, (0, 5), constant_values=3))
    np.testing.assert_allclose(padded.objective, base.objective, rtol=1e-12)
    np.testing.assert_allclose(padded.split[:9], base.split, atol=1e-9)
    scaled = evaluate(scale_times(instance, 3.7), plan)
    np.testing.assert_allclose(scaled.objective, 3.7 * base.objective, rtol=1e-9)
    np.testing.assert_allclose(scaled.split, base.split, atol=1e-7)


@pytest.mark.fast
def test_padded_users_report_zeros(x64) -> None:
    """Whatever their rows hold, and whatever is assigned to them; nobody else notices."""
    instance, plan, best = toy()
    padded = spoil_padding(pad_users(instance, 5), 7.0)
    outcome = evaluate(padded, jnp.concatenate([plan, jnp.array([1, 0])]))
    np.testing.assert_array_equal(outcome.latency[3:], 0)
    np.testing.assert_array_equal(outcome.accuracy[3:], 0)
    assert np.all(np.asarray(outcome.accuracy[:3]) > 0)
    np.testing.assert_allclose(outcome.objective, best, rtol=1e-12)


@pytest.mark.fast
def test_toy_by_enumeration(x64) -> None:
    instance, plan, best = toy()
    plans = np.stack(np.unravel_index(np.arange(27), (3, 3, 3))).astype(np.int32)
    many = jax.tree.map(lambda x: jnp.broadcast_to(x[..., None], (*x.shape, 27)), instance)
    outcome = evaluate(many, jnp.asarray(plans))
    values = np.where(outcome.feasible, outcome.objective, -np.inf)
    np.testing.assert_allclose(values.max(), best, rtol=1e-12)
    assert np.sum(values > best - 1e-9) == 1
    assert tuple(plans[:, values.argmax()]) == tuple(plan)


@pytest.mark.fast
@pytest.mark.parametrize(
    ("plan", "phrase"),
    [
        (np.zeros(2, np.int32), "shape"),
        (np.zeros(3), "integers"),
        (np.array([0, 1, 3], np.int32), "0 .deny. to 2"),
    ],
)
def test_wrong_assignments_are_refused(plan, phrase) -> None:
    with pytest.raises((ValueError, TypeError), match=phrase):
        outcomes.evaluate(toy()[0], jnp.asarray(plan))  # concrete: its numbers are looked at
