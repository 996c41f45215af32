"""Checkpoints of a run: written by orbax in the background, sealed, and verified before use.

`checkpoints/STEP` holds `state` (the arrays, by orbax), `about` (JSON: gap, settings, versions) and
the manifest of both. It appears in one rename when all of it is on disk: a folder named like a step
is whole, or was damaged later.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
import os
import shutil
import traceback
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from offload_jax import manifest
from offload_jax.learner import LearnerState

_UNFINISHED = ".orbax-checkpoint-tmp"  # in a folder's name: orbax removes such at the next opening


class CheckpointError(RuntimeError):
    """A checkpoint that is missing, unfit or cannot be written; the message says what to do."""


@dataclass(frozen=True)
class Saved:
    """A checkpoint on disk whose every file is as it was written."""

    step: int
    path: Path
    about: dict[str, Any]  # what was saved beside the state

    @property
    def gap(self) -> float | None:
        """Of the evaluation at this step, where there was one."""
        return self.about.get("gap")


def examine(folder: Path) -> tuple[list[Saved], dict[Path, str]]:
    """The good checkpoints below a folder by step, and of the others what is wrong with each."""
    good, bad = [], {}
    for path in sorted(_named_like_steps(folder), key=lambda path: int(path.name)):
        try:
            manifest.check(path)
            about = json.loads((path / "about" / "metadata").read_bytes())
        except (manifest.Damaged, OSError) as error:
            if path.exists():  # else a running training has just removed it
                bad[path] = str(error)
            continue
        good.append(Saved(int(path.name), path, about))
    return good, bad


def find(folder: Path, which: str, warn: Callable[[str], None]) -> Saved | None:
    """The ``latest`` good checkpoint or the ``best``, None where none was saved yet.

    Reads only, so it is safe while a run writes there. `warn` is told which damaged ones were left
    out. Raises CheckpointError where all are damaged.
    """
    good, bad = examine(folder)
    _refuse_if_all(bad, good)
    for path, reason in bad.items():
        warn(f"checkpoint {path} is damaged ({reason}) and left out")
    return best(good) if which == "best" else next(reversed(good), None)


def best(good: list[Saved]) -> Saved | None:
    """The one with the smallest gap; the newest where none has one, None where none exists."""
    judged = [saved for saved in good if saved.gap is not None]
    # of equal ones the newest
    return min(reversed(judged or good[-1:]), key=lambda saved: saved.gap or 0.0, default=None)


def aliases_of(saved: Saved, good: list[Saved]) -> list[str]:
    """The names of one among all: ``latest``, ``best``, and always ``step-N``."""
    named = {"latest": good[-1], "best": best(good)}
    return [*(name for name, one in named.items() if one == saved), f"step-{saved.step}"]


def restore(saved: Saved, like: LearnerState) -> LearnerState:
    """The state of a checkpoint in the shapes, types and shardings of `like`.

    Raises CheckpointError where it belongs to another configuration.
    """
    import orbax.checkpoint as ocp  # 2 s, so only where checkpoints are really used

    _quieten_orbax()
    _refuse_other_arrays(saved, like)
    target: Any = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            # resolved, as orbax refuses relative paths
            return checkpointer.restore(saved.path.resolve() / "state", target)
    except Exception as error:
        raise CheckpointError(
            f"checkpoint {saved.path} cannot be restored ({_reason(error)}), though all of its "
            "files are as they were written; its versions are in about/metadata"
        ) from error


def _arrays(state: LearnerState) -> dict[str, str]:
    """Types and shapes by path, as in {".params['a']": "float32[3,4]"}."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {
        jax.tree_util.keystr(path): jax.core.ShapedArray(x.shape, x.dtype).str_short()
        for path, x in leaves
    }


def _refuse_other_arrays(saved: Saved, like: LearnerState) -> None:
    theirs, mine = saved.about["arrays"], _arrays(like)
    for name in theirs | mine:
        if theirs.get(name) != mine.get(name):
            raise CheckpointError(
                f"checkpoint {saved.path} is of another configuration: {name} is "
                f"{theirs.get(name, 'missing')}; must be {mine.get(name, 'left out')}"
            )


