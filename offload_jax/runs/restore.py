"""Checkpoints on disk: found, verified before use, and restored.

`checkpoints/STEP` holds `state` (the arrays, by orbax), `about` (JSON: gap, settings, versions) and
the manifest of both. It appears in one rename when all of it is on disk: a folder named like a step
is whole, or was damaged later.
"""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from offload_jax.files import disk
from offload_jax.files.checks import CheckpointError
from offload_jax.learning.updates import LearnerState

UNFINISHED = ".orbax-checkpoint-tmp"  # in a folder's name: orbax removes such at the next opening


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk whose every file is as it was written."""

    step: int
    path: Path
    about: dict[str, Any]  # what was saved beside the state

    @property
    def gap(self) -> float | None:
        """Of the evaluation at this step, where there was one."""
        return self.about.get("gap")


def examine(folder: Path) -> tuple[list[Checkpoint], dict[Path, str]]:
    """The good checkpoints below a folder by step, and of the others what is wrong with each."""
    good, bad = [], {}
    for path in sorted(_named_like_steps(folder), key=lambda path: int(path.name)):
        try:
            disk.check(path)
            about = json.loads((path / "about" / "metadata").read_bytes())
        except (disk.Damaged, OSError) as error:
            if path.exists():  # else a running training has just removed it
                bad[path] = str(error)
            continue
        good.append(Checkpoint(int(path.name), path, about))
    return good, bad


def find(folder: Path, which: str, warn: Callable[[str], None]) -> Checkpoint | None:
    """The ``latest`` good checkpoint or the ``best``, None where none was saved yet.

    Reads only, so it is safe while a run writes there. `warn` is told which damaged ones were left
    out. Raises CheckpointError where all are damaged.
    """
    good, bad = examine(folder)
    refuse_if_all(bad, good)
    for path, reason in bad.items():
        warn(f"checkpoint {path} is damaged ({reason}) and left out")
    return best(good) if which == "best" else next(reversed(good), None)


def best(good: list[Checkpoint]) -> Checkpoint | None:
    """The one with the smallest gap; the newest where none has one, None where none exists."""
    judged = [saved for saved in good if saved.gap is not None]
    # of equal ones the newest
    return min(reversed(judged or good[-1:]), key=lambda saved: saved.gap or 0.0, default=None)


def aliases_of(saved: Checkpoint, good: list[Checkpoint]) -> list[str]:
    """The names of one among all: ``latest``, ``best``, and always ``step-N``."""
    named = {"latest": good[-1], "best": best(good)}
    return [*(name for name, one in named.items() if one == saved), f"step-{saved.step}"]


def restore(saved: Checkpoint, like: LearnerState) -> LearnerState:
    """The state of a checkpoint in the shapes, types and shardings of `like`.

    Raises CheckpointError where it belongs to another configuration, or is gone.
    """
    import orbax.checkpoint as ocp  # 2 s, so only where checkpoints are really used

    quieten_orbax()
    _refuse_other_arrays(saved, like)
    target: Any = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            # resolved, as orbax refuses relative paths
            return checkpointer.restore(saved.path.resolve() / "state", target)
    except Exception as error:
        if not saved.path.exists():
            raise CheckpointError(
                f"checkpoint {saved.path} is gone: its run has just saved a newer one; try again"
            ) from error
        raise CheckpointError(
            f"checkpoint {saved.path} cannot be restored ({reason_of(error)}), though all of its "
            "files are as they were written; its versions are in about/metadata"
        ) from error


def arrays_of(state: LearnerState) -> dict[str, str]:
    """Types and shapes by path, as in {".params['a']": "float32[3,4]"}."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {
        jax.tree_util.keystr(path): jax.core.ShapedArray(x.shape, x.dtype).str_short()
        for path, x in leaves
    }


def _refuse_other_arrays(saved: Checkpoint, like: LearnerState) -> None:
    theirs, mine = saved.about["arrays"], arrays_of(like)
    for name in theirs | mine:
        if theirs.get(name) != mine.get(name):
            raise CheckpointError(
                f"checkpoint {saved.path} is of another configuration: {name} is "
                f"{theirs.get(name, 'missing')}; must be {mine.get(name, 'left out')}"
            )


def _named_like_steps(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if path.name.isascii() and path.name.isdigit()]


def refuse_if_all(bad: dict[Path, str], good: list[Checkpoint]) -> None:
    """Raises CheckpointError where checkpoints were saved, but all of them are damaged."""
    if bad and not good:
        [*_, (path, reason)] = bad.items()
        raise CheckpointError(
            f"no checkpoint in {path.parent} is as it was written; the newest: {path.name} "
            f"({reason}). Bring that folder back from a copy, or remove it to start over."
        )


def reason_of(error: Exception) -> str:
    """An exception in one line of bearable length."""
    # Tensorstore's messages run to a page; the cause stands at the end of the first line.
    line = (str(error).strip() or "no details").splitlines()[0]
    line = line if len(line) <= 200 else f"{line[:80]} ... {line[-110:]}"
    return f"{type(error).__name__}: {line}"


def quieten_orbax() -> None:
    """Keeps orbax's log to itself: what matters in it also arrives as an exception, in one line."""
    for name in ("absl", "asyncio"):  # the second tells of writes that nobody waits for any more
        logger = logging.getLogger(name)
        if _not_of_orbax not in logger.filters:
            logger.addFilter(_not_of_orbax)


def _not_of_orbax(record: logging.LogRecord) -> bool:
    exception = record.exc_info[1] if record.exc_info else None
    trace = traceback.extract_tb(exception.__traceback__) if exception else []
    places = [record.pathname, *(frame.filename for frame in trace)]
    ours = any("/orbax/" in place.replace("\\", "/") for place in places)
    return not ours and UNFINISHED not in record.getMessage()
