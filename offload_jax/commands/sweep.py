"""`sweep`: trains with the settings of a sweep file, several trials at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import tyro
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from offload_jax.files.checks import ConfigError
from offload_jax.files.disk import replace_file
from offload_jax.runs.loop import stop_requests
from offload_jax.runs.sweep import report
from offload_jax.runs.sweep.reading import check_own, load_sweep
from offload_jax.runs.sweep.report import best_of, shown
from offload_jax.runs.sweep.space import Space
from offload_jax.runs.sweep.spec import SweepConfig
from offload_jax.runs.tracking.metrics import Mode

if TYPE_CHECKING:
    from offload_jax.runs.sweep.runner import SweepStatus


@dataclass(frozen=True)
class Arguments:
    """Train with the settings of a sweep file, several trials at a time.

    The file is in the sweep format of Weights & Biases. A sweep that was stopped or killed goes on
    when the same command is given again.
    """

    file: tyro.conf.Positional[str]
    """A shipped sweep or a YAML file."""
    workers: int = 1
    """Trainings at a time; the cores of this machine are dealt out among them."""
    trials: int | None = None
    """Trials in all. Default: run_cap of the file, or all combinations of a grid."""
    out: Path | None = None
    """Directory of the sweep. Default: runs/sweep-NAME."""
    storage: str | None = None
    """URL of a database that several machines share. Default: a journal file in the directory."""
    wandb: Mode = "off"
    """Whether each training is mirrored to W&B, too; stands above the file's tracking.wandb."""
    dry_run: bool = False
    """Check the file and print what would run."""


def run(words: list[str], prog: str) -> int:
    """Sweeps as the words say; 130 where that was interrupted."""
    parsed = tyro.cli(Arguments, args=words, prog=prog)
    if parsed.workers < 1:
        raise ConfigError(f"workers is {parsed.workers}; must be at least 1")
    sweep = load_sweep(parsed.file)
    limit = _limit(sweep, parsed.trials)
    mirror = {"tracking.wandb": Space("choice", (parsed.wandb,))}
    sweep = replace(sweep, parameters=sweep.parameters | mirror)
    if parsed.dry_run:
        return _dry_run(sweep, limit)
    if not find_spec("optuna"):
        raise ConfigError("sweep needs optuna; install it with: pip install 'offload-jax[sweep]'")
    return _sweep(sweep, parsed, limit)


def _limit(sweep: SweepConfig, trials: int | None) -> int:
    size = sweep.grid_size()
    if trials is not None and trials < 1:
        raise ConfigError(f"trials is {trials}; must be at least 1")
    wanted = [n for n in (trials or sweep.run_cap, size) if n is not None]
    if not wanted:
        raise ConfigError("trials is missing; must be given, here or as run_cap in the file")
    return min(wanted)


def _dry_run(sweep: SweepConfig, limit: int) -> int:
    first = {name: space.ends()[0] for name, space in sweep.parameters.items()}
    print(f"{sweep.name}: {limit} trials, {sweep.method}, {sweep.goal} {sweep.metric}")
    print(f"for example: {' '.join(sweep.command_line(sweep.words(first)))}")
    print("# the file is good; nothing was written")
    return 0


def _sweep(sweep: SweepConfig, parsed: Arguments, limit: int) -> int:
    from offload_jax.runs.sweep import runner  # with Optuna, which is an extra
    from offload_jax.runs.sweep.trials import Trials

    folder = parsed.out or Path("runs") / f"sweep-{sweep.name}"
    check_own(folder / "sweep.yaml", sweep)
    with (
        runner.named(folder) as owner,
        Trials(sweep, parsed.storage or folder / "journal.log", owner) as trials,
    ):
        replace_file(folder / "sweep.yaml", Path(sweep.source).read_bytes())
        print(f"sweep directory: {folder}", flush=True)
        with stop_requests() as stop, _Progress(sweep).shown() as show:
            done = runner.run(sweep, trials, folder, limit, parsed.workers, stop, show)
        records = trials.records()
        names = report.write(sweep, records, folder)
    print(report.table(sweep, records))
    print(f"written in {folder}: {', '.join(names)}")
    if not done:
        print("stopped; the same command goes on")
        return 130
    if "best.yaml" in names:
        print(f"train with the best: python train.py --config {folder / 'best.yaml'}")
    return 0


class _Progress:
    """A table on a terminal, a line for each trial that ends elsewhere."""

    def __init__(self, sweep: SweepConfig) -> None:
        self.sweep = sweep
        self.console = Console(stderr=True)
        self.said: set[int] | None = None  # trials that a line was printed for
        self.live: Live | None = None

    @contextlib.contextmanager
    def shown(self) -> Iterator[_Progress]:
        if not self.console.is_terminal:
            yield self
            return
        with Live(console=self.console, refresh_per_second=2, transient=True) as self.live:
            yield self

    def __call__(self, status: SweepStatus) -> None:
        if self.live is not None:
            self.live.update(self._table(status))
        else:
            self._lines(status)

    def _headline(self, status: SweepStatus) -> str:
        done = sum(record.done for record in status.records)
        best = best_of(self.sweep, status.records)
        text = f"{done} of {status.limit} trials"
        if best is None:
            return text
        value = shown(self.sweep.metric, best.value)
        return f"{text}, best {self.sweep.metric} {value} (trial {best.number})"

    def _table(self, status: SweepStatus) -> Table:
        table = Table("trial", "evaluations", self.sweep.metric, "settings", box=None)
        table.title = self._headline(status)
        for job in status.jobs:
            values = job.values()
            best = self.sweep.best(values) if values else None
            varied = {name: job.trial.parameters[name] for name in self.sweep.varied}
            settings = escape(" ".join(self.sweep.words(varied)))
            number = str(job.trial.number)
            table.add_row(number, str(len(values)), shown(self.sweep.metric, best), settings)
        return table

    def _lines(self, status: SweepStatus) -> None:
        done = {record.number: record for record in status.records if record.done}
        if self.said is None:  # at the start: what an earlier sweep did is no news
            self.said = set(done)
            print(self._headline(status), flush=True)
        for number in sorted(set(done) - self.said):
            record = done[number]
            value = shown(self.sweep.metric, record.value)
            why = f" ({record.reason})" if record.reason else ""
            print(f"trial {number} {record.state}{why}, {self.sweep.metric} {value}; ", end="")
            print(self._headline(status), flush=True)
        self.said |= set(done)
