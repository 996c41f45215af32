"""What is trained: all that the training loop sees of it, and the learning of a policy.

A task may train several members side by side in one program, as a population does; the loop then
keeps a run of each. Their states come and go as one.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property, partial
from typing import Any, Protocol, runtime_checkable

import jax

from offload_jax.learning import nonfinite, updates
from offload_jax.learning.algorithm import Learner
from offload_jax.learning.devices import Devices, local_copy
from offload_jax.learning.updates import LearnerState, Metrics
from offload_jax.runs.config import TrainConfig
from offload_jax.runs.heldout import heldout_gap


@runtime_checkable
class Task(Protocol):
    """Pure programs over a state, spread over devices. A member's state has its `step`."""

    devices: Devices

    def lower(self, state: Any) -> jax.stages.Lowered:
        """The update of `state`, to be compiled."""

    def update(self, state: Any) -> tuple[Any, Metrics]:
        """One update, and numbers by name: those of a row, and `sound`.

        Where `sound` is False the state is as it was. With several members all have their axis
        first. `state` is used up.
        """

    def evaluate(self, state: Any) -> list[float]:
        """The gap of each member on instances of its own, which training does not see."""

    def split(self, state: Any) -> list[Any]:
        """The state of each member, to be saved."""

    def join(self, state: Any, parts: Mapping[int, Any]) -> Any:
        """`state` with other states of some members."""

    def skip(self, part: Any) -> Any:
        """A member's state past an update that cannot be made."""

    def explain(self, number: int, part: Any) -> str:
        """Why the update of a member's state cannot be made, in one line."""


class PolicyLearning:
    """One policy, by the learner of a configuration."""

    def __init__(self, config: TrainConfig, devices: Devices) -> None:
        self.config, self.devices = config, devices
        self.learner = config.to_learner(devices)

    @cached_property
    def _gap(self) -> Any:
        return heldout_gap(self.config, self.devices)

    def lower(self, state: LearnerState) -> jax.stages.Lowered:
        return _update.lower(self.learner, state)

    def update(self, state: LearnerState) -> tuple[LearnerState, Metrics]:
        return _update(self.learner, state)

    def evaluate(self, state: LearnerState) -> list[float]:
        return [self._gap(state.params)]

    def split(self, state: LearnerState) -> list[LearnerState]:
        return [state]

    def join(self, state: LearnerState, parts: Mapping[int, LearnerState]) -> LearnerState:
        return parts.get(0, state)

    def skip(self, part: LearnerState) -> LearnerState:
        return updates.skip(part)

    def explain(self, number: int, part: LearnerState) -> str:
        return nonfinite.explain(self.config.to_learner(), local_copy(part))


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def _update(learner: Learner, state: LearnerState) -> tuple[LearnerState, Metrics]:
    return updates.update(learner, state)
