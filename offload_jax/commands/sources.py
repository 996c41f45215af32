"""The instances that `eval` compares on: fresh ones, those of a file, or a frozen test set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from offload_jax.evaluation import testsets
from offload_jax.evaluation.compare import Known, sample_cells
from offload_jax.evaluation.comparison import ALL, HARD
from offload_jax.evaluation.testsets import TestSet
from offload_jax.files.checks import ConfigError
from offload_jax.files.records import InstanceRecord, read_instances
from offload_jax.plans.outcome import objective_denied
from offload_jax.plans.plan import Decision
from offload_jax.problem.instance import Instance, from_record, stack
from offload_jax.problem.scenario import Scenario
from offload_jax.problem.types import Key
from offload_jax.splits import NATIVE


@dataclass(frozen=True)
class Source:
    """Instances in cells (batch last), and what is known of them."""

    name: str
    cells: dict[str, Instance]
    scenario: Scenario | None  # what they were drawn from; of a file nobody knows
    hard: Sequence[str] = ()
    known: Known | None = None
    records: Sequence[InstanceRecord] = ()  # of a file
    groups: Mapping[str, Sequence[int]] | None = None  # positions in the file, by cell
    testset: TestSet | None = None

    def keep_better(self, decided: Mapping[tuple[str, str], Decision]) -> None:
        """Writes plans better than the best known to the test set, and says so."""
        if self.testset is None:
            return
        found = {name: decision.assignment for (name, _), decision in decided.items()}
        better, count = testsets.improved(self.testset, found)
        if not count:
            return
        said = f"reference: {count} of {len(better.best)} best known plans improved"
        try:
            testsets.save(better)
            print(f"{said}, written")
        except OSError as error:
            print(f"{said}, but not written ({error})")


def fresh(scenario: Scenario, per_cell: int, key: Key) -> Source:
    """`per_cell` new instances of every cell of a scenario."""
    cells = sample_cells(scenario, per_cell, key)
    return Source(scenario.kind, cells, scenario, scenario.hard_cells())


def of_testset(name: str) -> Source:
    """A frozen test set, with the best plans known."""
    testset = testsets.load(name)
    proven = sum(best.proof is not None for best in testset.best)
    known = Known(
        f"best known plan (test set {name}, {proven} of {len(testset.best)} proven optimal)",
        {name: testset.gains},
        {name: testset.bounds},
    )
    cells = {name: testset.on_device()}
    return Source(name, cells, testset.scenario, known=known, testset=testset)


def of_file(path: Path, with_optima: bool) -> Source:
    """The instances of a file, with their optima where all have one and these count."""
    records = read_instances(path)
    if not records:
        raise ConfigError(f"instances is {str(path)!r}, which holds none; must hold at least one")
    groups = _groups(path, records)
    cells = {
        name: stack([from_record(records[i]) for i in chosen]) for name, chosen in groups.items()
    }
    known = _optima(records, groups, cells) if with_optima else None
    return Source(path.stem, cells, None, known=known, records=records, groups=groups)


def _groups(path: Path, records: Sequence[InstanceRecord]) -> dict[str, list[int]]:
    """Positions in the file by cell: only instances of the same M and G can be stacked."""
    stem = path.name if path.stem in (ALL, HARD) else path.stem  # those name groups of cells
    shapes = [(len(record.intercept), len(record.budget)) for record in records]
    groups: dict[str, list[int]] = {}
    for i, (m, g) in enumerate(shapes):
        name = stem if len(set(shapes)) == 1 else f"{stem} M{m} G{g}"
        groups.setdefault(name, []).append(i)
    return groups


def _optima(
    records: Sequence[InstanceRecord], groups: dict[str, list[int]], cells: dict[str, Instance]
) -> Known | None:
    found = [r.optimum for r in records]
    if any(optimum is None for optimum in found):
        return None
    objectives = np.array([optimum.objective for optimum in found if optimum is not None])
    denied = {name: np.asarray(objective_denied(cell, NATIVE)) for name, cell in cells.items()}
    gains = {name: objectives[chosen] - denied[name] for name, chosen in groups.items()}
    return Known("optimum in the file", gains)
