"""A sealed folder is as it was, or the first difference is named."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from offload_jax import manifest

pytestmark = pytest.mark.fast


@pytest.fixture
def sealed(tmp_path) -> Path:
    folder = tmp_path / "sealed"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "weights").write_bytes(bytes(range(256)))
    (folder / "about").write_text("{}")
    manifest.seal(folder)
    return folder


def test_an_untouched_folder_is_good_wherever_it_is(sealed, tmp_path) -> None:
    manifest.check(sealed)
    manifest.check(Path(shutil.copytree(sealed, tmp_path / "copy")))


def test_every_flipped_bit_is_found(sealed) -> None:
    for path in sorted(path for path in sealed.rglob("*") if path.is_file()):
        whole = path.read_bytes()
        for at in range(0, len(whole), max(1, len(whole) // 50)):
            flipped = bytearray(whole)
            flipped[at] ^= 1 << at % 8
            path.write_bytes(flipped)
            with pytest.raises(manifest.Damaged, match=f"{path.name} has changed"):
                manifest.check(sealed)
        path.write_bytes(whole)
    manifest.check(sealed)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut": (lambda f: os.truncate(f / "inner" / "weights", 100), "inner/weights has changed"),
    "file gone": (lambda f: (f / "about").unlink(), "about is missing"),
    "folder gone": (lambda f: shutil.rmtree(f / "inner"), "inner/weights is missing"),
    "file more": (lambda f: (f / "inner" / "other").touch(), "inner/other was added"),
    "folder instead": (
        lambda f: ((f / "about").unlink(), (f / "about").mkdir()),
        "about is missing",
    ),
    "no manifest": (lambda f: (f / manifest.NAME).unlink(), r"MANIFEST\.json is missing"),
    "no JSON": (lambda f: (f / manifest.NAME).write_text("[]"), r"MANIFEST\.json has changed"),
    "empty": (lambda f: (shutil.rmtree(f), f.mkdir()), r"MANIFEST\.json is missing"),
    "a file": (lambda f: (shutil.rmtree(f), f.touch()), r"MANIFEST\.json is missing"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_other_damage_is_named(sealed, name) -> None:
    damage, message = DAMAGES[name]
    damage(sealed)
    with pytest.raises(manifest.Damaged, match=message):
        manifest.check(sealed)


def test_another_format_is_named(sealed, monkeypatch) -> None:
    monkeypatch.setattr(manifest, "FORMAT", 2)
    with pytest.raises(manifest.Damaged, match=r"has format 1; this version .* reads 2"):
        manifest.check(sealed)
