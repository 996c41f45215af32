"""`train`: trains a policy, or goes on with a stopped run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from offload_jax import learner as learning
from offload_jax import runs
from offload_jax.config import ConfigError, TrainConfig, load_config, to_yaml
from offload_jax.evaluation import reference_name
from offload_jax.loop import Row

Settings = Annotated[TrainConfig, tyro.conf.arg(name="")]


@dataclass(frozen=True)
class Arguments:
    """Train a policy, or go on with a stopped run.

    Every setting of the configuration can be overridden, for example --learner.lr 3e-4 --seed 1.
    """

    settings: tyro.conf.AvoidSubcommands[Settings]
    config: str = "paper"
    """A shipped configuration or a YAML file."""
    run: Path | None = None
    """Run directory: a new one, or one to go on with. Default: a fresh one under runs/."""
    dry_run: bool = False
    """Check everything, compile one update, print what would run, write nothing."""


def run(words: list[str], prog: str) -> int:
    """Trains as the words say; 130 where that was interrupted."""
    source, folder = _peek(words, "config"), _peek(words, "run")
    goes_on = folder is not None and runs.is_run(Path(folder))
    if goes_on and source is not None:
        raise ConfigError(f"config is {source!r}; must be left out, since run {folder} has its own")
    base = runs.read_config(folder) if goes_on and folder else load_config(source or "paper")
    default = Arguments(settings=base)
    parsed = tyro.cli(Arguments, args=_with_flags(words, base), prog=prog, default=default)
    config = parsed.settings
    config.validate()
    if parsed.run is not None:
        runs.check_folder(parsed.run)
    if goes_on:
        config = runs.resumed(base, config)
    if parsed.dry_run:
        runs.check_rules(config)
        return _dry_run(config)
    target = parsed.run or runs.new_folder(config)
    print(f"run directory: {target}", flush=True)
    if config.splits.solver != "native":
        print(f"splits: {config.splits.solver}, in float64 on the host; the rest stays as it is")
    with _Progress(config) as show:
        result = runs.train(config, [show], target, warn=show.warn)
    return _summary(result, config)


def _peek(words: list[str], name: str) -> str | None:
    """The value of one option (the last, as the parser has it) before the full parse.

    The defaults of the full parse depend on it.
    """
    found = None
    for i, word in enumerate(words):
        if word == f"--{name}" and i + 1 < len(words):
            found = words[i + 1]
        elif word.startswith(f"--{name}="):
            found = word.split("=", 1)[1]
    return found


def _with_flags(words: list[str], config: TrainConfig) -> list[str]:
    """W&B gives flags as --network.residual=False; the parser knows --network.no-residual."""
    records = {part: r for part, r in asdict(config).items() if isinstance(r, dict)}
    flags = [(part, k) for part, r in records.items() for k, v in r.items() if isinstance(v, bool)]
    known: dict[str, str] = {}
    for part, key in flags:
        known |= {f"--{part}.{key}={yes}": f"--{part}.{key}" for yes in ("True", "true")}
        known |= {f"--{part}.{key}={no}": f"--{part}.no-{key}" for no in ("False", "false")}
    return [known.get(word, word) for word in words]


def _dry_run(config: TrainConfig) -> int:
    learner = config.to_learner()
    state = jax.eval_shape(lambda key: learning.init(learner, key), jax.random.key(0))
    jax.jit(learning.update, static_argnums=0).lower(learner, state).compile()
    size = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(state.params))
    trajectories = config.learner.instances * config.learner.samples
    print(to_yaml(config), end="")
    updates = config.learner.updates
    print(f"# {size:,.0f} parameters; {updates:,} updates of {trajectories:,} trajectories")
    print("# everything fits and compiles; nothing was written")
    return 0


def _summary(result: runs.RunResult, config: TrainConfig) -> int:
    evaluated = [row for row in result.rows if "gap" in row]
    if evaluated:
        best = min(evaluated, key=lambda row: row["gap"])
        reference = reference_name(config.scenario, config.splits)
        print(f"best gap {100 * best['gap']:.3f} % at update {best['step']}, to the {reference}")
        print(f"learning curve: {result.folder}/learning_curve.png")
    if not result.finished:
        print(f"stopped at update {result.step} of {config.learner.updates}")
        print(f"go on with: python train.py --run {result.folder}")
        return 130
    print(f"compare it with the baselines: python eval.py --run {result.folder}")
    return 0


class _Progress:
    """A bar on a terminal, plain lines elsewhere; a callback of `runs.train`."""

    def __init__(self, config: TrainConfig) -> None:
        self.updates = config.learner.updates
        learner = config.learner
        self.decisions = learner.instances * learner.samples * config.scenario.max_users
        self.gap = "-"
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

    def __call__(self, row: Row) -> None:
        if "gap" in row:
            self.gap = f"{100 * row['gap']:.3f} %"
        rate = row["decisions_per_s"]
        text = f"{rate:,.0f} decisions/s  score {row['score']:.4f}  gap {self.gap}"
        if self.bar:
            self.bar.update(self.task, completed=row["step"], description=text)
            return
        left = (self.updates - row["step"]) * self.decisions / rate
        print(f"update {row['step']:.0f}/{self.updates}  {text}  {left:.0f} s left", flush=True)

    def warn(self, message: str) -> None:
        """One line that the bar does not swallow."""
        if self.bar:
            self.bar.console.print(f"warning: {message}", markup=False)
        else:
            print(f"warning: {message}", flush=True)
