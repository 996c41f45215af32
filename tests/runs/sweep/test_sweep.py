"""Sweeps: files as W&B reads them, trials on record, trainings that die, what is left behind."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml
from paths import ROOT
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args
from wandb.wandb_agent import Agent

from offload_jax import cli
from offload_jax.commands.settings import configured
from offload_jax.evaluation import figures
from offload_jax.files.checks import ConfigError
from offload_jax.runs import run_folder
from offload_jax.runs.config_file import load_config
from offload_jax.runs.sweep import picture, report, runner, trials, workers
from offload_jax.runs.sweep.reading import load_sweep, sweeps
from offload_jax.runs.sweep.space import Space, combinations, read_space
from offload_jax.runs.sweep.spec import SweepConfig
from offload_jax.runs.sweep.trials import Record, Trials
from offload_jax.runs.tracking.metrics import read_rows

# What stands for a training where only its ends matter: rows of a metric, at 20 a second. Its seed
# says how it behaves: 1 fails, 2 dies at every start, 3 once, after three rows.
PROGRAM = """
import json, os, pathlib, signal, sys, time
given = dict(word[2:].split("=", 1) for word in sys.argv[1:])
folder = pathlib.Path(given["run"])
config, metrics = folder / "config.yaml", folder / "metrics.jsonl"
signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
if config.exists():
    assert list(given) == ["run"]
    given = json.loads(config.read_text())
folder.mkdir(exist_ok=True)
config.write_text(json.dumps(given))
seed, lr = int(given.get("seed", 0)), float(given["learner.lr"])
if seed == 1:
    print("error: learning is hard")
    sys.exit(1)
if seed == 2:
    os.kill(os.getpid(), signal.SIGKILL)
rows = len(metrics.read_text().splitlines()) if metrics.exists() else 0
for step in range(rows + 1, int(given.get("learner.updates", 4)) + 1):
    with metrics.open("a") as file:
        file.write(json.dumps({"step": step, "gap": lr * (1 + 1 / step)}) + "\\n")
    if seed == 3 and step == 3 and rows == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.05)
