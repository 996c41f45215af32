"""Refusals: the errors that a user can mend, and checks of settings that name what is wrong."""

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


class UserError(Exception):
    """What a user can mend; the message says what is wrong and what to do."""


class SchemaError(UserError, ValueError):
    """`<path>: <what is wrong>; <what is allowed>`; `path` is the place, file name included."""

    def __init__(self, path: str, wrong: str, allowed: str) -> None:
        super().__init__(path, wrong, allowed)  # all three, so that it pickles
        self.path = path

    def __str__(self) -> str:
        return "{}: {}; {}".format(*self.args)


class ConfigError(UserError, ValueError):
    """A setting that is unknown or impossible; the message names it and what is allowed."""


class InterfaceError(UserError, ValueError):
    """Own code returned what its interface does not allow; the message says what it must be."""


class RunError(UserError, RuntimeError):
    """A run that cannot go on; its directory is as good as before, and the message says more."""


class CheckpointError(UserError, RuntimeError):
    """A checkpoint that is missing, unfit or cannot be written; the message says what to do."""


class PolicyError(UserError, ValueError):
    """A policy folder that is damaged or of another version; the message says what to do."""


class TestSetError(UserError, ValueError):
    """A test set that is missing, damaged or of another version; the message says what to do."""

    __test__ = False  # no test of pytest's


class BundleError(UserError, ValueError):
    """A bundle that is damaged, of another version, or lacks what is asked for."""


class SyncError(UserError, RuntimeError):
    """A run that could not be uploaded; the message says why and what to do."""
