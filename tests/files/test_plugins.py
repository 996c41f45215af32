"""Code of the user's own: found by name, refused in one clear line, and never run by data."""

from __future__ import annotations

import json
import os
from pathlib import Path

import jax
import pytest
import yaml

import offload_jax as oj
from offload_jax import cli
from offload_jax.commands.settings import configured
from offload_jax.evaluation.reference import reference_name
from offload_jax.files import plugins
from offload_jax.files.checks import ConfigError
from offload_jax.learning.fit import check_fit
from offload_jax.problem.instance import toy
from offload_jax.runs.config import TrainConfig, own_code, plugins_of, to_settings
from offload_jax.runs.config_file import from_settings, load_config, parse_config, to_yaml
from offload_jax.runs.population import Members, read_members, write_members
from offload_jax.runs.run_folder import read_config
from offload_jax.runs.sweep.reading import check_own, load_sweep
from offload_jax.runs.tracking.registry import find_makers
from offload_jax.splits import NATIVE, SplitsConfig

pytestmark = pytest.mark.fast
OWN = """
from dataclasses import dataclass, field, replace
import jax.numpy as jnp
from offload_jax.env.config import EpisodeConfig
from offload_jax.env.environment import Snapshot
from offload_jax.learning.algorithms.ppo import PPO
from offload_jax.methods import Method
from offload_jax.methods.heuristics import deny
from offload_jax.policy.network import FlaxNetwork
from offload_jax.policy.transformer import Transformer
from offload_jax.problem.scenario import EdgeScenario, PaperScenario, SizedScenario
from offload_jax.splits.rules import NO_RULES, Rules
from offload_jax.splits.solver import Native

@dataclass(frozen=True)
class Wide(Transformer):
    extra: int = 1

class Undecorated(Transformer):
    pass

@dataclass
class Thawed:
    pass

@dataclass(frozen=True)
class Half:
    def validate(self): pass
    def init(self, key, description, observation): pass
    def encode(self, params, description): pass

@dataclass(frozen=True)
class NoModule(FlaxNetwork):
    width: int = 8

@dataclass(frozen=True)
class Lists(Transformer):
    widths: list[int] = field(default_factory=lambda: [1, 2])

@dataclass(frozen=True)
class Site(EdgeScenario):
    extra: float = 2.0

@dataclass(frozen=True)
class Compared(EdgeScenario):
    reference: str = "local-search"

@dataclass(frozen=True)
class Wrong(PaperScenario):
    def sample(self, key):
        return replace(super().sample(key), alpha=super().sample(key).alpha[1:])

@dataclass(frozen=True)
class Weak(PaperScenario):
    def sample(self, key):
        return replace(super().sample(key), steps=jnp.asarray(200.0))

@dataclass(frozen=True)
class Early(PaperScenario):
    def sample(self, key):
        return replace(super().sample(key), wait=super().sample(key).wait * 0 - 1.0)

@dataclass(frozen=True)
class Shared(Snapshot):
    pass

@dataclass(frozen=True)
class Exact(Native):
    pass

@dataclass(frozen=True)
class NoArguments:
    name = "mine"
    rules = NO_RULES
    def validate(self): pass
    def solve(self, problem, facts=None): pass

MINE, number = Method("nobody", deny), 3
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("own") / "own.py"
    path.write_text(OWN)
    return path


@pytest.fixture
def trap(tmp_path) -> Path:
    """A file that tells when it is run."""
    path = tmp_path / "trap" / "own.py"
    path.parent.mkdir()
    path.write_text("raise SystemExit('this code must not run')")
    return path


def refused(document: object, *phrases: str, allowed=None) -> str:
    with pytest.raises(ConfigError) as caught:
        from_settings(document, "site.yaml", allowed)
    text = str(caught.value)
    assert "\n" not in text
    for phrase in ("site.yaml: ", *phrases):
        assert phrase in text
    return text


# ---- names


def test_names_of_files_and_modules(file, monkeypatch) -> None:
    found = plugins.load(f"{file}:Wide", "network.kind", None)
    monkeypatch.chdir(file.parent)
    assert plugins.load("own.py:Wide", "network.kind", ["own.py"]) is found
    assert plugins.name_of(found, "it") == f"{file}:Wide"
    assert plugins.load("offload_jax.problem.types:DENY", "x", None) == 0
    assert plugins.name_of(oj.Policy, "it") == "offload_jax.policy.policy:Policy"


@pytest.mark.parametrize(
    ("name", "phrase"),
    [
        ("nowhere.py:Wide", "network.kind is 'nowhere.py:Wide'; there is no file /"),
        ("own.py:Wyde", "own.py must have a Wyde (did you mean Wide?)"),
        ("own.py:number", "must be a class, is int"),
        ("own.py:Undecorated", "Undecorated must be a @dataclass(frozen=True)"),
        ("own.py:Thawed", "Thawed must be a @dataclass(frozen=True)"),
        ("own.py:Half", "Half lacks decode; must have all that offload_jax.policy.network.Network"),
        ("own.py:NoModule", "NoModule lacks module; must have all"),
        ("own.py:Lists", "network.widths is a list; must be hashable: a tuple"),
        ("nowhere.module:Wide", "cannot be loaded: ModuleNotFoundError: No module named 'nowhere'"),
        ("transfromer", "or your own as file.py:Name or package.module:Name (did you mean trans"),
    ],
)
def test_wrong_networks(file, monkeypatch, name, phrase) -> None:
    monkeypatch.chdir(file.parent)
    assert phrase in refused({"network": {"kind": name}})


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("x = 1\nimport nowhere", "cannot be loaded: line 2: ModuleNotFoundError: No module"),
        ("x = 1\n\nraise ValueError('two\\nlines')", "line 3: ValueError: two lines"),
        ("def broken(:\n", "SyntaxError: invalid syntax"),
        ("import sys\nsys.exit(3)", "line 2: SystemExit: 3"),
    ],
)
def test_code_that_raises(tmp_path, text, phrase) -> None:
    path = tmp_path / "broken.py"
    path.write_text(text)
    assert phrase in refused({"network": {"kind": f"{path}:Wide"}})


def test_what_an_environment_needs(file) -> None:
    kind = {"kind": f"{file}:Shared"}  # would be read as the snapshot
    told = refused({"env": kind})
    assert "the Settings of Shared must be a record of its own" in told
    assert "inherits EpisodeConfig" in told


def test_a_reference_decides_at_once(file) -> None:
    config = from_settings({"scenario": {"kind": f"{file}:Compared"}}, "test", None)
    with pytest.raises(ConfigError, match=r"scenario\.reference is 'local-search'; must be one of"):
        reference_name(config.scenario, NATIVE)


def test_a_method_of_ones_own(file, monkeypatch) -> None:
    monkeypatch.chdir(file.parent)
    plan = oj.solve(toy()[0], "own.py:MINE")
    assert (plan.method, plan.assignment.tolist()) == ("own.py:MINE", [0, 0, 0])
    with pytest.raises(ConfigError, match=r"method is 'own\.py:number', a int; must be a Method"):
        oj.solve(toy()[0], "own.py:number")


def test_a_solver_of_ones_own(file, monkeypatch) -> None:
    monkeypatch.chdir(file.parent)
    assert oj.evaluate(toy()[0], toy()[1], "own.py:Exact").objective == pytest.approx(toy()[2])
    assert oj.EnvConfig(solver="own.py:Exact").solver.name == "own.py:Exact"
    config = from_settings({"splits": {"solver": "own.py:Exact"}}, "test", ["own.py"])
    assert config.splits.solver == f"{file}:Exact"
    assert type(config.to_env().solver).__name__ == "Exact"
    with pytest.raises(ConfigError, match=r"cannot be made.*must take its name and rules"):
        SplitsConfig("own.py:NoArguments").validate()
    refused({"splits": {"solver": "own.py:Wide"}}, "Wide lacks", "solver.Solver has")
    refused({"splits": {"solver": "own.py:Exact"}}, "--plugins own.py", allowed=())


def test_a_scenario_that_inherits_another(file) -> None:
    """Its kind is its own, though it inherits the field."""
    config = from_settings({"scenario": {"kind": f"{file}:Site", "extra": 3.0}}, "test", None)
    assert to_settings(config)["scenario"]["kind"] == f"{file}:Site"
    assert parse_config(to_yaml(config)) == config


@pytest.mark.parametrize(
    ("name", "phrase"),
    [
        (
            "Wrong",
            r"Scenario\.sample of Wrong returned alpha of shape \(3,\); must be \(4,\), \(users\)",
        ),
        ("Weak", r"steps of weakly typed float32; must be float32, strongly typed: strong_types"),
        ("Early", r"wait: is -1; must be >= 0 \(s\)"),
    ],
)
def test_instances_of_a_scenario_are_looked_at(file, name, phrase) -> None:
    document = {"scenario": {"kind": f"{file}:{name}", "num_users": [4]}}
    config = from_settings(document, "test", None)
    with pytest.raises(ValueError, match=phrase):
        check_fit(config.to_learner())


def test_a_class_that_no_process_could_find() -> None:
    import dataclasses

    from offload_jax.policy.transformer import Transformer

    local = dataclasses.make_dataclass("Local", [], bases=(Transformer,), frozen=True)
    local.__qualname__ = "test.<locals>.Local"
    with pytest.raises(ConfigError, match="must be at the top of a file or a module"):
        to_yaml(TrainConfig(network=local()))


# ---- trust


def both(file: Path) -> dict[str, dict[str, str]]:
    return {"network": {"kind": f"{file}:Wide"}, "scenario": {"kind": f"{file}:Site"}}


def test_data_names_all_that_it_needs(file) -> None:
    said = refused(both(file), f"--plugins {file} (in Python plugins=[{str(file)!r}])", allowed=())
    assert "scenario.kind is" in said
    with pytest.raises(ConfigError, match=r"--plugins other\.py .*own\.py"):
        from_settings(both(file), "site.yaml", ["other.py"])


def test_the_callers_file_is_loaded_and_no_other(file, trap) -> None:
    """Data may lie about where a file is, and may have one of the same name beside it."""
    config = from_settings(both(trap), "site.yaml", [str(file)], folder=trap.parent)
    assert set(plugins_of(config)) == {f"{file}:Wide", f"{file}:Site"}
    relative = {"network": {"kind": "own.py:Wide"}}
    config = from_settings(relative, "site.yaml", [f"{file}:Wide"], folder=trap.parent)
    assert plugins_of(config) == [f"{file}:Wide"]
    refused({"network": {"kind": "own.py:Half"}}, "--plugins", allowed=[f"{file}:Wide"])
    with pytest.raises(ConfigError, match="this code must not run"):
        load_config(_written(trap.parent, relative))  # but the user's own configuration may


@pytest.mark.parametrize(
    "text",
    [
        "tracking: {also: ['own.py:T']}",
        "tracking: {also: !!set {'own.py:T': null}}",
        "tracking: {also: [!!binary b3duLnB5OlQ=]}",
        "splits: {solver: !!binary b3duLnB5OlQ=}",
        "network: {kind: !!binary b3duLnB5OlQ=}",
    ],
)
def test_other_ways_to_write_a_name(trap, monkeypatch, text) -> None:
    monkeypatch.chdir(trap.parent)
    (trap.parent / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"own\.py:T'.*, code that is not of|is b'own\.py:T'"):
        read_config(trap.parent)


def _written(folder: Path, document: object) -> Path:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


@pytest.mark.parametrize("command", ["train", "eval", "export", "pack", "info"])
def test_commands_refuse_the_code_of_runs(trap, command, capsys) -> None:
    _written(trap.parent, {"network": {"kind": "own.py:Wide"}})
    words = ["--run", str(trap.parent), *(["--out", "x"] if command in ("export", "pack") else [])]
    assert cli.main([command, *words]) == 1
    said = capsys.readouterr().err
    assert "network.kind is 'own.py:Wide', code that is not of offload-jax" in said
    assert said.count("\n") == 1
    assert cli.main([command, *words, "--plugins", "other.py"]) == 1
    assert "--plugins other.py own.py" in capsys.readouterr().err


def test_policies_and_members_refuse_code(trap, file, tmp_path) -> None:
    _written(trap.parent, {"network": {"kind": "own.py:Wide"}})
    for read in (oj.load_policy, read_config):
        with pytest.raises(ConfigError, match=r"plugins=\['own.py'\]"):
            read(trap.parent)
    with pytest.raises(ConfigError, match=r"init_from is .*--plugins own\.py"):
        oj.train(TrainConfig(init_from=str(trap.parent)), folder=tmp_path / "run")
    config = from_settings(both(file), "test", None)
    members: Members = {"a": config, "b": config}
    for name in members:
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(to_yaml(config))
    write_members(tmp_path, members)
    assert read_members(tmp_path, [str(file)]) == members
    with pytest.raises(ConfigError, match=f"--plugins {file}"):
        read_members(tmp_path)


# ---- configurations


def test_names_still_mean_the_file_elsewhere(file, tmp_path, monkeypatch) -> None:
    """A file is looked for beside the configuration, then where the command is given."""
    path = _written(file.parent, {"network": {"kind": "own.py:Wide"}})
    monkeypatch.chdir(tmp_path)
    config = load_config(path)
    assert yaml.safe_load(to_yaml(config))["network"]["kind"] == f"{file}:Wide"
    relative = os.path.relpath(file)
    words = ["--network.kind", f"{relative}:Wide", "--network.extra", "4"]
    changed = configured([*words, f"--splits.solver={relative}:Exact"], TrainConfig())
    found = own_code(to_settings(changed))
    assert found == {"network.kind": f"{file}:Wide", "splits.solver": f"{file}:Exact"}
    again = configured(words[:2], changed)  # the same kind: its settings stay
    assert again.network == changed.network


def test_a_record_made_in_a_module() -> None:
    """From Python nothing has to be loaded by name."""
    from own_networks import Narrow

    config = TrainConfig(network=Narrow())
    name = to_settings(config)["network"]["kind"]
    assert name == f"{Path(__file__).resolve().parents[1]}/helpers/own_networks.py:Narrow"
    assert parse_config(to_yaml(config)) == config


def test_sweeps_with_code(file, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(file.parent)
    Path("train.py").write_text("")
    site = _written(tmp_path, {"network": {"kind": f"{file}:Wide"}})
    document = {
        "program": "train.py",
        "method": "grid",
        "parameters": {
            "config": {"value": str(site)},
            "splits.solver": {"values": ["native", "own.py:Exact"]},
            "algorithm.kind": {"value": "preference"},
            "algorithm.sharpness": {"values": [0.1, 0.2]},
        },
    }
    Path("sweep.yaml").write_text(json.dumps(document))
    sweep = load_sweep("sweep.yaml")
    assert sweep.plugins == [str(file), "own.py"]
    values = sweep.fixed | {"splits.solver": "own.py:Exact", "algorithm.sharpness": 0.2}
    config = sweep.settings(values)
    assert config.splits.solver == f"{file}:Exact"
    assert to_settings(config)["algorithm"]["sharpness"] == 0.2


def test_the_file_in_a_sweeps_directory_runs_no_code(file, trap, monkeypatch) -> None:
    monkeypatch.chdir(file.parent)
    Path("train.py").write_text("")
    document = {"program": "train.py", "method": "grid", "parameters": {"seed": {"values": [0]}}}
    Path("mine.yaml").write_text(json.dumps(document))
    theirs = document | {"parameters": {"network.kind": {"value": f"{trap}:Wide"}}}
    (trap.parent / "sweep.yaml").write_text(json.dumps(theirs))
    with pytest.raises(ConfigError, match="which holds another sweep"):
        check_own(trap.parent / "sweep.yaml", load_sweep("mine.yaml"))


@pytest.mark.parametrize(
    ("name", "phrase"),
    [
        ("own.py:Wide", "Wide lacks row, figure, artifact, finish; must have all"),
        ("wandbb", "tracking.also is 'wandbb'; must be one of metrics, none, wandb, or your own"),
    ],
)
def test_wrong_trackers(file, monkeypatch, name, phrase) -> None:
    monkeypatch.chdir(file.parent)
    document = {"tracking": {"also": ["none", name]}}
    with pytest.raises(ConfigError) as caught:
        find_makers(from_settings(document, "site.yaml", None).tracking)
    assert phrase in str(caught.value)
    if ":" in name:
        refused(document, "tracking.also[1] is 'own.py:Wide'", "--plugins own.py", allowed=())


def test_nothing_is_compiled_for_what_is_refused(file, monkeypatch) -> None:
    compiled = []
    monkeypatch.setattr(jax, "jit", lambda *given, **options: compiled.append(given))
    assert "lacks decode" in refused({"network": {"kind": f"{file}:Half"}})
    assert not compiled
