"""Checkpoints: whole or not there, verified before use, the newest good one found."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offload_jax.files.checks import CheckpointError
from offload_jax.learning.updates import LearnerState
from offload_jax.runs import checkpoint
from offload_jax.runs.checkpoint import Checkpoints
from offload_jax.runs.restore import find, restore

pytestmark = pytest.mark.fast


def state_at(step: int) -> LearnerState:
    """Small, of every kind of leaf, and telling its step."""
    params = {"a": jnp.full((3, 4), step, jnp.float32), "b": {"c": jnp.arange(5) + step}}
    return LearnerState(
        params=params,
        optimizer=(jnp.float32(step),),
        key=jax.random.key(step),
        step=jnp.int32(step),
    )


def same(mine: LearnerState, theirs: LearnerState) -> bool:
    plain = [replace(s, key=jax.random.key_data(s.key)) for s in (mine, theirs)]
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, *plain)))


def write(folder: Path, gaps: dict[int, float | None], keep: int = 9) -> None:
    with Checkpoints(folder, keep) as checkpoints:
        for step, gap in gaps.items():
            checkpoints.save(state_at(step), gap, since_row=[{"loss": 0.1 * step}])
        checkpoints.wait()


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    write(folder, {1: 0.3, 2: 0.1, 3: None})
    return folder


@pytest.fixture
def folder(written, tmp_path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "run" / "checkpoints"))


def never(message: str) -> None:
    raise AssertionError(message)


def test_what_is_saved_comes_back(folder) -> None:
    newest, best = (find(folder, which, never) for which in ("latest", "best"))
    assert (newest.step, newest.gap, best.step, best.gap) == (3, None, 2, 0.1)
    assert newest.about["since_row"] == [{"loss": 0.1 * 3}]  # to the last bit
    for saved in (newest, best):
        assert same(restore(saved, state_at(0)), state_at(saved.step))


def test_from_where_the_user_is(folder, monkeypatch) -> None:
    monkeypatch.chdir(folder.parent)
    saved = find(Path("checkpoints"), "latest", never)
    assert same(restore(saved, state_at(0)), state_at(3))


def test_what_changes_after_a_save_is_not_in_it(tmp_path) -> None:
    """A save is written in the background, while training goes on filling its row."""
    for step in range(1, 6):
        rows = [{"loss": 0.1}]
        with Checkpoints(tmp_path, 9) as checkpoints:
            checkpoints.save(state_at(step), None, since_row=rows)
            rows.append({"loss": 0.2})
            checkpoints.wait()
        assert find(tmp_path, "latest", never).about["since_row"] == [{"loss": 0.1}]


def test_nothing_saved_yet(tmp_path) -> None:
    assert find(tmp_path / "none", "latest", never) is None
    with Checkpoints(tmp_path / "new") as checkpoints:
        assert checkpoints.newest() is None
        checkpoints.wait()
    assert find(tmp_path / "new", "best", never) is None


def test_the_newest_and_the_best_stay(tmp_path) -> None:
    write(tmp_path / "c", {0: 0.5, 1: 0.1, 2: None, 3: 0.2, 4: 0.4}, keep=2)
    assert {path.name for path in (tmp_path / "c").iterdir()} == {"1", "3", "4"}


def test_of_equally_good_ones_the_newest_is_the_best(tmp_path) -> None:
    """As its gap is the same after more training; and the other one need not stay."""
    write(tmp_path, {1: 0.3, 2: 0.1, 3: 0.1, 4: 0.2}, keep=1)
    assert find(tmp_path, "best", never).step == 3
    assert {path.name for path in tmp_path.iterdir()} == {"3", "4"}


def test_a_step_is_saved_once(folder) -> None:
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(replace(state_at(9), step=jnp.int32(3)))
        checkpoints.wait()
    assert same(restore(find(folder, "latest", never), state_at(0)), state_at(3))


def test_a_step_saved_again_counts_once(tmp_path) -> None:
    """Else a run that saves at its end what it has just saved would lose an older one for it."""
    told: list[int] = []
    with Checkpoints(tmp_path, 2, on_saved=lambda _, step, __: told.append(step)) as checkpoints:
        for step in (1, 2, 2, 1):
            checkpoints.save(state_at(step))
        checkpoints.wait()
        assert [saved.step for saved in checkpoints.good] == [1, 2]
    assert told == [1, 2]
    assert {path.name for path in tmp_path.iterdir()} == {"1", "2"}


def test_ten_comes_after_nine(tmp_path) -> None:
    write(tmp_path, {9: None, 10: None})
    assert find(tmp_path, "latest", never).step == 10
    with Checkpoints(tmp_path) as checkpoints:
        assert [saved.step for saved in checkpoints.good] == [9, 10]
        assert checkpoints.newest().step == 10


def damage(path: Path) -> None:
    """One bit of the arrays themselves."""
    target = max((path / "state").rglob("*"), key=lambda p: p.stat().st_size * p.is_file())
    content = bytearray(target.read_bytes())
    content[len(content) // 2] ^= 1
    target.write_bytes(content)


def test_a_damaged_one_is_put_aside_and_the_one_before_it_taken(folder) -> None:
    damage(folder / "3")
    (folder / "7").mkdir()
    said: list[str] = []
    with Checkpoints(folder, warn=said.append) as checkpoints:
        assert checkpoints.newest().step == 2
        checkpoints.save(state_at(3))
        checkpoints.wait()
    shelter = folder.parent / "quarantine"
    assert {path.name for path in shelter.iterdir()} == {"3", "7"}
    [first, second] = said
    assert first.startswith("checkpoint 3 is damaged (state/")
    assert first.endswith(f"has changed); moved to {shelter}/3; the newest good one is of update 2")
    assert "checkpoint 7 is damaged (MANIFEST.json is missing)" in second
    assert same(restore(find(folder, "latest", never), state_at(0)), state_at(3))
    damage(folder / "3")
    with Checkpoints(folder, warn=said.append):
        assert (shelter / "3.1").is_dir()  # the first one stays


def test_readers_leave_damage_where_it_is(folder) -> None:
    damage(folder / "3")
    said: list[str] = []
    assert find(folder, "latest", said.append).step == 2
    assert said[0].startswith(f"checkpoint {folder / '3'} is damaged (state/")
    assert (folder / "3").is_dir()


def test_where_none_is_good_nothing_is_moved_and_nothing_starts_over(folder) -> None:
    for path in folder.iterdir():
        damage(path)
    for attempt in (lambda: Checkpoints(folder), lambda: find(folder, "best", never)):
        with pytest.raises(CheckpointError, match=r"no checkpoint in .* the newest: 3 \(state/"):
            attempt()
    assert {path.name for path in folder.iterdir()} == {"1", "2", "3"}


def test_another_configuration_is_refused(folder) -> None:
    other = replace(state_at(0), params={"a": jnp.zeros((3, 5)), "b": {"c": jnp.arange(5)}})
    with pytest.raises(CheckpointError, match=r"params\['a'\] is float32\[3,4\]; must be .*3,5"):
        restore(find(folder, "latest", never), other)


def test_one_that_its_run_removes_meanwhile(folder) -> None:
    saved = find(folder, "latest", never)
    shutil.rmtree(saved.path)
    with pytest.raises(CheckpointError, match="is gone: its run has just saved a newer one"):
        restore(saved, state_at(0))


def test_a_folder_that_cannot_be_one(tmp_path) -> None:
    (tmp_path / "c").touch()
    with pytest.raises(CheckpointError, match=r"cannot be opened .* must be a directory"):
        Checkpoints(tmp_path / "c")


def test_unfinished_saves_are_swept_away(folder) -> None:
    for name in ("8.orbax-checkpoint-tmp", "8.unsealed.orbax-checkpoint-tmp"):
        shutil.copytree(folder / "3", folder / name)
    assert find(folder, "latest", never).step == 3
    with Checkpoints(folder, warn=never) as checkpoints:
        checkpoints.save(state_at(8))
        checkpoints.wait()
    assert {path.name for path in folder.iterdir()} == {"1", "2", "3", "8"} - {"1"}


def test_a_failed_save_leaves_the_others_and_the_next_one_works(folder, monkeypatch) -> None:
    def full(path: Path) -> None:
        raise OSError(28, "No space left on device", str(path))

    with Checkpoints(folder, warn=never) as checkpoints:
        monkeypatch.setattr(checkpoint.disk, "seal", full)
        checkpoints.save(state_at(4))
        with pytest.raises(CheckpointError, match=r"cannot be written .*No space left.*are whole"):
            checkpoints.wait()
        monkeypatch.undo()
        assert find(folder, "latest", never).step == 3
        checkpoints.save(state_at(5))
        checkpoints.wait()
    assert same(restore(find(folder, "latest", never), state_at(0)), state_at(5))


RESTORE_ON_EIGHT = """
import sys
from pathlib import Path
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
sys.path.insert(0, sys.argv[2])
from test_checkpoint import never, same, state_at
from offload_jax.runs.restore import find, restore
assert jax.device_count() == 8
mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
like = jax.device_put(state_at(0), NamedSharding(mesh, P()))
state = restore(find(Path(sys.argv[1]), "latest", never), like)
assert len(state.params["a"].sharding.device_set) == 8
assert same(jax.device_get(state), state_at(3))
"""


def test_restored_on_another_number_of_devices(folder) -> None:
    flags = {"XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"}
    words = [sys.executable, "-c", RESTORE_ON_EIGHT, str(folder), str(Path(__file__).parent)]
    done = subprocess.run(words, env=os.environ | flags, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_about_is_plain_json(folder) -> None:
    about = json.loads((folder / "2" / "about" / "metadata").read_text())
    assert about.pop("arrays")[".params['a']"] == "float32[3,4]"
    assert about == {"step": 2, "gap": 0.1, "since_row": [{"loss": 0.2}]}
