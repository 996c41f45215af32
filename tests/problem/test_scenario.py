"""Sampled instances follow the formulation's section 6, and every one of them is a valid file."""

from __future__ import annotations

from dataclasses import asdict, fields, replace

import jax
import numpy as np
import pytest
from episodes import one, unchecked
from paths import ROOT
from problems import conforms

from offload_jax.problem.instance import (
    Instance,
    load_instances,
    save_instances,
    stack,
    to_record,
    toy,
)
from offload_jax.problem.scenario import (
    DEVICE_PROFILE_MS,
    PRESETS,
    EdgeScenario,
    MixtureScenario,
    PaperScenario,
    from_settings,
    sample,
)
from offload_jax.runs.config_file import load_config

pytestmark = pytest.mark.fast
COUNT = 2000


def many(scenario, count: int = COUNT) -> Instance:
    keys = jax.random.split(jax.random.key(7), count)
    return jax.jit(jax.vmap(lambda key: sample(scenario, key), out_axes=-1))(keys)


def test_paper() -> None:
    batch = many(PRESETS["paper"])
    i = {name: np.asarray(x, float) for name, x in vars(batch).items()}
    assert conforms(batch)
    real = i["mask"] > 0
    users, counts = np.unique(real.sum(axis=0), return_counts=True)
    np.testing.assert_array_equal(users, [4, 8, 12, 16, 20])
    assert np.all(np.abs(counts / COUNT - 0.2) < 0.04)
    slope, intercept = np.array(DEVICE_PROFILE_MS[0]) / 1e3
    gpus, counts = np.unique((slope / i["interference"][0, 0]).round(3), return_counts=True)
    np.testing.assert_allclose(gpus, [4, 8, 12, 16])
    assert np.all(np.abs(counts / COUNT - 0.25) < 0.04)
    edge = slope / i["interference"][0, 0]
    np.testing.assert_allclose(i["intercept"][0], intercept / edge, rtol=1e-5)
    # Classes ascend; rows 3..10 with weights 1..2.
    totals = np.sum(DEVICE_PROFILE_MS, axis=1) / 1e3
    classes = np.abs(i["local_step"][..., None] - totals).argmin(axis=-1)
    np.testing.assert_allclose(i["local_step"], totals[classes], rtol=1e-5)
    assert np.all((np.diff(classes, axis=0) >= 0)[real[1:]])
    share = np.bincount(classes[real], minlength=11) / real.sum()
    weights = np.linspace(1, 2, 8)
    np.testing.assert_allclose(share, [0, 0, 0, *weights / weights.sum()], atol=0.01)
    # alpha between its bounds and reaching them; first come, first listed.
    low = np.maximum((i["local_step"] - 20 * slope / edge - intercept / edge) / 0.01, 0)
    high = 0.05 * np.maximum((i["local_step"] - slope / edge - intercept / edge) / 0.0002, 0)
    place = ((i["alpha"] - low) / np.where(high > low, high - low, 1))[real]
    assert -1e-4 <= place.min() < 0.01
    assert 0.99 < place.max() <= 1 + 1e-4
    assert abs(place.mean() - 0.5) < 0.02
    assert np.all((np.diff(i["wait"], axis=0) <= 0)[real[1:]])
    assert np.all((i["wait"][real] >= 0) & (i["wait"][real] <= 1))
    assert np.all(np.diff(real.astype(int), axis=0) <= 0)  # padding comes last
    for name, number in {"steps": 200, "capacity": 18, "split_min": 80, "payload": 4.4e6 + 216,
                         "spectral_efficiency": 10, "bandwidth": 1e8, "demand": 1,
                         "accuracy_slope": 0.0413, "accuracy_centre": 71.44}.items():  # fmt: skip
        np.testing.assert_allclose(i[name], number, rtol=1e-6)
    assert np.all(np.isinf(i["budget"]))