"""

# Real trainings of one program (seeds are no part of it), so that it is compiled once.
SMALL = {
    "config": "smoke",
    "scenario.num_users": 4,
    "network.width": 16,
    "network.residual": False,
    "learner.lr": 3e-4,
    "learner.samples": 4,
    "learner.updates": 12,
    "run.log_every": 1,
    "run.eval_every": 1,
}
MIRRORED = {"tracking.wandb": "offline"}


def document(**changes: object) -> dict[str, object]:
    known: dict[str, object] = {
        "name": "test",
        "program": str(ROOT / "train.py"),
        "method": "random",
        "parameters": {"learner.lr": {"values": [0.001, 0.01]}},
    }
    return {key: value for key, value in (known | changes).items() if value is not None}


def sweep_of(folder: Path, **changes: object) -> SweepConfig:
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(document(**changes), sort_keys=False))
    return load_sweep(str(path))


# ---- files


@pytest.mark.fast
def test_shipped_sweeps(monkeypatch) -> None:
    monkeypatch.chdir(ROOT)
    assert {"edge", "smoke"} <= set(sweeps())
    for name in sweeps():
        sweep = load_sweep(name)
        assert sweep.run_cap
        assert sweep.early


@pytest.mark.fast
@pytest.mark.parametrize(
    ("changes", "phrase"),
    [
        ({"method": "gird"}, r"method is 'gird'; must be one of grid.*did you mean grid"),
        ({"methd": "grid"}, r"the file has methd; .*did you mean method"),
        ({"parameters": {"lr": {"value": 1}}}, r"parameters\.lr is unknown.*mean learner\.lr"),
        ({"parameters": {"learner.lrr": {"value": 1}}}, r"unknown.*did you mean learner\.lr"),
        ({"parameters": {"scenario.kind": {"value": "edge"}}}, "is unknown; must be config or"),
        ({"parameters": {"config": {"value": "papr"}}}, r"config is 'papr'.*did you mean paper"),
        ({"parameters": {"learner.lr": {"min": 1, "max": 0.1}}}, r"max is 0\.1; must be above min"),
        ({"parameters": {"learner.lr": {"min": "1e-4", "max": 1.0}}}, r"write it with a point"),
        ({"parameters": {"learner.lr": {"min": -0.1, "max": 0.1}}}, r"learner\.lr is -0\.1; must"),
        ({"parameters": {"learner.lr": {"min": 0.1}}}, r"lr has min; must have min, max"),
        ({"parameters": {"learner.lr": {"values": []}}}, r"values is \[\]; must be a list"),
        ({"parameters": {"learner.lr": {"values": [[1]]}}}, r"values\[0\] is \[1\]; must be a"),
        (
            {
                "parameters": {
                    "learner.lr": {"distribution": "log_uniform_values", "min": 0, "max": 1}
                }
            },
            "must be above 0 on a logarithmic axis",
        ),
        (
            {"parameters": {"learner.lr": {"distribution": "normal", "mu": 0, "sigma": 1}}},
            r"distribution is 'normal'; must be one of constant",
        ),
        ({"parameters": {"learner.samples": {"min": 2.0, "max": 8.0}}}, "must be whole numbers"),
        ({"parameters": {"learner.samples": {"values": [4, 8.0]}}}, r"takes 8\.0; must be whole"),
        ({"parameters": {"network.heads": {"values": [4, 3]}}}, r"with --network\.heads=3"),
        (
            {"parameters": {"learner.updates": {"value": True}}},
            r"updates takes True; must be whole",
        ),
        ({"parameters": {}}, "must be a mapping of one or more"),
        ({"method": "grid", "parameters": {"learner.lr": {"min": 0.1, "max": 1.0}}}, "is a range"),
        ({"metric": {"name": "gapp"}}, r"metric\.name is 'gapp'; .*did you mean gap"),
        ({"metric": {"name": "sound"}}, r"metric\.name is 'sound'; .*must be"),
        ({"metric": {"goal": "min"}}, r"metric\.goal is 'min'; must be one of minimize"),
        ({"early_terminate": {"type": "envelope"}}, "must be one of hyperband"),
        ({"early_terminate": {"type": "hyperband", "s": 2}}, "min_iter, or max_iter and s"),
        ({"early_terminate": {"type": "hyperband", "min_iter": 0}}, "min_iter is 0; must be a"),
        ({"program": "nowhere.py"}, r"program is 'nowhere\.py'; must be a file"),
        ({"command": ["${program}", "${args_json}"]}, r"command has \$\{args_json\}; must be one"),
        (
            {"command": ["${program}", "--seed=1", "${args}"]},
            r"has --seed=1; must be in parameters",
        ),
        ({"command": ["${program}"]}, "end with"),
        ({"run_cap": 0}, "run_cap is 0; must be a whole number"),
    ],
)
def test_bad_files_are_named(changes, phrase, tmp_path) -> None:
    with pytest.raises(ConfigError, match=phrase):
        sweep_of(tmp_path, **changes)


@pytest.mark.fast
def test_files_that_cannot_be_read(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"file is 'egde'; must be .*did you mean edge"):
        load_sweep("egde")
    for text, phrase in (
        ("a: 1\na: 2", "appears twice"),
        ("a: [", "not valid YAML"),
        ("3", "is 3"),
    ):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(ConfigError, match=phrase):
            load_sweep(str(tmp_path / "bad.yaml"))


@pytest.mark.fast
@pytest.mark.parametrize(
    ("entry", "space"),
    [
        ({"value": "a"}, Space("choice", ("a",))),
        ({"values": [1, "b", None]}, Space("choice", (1, "b", None))),
        ({"min": 1, "max": 8}, Space("int", (), 1, 8)),
        ({"min": 1, "max": 8.0}, Space("float", (), 1, 8)),
        ({"distribution": "uniform", "min": 1, "max": 2}, Space("float", (), 1, 2)),
        ({"distribution": "q_uniform", "min": 8, "max": 24, "q": 8}, Space("int", (), 8, 24, 8)),
        (
            {"distribution": "log_uniform", "min": 0, "max": 1},  # exponents of e
            Space("float", (), 1.0, math.e, log=True),
        ),
    ],
)
def test_distributions_mean_what_they_mean_to_wandb(entry, space) -> None:
    assert read_space(entry, "x") == space


@pytest.mark.fast
def test_grids_and_ends() -> None:
    assert Space("int", (), 8, 24, 8).grid() == (8, 16, 24)
    assert Space("float", (), 0.0, 0.5, 0.25).grid() == (0.0, 0.25, 0.5)
    assert Space("float", (), 0.0, 0.5).grid() is None
    spaces = {f"x{i}": Space("choice", tuple(range(i + 2))) for i in range(8)}
    tried = combinations(spaces)
    assert len(tried) < 100
    for name, space in spaces.items():
        assert {values[name] for values in tried} == set(space.values)


@pytest.mark.fast
def test_settings_of_a_trial(tmp_path) -> None:
    """The same that the command line makes of the same words, tuples of one included."""
    parameters = {
        "config": {"value": "smoke"},
        "learner.lr": {"values": [3e-4]},
        "learner.max_grad_norm": {"value": 2},
        "scenario.num_users": {"value": 4},
        "network.residual": {"value": False},
        "tracking.group": {"value": None},
    }
    sweep = sweep_of(tmp_path, parameters=parameters)
    values = {name: space.values[0] for name, space in sweep.parameters.items()}
    base = load_config("smoke")
    words = [word for word in sweep.words(values) if not word.startswith("--config")]
    parsed = configured(words, base)
    assert sweep.settings(values) == parsed
    assert parsed.scenario.num_users == (4,)
    assert parsed.network.residual is False


@pytest.mark.fast
def test_the_command_line_is_that_of_wandb(tmp_path) -> None:
    sweep = sweep_of(tmp_path)
    values = {"learner.lr": 3e-4, "network.residual": True, "tracking.group": None, "seed": 1}
    theirs = create_sweep_command_args({"args": {n: {"value": v} for n, v in values.items()}})
    assert sweep.words(values) == theirs["args"]
    assert list(sweep.command) == create_sweep_command(None)
    assert sweep.command_line(["--x"]) == ["/usr/bin/env", sys.executable, sweep.program, "--x"]


def test_what_the_agent_of_wandb_runs(tmp_path, monkeypatch) -> None:
    """Its own code builds the command line, sets the environment and starts the process."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_bytes((ROOT / "train.py").read_bytes())
    for name, value in {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "WANDB_SWEEP_ID": "sweep123",
        "WANDB_DIR": str(tmp_path),
        "WANDB_CACHE_DIR": str(tmp_path),
        "WANDB_RUN_ID": "",  # the agent writes these two into this process' environment
        "WANDB_SWEEP_PARAM_PATH": "",
    }.items():
        monkeypatch.setenv(name, value)
    agent = Agent(None, None, sweep_id="sweep123")
    agent._sweep_command = ["${env}", "${interpreter}", "${program}", "${args}"]
    args = {name: {"value": value} for name, value in (SMALL | MIRRORED).items()}
    agent._command_run({"run_id": "run456", "program": "train.py", "args": args})
    assert agent._run_processes["run456"].wait(timeout=240) == 0
    [folder] = (tmp_path / "runs").iterdir()
    config = run_folder.read_config(folder)
    assert config.learner.lr == 3e-4
    assert config.network.residual is False
    assert [row["step"] for row in read_rows(folder / "metrics.jsonl")] == list(range(1, 13))
    assert list((folder / "wandb").glob("offline-run-*-run456"))  # under the agent's id


