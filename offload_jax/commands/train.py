"""`train`: trains a policy, or goes on with a stopped run."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from offload_jax.commands.settings import (
    kinds_there_are,
    peek,
    peek_all,
    typed_settings,
    untyped,
    with_flags,
    with_kinds,
)
from offload_jax.evaluation.reference import reference_name
from offload_jax.files.checks import ConfigError
from offload_jax.learning import updates
from offload_jax.runs import multihost, run_folder
from offload_jax.runs.checked import policy_learning
from offload_jax.runs.config import TrainConfig, plugins_option
from offload_jax.runs.config_file import load_config, to_yaml
from offload_jax.runs.loop import describe_needs, prepare
from offload_jax.runs.multihost import DistributedConfig
from offload_jax.runs.population import (
    Members,
    PopulationConfig,
    check_alike,
    going_on,
    is_population,
    read_members,
)
from offload_jax.runs.population_train import train_population
from offload_jax.runs.recorder import Row
from offload_jax.runs.train import RunResult, check_init_from, check_rules, train

S = TypeVar("S")


@dataclass(frozen=True)
class Arguments(Generic[S]):
    """Train a policy, or go on with a stopped run.

    Every setting of the configuration can be overridden, for example --learner.lr 3e-4 --seed 1.
    """

    settings: Annotated[S, tyro.conf.arg(name="")]
    config: str = "paper"
    """A shipped configuration or a YAML file."""
    run: Path | None = None
    """Run directory: a new one, or one to go on with. Default: a fresh one under runs/."""
    dry_run: bool = False
    """Check everything, compile one update, print what would run, write nothing."""
    distributed: DistributedConfig = field(default_factory=DistributedConfig)
    """Several processes, on one host or many, each started with this command."""
    population: PopulationConfig = field(default_factory=PopulationConfig)
    """Several runs in one program; --run names the folder of their run directories."""
    plugins: tuple[str, ...] = ()
    """Files or modules of your own code that the settings of --run and --init-from may name."""


def run(words: list[str], prog: str) -> int:
    """Trains as the words say; 130 where that was interrupted."""
    source, folder = peek(words, "config"), peek(words, "run")
    saved = _saved(folder, peek_all(words, "plugins"))
    if saved and source is not None:
        raise ConfigError(f"config is {source!r}; must be left out, since run {folder} has its own")
    base = next(iter(saved.values())) if saved else load_config(source or "paper")
    chosen, words = with_kinds(base, words)
    typed = typed_settings(chosen)
    form: Any = Arguments[type(typed)]  # type: ignore[misc]
    default, options = Arguments(settings=typed), with_flags(words, chosen)
    about = f"{inspect.cleandoc(Arguments.__doc__ or '')}\n\n{kinds_there_are()}"
    parsed = tyro.cli(form, args=options, prog=prog, default=default, description=about)
    config = untyped(parsed.settings)
    config.validate()
    members = _members(parsed, config, saved, base)
    if parsed.run is not None and not saved:
        run_folder.check_folder(parsed.run, members)
    if saved and not members:
        config = run_folder.resumed(base, config)
    with multihost.started(parsed.distributed):  # before anything touches a device
        if not saved:
            check_init_from(config, parsed.plugins)
        if members:
            return _train_population(members, parsed)
        config.find_devices()  # refuses before anything is said or written
        if parsed.dry_run:
            check_rules(config)
            return _dry_run(config)
        return _train(config, parsed.run, parsed.plugins)


def _saved(folder: str | None, plugins: Sequence[str]) -> Members:
    """The settings of what a folder holds: one run, by no name, or a population's members."""
    if folder is None:
        return {}
    if is_population(Path(folder)):
        return read_members(Path(folder), plugins)
    return {"": run_folder.read_config(folder, plugins)} if run_folder.is_run(Path(folder)) else {}


def _members(
    parsed: Arguments[Any], config: TrainConfig, saved: Members, base: TrainConfig
) -> Members:
    """The members of a population, a new one or one to go on with; none where one run is meant."""
    if not saved:
        asked = parsed.population
        return {} if asked.is_one() else asked.members(config)
    if not parsed.population.is_one():
        raise ConfigError(
            f"population cannot change within a run; must be left out, as in {parsed.run}"
        )
    return {} if "" in saved else going_on(saved, base, config)


def _train(config: TrainConfig, folder: Path | None, plugins: Sequence[str]) -> int:
    target = Path(multihost.from_first(str(folder or run_folder.new_folder(config))))
    if not multihost.is_first():
        return _status(train(config, folder=target, plugins=plugins))
    print(f"run directory: {target}", flush=True)
    if config.splits.solver.startswith("cvxpylayers"):
        print(f"splits: {config.splits.solver}, in float64 on the host; the rest stays as it is")
    with _Progress(config) as show:
        result = train(config, [show], target, show.warn, show.tell, plugins)
    _summarize(result, config)
    return _status(result)


