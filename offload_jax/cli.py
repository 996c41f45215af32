"""The command line: train, eval, info."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from offload_jax import learner as learning
from offload_jax import report, runs, schema
from offload_jax.baselines import METHODS
from offload_jax.checkpoint import CheckpointError
from offload_jax.config import ConfigError, TrainConfig, load_config, presets, to_yaml
from offload_jax.evaluation import ALL, Comparison, compare, deciders, sample_cells
from offload_jax.instance import Instance, from_record, stack
from offload_jax.plans import to_plans
from offload_jax.policies import Policy
from offload_jax.schema import SchemaError
from offload_jax.tracking import read_rows

Settings = Annotated[TrainConfig, tyro.conf.arg(name="")]


@dataclass(frozen=True)
class TrainArguments:
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


@dataclass(frozen=True)
class EvalArguments:
    """Compare a trained policy with every baseline on the same instances."""

    run: Path | None = None
    """Run directory whose best policy is evaluated. Default: the newest under runs/."""
    instances: Path | None = None
    """Evaluate on this instance file instead of fresh instances of the run's scenario."""
    per_cell: int = 205
    """Fresh instances of every cell (20 cells of paper: 4,100 in all)."""
    samples: tuple[int, ...] = (1, 64)
    """Decodings of the policy: 1 is greedy, more is best of that many samples."""
    methods: tuple[str, ...] = tuple(METHODS)
    """Baselines to compare with."""
    no_policy: bool = False
    """Compare the baselines alone (of --config's scenario, or on --instances)."""
    config: str = "paper"
    """Scenario for --no-policy without --instances."""
    seed: int = 2**31
    """Of the fresh instances and the samples; other than training's."""
    out: Path | None = None
    """Where eval.json, the plans and the pictures go. Default: eval/ in the run directory."""