@pytest.mark.parametrize("name", ["edge", "edge_large"])
def test_edge(name) -> None:
    scenario = PRESETS[name]
    batch = many(scenario, 300)
    i = {field: np.asarray(x, float) for field, x in vars(batch).items()}
    assert conforms(batch)
    real, size, servers = i["mask"] > 0, scenario.batches, scenario.servers
    users = real.sum(axis=0)
    assert users.min() == min(scenario.num_users)
    assert users.max() == max(scenario.num_users)
    assert abs(users.mean() - np.mean(scenario.num_users)) < 0.1 * np.ptp(scenario.num_users)
    server = np.arange(size) * servers // size
    np.testing.assert_array_equal(i["server"], np.repeat(server[:, None], 300, 1))
    together = (server[:, None] == server)[..., None]
    own = np.stack([i["interference"][k, k] for k in range(size)])
    np.testing.assert_allclose(i["interference"], np.where(together, own[None], 0), rtol=1e-6)
    share = 0.018 / own
    assert share.min() >= 0.4 - 1e-5
    assert share.max() <= 1 + 1e-5
    np.testing.assert_allclose(i["intercept"], 0.010 / share, rtol=1e-5)
    np.testing.assert_array_equal(np.unique(i["capacity"]), [4, 5, 6, 7])
    np.testing.assert_allclose(i["budget"], 3)
    values, counts = np.unique(i["demand"][real], return_counts=True)
    np.testing.assert_array_equal(values, [1, 2, 4])
    np.testing.assert_allclose(counts / counts.sum(), [0.6, 0.25, 0.15], atol=0.03)
    unit = (i["local_step"] / i["demand"])[real]
    assert unit.min() >= 0.08 - 1e-6
    assert unit.max() <= 0.8 + 1e-5
    assert abs(np.log(unit).mean() - np.log([0.08, 0.8]).mean()) < 0.05
    worth = (i["alpha"] / (50 * i["local_step"]))[real]
    assert worth.min() >= 0.15 - 1e-5
    assert worth.max() <= 0.6 + 1e-5
    assert np.all((np.diff(i["wait"], axis=0) <= 1e-7)[real[1:]])
    np.testing.assert_allclose(i["payload"], 1e6 * i["demand"])
    # Similarity to a model is the same for all its batches, and gives floor and centre.
    similarity = (i["accuracy_floor"] - 0.05) / 0.5
    np.testing.assert_allclose(
        i["accuracy_centre"], (0.62 - 0.28 * similarity) * 50, rtol=1e-4, atol=1e-3
    )
    model = np.arange(size) % scenario.models
    np.testing.assert_allclose(similarity, similarity[:, model], atol=1e-6)
    near = (similarity[:, : scenario.models] > 0.5 + 1e-6).sum(axis=1)
    assert near.max() == 1  # only the home model is that similar
    assert similarity.min() >= -1e-6
    assert similarity.max() <= 1 + 1e-6
    np.testing.assert_allclose(i["accuracy_slope"], 8.3 / 50, rtol=1e-6)
    np.testing.assert_allclose(i["split_min"], 15, rtol=1e-6)


def test_mixture() -> None:
    """Instances of both parts, as often as their weights say, each as its part has them."""
    parts = (EdgeScenario(num_users=(3, 4)), EdgeScenario(num_users=(7,), budget=1.5))
    scenario = MixtureScenario(parts=parts, weights=(1.0, 3.0))
    batch = many(scenario)
    assert conforms(batch)
    assert scenario.num_users == (3, 4, 7)
    users, budget = np.asarray(batch.mask).sum(axis=0), np.asarray(batch.budget)[0]
    assert batch.num_users == 7
    np.testing.assert_array_equal(budget, np.where(users == 7, 1.5, 3.0))
    assert abs(np.mean(users == 7) - 0.75) < 0.04
    assert set(scenario.cells()) == {"part 1", "part 2"}
    assert scenario.of_size(5).num_users == (5,)
    assert from_settings(asdict(scenario)) == scenario
    equal = many(replace(scenario, weights=()))
    assert abs(np.mean(np.asarray(equal.mask).sum(axis=0) == 7) - 0.5) < 0.04


