"""The outcome of a comparison: rows per method and cell, and every instance by itself."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from scipy import special

ALL, HARD = "all", "hard"


def half_width(values: np.ndarray) -> float:
    """Of the 95 % t-interval of the mean; NaN for one value, which says nothing about others."""
    if len(values) < 2:
        return float("nan")
    error = np.std(values, ddof=1) / np.sqrt(len(values))
    return float(error * special.stdtrit(len(values) - 1, 0.975))


@dataclass(frozen=True)
class MethodRow:
    """One method on one cell (or on several cells together)."""

    method: str
    cell: str
    instances: int
    gap_mean: float
    gap_ci95: float  # half width of the 95 % confidence interval of the mean; NaN: one instance
    gap_p95: float
    gap_max: float
    score_mean: float  # 0.1 U / N
    feasible: float  # share of the plans that keep every capacity and budget
    seconds_per_plan: float  # in one batch, compiling excluded


@dataclass(frozen=True)
class Detail:
    """The comparison instance by instance, all cells one after the other."""

    users: np.ndarray  # N
    load: np.ndarray  # images asked for, as a share of what the batches hold
    gaps: dict[str, np.ndarray]  # of each method
    # What is left from the best plan to a proven upper bound, as a share of U_best - U_deny.
    bound_gap: np.ndarray | None = None

    def to_json(self) -> dict[str, Any]:
        """Lists, the gaps to five digits."""
        found: dict[str, Any] = {
            "users": self.users.tolist(),
            "load": np.round(self.load, 4).tolist(),
            "gaps": {name: np.round(gap, 5).tolist() for name, gap in self.gaps.items()},
        }
        if self.bound_gap is not None:
            found["bound_gap"] = np.round(self.bound_gap, 5).tolist()
        return found


@dataclass(frozen=True)
class Comparison:
    """All rows, and what the gaps are measured against."""

    reference: str  # "optimum (top-b)", "optimum in the file", "best of the methods compared", ...
    detail: Detail
    rows: list[MethodRow] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)  # method: why it does not apply

    def row(self, method: str, cell: str = ALL) -> MethodRow:
        """The row of a method and cell; KeyError where there is none."""
        for row in self.rows:
            if (row.method, row.cell) == (method, cell):
                return row
        raise KeyError(f"no row for method {method!r} and cell {cell!r}")

    def methods(self) -> list[str]:
        return list(dict.fromkeys(row.method for row in self.rows))

    def cells(self) -> list[str]:
        return list(dict.fromkeys(row.cell for row in self.rows))

    def to_json(self) -> dict[str, Any]:
        """{"reference", "left_out", "cells": {cell: {method: {gap_mean, ...}}}, "instances"}."""
        cells: dict[str, Any] = {}
        for row in self.rows:
            numbers = asdict(row)
            numbers["gap_ci95"] = None if np.isnan(row.gap_ci95) else row.gap_ci95
            cells.setdefault(numbers.pop("cell"), {})[numbers.pop("method")] = numbers
        return {
            "reference": self.reference,
            "left_out": self.left_out,
            "cells": cells,
            "instances": self.detail.to_json(),
        }
