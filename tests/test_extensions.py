"""The examples of docs/how-to/extend/, run as their pages say, from training to a sweep."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import tyro
import yaml
from compiled import evaluate
from episodes import world
from jax import Array
from paths import ROOT

import offload_jax as oj
from offload_jax import cli
from offload_jax.commands.options import Arguments, check
from offload_jax.commands.settings import configured
from offload_jax.env.environment import Environment
from offload_jax.env.state import State
from offload_jax.export import bundle
from offload_jax.export.artifacts import portable
from offload_jax.export.programs import programs
from offload_jax.plans.outcome import split_problem
from offload_jax.problem.instance import Instance
from offload_jax.problem.types import Key, Status
from offload_jax.runs import run_folder
from offload_jax.runs.config_file import from_settings, load_config
from offload_jax.runs.sweep.reading import load_sweep
from offload_jax.runs.sweep.trials import Trial
from offload_jax.runs.sweep.workers import TrialProcess, shares
from offload_jax.splits import NATIVE, Solution, Solver, SplitProblem, SplitsConfig, solver_named

PAGES = ROOT / "docs" / "how-to" / "extend"
KINDS = ("scenario", "network", "algorithm", "tracker")
SMALL = ["--learner.updates", "2", "--learner.instances", "4", "--learner.samples", "4"]
SMALL += ["--scenario.num_users", "4", "--run.log_every", "1", "--run.eval_every", "2"]
SMALL += ["--run.eval_instances", "8"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The examples where a user has them: in a folder of the user's own."""
    folder = tmp_path_factory.mktemp("site")
    for path in (*PAGES.glob("own*.py"), *PAGES.glob("own*.yaml")):
        shutil.copy(path, folder)
    return folder


def run(words: list[str], capsys, status: int = 0) -> str:
    found = cli.main(words)
    out, err = capsys.readouterr()
    assert found == status, err
    return out + err


@pytest.fixture(scope="module")
def trained(folder) -> Path:
    """A run with scenario, network and algorithm of one's own, two updates old."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert cli.main(["train", "--config", "own.yaml", "--run", "run", *SMALL]) == 0
    return folder / "run"


@pytest.mark.fast
def test_pages_show_the_files() -> None:
    files = sorted(PAGES.glob("own*"))
    assert len(files) >= 9
    pages = [page.read_text("utf-8") for page in PAGES.glob("*.md")]
    for path in files:
        language = {".py": "python", ".yaml": "yaml"}[path.suffix]
        block = f"\n```{language}\n{path.read_text('utf-8')}```\n"
        assert any(block in page for page in pages), f"no page shows {path.name} as it is"
    for page in pages:
        assert "## Common mistakes" in page or page.startswith("# Extend it")
        assert len(re.sub(r"^```.*?^```", "", page, flags=re.M | re.S).split()) <= 400, page[:40]


@pytest.mark.fast
def test_commands_of_the_pages(folder, monkeypatch) -> None:
    """They are read as they stand, up to what they would compile."""
    monkeypatch.chdir(folder)
    found = [
        line.split()[1:]
        for page in PAGES.glob("*.md")
        for line in page.read_text("utf-8").splitlines()
        if line.startswith("python ") and "RUN" not in line
    ]
    assert len(found) >= 9
    for script, *words in found:
        if script == "train.py":
            config = load_config(words[words.index("--config") + 1])
            configured(words[2:], config).validate()
        else:
            parsed = tyro.cli(Arguments, args=words)
            check(parsed)
            SplitsConfig(parsed.splits.solver or "native").validate()


def test_a_run_goes_on_with_its_plugins_only(trained, tmp_path, monkeypatch, capsys) -> None:
    """From another folder, and with files that were moved meanwhile."""
    monkeypatch.chdir(tmp_path)
    words = ["train", "--run", str(trained), "--learner.updates", "3"]
    files = [str(trained.parent / f"own_{name}.py") for name in KINDS]
    said = run(words, capsys, status=1)
    assert f"files run no code unless you say so: --plugins {' '.join(files)} (in Py" in said
    assert said.count("\n") == 1
    moved = [shutil.copy(path, tmp_path) for path in files]
    said = run([*words, "--plugins", *moved], capsys)
    assert f"python eval.py --run {trained} --plugins {' '.join(moved)}" in said
    config = yaml.safe_load((trained / "config.yaml").read_text())
    assert config["network"]["kind"] == f"{tmp_path}/own_network.py:PairMLP"
    said = run(["info", "--run", str(trained), "--plugins", *files], capsys)
    assert "update: 3 of 3" in said
    lines = (trained / "gaps.csv").read_text().splitlines()  # of the evaluations, each once
    assert [line.split(",")[0] for line in lines] == ["step", "1", "2", "3"]


def test_it_is_evaluated_packed_and_exported(trained, monkeypatch, capsys) -> None:
    monkeypatch.chdir(trained.parent)
    with pytest.raises(SystemExit):  # it needs no code, and has no option for it
        cli.main(["sync", "run", "--plugins", "own_network.py"])
    settings, tracking = run_folder.read_plain("run")
    assert settings["tracking"]["also"][0].endswith("own_tracker.py:Spreadsheet")
    assert tracking.wandb == "off"
    own = ["--plugins", *(f"own_{name}.py" for name in KINDS)]
    more = ["--methods", "deny", "own_method.py:SLOWEST_FIRST", "--per-cell", "4"]
    more += ["--samples", "1", "--splits.solver", "own_solver.py:Bisection"]
    said = run(["eval", "--run", "run", *own, *more], capsys)
    assert "| own_method.py:SLOWEST_FIRST |" in said
    found = json.loads((trained / "eval" / "eval.json").read_text())
    assert found["source"]["splits"]["solver"] == "own_solver.py:Bisection"
    run(["pack", "--run", "run", "--out", "packed", *own], capsys)
    with pytest.raises(ValueError, match=r"--plugins .*own_scenario\.py .*own_network\.py \(in Py"):
        oj.load_policy("packed")
    # The whole of an export takes half a minute (tests/deploy): here, one program of the policy.
    monkeypatch.setattr(bundle, "write_bundle", _greedy_alone)
    words = ["export", "--policy", "packed", "--out", "bundle", "--no-iree"]
    run([*words, *own[:3]], capsys)
    assert Path("bundle", "greedy.jax").stat().st_size > 10_000
    assert "files run no code unless" in run(words, capsys, status=1)


def _greedy_alone(out: Path, policy: oj.Policy, *_: object) -> SimpleNamespace:
    out.mkdir()
    jaxtyping.config.update("jaxtyping_disable", True)  # it does not know symbols for sizes
    try:
        program = portable("greedy", programs(policy)["greedy"], {"M": 2, "G": 1})
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
    (out / "greedy.jax").write_bytes(program)
    return SimpleNamespace(folder=out)


def test_a_sweep_passes_them_on(folder, monkeypatch, capsys) -> None:
    """Two trials; what goes on is told of the code that the file names."""
    monkeypatch.chdir(folder)
    kinds = {"network": "own_network.py:PairMLP", "algorithm": "own_algorithm.py:Reinforce"}
    small = dict(zip([word[2:] for word in SMALL[::2]], map(int, SMALL[1::2]), strict=True))
    values = {"config": "smoke"} | small
    values |= {f"{section}.kind": kind for section, kind in kinds.items()}
    parameters = {name: {"value": value} for name, value in values.items()}
    parameters |= {"seed": {"values": [0, 1]}}  # one program
    document = {"program": str(ROOT / "train.py"), "method": "grid", "parameters": parameters}
    Path("sweep.yaml").write_text(json.dumps(document))
    run(["sweep", "sweep.yaml", "--out", "sweep"], capsys)
    config = run_folder.read_config("sweep/trials/1", ["own_network.py", "own_algorithm.py"])
    assert type(config.network).__name__ == "PairMLP"
    trial = Trial(1, {}, None, 0)
    job = TrialProcess(trial, Path("sweep"), load_sweep("sweep.yaml"), shares(1)[0])
    assert job._command()[-3:] == ["--plugins", "own_network.py", "own_algorithm.py"]


def test_a_cap_of_grants(folder) -> None:
    """The environment's page: random legal actions grant no more."""
    kind = {"kind": str(folder / "own_environment.py:Capped"), "grants": 2, "order": "adaptive"}
    config = from_settings({"env": kind}, "test", None)
    assert config.deciding == "adaptive order"
    env, instances = config.to_env(), world("edge")
    played, seen = _played(env, instances, jax.random.key(1))
    granted = np.sum(np.asarray(played.assignment) > 0, axis=0)
    assert granted.max() == 2
    assert np.all(seen)
    arrival = replace(env, order="arrival")
    state = replace(arrival.reset(instances), assignment=jnp.ones_like(played.assignment))
    legal = np.asarray(arrival.action_mask(instances, state))
    assert legal[0].all()
    assert not legal[1:].any()


