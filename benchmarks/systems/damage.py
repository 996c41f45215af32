"""Ways in which a folder of files gets damaged, each drawing where."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from offload_jax.files import disk


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _flip(folder: Path, draw: random.Random) -> None:
    # by bytes, so that large files get their share
    files = [path for path in files_of(folder) if path.stat().st_size]
    path = draw.choices(files, [file.stat().st_size for file in files])[0]
    _flip_in(path, draw)


def _flip_in(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def _flip_any_file(folder: Path, draw: random.Random) -> None:
    _flip_in(draw.choice([path for path in files_of(folder) if path.stat().st_size]), draw)


def _cut(folder: Path, draw: random.Random) -> None:
    path = draw.choice([path for path in files_of(folder) if path.stat().st_size])
    os.truncate(path, draw.randrange(path.stat().st_size))


def _delete(folder: Path, draw: random.Random) -> None:
    draw.choice(files_of(folder)).unlink()


def _empty(folder: Path, draw: random.Random) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def _zeros(folder: Path, draw: random.Random) -> None:
    """What a power cut may leave of a file that was never synced."""
    path = draw.choice([path for path in files_of(folder) if path.stat().st_size])
    path.write_bytes(bytes(path.stat().st_size))


def _other_version(folder: Path, draw: random.Random) -> None:
    path = folder / disk.NAME
    files = json.loads(path.read_text())["files"]
    path.write_text(disk.text({"format": draw.randrange(2, 99), "files": files}))


def _mixed(folder: Path, draw: random.Random) -> None:
    """A file of another step's checkpoint, as a careless copy may leave."""
    other = folder.with_name(str(int(folder.name) - 2))
    files = [
        path.relative_to(folder)
        for path in files_of(folder)
        if other.is_dir()
        and (other / path.relative_to(folder)).is_file()
        and (other / path.relative_to(folder)).read_bytes() != path.read_bytes()
    ]
    if files:
        name = draw.choice(files)
        shutil.copyfile(other / name, folder / name)
    else:  # alone: nothing to mix with
        _delete(folder, draw)


DAMAGES: dict[str, Callable[[Path, random.Random], None]] = {
    "bit flipped, any byte": _flip,
    "bit flipped, any file": _flip_any_file,
    "file cut": _cut,
    "file deleted": _delete,
    "file zeroed": _zeros,
    "emptied": _empty,
    "other version": _other_version,
    "file of another step": _mixed,
}
