"""Checkpoints of a run, kept by orbax: the newest few and the best."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as keep_policy

from offload_jax.learner import LearnerState


class CheckpointError(RuntimeError):
    """A checkpoint that is missing or does not fit; the message names it and what to do."""


class Checkpoints:
    """The checkpoints of one run directory. Use as a context manager, or `close` at the end."""

    def __init__(self, folder: Path, keep: int = 3) -> None:
        self.folder = folder.resolve()  # orbax refuses relative paths
        policy = keep_policy.AnyPreservationPolicy(
            [
                keep_policy.LatestN(n=keep),
                # Ranks ascending and keeps the last; a save without a gap never counts as the best.
                keep_policy.BestN(
                    get_metric_fn=lambda m: -m["gap"], n=1, keep_checkpoints_without_metrics=False
                ),
            ]
        )
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                best_fn=lambda m: m["gap"], best_mode="min", preservation_policy=policy
            ),
        )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def save(self, state: LearnerState, gap: float | None = None) -> None:
        """Saves in the background under the state's step; `gap` ranks it for `best`."""
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        metrics = None if gap is None else {"gap": float(gap)}
        self._manager.save(step, args=ocp.args.StandardSave(state), metrics=metrics)

    def latest(self) -> int | None:
        """Step of the newest checkpoint, None where there is none."""
        return self._manager.latest_step()

    def best(self) -> int | None:
        """Step with the smallest gap; the newest where none was evaluated, None where none is."""
        best = self._manager.best_step()
        return self.latest() if best is None else best

    def restore(self, step: int, like: LearnerState) -> LearnerState:
        """The state saved under `step`, in the shapes and types of `like`.

        Raises CheckpointError where it cannot be read or belongs to another configuration.
        """
        target: Any = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        try:
            return self._manager.restore(step, args=ocp.args.StandardRestore(target))
        except Exception as error:
            raise CheckpointError(
                f"checkpoint {self.folder / str(step)} cannot be restored "
                f"({type(error).__name__}: {str(error).splitlines()[0]}); it is damaged or was "
                "written with another configuration. Remove that folder to use the one before it."
            ) from error

    def wait(self) -> None:
        """Returns when every save is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Finishes every save and releases the folder."""
        self._manager.close()