# ---- trials on record


@pytest.fixture
def opened() -> Iterator[Callable[..., Trials]]:
    """Opens trials, and closes them in the end."""
    with ExitStack() as stack:
        yield lambda *words, **more: stack.enter_context(Trials(*words, **more))


def storages(folder: Path) -> list[Path | str]:
    return [folder / "journal.log", f"sqlite:///{folder}/trials.db"]


@pytest.mark.fast
@pytest.mark.parametrize("kind", [0, 1], ids=["journal", "database"])
def test_trials_go_on_under_the_same_number(kind, opened, tmp_path) -> None:
    sweep, storage = sweep_of(tmp_path), storages(tmp_path)[kind]
    first = opened(sweep, storage, "a")
    one = first.take([], 2)
    first.started(one)
    assert not first.report(one, [0.5, 0.7])
    two = first.take([0], 2)
    assert (one.number, two.number) == (0, 1)
    assert first.take([0, 1], 2) is None

    again = opened(sweep, storage, "a")  # after a restart, under the same name
    same = again.take([], 2)
    assert (same.number, same.parameters, same.reported) == (0, one.parameters, 2)
    again.report(same, [0.5, 0.7, 0.4])  # what is on record is not reported twice
    again.finish(same, 0.4)
    again.fail(two, "because")
    done, failed = again.records()
    assert (done.state, done.value, done.starts) == ("finished", 0.4, 1)
    assert (failed.state, failed.value, failed.reason) == ("failed", None, "because")
    assert again.take([], 2) is None