@partial(jax.jit, static_argnums=0)
def _played(env: Environment, instances: Instance, key: Key) -> tuple[State, Array]:
    """The state after random legal actions, and whether observations showed the same mask."""

    def step(state: State, key: Key) -> tuple[State, Array]:
        legal = env.action_mask(instances, state)
        action = jnp.argmax(jnp.where(legal, jax.random.uniform(key, legal.shape), -1), axis=0)
        shown = jnp.all(env.observe(instances, state).mask == legal)
        return env.step(instances, state, action)[0], shown

    keys = jax.random.split(key, env.num_steps(instances))
    return jax.lax.scan(step, env.reset(instances), keys)


def test_a_solver_is_as_exact_as_ours(folder) -> None:
    """The solver's page: the same splits, prices and derivatives."""
    instances = world("edge")
    plan = jnp.asarray(np.random.default_rng(0).integers(0, 5, instances.alpha.shape), jnp.int32)
    own = solver_named(str(folder / "own_solver.py:Bisection"))
    problem = split_problem(instances, plan)
    mine, theirs = (_solved(solver, problem) for solver in (own, NATIVE))
    assert np.mean(np.asarray(theirs[0].price) > 0) > 0.3
    assert np.all(np.asarray(mine[0].status) == Status.SOLVED)
    np.testing.assert_allclose(mine[0].split, theirs[0].split, atol=2e-3)
    np.testing.assert_allclose(mine[1], theirs[1], rtol=2e-3, atol=2e-3)


@partial(jax.jit, static_argnums=0)
def _solved(solver: Solver, problem: SplitProblem) -> tuple[Solution, Array]:
    def total(saving: Array) -> Array:
        return jnp.sum(solver.solve(replace(problem, saving=saving)).split)

    return solver.solve(problem), jax.grad(total)(problem.saving)


@pytest.mark.parametrize("name", ["own_constraint", "own_term"])
def test_rules_change_the_splits(folder, name) -> None:
    solver = load_config(folder / f"{name}.yaml").splits.to_solver()
    instances = jax.tree.map(lambda x: x[..., :2], world("edge"))
    plan = jnp.where(instances.mask, jnp.arange(6)[:, None] % 4 + 1, 0).astype(jnp.int32)
    mine, plain = (evaluate(instances, plan, one) for one in (solver, NATIVE))
    mine, plain = (np.nan_to_num(np.asarray(one.gain), nan=-1) for one in (mine, plain))
    assert np.all(mine < plain - 0.01)
