"""`pack`: puts a run's policy into files of its own, to be handed on or shipped."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from offload_jax import folders, runs, shipped
from offload_jax.commands.progress import warn
from offload_jax.config import ConfigError, TrainConfig, to_yaml


@dataclass(frozen=True)
class Arguments:
    """Put a run's best policy into a folder of its own: weights, settings, card and checksums."""

    run: Path
    """Run directory."""
    out: Path
    """Folder to make. `eval.py --policy` and `oj.load_policy` take it."""
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
    config = folders.read_config(parsed.run)
    if parsed.table is not None and not parsed.table.is_file():
        raise ConfigError(f"table is {str(parsed.table)!r}; must be a file")
    policy = runs.load_policy(parsed.run, warn=warn)
    policy = replace(policy, temperature=parsed.temperature)
    about = about_run(parsed.run, policy.source)
    settings = parsed.temperature, parsed.table, parsed.note
    card = card_of(parsed.run, parsed.out.name, config, about, *settings)
    shipped.save(parsed.out, policy, config, about, card)
    print(f"written: {parsed.out}/policy.json, weights.npz, README.md, MANIFEST.json")
    return 0


def about_run(folder: Path, source: str) -> dict[str, object]:
    """Where the weights come from."""
    starts = json.loads((folder / "run.json").read_bytes())["starts"]
    keys = ("device", "versions", "commit")
    return {"update": int(source.rsplit(" ", 1)[1]), **{key: starts[-1].get(key) for key in keys}}


def _origin(config: TrainConfig) -> str:
    """What the settings of a card are."""
    if config.init_from is None:
        return "`python train.py --config FILE`, with this FILE:"
    return "Settings; `init_from` is what training began with:"


def card_of(
    run: Path,
    name: str,
    config: TrainConfig,
    about: dict[str, object],
    temperature: float = 1.0,
    table: Path | None = None,
    note: str = "",
) -> str:
    """The model card of a run's policy; its gaps are those of `table`, or of the run's eval."""
    table = table or run / "eval" / "table.md"
    gaps = table.read_text(encoding="utf-8") if table.is_file() else "Not evaluated."
    return f"""# Policy {name}

Decides for the scenario below in {config.env.order} order; samples are drawn at temperature
{temperature:g}. Update {about["update"]}, trained on {about["device"]}, commit {about["commit"]}.

## How good it is

{gaps.strip()}

## Limits

Gaps are those of the instances named above. It runs for any number of users, batches and servers,
but how good its plans are elsewhere has to be measured: `python eval.py --policy {name}`.
{note}

## Training

{_origin(config)}

```yaml
{to_yaml(config).strip()}
```
"""