@dataclass(frozen=True)
class InfoArguments:
    """Print versions, devices and shipped configurations, or the state of a run."""

    run: Path | None = None
    """Run directory to describe."""
    config: str | None = None
    """Configuration to print with every setting resolved."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `offload-jax COMMAND ...`; returns its status (0 good, 1 refused, 130 interrupted)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    commands = {"train": train, "eval": evaluate, "info": info}
    if words and words[0] in commands:
        return commands[words[0]](words[1:])
    lines = [f"  {name:6} {(f.__doc__ or '').splitlines()[0]}" for name, f in commands.items()]
    print("usage: offload-jax COMMAND [options]; COMMAND --help lists them\n\n" + "\n".join(lines))
    return 0 if words in ([], ["-h"], ["--help"]) else 2


def train(words: Sequence[str] | None = None) -> int:
    """Train a policy, or go on with a stopped run."""
    return _guarded(_train, list(sys.argv[1:] if words is None else words))


def evaluate(words: Sequence[str] | None = None) -> int:
    """Compare a trained policy with every baseline on the same instances."""
    return _guarded(_evaluate, list(sys.argv[1:] if words is None else words))


def info(words: Sequence[str] | None = None) -> int:
    """Print versions, devices and shipped configurations, or the state of a run."""
    return _guarded(_info, list(sys.argv[1:] if words is None else words))


def _guarded(command: Callable[[list[str]], int], words: list[str]) -> int:
    """Errors a user can mend end in one clear message, not a traceback."""
    try:
        return command(words)
    except (ConfigError, SchemaError, CheckpointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


# ------------------------------------------------------------------------------------------- train


def _train(words: list[str]) -> int:
    source, folder = _peek(words, "config"), _peek(words, "run")
    goes_on = folder is not None and (Path(folder) / "config.yaml").is_file()
    if goes_on and source is not None:
        raise ConfigError(f"config is {source!r}; must be left out, since run {folder} has its own")
    base = runs.read_config(folder) if goes_on and folder else load_config(source or "paper")
    parsed = tyro.cli(
        TrainArguments,
        args=words,
        prog="train.py",
        default=TrainArguments(settings=base),
    )
    config = parsed.settings
    config.validate()
    if goes_on:
        config = runs.resumed(base, config)
    if parsed.dry_run:
        return _dry_run(config)
    target = parsed.run or runs.new_folder(config)
    print(f"run directory: {target}", flush=True)
    rows = read_rows(target / "metrics.jsonl")
    with _Progress(config, rows[-1]["step"] if rows else 0) as show:
        result = runs.train(config, [show], target, warn=show.warn)
    evaluated = [row for row in result.rows if "gap" in row]
    if evaluated:
        best = min(evaluated, key=lambda row: row["gap"])
        print(f"best gap {100 * best['gap']:.3f} % at update {best['step']}")
        print(f"learning curve: {target}/learning_curve.png")
    if not result.finished:
        print(f"stopped at update {result.step} of {config.learner.updates}")
        print(f"go on with: python train.py --run {target}")
        return 130
    print(f"compare it with the baselines: python eval.py --run {target}")
    return 0


def _peek(words: list[str], name: str) -> str | None:
    """The value of one option before the full parse, whose defaults depend on it."""
    for i, word in enumerate(words):
        if word == f"--{name}" and i + 1 < len(words):
            return words[i + 1]
        if word.startswith(f"--{name}="):
            return word.split("=", 1)[1]
    return None


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


class _Progress:
    """A bar on a terminal, plain lines elsewhere; a callback of `runs.train`."""

    def __init__(self, config: TrainConfig, done: float) -> None:
        self.updates = config.learner.updates
        self.gap = "-"
        self.before = done
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

    def __call__(self, row: runs.Row) -> None:
        if "gap" in row:
            self.gap = f"{100 * row['gap']:.3f} %"
        rate = row["decisions_per_s"]
        text = f"{rate:,.0f} decisions/s  score {row['score']:.4f}  gap {self.gap}"
        if self.bar:
            self.bar.update(self.task, completed=row["step"], description=text)
            return
        left = row["seconds"] / (row["step"] - self.before) * (self.updates - row["step"])
        self.before = row["step"]
        print(f"update {row['step']:.0f}/{self.updates}  {text}  {left:.0f} s left", flush=True)

    def warn(self, message: str) -> None:
        """One line that the bar does not swallow."""
        (self.bar.console.print if self.bar else print)(f"warning: {message}")


# -------------------------------------------------------------------------------------------- eval


def _evaluate(words: list[str]) -> int:
    parsed = tyro.cli(EvalArguments, args=words, prog="eval.py")
    _check_eval(parsed)
    policy, folder = None, parsed.run
    if not parsed.no_policy:
        folder = folder or runs.newest_run()
        policy = runs.load_policy(folder)
        print(f"policy: {policy.source}")
    out = parsed.out or (folder / "eval" if folder else Path("eval"))
    out.mkdir(parents=True, exist_ok=True)
    key = jax.random.key(parsed.seed)
    methods = deciders(policy, parsed.samples, key, parsed.methods)
    if parsed.instances:
        cells, hard = _cells_of_file(parsed.instances), []
    else:
        scenario = (
            runs.read_config(folder).scenario if folder else load_config(parsed.config).scenario
        )
        cells, hard = sample_cells(scenario, parsed.per_cell, key), scenario.hard_cells()
    comparison = _compare(cells, methods, hard)
    _write_comparison(comparison, out, policy, parsed)
    if parsed.instances:
        _write_plans(parsed.instances, cells, methods, out)
    return 0


def _check_eval(parsed: EvalArguments) -> None:
    unknown = [name for name in parsed.methods if name not in METHODS]
    if unknown:
        raise ConfigError(f"methods has {unknown[0]!r}; must be among {', '.join(METHODS)}")
    if parsed.per_cell < 1:
        raise ConfigError(f"per-cell is {parsed.per_cell}; must be at least 1")
    if not parsed.samples or min(parsed.samples) < 1:
        raise ConfigError(f"samples is {parsed.samples}; must be one or more numbers >= 1")
    if parsed.no_policy and parsed.run:
        raise ConfigError("run names a policy but no-policy leaves it out; give one of them")


def _compare(cells: dict[str, Instance], methods: dict, hard: Sequence[str]) -> Comparison:
    console = Console(stderr=True)
    if not console.is_terminal:
        return compare(cells, methods, hard)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("evaluating", total=len(cells) * len(methods))

        def show(cell: str, method: str) -> None:
            bar.update(task, advance=1, description=f"{cell}: {method}")

        return compare(cells, methods, hard, show)


def _cells_of_file(path: Path) -> dict[str, Instance]:
    """The file's instances, those of the same M and G in one cell."""
    groups: dict[tuple[int, int], list[Instance]] = {}
    for record in schema.read_instances(path):
        instance = from_record(record)
        groups.setdefault((instance.num_batches, instance.num_servers), []).append(instance)
    if not groups:
        raise ConfigError(f"instances is {str(path)!r}, which holds none; must hold at least one")
    only = len(groups) == 1
    return {
        path.stem if only else f"{path.stem} M{m} G{g}": stack(group)
        for (m, g), group in groups.items()
    }


