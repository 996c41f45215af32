"""Training under watch (`--run.checks`): assertions inside the update, traced once.

Slower, and what is learned is the same.
"""

from __future__ import annotations

import logging

import chex
import jax
from jax.experimental import checkify

from offload_jax.files.checks import RunError
from offload_jax.learning import updates
from offload_jax.learning.checked import watched
from offload_jax.learning.devices import Devices
from offload_jax.learning.updates import LearnerState, Metrics
from offload_jax.runs.config import TrainConfig
from offload_jax.runs.task import PolicyLearning

# Chex says so at the end of every process, even where it has waited for all assertions.
logging.getLogger("absl").addFilter(
    lambda record: "chexify assertion statuses were not inspected" not in record.getMessage()
)


class CheckedLearning(PolicyLearning):
    """One policy, its updates watched. `lower` is that of the update without assertions."""

    def __init__(self, config: TrainConfig, devices: Devices) -> None:
        super().__init__(config, devices)
        self._watched = watched(self.learner)
        self._types: dict[str, str] = {}  # of the state of the update before
        chex.clear_trace_counter()  # a run before in this process had traces of its own
        once = chex.assert_max_traces(updates.update, n=1)
        self._update = chex.chexify(jax.jit(once, static_argnums=0), async_check=False)

    def update(self, state: LearnerState) -> tuple[LearnerState, Metrics]:
        """Raises RunError where an assertion fails, and where this is traced once more."""
        before, self._types = self._types, _types(state)
        where = f"run.checks: update {int(state.step) + 1}"
        try:
            found: tuple[LearnerState, Metrics] = self._update(self._watched, state)
        except checkify.JaxRuntimeError as error:
            told = str(error).removesuffix(" (`check` failed)")
            raise RunError(
                f"{where}: {told}. That update was not applied. Mend the code, and go on with "
                "the run: it makes the updates since its last checkpoint again"
            ) from None
        except AssertionError as error:
            if "is traced >" not in str(error):
                raise
            raise RunError(
                f"{where} is traced a second time, which takes as long as compiling does: "
                f"{_changed(before, self._types)}"
            ) from None
        return found


def policy_learning(config: TrainConfig, devices: Devices) -> PolicyLearning:
    """What trains one policy, under watch where that is asked for."""
    return (CheckedLearning if config.run.checks else PolicyLearning)(config, devices)


def _types(state: LearnerState) -> dict[str, str]:
    """Type and shape of every array of a state, by its path; ~ is a weak type."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): str(jax.typeof(leaf)) for path, leaf in leaves}


def _changed(before: dict[str, str], after: dict[str, str]) -> str:
    """The first array that differs between two states."""
    for path in sorted(before.keys() | after.keys()):
        old, new = before.get(path, "missing"), after.get(path, "missing")
        if old != new:
            return f"state{path} was {old} and is {new}; must stay as it is"
    return "no array changed; the settings must be equal, and hash alike, at every update"
