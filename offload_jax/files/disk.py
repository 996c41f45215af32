"""Files and folders that are whole or not there, and manifests by which damage is never overlooked.

A folder's manifest holds size and SHA-256 of each of its files, and covers itself, too: whatever
byte of whatever file changes, `check` finds it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from offload_jax.files.checks import ConfigError

PathLike: TypeAlias = str | os.PathLike[str]

# The folder of offload_jax, in a checkout or where it is installed: all that lies beside the code
# is found from here.
PACKAGE = Path(__file__).resolve().parents[1]

NAME = "MANIFEST.json"
FORMAT = 1


class Damaged(ValueError):
    """A folder that is not as it was sealed; the message says which file, and how it differs."""


def seal(folder: Path) -> None:
    """Writes the manifest of a finished folder; all of it is on disk (fsync) on return."""
    files = {name: _digest(folder / name) for name in _names(folder)}
    for place in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        sync(place)
    replace_file(folder / NAME, text({"format": FORMAT, "files": files}))
    sync(folder)


def check(folder: Path) -> None:
    """Returns where every file is as it was sealed. Raises Damaged for the first that is not."""
    try:
        content = (folder / NAME).read_bytes()
    except OSError:
        raise Damaged(f"{NAME} is missing") from None
    try:
        manifest = json.loads(content)
        version, files = manifest["format"], manifest["files"]
        whole = text({"format": version, "files": files}).encode() == content
    except (ValueError, TypeError, KeyError, RecursionError):
        whole = False
    if not whole:
        raise Damaged(f"{NAME} has changed")
    if version != FORMAT:
        raise Damaged(f"{NAME} has format {version}; this version of offload-jax reads {FORMAT}")
    for name in sorted(files.keys() | set(_names(folder))):
        if name not in files:
            raise Damaged(f"{name} was added")
        if not (folder / name).is_file():
            raise Damaged(f"{name} is missing")
        if _digest(folder / name, sync=False) != files[name]:
            raise Damaged(f"{name} has changed")


def _names(folder: Path) -> list[str]:
    """The files below a folder, but for its manifest; a link stands for the file it leads to."""
    paths = (path for path in folder.rglob("*") if not path.is_dir())
    return sorted(name for path in paths if (name := path.relative_to(folder).as_posix()) != NAME)


def _digest(path: Path, sync: bool = True) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if sync:
            os.fsync(file.fileno())
        return {"bytes": file.tell(), "sha256": digest}


def text(content: dict[str, Any]) -> str:
    """The one text of a manifest, its own checksum last."""
    own = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return json.dumps({**content, "sha256": own}, indent=1, sort_keys=True) + "\n"


def sync(folder: Path) -> None:
    """Returns when the entries of a folder are on disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace_file(path: PathLike, content: str | bytes) -> None:
    """Writes a file as a whole: whatever stops it, the path holds the old content or the new."""
    content = content.encode() if isinstance(content, str) else content
    target = os.path.realpath(path)  # of a link, its file is replaced
    temporary = f"{target}.{uuid.uuid4().hex}.tmp"  # same directory, so that replacing is atomic
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # or a power cut could leave the new name with no content
        os.replace(temporary, target)
    finally:
        Path(temporary).unlink(missing_ok=True)  # still there if anything failed


def cache_folder() -> Path:
    """Where this user's compiled programs are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "offload-jax"


def check_free(folder: Path) -> None:
    """Raises ConfigError for an `out` that is not a new or empty folder."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"out is {str(folder)!r}, which exists; must be a new or empty folder")


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A folder to fill; afterwards it takes the place of `folder`, which must be new or empty.

    Where the block raises, nothing is left.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield new
        new.chmod(0o755)
        new.replace(folder)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
