"""Bundles on disk: a folder, or a .zip of one, sealed by checksums.

bundle.json      what it is for: inputs, outputs, sizes, trained ranges, versions
README.md        the model card
schema.json      JSON schemas of a request and of an answer
vectors.json     instances with the answers of the policy that was exported
ENTRY.jax        a program for `jax.export`, any batch and number of users, cpu, cuda and tpu
ENTRY-BxN.vmfb   the same for IREE, B instances of up to N users (where it was compiled)
MANIFEST.json    size and SHA-256 of every file
"""

from __future__ import annotations

import json
import shutil
import tempfile
import weakref
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from offload_jax.files import disk
from offload_jax.files.checks import BundleError

FORMAT, VERSION = "offload-jax/bundle", 1
ENTRIES = ("greedy", "best", "fallback")  # most likely decisions, best of P, adaptive greedy
TOGETHER = (1, 16)  # instances a call takes; a few of them cost hardly less than 16


def module_name(entry: str, batch: int, users: int) -> str:
    """The file of IREE's program for so many instances, of so many users each."""
    return f"{entry}-{batch}x{users}.vmfb"


@dataclass(frozen=True, eq=False)
class Bundle:
    """A checked bundle; `about` is its bundle.json."""

    folder: Path
    about: dict[str, Any]
    source: str  # the path it was opened by

    @property
    def name(self) -> str:
        return str(self.about["name"])

    @property
    def sizes(self) -> tuple[int, ...]:
        """Numbers of users that requests are padded to, rising."""
        return tuple(self.about["sizes"]["users"])

    @cached_property
    def schemas(self) -> dict[str, Any]:
        """JSON schemas by name: request, answer."""
        return dict(json.loads((self.folder / "schema.json").read_bytes()))

    @cached_property
    def vectors(self) -> list[dict[str, Any]]:
        """Instances with what every entry answers."""
        return list(json.loads((self.folder / "vectors.json").read_bytes()))


def open_bundle(path: str | Path) -> Bundle:
    """Opens a bundle after checking every byte of it. Raises BundleError."""
    path = Path(path)
    if not path.is_file():
        return _checked(path, path)
    folder = Path(tempfile.mkdtemp(prefix="offload-jax-bundle-"))
    try:
        _unzip(path, folder)
        bundle = _checked(folder, path)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    weakref.finalize(bundle, shutil.rmtree, folder, ignore_errors=True)  # also when Python ends
    return bundle


def _checked(folder: Path, path: Path) -> Bundle:
    """The bundle in a folder, which came from `path`."""
    if not (folder / disk.NAME).is_file():
        raise BundleError(
            f"bundle is {str(path)!r}, which holds no {disk.NAME}; must be a folder or .zip "
            "that `offload-jax export` wrote"
        )
    try:
        disk.check(folder)
        about = json.loads((folder / "bundle.json").read_bytes())
    except (disk.Damaged, OSError, ValueError) as error:
        raise BundleError(
            f"bundle {path} is not as it was written: {error}; bring it back from a copy"
        ) from None
    found = about.get("format"), about.get("version")
    if found != (FORMAT, VERSION):
        raise BundleError(
            f"{path}/bundle.json is of format {found}; this version of offload-jax reads "
            f"{(FORMAT, VERSION)}"
        )
    return Bundle(folder, about, str(path))


def _unzip(path: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            archive.extractall(folder)  # which keeps every member inside the folder
    except Exception as error:  # a changed byte can raise whatever zipfile and zlib do
        raise BundleError(f"bundle {path} is no readable .zip: {error}") from None


def zip_bundle(folder: Path, path: Path) -> None:
    """Writes the .zip of a bundle's folder."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, file.name)
