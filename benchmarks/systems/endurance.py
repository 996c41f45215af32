"""What a run survives, and what that costs.

`python -m benchmarks.systems.endurance --out FILE.json`

Real trainings are killed, their checkpoints damaged, their disk filled; what is left is compared
with a twin that nothing happened to.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import parts
from benchmarks.common import ROOT, Row
from benchmarks.systems.damage import DAMAGES, files_of
from offload_jax.files.checks import CheckpointError
from offload_jax.learning.config import LearnerConfig
from offload_jax.policy.transformer import Transformer
from offload_jax.problem.scenario import PaperScenario
from offload_jax.runs import run_folder
from offload_jax.runs.checkpoint import Checkpoints
from offload_jax.runs.config import RunConfig, TrainConfig
from offload_jax.runs.config_file import load_config, to_yaml
from offload_jax.runs.restore import find, restore
from offload_jax.runs.tracking.metrics import TrackingConfig, read_rows
from offload_jax.runs.train import initial_state, load_policy, train

KILLS, CORRUPTIONS = 100, 600
TIMED = ("seconds", "decisions_per_s")  # what differs between twins


def tiny(updates: int, seed: int = 0) -> TrainConfig:
    """A training of small updates that saves all the time."""
    return TrainConfig(
        scenario=PaperScenario(num_users=(4,)),
        network=Transformer(width=16, layers=1, heads=2),
        learner=LearnerConfig(updates=updates, instances=8, samples=4),
        run=RunConfig(log_every=7, eval_every=50, eval_instances=16, save_s=0.2),
        tracking=TrackingConfig(wandb="off"),
        seed=seed,
    )


def kills() -> Iterator[Row]:
    """Trainings are killed at random moments (SIGKILL), again and again, and compared with
    undisturbed ones. `kills in a save` left an unfinished checkpoint behind.
    """
    draw = random.Random(0)
    with _scratch() as scratch:
        total, seed = 0, 0
        while total < KILLS:
            config = tiny(1000, seed)
            whole = train(config, folder=scratch / "whole")
            row = _killed_until_done(config, scratch / "killed", KILLS - total, draw)
            total += row["kills"]
            mine = read_rows(scratch / "killed" / "metrics.jsonl")
            params = load_policy(scratch / "killed", "latest").params
            yield (
                row
                | _compared_rows(mine, whole.rows)
                | {"bit-equal": _equal(params, load_policy(whole.folder, "latest").params)}
            )
            seed += 1
            for name in ("whole", "killed"):
                shutil.rmtree(scratch / name)


def _compared_rows(mine: list[Any], theirs: list[Any]) -> Row:
    steps, wanted = [row["step"] for row in mine], {row["step"]: row for row in theirs}
    return {
        "rows": len(wanted),
        "rows lost": len(wanted.keys() - set(steps)),
        "rows doubled": len(steps) - len(set(steps)),
        "rows changed": sum(_untimed(row) != _untimed(wanted[row["step"]]) for row in mine),
    }


def _killed_until_done(config: TrainConfig, folder: Path, limit: int, draw: random.Random) -> Row:
    """Trains in processes of their own that are killed, at most `limit` times, until it is done."""
    count = in_save = quarantined = 0
    while True:
        process = _start(config, folder)
        if count < limit and _killed(process, folder, draw.uniform(0, 2)):
            count += 1
            in_save += any((folder / "checkpoints").glob("*orbax-checkpoint-tmp"))
            continue
        if process.wait() != 0:
            raise RuntimeError(f"training failed: {process.communicate()[1][-2000:]}")
        quarantined = len(list((folder / "quarantine").glob("*")))
        return {"kills": count, "kills in a save": in_save, "quarantined": quarantined}


def _start(config: TrainConfig, folder: Path) -> subprocess.Popen[str]:
    words = [sys.executable, str(ROOT / "train.py"), "--run", str(folder)]
    if not run_folder.is_run(folder):
        source = folder.with_suffix(".yaml")
        source.write_text(to_yaml(config))
        words += ["--config", str(source)]
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def _killed(process: subprocess.Popen[str], folder: Path, after: float) -> bool:
    """Kills a training `after` seconds of real work; False where it was done before."""
    path = folder / "metrics.jsonl"
    before = path.stat().st_mtime_ns if path.exists() else 0
    while process.poll() is None and not (path.exists() and path.stat().st_mtime_ns > before):
        time.sleep(0.01)
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return True
    return False


def corruptions() -> Iterator[Row]:
    """The newest of three checkpoints is damaged in every way, then the run is opened. `wrong`: it
    restored anything else than was saved under that step. `alone`: the damaged one was the only
    checkpoint, which must be refused.
    """
    draw = random.Random(0)
    with _scratch() as scratch:
        result = train(replace(tiny(6), run=RunConfig(2, 2, 16)), folder=scratch / "run")
        like = initial_state(run_folder.read_config(result.folder))
        origin = result.folder / "checkpoints"
        states = {saved.step: restore(saved, like) for saved in Checkpoints(origin).good}
        for name, damage in DAMAGES.items():
            yield {"damage": name, **_tried(damage, origin, states, like, scratch, draw)}


def _tried(
    damage: Callable[[Path, random.Random], None],
    origin: Path,
    states: dict[int, Any],
    like: Any,
    scratch: Path,
    draw: random.Random,
) -> Row:
    row = {"tries": 0, "detected": 0, "fell back": 0, "wrong": 0, "alone": 0, "alone refused": 0}
    for _ in range(CORRUPTIONS // len(DAMAGES)):
        copy = Path(shutil.copytree(origin, scratch / "copy" / "checkpoints"))
        newest = copy / str(max(states))
        damage(newest, draw)
        said: list[str] = []
        with Checkpoints(copy, warn=said.append) as checkpoints:
            saved = checkpoints.newest()
            assert saved is not None
            row["tries"] += 1
            row["detected"] += bool(said) or not newest.exists()
            row["fell back"] += saved.step == sorted(states)[-2]
            row["wrong"] += not _equal(_plain(restore(saved, like)), _plain(states[saved.step]))
        row["alone"] += 1
        row["alone refused"] += _refused_alone(origin, scratch, damage, draw)
        shutil.rmtree(scratch / "copy")
    return row


def _refused_alone(origin: Path, scratch: Path, damage: Any, draw: random.Random) -> bool:
    folder = scratch / "copy" / "alone"
    newest = max((p for p in origin.iterdir()), key=lambda p: int(p.name))
    shutil.copytree(newest, folder / newest.name)
    damage(folder / newest.name, draw)
    try:
        return find(folder, "latest", lambda _: None) is None
    except CheckpointError:
        return True


def full_disk() -> Iterator[Row]:
    """The disk is full at one write of a save, in steps of 4 KiB, for each write in turn. Needs
    root, for a small file system of its own.
    """
    with _scratch() as scratch, _small_disk(scratch / "disk", 2**22) as disk:
        folder, filler = disk / "checkpoints", disk / "filler"
        with Checkpoints(folder) as checkpoints:
            like = initial_state(tiny(6))
            checkpoints.save(like)
            checkpoints.wait()
            need = sum(path.stat().st_size for path in files_of(folder))
            names = ("tries", "failed", "told", "older lost", "wrong", "later worked")
            row: Row = dict.fromkeys(names, 0)
            for step, room in enumerate(range(0, 2 * need + 2**16, 4096), start=1):
                tried = _save_with_room(checkpoints, like, step, room, filler, disk)
                row = {name: row[name] + tried[name] for name in names}
        yield {"checkpoint bytes": need, **row}


def _save_with_room(
    checkpoints: Checkpoints, like: Any, step: int, room: int, filler: Path, disk: Path
) -> Row:
    """One save with so many bytes left on the disk."""
    before = checkpoints.newest()
    assert before is not None
    free = shutil.disk_usage(disk).free
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, free - room))
    state, message = replace(like, step=jnp.int32(step)), ""
    try:
        checkpoints.save(state)
        checkpoints.wait()
    except CheckpointError as error:
        message = str(error)
    found = find(checkpoints.folder, "latest", lambda _: None)
    filler.unlink()
    assert found is not None
    good = int(restore(found, like).step) == found.step
    row = {
        "tries": 1,
        "failed": int(bool(message)),
        "told": int("Free some space there and go on" in message),
        "older lost": int(found.step < before.step),
        "wrong": int(not good or (not message and found.step != step)),
    }
    if message:
        checkpoints.save(state)
        checkpoints.wait()
    saved = checkpoints.newest()
    return row | {"later worked": int(bool(message) and saved is not None and saved.step == step)}


def cost() -> Iterator[Row]:
    """Wall time of the paper's training with a save every 5 s and without saves, in turn. The last
    row is what that makes of a save every 60 s.
    """
    config = load_config("paper")
    learner, run = replace(config.learner, updates=300), replace(config.run, eval_every=10**6)
    config = replace(config, learner=learner, tracking=TrackingConfig(wandb="off"), run=run)
    times: dict[float, list[float]] = {5.0: [], 1e9: []}
    with _scratch() as scratch:
        for turn in range(3):
            for period in times if turn % 2 else reversed(times):
                folder = scratch / f"{turn}-{period:g}"
                timed = replace(config, run=replace(config.run, save_s=period))
                rows = train(timed, folder=folder).rows
                times[period].append(sum(row["seconds"] for row in rows[1:]))
    often, never = (float(np.median(times[period])) for period in times)
    yield {
        "seconds, saves every 5 s": often,
        "seconds, no saves": never,
        "cost_share every 5 s": often / never - 1,
        "cost_share every 60 s": (often / never - 1) * 5 / 60,
    }


def resume() -> Iterator[Row]:
    """Seconds from `train.py --run DIR` to its first row, with an empty cache of compiled programs
    (cold) and a full one (warm).
    """
    with _scratch() as scratch:
        config = replace(load_config("paper"), tracking=TrackingConfig(wandb="off"))
        config = replace(config, run=replace(config.run, log_every=1, eval_every=10**6))
        for name in ("cold", "warm"):
            folder = scratch / "run"
            started = time.monotonic()
            process = _start(config, folder)
            path = folder / "metrics.jsonl"
            before = len(read_rows(path))
            while len(read_rows(path)) <= before:
                if process.poll() is not None:
                    raise RuntimeError(process.communicate()[1][-2000:])
                time.sleep(0.02)
            seconds = time.monotonic() - started
            process.terminate()
            process.wait()
            yield {"compiled programs": name, "seconds to the first row": seconds}


PARTS: dict[str, Callable[[], Iterator[Row]]] = {
    "kills": kills,
    "corruptions": corruptions,
    "full-disk": full_disk,
    "cost": cost,
    "resume": resume,
}


@contextmanager
def _scratch() -> Iterator[Path]:
    """A folder, and in it the compiled programs of this and of child processes."""
    with tempfile.TemporaryDirectory() as name:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{name}/compiled"
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
        yield Path(name)


@contextmanager
def _small_disk(folder: Path, size: int) -> Iterator[Path]:
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _untimed(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in TIMED}


def _plain(state: Any) -> Any:
    return replace(state, key=jax.random.key_data(state.key))


def _equal(mine: Any, theirs: Any) -> bool:
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, mine, theirs)))


def main(words: Sequence[str] | None = None) -> int:
    """0 good, 2 refused, 130 stopped."""
    return parts.command(
        words, "benchmarks.systems.endurance", "Kill, damage and fill; some 40 minutes.", PARTS
    )


if __name__ == "__main__":
    sys.exit(main())
