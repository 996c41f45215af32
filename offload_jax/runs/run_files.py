"""Names of what a run directory holds."""

from __future__ import annotations

CONFIG = "config.yaml"  # every setting
ABOUT = "run.json"  # id, versions, commit, device, and how every start ended
ROWS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
QUARANTINE = "quarantine"  # checkpoints found damaged
CURVE = "learning_curve.png"
POPULATION = "population.json"  # in a folder of runs: their names
