"""The model card of a policy: where it comes from, how good it is, and its limits."""

from __future__ import annotations

import json
from pathlib import Path

from offload_jax.runs import run_files
from offload_jax.runs.config import TrainConfig
from offload_jax.runs.config_file import to_yaml


def about_run(folder: Path, source: str) -> dict[str, object]:
    """Where the weights come from."""
    starts = json.loads((folder / run_files.ABOUT).read_bytes())["starts"]
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

Decides for the scenario below in {config.deciding}; samples are drawn at temperature
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