@pytest.mark.fast
@pytest.mark.parametrize("kind", [0, 1], ids=["journal", "database"])
def test_trials_of_a_dead_machine_are_taken_over(kind, opened, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(trials, "BEAT_S", 0.0)
    sweep, storage = sweep_of(tmp_path), storages(tmp_path)[kind]
    dead, alive = opened(sweep, storage, "a"), opened(sweep, storage, "b", stale_s=0.2)
    trial = dead.take([], 1)
    assert alive.take([], 1) is None  # no more than asked for, and this one seems alive
    time.sleep(0.1)
    assert dead.beat(trial)
    time.sleep(0.15)
    assert alive.take([], 1) is None
    time.sleep(0.25)
    taken = alive.take([], 1)
    assert (taken.number, taken.parameters) == (0, trial.parameters)
    assert not dead.beat(trial)  # back from the dead: it has lost the trial
    assert alive.beat(taken)
    alive.finish(taken, 0.1)
    dead.report(trial, [0.9])
    dead.finish(trial, 0.9)
    dead.fail(trial, "late")
    assert [record.value for record in dead.records()] == [0.1]


@pytest.mark.fast
def test_a_trial_too_many_is_dropped(opened, tmp_path, monkeypatch) -> None:
    """Two processes ask for the last trial at the same time."""
    sweep = sweep_of(tmp_path)
    one, other = (opened(sweep, tmp_path / "journal.log", name) for name in "ab")
    counted, ask = one._frozen, one._study.ask
    assert counted() == []
    monkeypatch.setattr(one._study, "ask", lambda: other.take([], 1) and ask())
    assert one.take([], 1) is None
    assert [record.number for record in one.records()] == [0]


@pytest.mark.fast
def test_a_grid_has_every_combination_once(opened, tmp_path) -> None:
    parameters = {
        "learner.lr": {"values": [0.1, 0.2]},
        "learner.samples": {"min": 2, "max": 4},
        "learner.temperature": {"distribution": "q_uniform", "min": 0.1, "max": 0.2, "q": 0.1},
    }
    sweep = sweep_of(tmp_path, method="grid", parameters=parameters)
    found = set()
    assert sweep.grid_size() == 12
    for _ in range(12):
        kept = opened(sweep, tmp_path / "journal.log", "a")  # a restart for each
        trial = kept.take([], 12)
        found.add(tuple(trial.parameters.values()))
        kept.finish(trial, 0.1)
    assert len(found) == 12
    assert kept.take([], 12) is None


@pytest.mark.fast
@pytest.mark.parametrize("goal", ["minimize", "maximize"])
def test_only_the_best_go_on_at_a_rung(goal, opened, tmp_path) -> None:
    early = {"type": "hyperband", "max_iter": 18, "s": 2, "eta": 3}  # rungs at 2 and 6
    sweep = sweep_of(tmp_path, early_terminate=early, metric={"name": "gap", "goal": goal})
    kept, sign = opened(sweep, tmp_path / "journal.log", "a"), 1 if goal == "minimize" else -1
    stops = []
    for worst in (0.1, 0.2, 0.3, 0.05, 0.4):
        trial = kept.take([], 5)
        assert not kept.report(trial, [sign * 2.0])
        stops.append(kept.report(trial, [sign * 2.0, sign * worst]))
        kept.prune(trial) if stops[-1] else kept.finish(trial, sign * worst)
    assert stops == [False, True, True, False, True]
    assert [record.state for record in kept.records()].count("pruned") == 3
    assert kept.records()[1].value == sign * 0.2


@pytest.mark.fast
def test_a_better_value_before_the_rung_counts(opened, tmp_path) -> None:
    early = {"type": "hyperband", "min_iter": 3, "eta": 2}
    kept = opened(sweep_of(tmp_path, early_terminate=early), tmp_path / "journal.log", "a")
    assert not kept.report(kept.take([], 2), [0.5, 0.2, 0.2])
    assert not kept.report(kept.take([0], 2), [0.5, 0.1, 0.4])


@pytest.mark.fast
@pytest.mark.fast
def test_metrics_of_some_algorithms_only(tmp_path) -> None:
    for name in ("layer", "value_error"):
        assert sweep_of(tmp_path, metric={"name": name, "goal": "minimize"}).metric == name


@pytest.mark.fast
def test_trials_are_told_of_trackers_of_ones_own(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(
        "from offload_jax.runs.tracking.tracker import Noop\n"
        "class T(Noop):\n    def __init__(self, config, start): pass\n"
    )
    sweep = sweep_of(tmp_path, parameters={"tracking.also": {"values": ["none", "own.py:T"]}})
    assert sweep.plugins == ["own.py"]


@pytest.mark.fast
def test_parameters_that_the_sweep_does_not_have_are_left_out(tmp_path) -> None:
    """The journal may be a stranger's, and what it says must name no code."""
    sweep = sweep_of(
        tmp_path, parameters={"seed": {"values": [0, 1]}, "learner.lr": {"value": 0.1}}
    )
    planted = {"seed": 1, "algorithm.kind": "own.py:T", "config": "own.yaml", "learner.lr": 9.0}
    assert trials.read_parameters(planted, sweep) == {"seed": 1, "learner.lr": 0.1}
    with pytest.raises(ConfigError, match=r"seed is 'own\.py:T' in a trial; must be one of"):
        trials.read_parameters({"seed": "own.py:T"}, sweep)


def test_a_torn_journal_goes_on(opened, tmp_path) -> None:
    sweep, path = sweep_of(tmp_path), tmp_path / "journal.log"
    trial = opened(sweep, path, "a").take([], 3)
    with path.open("a") as file:
        file.write('{"op_code": 4, "wor')
    kept = opened(sweep, path, "a")
    again = kept.take([], 3)
    assert (again.number, again.parameters) == (trial.number, trial.parameters)
    kept.finish(again, 0.1)
    assert opened(sweep, path, "a").records()[0].state == "finished"


@pytest.mark.fast
def test_an_owner_that_died_while_it_drew(opened, tmp_path) -> None:
    """The trial is there, its parameters are not."""
    sweep = sweep_of(tmp_path)
    kept = opened(sweep, tmp_path / "journal.log", "a", stale_s=0.05)
    kept._study.ask()
    assert kept.take([], 1) is None
    time.sleep(0.1)
    trial = kept.take([], 1)
    assert trial.number == 0
    assert trial.parameters["learner.lr"] in (0.001, 0.01)


@pytest.mark.fast
def test_storages_that_are_refused(opened, tmp_path) -> None:
    sweep = sweep_of(tmp_path)
    for url in ("nonsense", "sqlite:////nowhere/at/all.db", "oracle2://a@b/c"):
        with pytest.raises(ConfigError, match="storage cannot be opened"):
            opened(sweep, url, "a")
    opened(sweep, tmp_path / "journal.log", "a")
    other = sweep_of(tmp_path, parameters={"seed": {"min": 0, "max": 3}})
    with pytest.raises(ConfigError, match="has a sweep 'test' with another method"):
        opened(other, tmp_path / "journal.log", "a")


# ---- the loop, with a program that takes no time


@pytest.fixture
def program(tmp_path, monkeypatch) -> str:
    monkeypatch.setattr(runner, "POLL_S", 0.03)
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return str(path)


def run(
    sweep: SweepConfig,
    folder: Path,
    limit: int,
    look: Callable[..., object] = lambda *_: None,
    storage: str | None = None,
) -> list[Record]:
    """A sweep with two workers; `look` is called with its event to stop it and its status."""
    stop = threading.Event()
    with (
        runner.named(folder) as owner,
        Trials(sweep, storage or folder / "journal.log", owner) as kept,
    ):
        runner.run(sweep, kept, folder, limit, 2, stop, lambda status: look(stop, status))
        return kept.records()


def steps(folder: Path, number: int) -> list[int]:
    return [row["step"] for row in read_rows(folder / "trials" / str(number) / "metrics.jsonl")]


@pytest.mark.fast
def test_trainings_fail_die_and_go_on(program, tmp_path) -> None:
    seeds = {"seed": {"values": [0, 1, 2, 3]}, "learner.lr": {"value": 0.5}}
    sweep = sweep_of(tmp_path, program=program, method="grid", parameters=seeds)
    found = {record.parameters["seed"]: record for record in run(sweep, tmp_path / "out", 4)}
    assert {seed: record.state for seed, record in found.items()} == {
        0: "finished",
        1: "failed",
        2: "failed",
        3: "finished",
    }
    assert found[0].value == found[3].value == pytest.approx(0.5 * 1.25)
    assert (found[0].starts, found[3].starts) == (1, 2)
    assert steps(tmp_path / "out", found[3].number) == [1, 2, 3, 4]
    assert found[1].reason == "status 1: error: learning is hard"
    assert found[2].reason == "ended 3 times without a new row (status -9)"
    assert found[2].starts == 3


@pytest.mark.fast
def test_runs_of_another_sweep_are_not_taken_for_its_own(program, tmp_path) -> None:
    def sweep(name, *rates):
        lr = {"learner.lr": {"values": list(rates)}}
        return sweep_of(tmp_path, name=name, program=program, method="grid", parameters=lr)

    first = run(sweep("first", 0.1, 0.2), tmp_path / "out", 2)
    assert [record.state for record in first] == ["finished", "finished"]
    second = run(sweep("second", 0.5, 0.6), tmp_path / "out", 2)
    assert [record.state for record in second] == ["failed", "failed"]
    assert second[0].reason.endswith("with other parameters; take another directory (--out)")


@pytest.mark.fast
def test_bad_trials_are_stopped_early(program, tmp_path) -> None:
    lr = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    parameters = {"learner.lr": {"values": lr}, "learner.updates": {"value": 20}}
    early = {"type": "hyperband", "min_iter": 2, "eta": 4}
    sweep = sweep_of(
        tmp_path, program=program, method="grid", parameters=parameters, early_terminate=early
    )
    records = run(sweep, tmp_path / "out", 6)
    states = [record.state for record in records]
    assert "pruned" in states
    assert set(states) == {"finished", "pruned"}
    pruned = records[states.index("pruned")]
    assert len(steps(tmp_path / "out", pruned.number)) < 20
    best = report.best_of(sweep, records)
    assert best.parameters["learner.lr"] == min(
        r.parameters["learner.lr"] for r in records if r.state == "finished"
    )


@pytest.mark.fast
def test_stopped_and_gone_on_with(program, tmp_path) -> None:
    parameters = {"learner.lr": {"values": [0.1, 0.2]}, "learner.updates": {"value": 12}}
    sweep = sweep_of(tmp_path, program=program, method="grid", parameters=parameters)
    processes = []

    def stop_after_rows(stop: threading.Event, status: runner.SweepStatus) -> None:
        if all(len(job.values()) >= 2 for job in status.jobs) and len(status.jobs) == 2:
            processes.extend(job._process for job in status.jobs)
            stop.set()

    out = tmp_path / "out"
    assert [r.state for r in run(sweep, out, 2, stop_after_rows)] == ["running", "running"]
    assert [process.returncode for process in processes] == [130, 130]
    assert all(2 <= len(steps(out, number)) < 12 for number in (0, 1))
    records = run(sweep, out, 2)
    assert [(r.state, r.starts) for r in records] == [("finished", 2)] * 2
    assert steps(out, 0) == steps(out, 1) == list(range(1, 13))


@pytest.mark.fast
def test_a_training_whose_sweep_was_killed_is_let_finish(program, tmp_path) -> None:
    """Two trainings of the same run directory would spoil it."""
    parameters = {"learner.lr": {"value": 0.1}, "learner.updates": {"value": 20}}
    sweep = sweep_of(tmp_path, program=program, method="grid", parameters=parameters)
    out = tmp_path / "out"
    with runner.named(out) as owner, Trials(sweep, out / "journal.log", owner) as kept:
        trial = kept.take([], 1)
        orphaned = workers.TrialProcess(trial, out, sweep, workers.shares(1)[0])
        assert orphaned.start()
        orphaned._lock.close()  # as the end of its process does
    waited = []

    def look(_: threading.Event, status: runner.SweepStatus) -> None:
        waited.extend(job.started for job in status.jobs if orphaned.poll() is None)

    [record] = run(sweep, out, 1, look)
    assert waited
    assert not any(waited[:-1])
    assert record.state == "finished"
    assert steps(out, 0) == list(range(1, 21))
    orphaned.close()


@pytest.mark.fast
def test_two_machines_share_a_database(program, tmp_path) -> None:
    """Each in a folder of its own, and neither ends before all is done."""
    sweep = sweep_of(tmp_path, program=program, parameters={"learner.lr": {"min": 0.1, "max": 0.9}})
    url, folders = f"sqlite:///{tmp_path}/trials.db", [tmp_path / "a", tmp_path / "b"]
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda folder: run(sweep, folder, 7, storage=url), folders))
    assert found[0] == found[1]
    assert [record.state for record in found[0]] == ["finished"] * 7
    ran = [sorted(path.name for path in (f / "trials").glob("*.log")) for f in folders]
    assert sorted(ran[0] + ran[1]) == [f"{number}.log" for number in range(7)]
    assert all(ran)