@pytest.mark.parametrize("bits", [32, 64])
def test_samples_are_valid_files_and_come_back_exactly(bits, tmp_path) -> None:
    with jax.enable_x64(bits == 64):
        batch = many(EdgeScenario(num_users=(3, 5), batches=2, servers=2, models=2), 6)
        assert len({to_record(one(batch, i)).alpha.size for i in range(6)}) == 2
        save_instances(tmp_path / "all.json", [one(batch, i) for i in range(6)])
        back = stack(load_instances(tmp_path / "all.json"))
        assert back.alpha.dtype == (np.float64 if bits == 64 else np.float32)
        real = np.asarray(batch.mask)
        for name, ours in vars(batch).items():
            mine, read = np.asarray(ours), np.asarray(getattr(back, name))
            if len(mine) == len(real):  # padding is not kept
                keep = real.reshape(5, *(1,) * (mine.ndim - 2), 6)
                mine, read = np.where(keep, mine, 0), np.where(keep, read, 0)
            np.testing.assert_array_equal(mine, read, err_msg=name)


def test_misuse_of_instances_is_told(tmp_path) -> None:
    instance = toy()[0]
    assert conforms(instance)
    with pytest.raises(ValueError, match="names has 1 entries; must have one per instance"):
        save_instances(tmp_path / "x.json", [instance] * 2, ["a"])
    with pytest.raises(ValueError, match="instances is empty"):
        stack([])
    other = one(many(EdgeScenario(num_users=(3,), batches=2, servers=2, models=2), 1), 0)
    with pytest.raises(ValueError, match="instances mix"):
        stack([instance, other])


@pytest.mark.parametrize(
    ("scenario", "changes", "field"),
    [
        (PaperScenario(), {"num_users": ()}, "num_users"),
        (PaperScenario(), {"edge_gpus": (0,)}, "edge_gpus"),
        (PaperScenario(), {"num_users": (4.5,)}, "num_users"),
        (PaperScenario(), {"num_users": [4]}, "num_users"),
        (PaperScenario(), {"steps": 0}, "steps"),
        (PaperScenario(), {"bandwidth": float("nan")}, "bandwidth"),
        (PaperScenario(), {"split_min": 201}, "split_min"),
        (PaperScenario(), {"accuracy_centre": 200.0}, "accuracy_centre"),
        (PaperScenario(), {"accuracy_centre": -float("inf")}, "accuracy_centre"),
        (PaperScenario(), {"window": -1.0}, "window"),
        (PaperScenario(), {"window": float("inf")}, "window"),
        (EdgeScenario(), {"servers": 7}, "servers"),
        (EdgeScenario(), {"models": 7}, "models"),
        (EdgeScenario(), {"budget": -1.0}, "budget"),
        (EdgeScenario(), {"budget": float("nan")}, "budget"),
        (EdgeScenario(), {"step_intercept": float("inf")}, "step_intercept"),
        (EdgeScenario(), {"demand_weights": (1.0, 0.0)}, "demand_weights"),
        (EdgeScenario(), {"share": (0.0, 1.0)}, "share"),
        (EdgeScenario(), {"alpha": (0.5, 0.1)}, "alpha"),
        (EdgeScenario(), {"similarity_home": (0.4, 1.5)}, "similarity_home"),
        (EdgeScenario(), {"split_min_share": 1.1}, "split_min_share"),
    ],
)
def test_validate_names_the_field(scenario, changes, field) -> None:
    scenario.validate()
    with pytest.raises(ValueError, match=rf"scenario\.{field} is .*; must be "):
        unchecked(scenario, **changes).sample(jax.random.key(0))


@pytest.mark.parametrize("name", ["edge_large", "paper", "edge"])
def test_presets_are_the_shipped_configurations(name) -> None:
    assert load_config(name).scenario == PRESETS[name]


def test_every_parameter_is_documented() -> None:
    text = (ROOT / "docs" / "reference" / "scenarios.md").read_text(encoding="utf-8")
    edge, paper = text.split("## edge\n")[1].split("## paper\n")
    for scenario, part in ((EdgeScenario, edge), (PaperScenario, paper)):
        for field in fields(scenario):
            assert field.name == "kind" or f"| `{field.name}` |" in part, field.name
