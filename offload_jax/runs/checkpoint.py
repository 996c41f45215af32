"""Checkpoints of a run in the making: written by orbax in the background, and sealed."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import functools
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from offload_jax.files import disk
from offload_jax.files.checks import CheckpointError
from offload_jax.learning.updates import LearnerState
from offload_jax.runs import run_files
from offload_jax.runs.restore import (
    UNFINISHED,
    Checkpoint,
    aliases_of,
    arrays_of,
    best,
    examine,
    quieten_orbax,
    reason_of,
    refuse_if_all,
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
        refuse_if_all(bad, self.good)
        for path, reason in bad.items() if self._first else ():
            moved = _quarantined(path)
            warn(
                f"checkpoint {path.name} is damaged ({reason}); moved to {moved}; the newest good "
                f"one is of update {self.good[-1].step}"
            )
        self._saving: Checkpoint | None = None
        self._orbax, self._manager = _manager(self.folder)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def newest(self) -> Checkpoint | None:
        """The checkpoint to go on from."""
        return self.good[-1] if self.good else None

    def at(self, step: int) -> Checkpoint:
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
            **copy.deepcopy(about),  # written later, while its owner goes on filling it
            "step": step,
            "gap": gap,
            "arrays": arrays_of(state),
        }
        args = self._orbax.args
        items = args.Composite(state=args.StandardSave(state), about=args.JsonSave(about))
        self._written(lambda: self._manager.save(step, args=items))
        self._saving = Checkpoint(step, self.folder / str(step), about)

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
            for path in self.folder.glob(f"*{UNFINISHED}") if self._first else ():
                _remove(path)
            _, self._manager = _manager(self.folder)
            raise CheckpointError(
                f"a checkpoint cannot be written in {self.folder} ({reason_of(error)}); those "
                "before it are whole. Free some space there and go on with the run."
            ) from error


def _quarantined(path: Path) -> Path:
    """Moves a damaged checkpoint out of the way; nothing is deleted."""
    shelter = path.parent.parent / run_files.QUARANTINE
    shelter.mkdir(exist_ok=True)
    names = (f"{path.name}.{i}" if i else path.name for i in range(10**6))
    target = next(shelter / name for name in names if not (shelter / name).exists())
    return path.rename(target)


def _remove(path: Path) -> None:
    """Removes a checkpoint, or what there is of one; what cannot be is swept at the next opening.

    Renamed first: half a checkpoint never bears the name of one, and a write that has failed but
    not ended does not meet the next one.
    """
    going = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}{UNFINISHED}")
    with contextlib.suppress(OSError):
        path.rename(going)
        shutil.rmtree(going)


def _manager(folder: Path) -> tuple[Any, Any]:
    """orbax, and its manager of a folder: asynchronous, sealing, deleting nothing."""
    import orbax.checkpoint as ocp

    quieten_orbax()
    options = ocp.CheckpointManagerOptions(
        temporary_path_class=_sealed_path(), cleanup_tmp_directories=True
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return ocp, ocp.CheckpointManager(folder, options=options)
    except Exception as error:
        raise CheckpointError(
            f"checkpoints {folder} cannot be opened ({reason_of(error)}); must be a directory that "
            "can be written"
        ) from error


@functools.cache
def _sealed_path() -> type:
    """orbax's temporary folder of a save, but sealed before it gets its final name.

    orbax writes two more files in `finalize`, and only then renames. So it renames to a name that
    is temporary still, the manifest is written, and one more rename makes it a checkpoint.
    """
    from orbax.checkpoint.path import atomicity

    class SealedPath(atomicity.AtomicRenameTemporaryPath):
        async def finalize(self) -> None:
            final = self.get_final()
            if UNFINISHED in final.parent.name:  # an item of the checkpoint
                return await super().finalize()
            unsealed = final.with_name(f"{final.name}.unsealed{UNFINISHED}")
            self._final_path = unsealed
            try:
                await super().finalize()
            finally:
                self._final_path = final
            await asyncio.to_thread(disk.seal, Path(unsealed))
            os.rename(unsealed, final)
            disk.sync(Path(final.parent))

    return SealedPath