@pytest.mark.fast
def test_names_of_processes(tmp_path) -> None:
    with runner.named(tmp_path) as one:
        with runner.named(tmp_path) as other:
            assert one != other
        with runner.named(tmp_path) as again:
            assert again == other
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="must be a folder that can be written"):
        runner.named(tmp_path / "file" / "out").__enter__()


@pytest.mark.fast
def test_cores_are_dealt_out(monkeypatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3, 4}, raising=False)
    assert [sorted(share.cores) for share in workers.shares(2)] == [[0, 2, 4], [1, 3]]
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {7}, raising=False)
    shares = workers.shares(2)
    assert [sorted(share.cores) for share in shares] == [[7], [7]]
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    environment = shares[0].environment()
    assert environment["OMP_NUM_THREADS"] == "5"  # the user's own
    assert environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.450"


# ---- what is left behind


def records_of(sweep: SweepConfig, values: list[float | None]) -> list[Record]:
    lr = (1e-4, 3e-2, 1e-3, 1e-2, 5e-3, 2e-3)
    made = []
    for i, value in enumerate(values):
        state = "failed" if value is None else "pruned" if i % 3 == 1 else "finished"
        parameters = {
            "config": "smoke", "learner.lr": lr[i % 6], "learner.samples": 4 + i,
            "network.width": (16, 32)[i % 2], "env.order": ("arrival", "sorted")[i % 2],
        }  # fmt: skip
        made.append(Record(i, state, parameters, value, 10.0 + i, None if value else "why", 1))
    return made


