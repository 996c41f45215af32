"""Checkpoints of a run, kept by orbax: the newest few and the best."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from offload_jax.learner import LearnerState


class CheckpointError(RuntimeError):
    """A checkpoint that is missing, unfit or cannot be written; the message says what to do."""


class Checkpoints:
    """The checkpoints of one run directory. Use as a context manager, or `close` at the end."""

    def __init__(self, folder: Path, keep: int = 3, read_only: bool = False) -> None:
        """Opens or creates `folder`; read-only, nothing changes: safe while a run writes there."""
        import orbax.checkpoint as ocp  # 2 s, so only where checkpoints are really used
        from orbax.checkpoint.checkpoint_managers import preservation_policy as keep_policy

        _quieten_orbax()
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
        self._orbax = ocp
        options = ocp.CheckpointManagerOptions(
            best_fn=lambda m: m["gap"],
            best_mode="min",
            preservation_policy=None if read_only else policy,
            read_only=read_only,
        )
        try:
            self._manager = ocp.CheckpointManager(self.folder, options=options)
        except Exception as error:  # it reads what every checkpoint says of itself
            raise CheckpointError(
                f"checkpoints {self.folder} cannot be read ({_reason(error)}); one of them is "
                "damaged. Remove the newest to use the one before it."
            ) from error

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def save(self, state: LearnerState, gap: float | None = None) -> None:
        """Saves in the background under the state's step; `gap` ranks it for `best`.

        Raises CheckpointError where this save, or the one before it in the background, fails.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        metrics = None if gap is None else {"gap": float(gap)}
        saved = self._orbax.args.StandardSave(state)
        self._written(lambda: self._manager.save(step, args=saved, metrics=metrics))

    def latest(self) -> int | None:
        """Step of the newest checkpoint, None where there is none."""
        return self._manager.latest_step()

    def best(self) -> int | None:
        """Step with the smallest gap; the newest where none has one, None where none exists."""
        best = self._manager.best_step()
        return self.latest() if best is None else best

    def restore(self, step: int, like: LearnerState) -> LearnerState:
        """The state saved under `step`, in the shapes and types of `like`.

        Raises CheckpointError where it cannot be read or belongs to another configuration.
        """
        target: Any = jax.tree.map(self._orbax.utils.to_shape_dtype_struct, like)
        try:
            return self._manager.restore(step, args=self._orbax.args.StandardRestore(target))
        except Exception as error:
            raise CheckpointError(
                f"checkpoint {self.folder / str(step)} cannot be restored ({_reason(error)}); it "
                "is damaged or was written with another configuration. Remove that folder to use "
                "the one before it."
            ) from error

    def wait(self) -> None:
        """Returns when every save is on disk. Raises CheckpointError where one is not."""
        self._written(self._manager.wait_until_finished)

    def close(self) -> None:
        """Finishes every save and releases the folder."""
        self._manager.close()

    def _written(self, write: Callable[[], object]) -> None:
        try:
            write()
        except Exception as error:
            raise CheckpointError(
                f"a checkpoint cannot be written in {self.folder} ({_reason(error)}); those before "
                "it are whole. Free some space there and go on with the run."
            ) from error


def _reason(error: Exception) -> str:
    # Tensorstore's messages run to a page; the cause stands at the end of the first line.
    line = (str(error).strip() or "no details").splitlines()[0]
    line = line if len(line) <= 200 else f"{line[:80]} ... {line[-110:]}"
    return f"{type(error).__name__}: {line}"


def _quieten_orbax() -> None:
    """Keeps orbax's log to itself: what matters in it also arrives as an exception, in one line."""
    logger = logging.getLogger("absl")
    if _not_of_orbax not in logger.filters:
        logger.addFilter(_not_of_orbax)


def _not_of_orbax(record: logging.LogRecord) -> bool:
    return "/orbax/" not in record.pathname.replace("\\", "/")
