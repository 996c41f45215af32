"""Checks of settings: one home for how a refusal names the field, its value and what is allowed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Any


@dataclass(frozen=True)
class Checks:
    """Checks of one record's fields. Every method raises ValueError at the first bad one."""

    record: Any
    part: str  # of the configuration: begins the field's name in an error

    def require(self, good: bool, name: str, allowed: str) -> None:
        """Refuses the field unless `good`, saying what is `allowed`."""
        if not good:
            value = getattr(self.record, name)
            raise ValueError(f"{self.part}.{name} is {value!r}; must be {allowed}")

    def one_of(self, name: str, choices: Sequence[str]) -> None:
        self.require(getattr(self.record, name) in choices, name, f"one of {', '.join(choices)}")

    def counts(self, *names: str) -> None:
        """Whole numbers from 1."""
        for name in names:
            value = getattr(self.record, name)
            self.require(_is_count(value), name, "at least 1 (a whole number)")

    def tuples_of_counts(self, *names: str) -> None:
        """Tuples, since what is a static argument of a jitted function is hashed."""
        for name in names:
            values = getattr(self.record, name)
            good = isinstance(values, tuple) and len(values) > 0 and all(map(_is_count, values))
            self.require(good, name, "a tuple of one or more whole numbers >= 1")

    def positive(self, *names: str) -> None:
        for name in names:
            self.require(0 < getattr(self.record, name) < inf, name, "finite and above 0")

    def not_negative(self, *names: str) -> None:
        for name in names:
            self.require(0 <= getattr(self.record, name) < inf, name, "finite and at least 0")

    def shares(self, *names: str) -> None:
        """Numbers from 0 to 1."""
        for name in names:
            self.require(0 <= getattr(self.record, name) <= 1, name, "in 0..1")

    def ranges(self, *names: str, positive: bool = False, at_most: float = inf) -> None:
        """Pairs (low, high) that can be drawn from."""
        for name in names:
            low, high = getattr(self.record, name)
            good = (low > 0 if positive else low >= 0) and low <= high <= at_most and high < inf
            allowed = f"low, high with 0 {'<' if positive else '<='} low <= high"
            self.require(good, name, allowed + (f" <= {at_most:g}" if at_most < inf else ""))


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