class Checkpoints:
    """Writes the checkpoints of one run directory. Use as a context manager."""

    def __init__(
        self,
        folder: Path,
        keep: int = 3,
        about: Mapping[str, Any] | None = None,
        warn: Callable[[str], None] = print,
        on_saved: Callable[[Path, int, list[str]], None] | None = None,
    ) -> None:
        """Opens or creates `folder`, which no other run may write to meanwhile.

        `keep` newest ones stay, and the best; `about` goes into each. Damaged ones are moved to
        `quarantine` beside the folder, and `warn` is told. `on_saved` is told of each that is on
        disk: its path, step and aliases. Raises CheckpointError where all are damaged: nothing is
        moved then.
        """
        self.folder, self.keep, self._about = folder.resolve(), keep, dict(about or {})
        self._on_saved = on_saved
        self._first = jax.process_index() == 0  # of several processes one moves and removes
        self.good, bad = examine(self.folder)
        _refuse_if_all(bad, self.good)
        for path, reason in bad.items() if self._first else ():
            moved = _quarantined(path)
            warn(
                f"checkpoint {path.name} is damaged ({reason}); moved to {moved}; the newest good "
                f"one is of update {self.good[-1].step}"
            )
        self._saving: Saved | None = None
        self._orbax, self._manager = _manager(self.folder)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def newest(self) -> Saved | None:
        """The checkpoint to go on from."""
        return self.good[-1] if self.good else None

    def at(self, step: int) -> Saved:
        """The good checkpoint of a step. Raises KeyError where there is none."""
        return {saved.step: saved for saved in self.good}[step]

    def save(self, state: LearnerState, gap: float | None = None, **about: Any) -> None:
        """Saves in the background under the state's step; `gap` ranks it, `about` is kept with it.

        A step is saved once. Raises CheckpointError where this save, or the one before it in the
        background, fails; those before it are whole, and the next save starts afresh.
        """
        step = int(state.step)
        self.wait()
        if self.good and self.good[-1].step >= step:
            return
        about = {
            "since_row": [],
            **self._about,
            **about,
            "step": step,
            "gap": gap,
            "arrays": _arrays(state),
        }
        args = self._orbax.args
        items = args.Composite(state=args.StandardSave(state), about=args.JsonSave(about))
        self._written(lambda: self._manager.save(step, args=items))
        self._saving = Saved(step, self.folder / str(step), about)

    def wait(self) -> None:
        """Returns when every save is on disk. Raises CheckpointError where one is not."""
        saving, self._saving = self._saving, None
        if saving is not None:
            self._written(self._manager.wait_until_finished)
            self.good.append(saving)
            if self._on_saved is not None:
                self._on_saved(saving.path, saving.step, aliases_of(saving, self.good))
            self._retire()

    def close(self) -> None:
        """Finishes every save and releases the folder; `wait` before it to know of failures."""
        with contextlib.suppress(Exception):
            self._manager.close()

    def _retire(self) -> None:
        """Removes all but the newest few and the best."""
        stay = [*self.good[-self.keep :], best(self.good)]
        for saved in [saved for saved in self.good if saved not in stay]:
            if self._first:
                _remove(saved.path)
        self.good = [saved for saved in self.good if saved in stay]

    def _written(self, write: Callable[[], object]) -> None:
        try:
            write()
        except Exception as error:
            with contextlib.suppress(Exception):  # which would tell of the same failure for ever
                self._manager.close()
            for path in self.folder.glob(f"*{_UNFINISHED}") if self._first else ():
                _remove(path)
            _, self._manager = _manager(self.folder)
            raise CheckpointError(
                f"a checkpoint cannot be written in {self.folder} ({_reason(error)}); those before "
                "it are whole. Free some space there and go on with the run."
            ) from error


def _named_like_steps(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if path.name.isascii() and path.name.isdigit()]


def _refuse_if_all(bad: dict[Path, str], good: list[Saved]) -> None:
    if bad and not good:
        [*_, (path, reason)] = bad.items()
        raise CheckpointError(
            f"no checkpoint in {path.parent} is as it was written; the newest: {path.name} "
            f"({reason}). Bring that folder back from a copy, or remove it to start over."
        )


def _quarantined(path: Path) -> Path:
    """Moves a damaged checkpoint out of the way; nothing is deleted."""
    shelter = path.parent.parent / "quarantine"
    shelter.mkdir(exist_ok=True)
    names = (f"{path.name}.{i}" if i else path.name for i in range(10**6))
    target = next(shelter / name for name in names if not (shelter / name).exists())
    return path.rename(target)


def _remove(path: Path) -> None:
    """Removes a checkpoint, or what there is of one; what cannot be is swept at the next opening.

    Renamed first: half a checkpoint never bears the name of one, and a write that has failed but
    not ended does not meet the next one.
    """
    going = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}{_UNFINISHED}")
    with contextlib.suppress(OSError):
        path.rename(going)
        shutil.rmtree(going)


def _manager(folder: Path) -> tuple[Any, Any]:
    """orbax, and its manager of a folder: asynchronous, sealing, deleting nothing."""
    import orbax.checkpoint as ocp

    _quieten_orbax()
    options = ocp.CheckpointManagerOptions(
        temporary_path_class=_sealed_path(), cleanup_tmp_directories=True
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return ocp, ocp.CheckpointManager(folder, options=options)
    except Exception as error:
        raise CheckpointError(
            f"checkpoints {folder} cannot be opened ({_reason(error)}); must be a directory that "
            "can be written"
        ) from error


@functools.cache
def _sealed_path() -> type:
    """orbax's temporary folder of a save, but sealed before it gets its final name.

    orbax writes two more files in `finalize`, and only then renames. So it renames to a name that
    is temporary still, the manifest is written, and one more rename makes it a checkpoint.
    """
    from orbax.checkpoint._src.path.atomicity import AtomicRenameTemporaryPath

    class SealedPath(AtomicRenameTemporaryPath):
        async def finalize(self) -> None:
            final = self.get_final()
            if _UNFINISHED in final.parent.name:  # an item of the checkpoint
                return await super().finalize()
            unsealed = final.with_name(f"{final.name}.unsealed{_UNFINISHED}")
            self._final_path = unsealed
            try:
                await super().finalize()
            finally:
                self._final_path = final
            await asyncio.to_thread(manifest.seal, Path(unsealed))
            os.rename(unsealed, final)
            manifest.sync(Path(final.parent))

    return SealedPath


def _reason(error: Exception) -> str:
    # Tensorstore's messages run to a page; the cause stands at the end of the first line.
    line = (str(error).strip() or "no details").splitlines()[0]
    line = line if len(line) <= 200 else f"{line[:80]} ... {line[-110:]}"
    return f"{type(error).__name__}: {line}"


def _quieten_orbax() -> None:
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
    return not ours and _UNFINISHED not in record.getMessage()
