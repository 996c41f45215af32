"""Several edge scenarios in one distribution, to train one policy for all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from offload_jax.files.checks import Checks
from offload_jax.problem.instance import Instance, pad_users
from offload_jax.problem.scenario.edge import EdgeScenario
from offload_jax.problem.types import Key


@dataclass(frozen=True)
class MixtureScenario:
    """Instances of several edge scenarios, each as likely as its weight says."""

    kind: Literal["mixture"] = "mixture"
    reference: ClassVar[str] = "reduced-greedy"  # method that training measures its gap against
    parts: tuple[EdgeScenario, ...] = (EdgeScenario(),)  # of the same batches and servers
    weights: tuple[float, ...] = ()  # one for each part; default: all the same

    @property
    def num_users(self) -> tuple[int, ...]:
        return tuple(sorted({n for part in self.parts for n in part.num_users}))

    @property
    def max_users(self) -> int:
        return max(self.num_users, default=0)

    @property
    def num_batches(self) -> int:
        return self.parts[0].num_batches if self.parts else 0

    def validate(self) -> None:
        """Raises ValueError naming the field, what is wrong and what is allowed."""
        check = Checks(self, "scenario")
        check.require(bool(self.parts), "parts", "at least one edge scenario")
        for i, part in enumerate(self.parts):
            part.validate(f"scenario.parts.{i}")
            for name in ("batches", "servers"):  # the shapes of instances
                wanted = getattr(self.parts[0], name)
                alike = getattr(part, name) == wanted
                mine = Checks(part, f"scenario.parts.{i}")
                mine.require(alike, name, f"{wanted}, as in all parts")
        if self.weights:
            good = len(self.weights) == len(self.parts)
            good = good and min(self.weights) >= 0 and sum(self.weights) > 0
            check.require(good, "weights", f"{len(self.parts)} weights >= 0, not all 0, or none")

    def hard_cells(self) -> list[str]:
        """All of them, as for edge scenarios."""
        return list(self.cells())

    def cells(self) -> dict[str, EdgeScenario]:
        """One scenario per part."""
        return {f"part {i + 1}": part for i, part in enumerate(self.parts)}

    def of_size(self, users: int) -> MixtureScenario:
        """The same with N users in every instance."""
        return replace(self, parts=tuple(part.of_size(users) for part in self.parts))

    def sample(self, key: Key) -> Instance:
        """One instance, its users padded to the largest part's, in order of arrival.

        Raises ValueError for an impossible scenario.
        """
        self.validate()
        which, key = jax.random.split(key)
        weights = np.array(self.weights or [1.0] * len(self.parts))
        part = jax.random.choice(which, len(self.parts), p=jnp.array(weights / weights.sum()))

        def sampler(scenario: EdgeScenario) -> Callable[[Key], Instance]:
            return lambda key: pad_users(scenario.sample(key), self.max_users)

        return jax.lax.switch(part, [sampler(one) for one in self.parts], key)