@pytest.fixture
def mixed(tmp_path) -> SweepConfig:
    parameters = {
        "config": {"value": "smoke"},
        "learner.lr": {"distribution": "log_uniform_values", "min": 1e-4, "max": 3e-2},
        "learner.samples": {"min": 2, "max": 16},
        "network.width": {"values": [32, 16]},
        "env.order": {"values": ["arrival", "sorted"]},
    }
    return sweep_of(tmp_path, parameters=parameters)


@pytest.mark.fast
def test_results(mixed, tmp_path) -> None:
    records = records_of(mixed, [0.004, 0.0001, None, 0.002])
    (tmp_path / "out").mkdir()
    names = report.write(mixed, records, tmp_path / "out")
    assert names == ["sweep.json", "table.md", "best.yaml", "sweep.png"]
    saved = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert saved["best"] == 3
    assert [trial["state"] for trial in saved["trials"]] == [r.state for r in records]
    lines = (tmp_path / "out" / "table.md").read_text().splitlines()
    assert lines[0].endswith("(1 failed, 2 finished, 1 pruned), random, minimize gap; config smoke")
    assert [line.split(" | ")[0] for line in lines[4:8]] == ["| 3", "| 0", "| 1", "| 2"]
    assert lines[4] == "| 3 | 0.200 % | finished | 0.01 | 7 | 32 | sorted | 13 | 1 |"
    assert lines[-1] == "trial 2 failed: why"
    best = load_config(tmp_path / "out" / "best.yaml")
    assert best == mixed.settings(records[3].parameters)
    assert (best.learner.lr, best.env.order) == (0.01, "sorted")


