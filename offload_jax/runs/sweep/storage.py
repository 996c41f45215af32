"""Where Optuna keeps the trials of a sweep: a journal file, or a database for several machines."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from sqlalchemy.exc import DatabaseError, SQLAlchemyError

from offload_jax.files.checks import ConfigError, RunError


def open_storage(storage: str | Path) -> optuna.storages.BaseStorage:
    """The journal file at a path, or the database at a URL. Raises ConfigError if it won't open."""
    if isinstance(storage, str):
        try:
            return _database(storage)
        except (SQLAlchemyError, ImportError, ValueError, RuntimeError) as error:
            # Not the URL, which may hold a password.
            raise ConfigError(
                f"storage cannot be opened ({_first_line(error)}); must be the URL of a database, "
                "such as postgresql://user@host/name or sqlite:////folder/file.db"
            ) from None
    path = str(storage.resolve())
    lock = JournalFileOpenLock(path)
    lock.acquire()
    try:
        _drop_torn_end(Path(path))
    finally:
        lock.release()
    return optuna.storages.JournalStorage(JournalFileBackend(path, lock_obj=lock))


def _database(url: str) -> optuna.storages.RDBStorage:
    for _ in range(3):
        with suppress(DatabaseError):  # another process makes the same tables at this moment
            return optuna.storages.RDBStorage(url)
        time.sleep(0.5)
    return optuna.storages.RDBStorage(url)


def _drop_torn_end(path: Path) -> None:
    """A power cut may leave half a line, to which the next one would be glued."""
    if path.exists() and (content := path.read_bytes()) and not content.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)


@contextmanager
def answering() -> Iterator[None]:
    """Turns a storage that does not answer into a RunError."""
    try:
        yield
    except (SQLAlchemyError, StorageInternalError, OSError) as error:
        raise RunError(
            f"the sweep's storage does not answer ({_first_line(error)}). Its trials are as good "
            "as before: mend that and give the same command again."
        ) from None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
