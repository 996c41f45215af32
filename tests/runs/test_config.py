"""Settings: unknown or impossible ones are named, shipped ones load, all come back unchanged."""

from __future__ import annotations

import pytest

from offload_jax.files.checks import ConfigError
from offload_jax.runs.config import presets
from offload_jax.runs.config_file import load_config, parse_config, to_yaml
from offload_jax.runs.run_folder import read_plain


@pytest.mark.fast
@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("learner: {lrr: 1}", "learner.lrr is unknown.*did you mean lr"),
        ("learner: {updates: many}", "learner.updates is 'many'"),
        ("learner: {samples: 1}", "at least 2"),
        ("scenario: {kind: papr}", "scenario.kind is 'papr'; must be one of paper, edge"),
        ("scenario: {num_users: []}", "scenario.num_users"),
        ("env: {order: sort}", "env.order is 'sort'.*'arrival', 'sorted' or 'adaptive'"),
        ("network: {heads: 3}", "must divide network.width"),
        ("seed: -1", "seed is -1; must be in 0"),
        ("seed: 1\nseed: 2", "appears twice"),
        ("learner: 3", "must be a mapping"),
        ("a: [", "not valid YAML"),
        ("scenario: {capacity: 18.5}", "scenario.capacity is 18.5"),
        ("scenario: {num_users: [8], edge_gpus: abc}", "scenario.edge_gpus is 'abc'"),
        ("scenario: {kind: [edge]}", r"scenario.kind is \['edge'\]; must be one of paper, edge"),
        ("learner: {updates: true}", "learner.updates is True; must be a number"),
        ("seed: true", "seed is True; must be a number"),
        (
            "scenario: {kind: mixture, parts: [{}, {budgt: 1}]}",
            r"scenario\.parts\.1\.budgt is unknown.*did you mean budget",
        ),
        (
            "scenario: {kind: mixture, parts: [{}, {batches: 4}]}",
            r"scenario\.parts\.1\.batches is 4; must be 6, as in all parts",
        ),
        (
            "scenario: {kind: mixture, parts: [{}, {budget: -1}]}",
            r"scenario\.parts\.1\.budget is -1\.0; must be at least 0",
        ),
        (
            "scenario: {kind: mixture, parts: {budget: 1}}",
            r"scenario\.parts is \{'budget': 1\}; input should be a valid tuple",
        ),
        ("scenario: {kind: mixture, parts: []}", r"scenario\.parts is \(\); must be at least one"),
        ("scenario: {kind: mixture, weights: [0]}", r"scenario\.weights is \(0\.0,\); must be 1 w"),
        ("scenario: {kind: mixture, parts: [3]}", r"scenario\.parts\.0 is 3; must be a mapping"),
        ("network: {residual: 'no'}", "network.residual is 'no'; must be true or false"),
    ],
)
def test_bad_settings_are_named(text, phrase) -> None:
    with pytest.raises(ConfigError, match=phrase):
        parse_config(text)


@pytest.mark.fast
def test_shipped_configurations() -> None:
    assert {"paper", "edge", "smoke"} <= set(presets())
    for name in presets():
        config = load_config(name)
        assert parse_config(to_yaml(config)) == config
    with pytest.raises(ConfigError, match="did you mean paper"):
        load_config("papr")


@pytest.mark.fast
def test_words_of_yaml() -> None:
    """`off` is a word and `true` a flag; numbers may be written as people write them."""
    text = "tracking: {wandb: off}\nnetwork: {residual: false}\nlearner: {lr: 1e-3}"
    config = parse_config(text)
    assert config.tracking.wandb == "off"
    assert config.network.residual is False
    assert config.learner.lr == 1e-3


@pytest.mark.fast
def test_files_that_cannot_be_read(tmp_path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"seed: 1 # caf\xe9")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "latin.yaml")


@pytest.mark.fast
def test_a_mixture_comes_back_unchanged() -> None:
    text = "scenario: {kind: mixture, parts: [{budget: 2}, {num_users: [30]}], weights: [1, 2]}"
    config = parse_config(text)
    assert config.scenario.parts[0].budget == 2
    assert config.scenario.max_users == 30
    assert parse_config(to_yaml(config)) == config


@pytest.mark.fast
@pytest.mark.parametrize("text", ["- a", "tracking: null", "tracking: [a]"])
def test_a_run_whose_settings_are_broken(text, tmp_path) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match="must be a mapping of settings"):
        read_plain(tmp_path)