@pytest.mark.fast
@pytest.mark.parametrize("values", [[None], [0.1], [0.0, 0.0, 0.0], [0.3, 0.2, 0.1, 0.5, 0.4, 0.6]])
def test_pictures_of_any_sweep(values, mixed, tmp_path) -> None:
    records = records_of(mixed, values)
    names = report.write(mixed, records, tmp_path)
    assert ("sweep.png" in names) == (values != [None])
    if "sweep.png" in names:
        said = figures.svg(picture.parallel_coordinates(mixed, records), "sweep")
        for text in ("learner.lr", "learner.samples", "env.order", "gap, %", "best: trial"):
            assert text in said


# ---- the command


@pytest.mark.fast
@pytest.mark.parametrize(
    ("words", "phrase"),
    [
        (["nowhere"], "file is 'nowhere'; must be a sweep file"),
        (["smoke", "--workers", "0"], "workers is 0; must be at least 1"),
        (["smoke", "--trials", "0"], "trials is 0; must be at least 1"),
        (["smoke", "--storage", "nonsense"], "storage cannot be opened"),
        (["smoke", "--out", "/proc/nowhere"], "must be a folder that can be written"),
    ],
)
def test_refusals_are_one_line(words, phrase, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_bytes((ROOT / "train.py").read_bytes())
    assert cli.main(["sweep", *words]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert phrase in error


@pytest.mark.fast
def test_a_directory_is_of_one_sweep(tmp_path, capsys) -> None:
    out = tmp_path / "out"
    out.mkdir()
    words = ["sweep", str(tmp_path / "sweep.yaml"), "--trials", "1", "--out", str(out)]
    lr = {"learner.lr": {"values": [0.5]}}
    for changes in ({"name": "other"}, {"parameters": lr}):
        sweep_of(tmp_path)
        kept = (tmp_path / "sweep.yaml").read_bytes()
        (out / "sweep.yaml").write_bytes(kept)
        sweep_of(tmp_path, **changes)
        assert cli.main(words) == 1
        assert "which holds another sweep (sweep.yaml" in capsys.readouterr().err
        assert [path.name for path in out.iterdir()] == ["sweep.yaml"]
        assert (out / "sweep.yaml").read_bytes() == kept
    (out / "sweep.yaml").write_text("name: [")
    assert cli.main(words) == 1
    assert "sweep.yaml: not valid YAML" in capsys.readouterr().err


@pytest.mark.fast
def test_how_many_trials(tmp_path, capsys) -> None:
    sweep_of(tmp_path)
    words = ["sweep", str(tmp_path / "sweep.yaml"), "--dry-run"]
    assert cli.main(words) == 1
    assert "trials is missing; must be given" in capsys.readouterr().err
    sweep_of(tmp_path, run_cap=5)
    assert cli.main(words) == 0
    assert "test: 5 trials, random, minimize gap" in capsys.readouterr().out
    sweep_of(tmp_path, run_cap=5, method="grid")
    assert cli.main([*words, "--trials", "7"]) == 0
    assert "test: 2 trials, grid" in capsys.readouterr().out


def started(file: Path, *words: str) -> subprocess.Popen[str]:
    """The command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "offload_jax", "sweep", str(file), *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def children(process: subprocess.Popen[str], folder: str) -> list[int]:
    """Processes that it started, and that have this in their words."""
    words = ["pgrep", "-P", str(process.pid), "-f", folder]
    return [int(word) for word in subprocess.run(words, capture_output=True).stdout.split()]


def test_ctrl_c_ends_all_trainings(program, tmp_path) -> None:
    parameters = {"learner.lr": {"values": [0.1, 0.2]}, "learner.updates": {"value": 10_000}}
    sweep_of(tmp_path, program=program, run_cap=2, parameters=parameters)
    out = tmp_path / "out"
    process = started(tmp_path / "sweep.yaml", "--workers", "2", "--out", str(out))
    deadline = time.monotonic() + 60
    while not (steps(out, 0) and steps(out, 1)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    trainings = children(process, "trials/")
    assert len(trainings) == 2
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 130
    assert "stopped; the same command goes on" in said
    assert "| running |" in said
    assert not any(Path(f"/proc/{pid}").exists() for pid in trainings)


@pytest.mark.slow
def test_a_sweep_whose_worker_is_killed(tmp_path) -> None:
    """The real thing: two trainings, one of them killed, and a best configuration that trains."""
    parameters = {name: {"value": value} for name, value in SMALL.items()}
    seeds = {"seed": {"values": [1, 2]}}
    sweep_of(tmp_path, method="grid", parameters=parameters | seeds)
    out = tmp_path / "out"
    process = started(tmp_path / "sweep.yaml", "--workers", "2", "--out", str(out))
    deadline = time.monotonic() + 240
    while len(steps(out, 0)) < 2:
        assert time.monotonic() < deadline
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.02)
    training = children(process, "trials/0")
    for pid in training:
        os.kill(pid, signal.SIGKILL)
    said = process.communicate(timeout=240)[0]
    assert process.returncode == 0, said
    assert training, said
    assert "0 of 2 trials" in said
    assert f"train with the best: python train.py --config {out / 'best.yaml'}" in said
    saved = json.loads((out / "sweep.json").read_text())
    assert [trial["state"] for trial in saved["trials"]] == ["finished", "finished"]
    assert [trial["starts"] for trial in saved["trials"]] == [2, 1]
    assert {"commit", "versions", "device"} <= set(saved["provenance"])
    for number in (0, 1):
        assert steps(out, number) == list(range(1, 13))
    best = run_folder.read_config(out / "trials" / str(saved["best"]))
    assert load_config(out / "best.yaml").seed == best.seed
