"""Settings: unknown or impossible ones are named, shipped ones load, all come back unchanged."""

from __future__ import annotations

import pytest

from offload_jax.config import ConfigError, load_config, parse_config, presets, to_yaml


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
