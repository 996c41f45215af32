"""`info`: versions, devices and shipped configurations, or the state of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from offload_jax.commands.progress import warn
from offload_jax.evaluation.reference import reference_name
from offload_jax.files.checks import ConfigError
from offload_jax.methods import METHODS
from offload_jax.runs import run_files, run_folder
from offload_jax.runs.config import plugins_option, presets
from offload_jax.runs.config_file import load_config, to_yaml
from offload_jax.runs.restore import find
from offload_jax.runs.tracking.metrics import read_rows


@dataclass(frozen=True)
class Arguments:
    """Print versions, devices and shipped configurations, or the state of a run."""

    run: Path | None = None
    """Run directory to describe."""
    plugins: tuple[str, ...] = ()
    """Files or modules of your own code that the run's settings may name."""
    config: str | None = None
    """Configuration to print with every setting resolved."""


def run(words: list[str], prog: str) -> int:
    """Prints what the words ask for."""
    parsed = tyro.cli(Arguments, args=words, prog=prog)
    if parsed.run is not None and parsed.config is not None:
        raise ConfigError("run and config are both given; must be one of them")
    if parsed.config is not None:
        print(to_yaml(load_config(parsed.config)), end="")
        return 0
    if parsed.run is not None:
        return _describe_run(parsed.run, parsed.plugins)
    for name, value in run_folder.provenance().items():
        print(f"{name}: {value}")
    print(f"configurations: {', '.join(presets())}")
    print(f"methods: {', '.join(METHODS)}")
    return 0


def _describe_run(folder: Path, plugins: Sequence[str]) -> int:
    config = run_folder.read_config(folder, plugins)
    rows = read_rows(folder / run_files.ROWS)
    evaluated = [row for row in rows if "gap" in row]
    saved = find(folder / run_files.CHECKPOINTS, "latest", warn)
    step = saved.step if saved else 0
    print(f"run: {folder} ({config.scenario.kind}, {config.deciding})")
    print(f"update: {step} of {config.learner.updates}")
    if evaluated:
        best = min(evaluated, key=lambda row: row["gap"])
        reference = reference_name(config.scenario, config.splits.to_solver())
        print(f"best gap: {100 * best['gap']:.3f} % at update {best['step']}, to the {reference}")
    if step < config.learner.updates:
        print(f"go on with: python train.py --run {folder}{plugins_option(config)}")
    return 0
