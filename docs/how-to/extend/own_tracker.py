"""A file that spreadsheets open: one line for every evaluation."""

from __future__ import annotations

import csv

from offload_jax.runs.tracking.metrics import TrackingConfig
from offload_jax.runs.tracking.tracker import Noop, Row, RunStart


class Spreadsheet(Noop):
    """Writes gaps.csv into the run directory."""

    def __init__(self, config: TrackingConfig, start: RunStart) -> None:
        path = start.folder / "gaps.csv"
        lines = path.read_text().splitlines()[1:] if path.is_file() else []
        kept = [line for line in lines if int(line.split(",")[0]) <= start.step]
        self.file = path.open("w", newline="")
        self.file.write("\n".join(["step,gap", *kept, ""]))

    def row(self, row: Row) -> None:
        if "gap" in row:
            csv.writer(self.file, lineterminator="\n").writerow([row["step"], row["gap"]])
            self.file.flush()

    def finish(self, failed: bool = False) -> None:
        self.file.close()
