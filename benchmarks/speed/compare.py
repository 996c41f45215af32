"""This tree against another commit, each by its own benchmarks: alternating rounds, paired ratios.

A round is a fresh process a side, right after each other. A case's ratio is the median over the
rounds of the other side's seconds over this one's, beside an interval of their geometric mean. A
case that comes out below `SLOWER` is measured again in `AGAIN` rounds, and then only those count.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from benchmarks import trees
from benchmarks.common import ROOT, Row, UsageError, read
from benchmarks.speed import sides
from benchmarks.speed.sides import Failed, Side
from offload_jax.files.disk import replace_file

SLOWER = 0.95
AGAIN = 10
Answer = Mapping[str, Any]  # of a side: see side.py
Round = Mapping[str, Mapping[str, float]]  # seconds of a call by side and case


@dataclass(frozen=True)
class Asked:
    """What is compared, and how."""

    own: str  # the other commit
    only: tuple[str, ...] = ()  # beginnings of the cases' names; none: all
    rounds: int = 5
    repeats: int = 5
    quick: bool = False
    out: Path | None = None


def compare(asked: Asked, say: Callable[[str], None], root: Path = ROOT) -> dict[str, Any]:
    """Measures both sides in turn and returns the JSON document of the comparison.

    Goes on after the finished rounds that `out` has. Raises Failed where a side crashes or lacks a
    case.
    """
    commit = trees.commit_of(root, "own", asked.own)
    head, dirty = trees.commit_of(root, "own", "HEAD"), bool(trees.git(root, "status", "-s"))
    with sides.both(root, commit) as pair:
        answers = [side.listed(asked.quick) for side in pair]
        cases = matched(*answers, asked.only)
        files = trees.digest(pair[0].tree)
        known = (
            {"commit": head, "uncommitted": dirty, "files": files},
            {"rev": asked.own, "commit": commit},
        )
        about = map(_about, pair, known, answers)
        comparison = Comparison(asked, pair, say, opened(asked, *about))
        return comparison.measured(cases)


def _about(side: Side, known: Mapping[str, Any], answer: Answer) -> dict[str, Any]:
    """Commit, environment, device and versions of a side."""
    found = {k: v for k, v in answer["about"].items() if k not in ("commit", "uncommitted")}
    return {**known, "environment": side.environment, **found}


def opened(asked: Asked, this: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The document to go on with. Raises UsageError where `out` has another comparison."""
    how = {"repeats": asked.repeats, "quick": asked.quick, "only": list(asked.only)}
    head = {"this": dict(this), "other": dict(other), **how}
    if asked.out is None or not asked.out.exists():
        date = datetime.now().astimezone().isoformat(timespec="seconds")
        return {"date": date, **head, "rounds": [], "again": [], "failed": {}}
    document = read(asked.out)
    for name, value in head.items():
        if document.get(name) != value:
            raise UsageError(
                f"out is {str(asked.out)!r}, a comparison with another {name!r} "
                f"({document.get(name)!r}, now {value!r}); must be a new file"
            )
    return document


def matched(this: Answer, other: Answer, only: Sequence[str] = ()) -> list[str]:
    """The cases that both sides have, of those whose names begin as `only` says.

    Raises Failed where one side lacks a case of the other.
    """
    names = list(dict.fromkeys([*this["seconds"], *other["seconds"]]))
    for word in only:
        if not any(name.startswith(word) for name in [*names, *this["errors"], *other["errors"]]):
            raise UsageError(f"only has {word!r}; must begin the name of a case: {_some(names)}")
    chosen = [name for name in names if not only or name.startswith(tuple(only))]
    lacking = [
        f"{side} has no case {name!r}{_reason(answer, name)}"
        for side, answer in (("this", this), ("other", other))
        for name in chosen
        if name not in answer["seconds"]
    ]
    if lacking:
        raise Failed("\n".join([*lacking, "leave them out: --only, and the names to compare"]))
    return chosen


def _some(names: Sequence[str]) -> str:
    """The benchmarks of the cases, and one case."""
    return ", ".join([*dict.fromkeys(name.partition(": ")[0] for name in names), *names[:1]])


