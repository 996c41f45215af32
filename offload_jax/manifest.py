"""A folder's manifest: size and SHA-256 of each of its files, so that damage is never overlooked.

The manifest covers itself, too: whatever byte of whatever file changes, `check` finds it.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from offload_jax.documents import replace_file

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
