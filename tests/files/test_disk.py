"""A sealed folder is as it was, or the first difference is named; files and folders come whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from offload_jax.files import disk

pytestmark = pytest.mark.fast


@pytest.fixture
def sealed(tmp_path) -> Path:
    folder = tmp_path / "sealed"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "weights").write_bytes(bytes(range(256)))
    (folder / "about").write_text("{}")
    disk.seal(folder)
    return folder


def test_an_untouched_folder_is_good_wherever_it_is(sealed, tmp_path) -> None:
    disk.check(sealed)
    disk.check(Path(shutil.copytree(sealed, tmp_path / "copy")))


def test_every_flipped_bit_is_found(sealed) -> None:
    for path in sorted(path for path in sealed.rglob("*") if path.is_file()):
        whole = path.read_bytes()
        for at in range(0, len(whole), max(1, len(whole) // 50)):
            flipped = bytearray(whole)
            flipped[at] ^= 1 << at % 8
            path.write_bytes(flipped)
            with pytest.raises(disk.Damaged, match=f"{path.name} has changed"):
                disk.check(sealed)
        path.write_bytes(whole)
    disk.check(sealed)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut": (lambda f: os.truncate(f / "inner" / "weights", 100), "inner/weights has changed"),
    "file gone": (lambda f: (f / "about").unlink(), "about is missing"),
    "folder gone": (lambda f: shutil.rmtree(f / "inner"), "inner/weights is missing"),
    "file more": (lambda f: (f / "inner" / "other").touch(), "inner/other was added"),
    "folder instead": (
        lambda f: ((f / "about").unlink(), (f / "about").mkdir()),
        "about is missing",
    ),
    "no manifest": (lambda f: (f / disk.NAME).unlink(), r"MANIFEST\.json is missing"),
    "no JSON": (lambda f: (f / disk.NAME).write_text("[]"), r"MANIFEST\.json has changed"),
    "empty": (lambda f: (shutil.rmtree(f), f.mkdir()), r"MANIFEST\.json is missing"),
    "a file": (lambda f: (shutil.rmtree(f), f.touch()), r"MANIFEST\.json is missing"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_other_damage_is_named(sealed, name) -> None:
    damage, message = DAMAGES[name]
    damage(sealed)
    with pytest.raises(disk.Damaged, match=message):
        disk.check(sealed)


@pytest.mark.parametrize("reads", [0, 2])
def test_an_older_or_newer_format_is_named(sealed, monkeypatch, reads) -> None:
    """Of a newer one it is not known what else it would promise, so it is not good either."""
    monkeypatch.setattr(disk, "FORMAT", reads)
    with pytest.raises(disk.Damaged, match=rf"has format 1; this version .* reads {reads}"):
        disk.check(sealed)


def test_a_file_is_replaced_as_a_whole(tmp_path) -> None:
    path = tmp_path / "config.yaml"
    disk.replace_file(path, "old")
    with pytest.raises(UnicodeEncodeError):
        disk.replace_file(path, "new \udcff")
    assert path.read_text() == "old"


def test_of_a_link_its_file_is_replaced(tmp_path) -> None:
    """As with a configuration that is kept elsewhere: the link goes on leading there."""
    (tmp_path / "kept").mkdir()
    kept, link = tmp_path / "kept" / "config.yaml", tmp_path / "config.yaml"
    kept.write_text("old")
    link.symlink_to(kept)
    disk.replace_file(link, "new")
    assert link.is_symlink()
    assert kept.read_text() == "new"
    assert [path.name for path in kept.parent.iterdir()] == ["config.yaml"]


def test_a_folder_appears_as_a_whole(tmp_path) -> None:
    folder = tmp_path / "new" / "bundle"
    with disk.staged(folder) as staged:
        (staged / "weights").write_bytes(b"1")
        assert not folder.exists()
    assert [path.name for path in folder.iterdir()] == ["weights"]
    assert [path.name for path in folder.parent.iterdir()] == ["bundle"]


@pytest.mark.parametrize("stop", [OSError, KeyboardInterrupt])
def test_nothing_is_left_of_a_folder_that_failed(stop, tmp_path) -> None:
    def fill() -> None:
        with disk.staged(tmp_path / "bundle") as staged:
            (staged / "weights").write_bytes(b"1")
            raise stop

    with pytest.raises(stop):
        fill()
    assert not list(tmp_path.iterdir())