def _reason(answer: Answer, name: str) -> str:
    """Why a side lacks a case, where it says so: of the case itself, or of its whole benchmark."""
    errors = answer["errors"]
    text = errors.get(name) or errors.get(f"{name.partition(': ')[0]}: *")
    return f" ({text})" if text else ""


@dataclass(frozen=True)
class Comparison:
    """Measures what a document lacks."""

    asked: Asked
    pair: tuple[Side, Side]
    say: Callable[[str], None]
    document: dict[str, Any]  # written after every finished round

    def measured(self, cases: Sequence[str]) -> dict[str, Any]:
        """The document with all rounds, those of slow cases again, and what comes out."""
        self._measure("rounds", self.asked.rounds, cases)
        found = self.document
        slow = [name for name, x in ratios(found["rounds"]).items() if median(x) < SLOWER]
        if found["again"] and set(found["again"][0]["this"]) != set(slow):
            found["again"] = []  # now that there are more rounds, others are slow
        if slow:
            self.say(f"below {SLOWER}, measured again: {'; '.join(slow)}")
            self._measure("again", AGAIN, slow)
        found["results"] = results(found["rounds"], found["again"])
        self._write()
        return found

    def _measure(self, part: str, count: int, cases: Sequence[str]) -> None:
        """Rounds up to `count`, in the order A B, B A, A B, ..."""
        rounds: list[Round] = self.document[part]
        for number in range(len(rounds), count):
            answers = {
                side.name: side.measured(cases, self.asked.repeats, self.asked.quick)
                for side in (self.pair if number % 2 == 0 else self.pair[::-1])
            }
            self.document["failed"] |= failed(answers, cases)
            rounds.append({side.name: answers[side.name]["seconds"] for side in self.pair})
            self._write()
            self.say(f"{part}: {number + 1} of {count}")

    def _write(self) -> None:
        if self.asked.out is not None:
            replace_file(self.asked.out, json.dumps(self.document, indent=1) + "\n")


def failed(answers: Mapping[str, Answer], cases: Sequence[str]) -> dict[str, str]:
    """Cases that both sides fail in, and why. Raises Failed for those that only one does."""
    this, other = answers["this"], answers["other"]
    matched(this, other)
    return {name: f"both fail{_reason(this, name)}" for name in cases if name in this["errors"]}


def ratios(rounds: Sequence[Round]) -> dict[str, list[float]]:
    """Seconds of the other side over this side's, in each round, of every case that all have."""
    names = rounds[0]["this"] if rounds else ()
    return {
        name: [one["other"][name] / one["this"][name] for one in rounds]
        for name in names
        if all(name in one["this"] for one in rounds)
    }


def ratio_interval(
    found: Sequence[float], level: float = 0.95
) -> tuple[float, float | None, float | None]:
    """Geometric mean of paired ratios, with a t-interval over their logarithms.

    No interval (None) from a single one.
    """
    logs = np.log(np.asarray(found, float))
    mean = float(np.mean(logs))
    if len(logs) < 2:
        return math.exp(mean), None, None
    error = float(np.std(logs, ddof=1)) / math.sqrt(len(logs))
    half = float(stats.t.ppf((1 + level) / 2, len(logs) - 1)) * error
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half)


def median(values: Sequence[float]) -> float:
    return float(statistics.median(values))


def results(rounds: Sequence[Round], again: Sequence[Round]) -> list[Row]:
    """A row a case; of what was measured again, the second measurement counts."""
    second = ratios(again)
    return [
        _result(name, again, second[name], median(found))
        if name in second
        else _result(name, rounds, found, None)
        for name, found in ratios(rounds).items()
    ]


def _result(name: str, rounds: Sequence[Round], found: list[float], before: float | None) -> Row:
    seconds = {f"{side}_s": median([x[side][name] for x in rounds]) for side in ("this", "other")}
    ratio, (_, low, high) = median(found), ratio_interval(found)
    row = {"case": name, **seconds, "ratio": ratio, "low": low, "high": high, "ratios": found}
    return {**row, "slower": ratio < SLOWER, "before": before}