def _write_comparison(
    comparison: Comparison, out: Path, policy: Policy | None, parsed: EvalArguments
) -> None:
    source = {
        "policy": policy.source if policy else None,
        "instances": str(parsed.instances) if parsed.instances else None,
        "per_cell": parsed.per_cell,
        "seed": parsed.seed,
    }
    result = {"source": source, **runs.provenance(), **comparison.to_json()}
    (out / "eval.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    report.gap_figure(comparison, out / "gaps.png")
    cells = comparison.cells()
    count = comparison.row(comparison.methods()[0], ALL if ALL in cells else cells[0]).instances
    title = f"{count:,} instances; gap to the {comparison.reference}"
    table = report.markdown(comparison)
    (out / "table.md").write_text(f"{title}\n\n{table}\n", encoding="utf-8")
    print(title)
    console = Console()
    console.print(Markdown(table)) if console.is_terminal else print(table)
    print(f"written: {out}/eval.json, table.md, gaps.png")


def _write_plans(path: Path, cells: dict[str, Instance], methods: dict, out: Path) -> None:
    """Plans of the last method named (the policy's strongest decoding); a picture of the first."""
    name, decide = list(methods.items())[-1]
    plans = []
    for instances in cells.values():
        jax.block_until_ready(decide(instances))  # compiles
        start = time.perf_counter()
        assignment = jax.block_until_ready(decide(instances))
        plans += to_plans(instances, assignment, name, time.perf_counter() - start)
    schema.write_plans(out / "plans.json", plans)
    first = from_record(schema.read_instances(path)[0])
    report.plan_figure(first, plans[0], out / "plan.png")
    print(f"written: {out}/plans.json ({name}), plan.png")


# -------------------------------------------------------------------------------------------- info


def _info(words: list[str]) -> int:
    parsed = tyro.cli(InfoArguments, args=words, prog="offload-jax info")
    if parsed.config is not None:
        print(to_yaml(load_config(parsed.config)), end="")
        return 0
    if parsed.run is not None:
        return _describe_run(parsed.run)
    for name, value in runs.provenance().items():
        print(f"{name}: {value}")
    print(f"configurations: {', '.join(presets())}")
    print(f"methods: {', '.join(METHODS)}")
    return 0


def _describe_run(folder: Path) -> int:
    config = runs.read_config(folder)
    rows = read_rows(folder / "metrics.jsonl")
    evaluated = [row for row in rows if "gap" in row]
    step = rows[-1]["step"] if rows else 0
    print(f"run: {folder} ({config.scenario.kind}, {config.env.order} order)")
    print(f"update: {step} of {config.learner.updates}")
    if evaluated:
        best = min(evaluated, key=lambda row: row["gap"])
        print(f"best gap: {100 * best['gap']:.3f} % at update {best['step']}")
    if step < config.learner.updates:
        print(f"go on with: train.py --run {folder}")
    return 0
