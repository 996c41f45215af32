"""What scenarios share that have a setting `num_users`: everything but sampling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, TypeVar

S = TypeVar("S", bound="SizedScenario")


class SizedScenario:
    """To inherit from: a frozen dataclass adds `num_users` and `sample`, and what it wants else."""

    num_users: tuple[int, ...]  # N, each equally likely
    reference: ClassVar[str] = "reduced-greedy"  # method that training measures its gap against

    @property
    def kind(self) -> str:
        """What runs of it are called."""
        return type(self).__name__.lower()

    @property
    def max_users(self) -> int:
        """To which all instances are padded."""
        return max(self.num_users, default=0)

    def validate(self) -> None:
        """Refuses nothing; a scenario with settings to check has its own, which does."""

    def hard_cells(self) -> list[str]:
        """All of them."""
        return list(self.cells())

    def cells(self: S) -> Mapping[str, S]:
        """One scenario per number of users."""
        return {f"N{n}": self.of_size(n) for n in self.num_users}

    def of_size(self: S, users: int) -> S:
        """The same with N users in every instance."""
        found: Any = self
        changed: S = replace(found, num_users=(users,))
        return changed