def _train_population(members: Members, parsed: Arguments[Any]) -> int:
    base = next(iter(members.values()))
    if parsed.dry_run:
        check_alike(members)
        check_rules(base)
        print("".join(f"# member {name}\n" for name in members), end="")
        one = replace(base, run=replace(base.run, devices=1))
        return _dry_run(one, f"one of {len(members)} members")
    folder = parsed.run or run_folder.new_folder(base)
    print(f"population: {folder}, {len(members)} members", flush=True)
    with _Progress(base) as show:
        results = train_population(
            members, folder, [show.best_of], show.warn, show.tell, parsed.plugins
        )
    _rank(results)
    return max(map(_status, results.values()), default=130)


def _rank(results: dict[str, RunResult]) -> None:
    """Prints the members, best first."""
    best = {
        name: min((row["gap"] for row in result.rows if "gap" in row), default=math.inf)
        for name, result in results.items()
    }
    for name in sorted(best, key=lambda name: best[name]):
        print(f"best gap {100 * best[name]:.3f} %  {results[name].folder}")


def _status(result: RunResult) -> int:
    return 0 if result.finished else 130


def _dry_run(config: TrainConfig, tried: str = "everything") -> int:
    task = policy_learning(config, config.find_devices())
    state = jax.eval_shape(lambda key: updates.init(task.learner, key), jax.random.key(0))
    needs = prepare(task, state)
    if not multihost.is_first():
        return 0
    size = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(state.params))
    trajectories = config.learner.instances * config.learner.samples
    print(to_yaml(config), end="")
    made = f"{config.learner.updates:,} updates of {trajectories:,} trajectories"
    print(f"# {size:,.0f} parameters; {made}")
    print(f"# {describe_needs(needs)}")
    print(f"# {tried} fits and compiles; nothing was written")
    return 0


def _summarize(result: RunResult, config: TrainConfig) -> None:
    option = plugins_option(config)
    evaluated = [row for row in result.rows if "gap" in row]
    if evaluated:
        best = min(evaluated, key=lambda row: row["gap"])
        reference = reference_name(config.scenario, config.splits.to_solver())
        print(f"best gap {100 * best['gap']:.3f} % at update {best['step']}, to the {reference}")
        print(f"learning curve: {result.folder}/learning_curve.png")
    if not result.finished:
        print(f"stopped at update {result.step} of {config.learner.updates}")
        print(f"go on with: python train.py --run {result.folder}{option}")
        return
    print(f"compare it with the baselines: python eval.py --run {result.folder}{option}")


class _Progress:
    """A bar on a terminal, plain lines elsewhere; a callback of `train.train`."""

    def __init__(self, config: TrainConfig) -> None:
        self.updates = config.learner.updates
        learner = config.learner
        self.decisions = learner.instances * learner.samples * config.scenario.max_users
        self.gap, self.members = "-", 1
        self.console = Console(stderr=True)
        self.bar: Progress | None = None
        if self.console.is_terminal:
            self.bar = Progress(
                TextColumn("update {task.completed}/{task.total}"),
                BarColumn(),
                TextColumn("{task.description}"),
                TimeRemainingColumn(),
                console=self.console,
            )

    def __enter__(self) -> _Progress:
        if self.bar:
            self.bar.start()
            self.task = self.bar.add_task("compiling", total=self.updates)
        else:
            print("compiling", flush=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar:
            self.bar.stop()

    def best_of(self, rows: dict[str, Row]) -> None:
        """Shows a population by the smallest gap, and the rates of its members together."""
        best = min(rows.values(), key=lambda row: row.get("gap", math.inf))
        self.members = len(rows)
        self(best)

    def __call__(self, row: Row) -> None:
        if "gap" in row:
            self.gap = f"{100 * row['gap']:.3f} %"
        rate = row["decisions_per_s"] * self.members
        score = row.get("score", math.nan)  # none where every update was skipped
        text = f"{rate:,.0f} decisions/s  score {score:.4f}  gap {self.gap}"
        if self.bar:
            self.bar.update(self.task, completed=row["step"], description=text)
            return
        left = (self.updates - row["step"]) * self.decisions * self.members / (rate or math.nan)
        print(f"update {row['step']:.0f}/{self.updates}  {text}  {left:.0f} s left", flush=True)

    def warn(self, message: str) -> None:
        self.tell(f"warning: {message}")

    def tell(self, message: str) -> None:
        """One line that the bar does not swallow."""
        if self.bar:
            self.bar.console.print(message, markup=False)
        else:
            print(message, flush=True)
