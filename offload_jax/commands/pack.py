"""`pack`: puts a run's policy into files of its own, to be handed on or shipped."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from offload_jax.commands.progress import warn
from offload_jax.export.card import about_run, card_of
from offload_jax.files.checks import ConfigError
from offload_jax.runs import policy_folder, run_folder
from offload_jax.runs.train import load_policy


@dataclass(frozen=True)
class Arguments:
    """Put a run's best policy into a folder of its own: weights, settings, card and checksums."""

    run: Path
    """Run directory."""
    out: Path
    """Folder to make. `eval.py --policy` and `oj.load_policy` take it."""
    plugins: tuple[str, ...] = ()
    """Files or modules of your own code that the run's settings may name."""
    temperature: float = 1.0
    """Of its samples in best-of-P decoding: above 1 they differ more from the greedy plan."""
    table: Path | None = None
    """Table of an evaluation (table.md) for the model card. Default: RUN/eval/table.md, if any."""
    note: str = ""
    """What else people should know, for the model card."""


def run(words: list[str], prog: str) -> int:
    """Writes the folder that the words ask for."""
    parsed = tyro.cli(Arguments, args=words, prog=prog)
    if not 0 < parsed.temperature < float("inf"):
        raise ConfigError(f"temperature is {parsed.temperature}; must be above 0 and finite")
    config = run_folder.read_config(parsed.run, parsed.plugins)
    if parsed.table is not None and not parsed.table.is_file():
        raise ConfigError(f"table is {str(parsed.table)!r}; must be a file")
    policy = load_policy(parsed.run, warn=warn, plugins=parsed.plugins)
    policy = replace(policy, temperature=parsed.temperature)
    about = about_run(parsed.run, policy.source)
    settings = parsed.temperature, parsed.table, parsed.note
    card = card_of(parsed.run, parsed.out.name, config, about, *settings)
    policy_folder.save(parsed.out, policy, config, about, card)
    print(f"written: {parsed.out}/policy.json, weights.npz, README.md, MANIFEST.json")
    return 0
