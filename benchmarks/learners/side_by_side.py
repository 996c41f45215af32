"""Learners and their parts side by side on `edge`: `python -m benchmarks.learners`.

Every variant trains from scratch for the same time. That time is updates times the seconds of an
update, measured for all variants in turn on an idle machine, so a run may share its machine with
others. What is trained already is not trained again, and a stopped run goes on.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import RLock
from typing import Annotated, Any

import jax
import numpy as np
import tyro

from benchmarks import parts
from benchmarks.common import ROOT, UsageError, checked_out, provenance, read
from benchmarks.learners.tables import write_pages
from offload_jax.commands.settings import configured
from offload_jax.evaluation import testsets
from offload_jax.files.disk import replace_file
from offload_jax.learning import updates
from offload_jax.learning.algorithm import Learner
from offload_jax.learning.config import LearnerConfig
from offload_jax.learning.updates import LearnerState
from offload_jax.policy.decoding import best_of
from offload_jax.problem import equations
from offload_jax.runs.config import TrainConfig
from offload_jax.runs.config_file import load_config
from offload_jax.runs.run_folder import is_run
from offload_jax.runs.tracking.metrics import read_rows
from offload_jax.runs.train import load_policy

OUT = ROOT / "benchmarks" / "results" / "learners.json"
REFERENCE = "shared"
EVALUATIONS = 10  # of a run
ROUNDS = 20  # of measuring what an update costs
SAMPLES, TEMPERATURE = 16, 3.0  # of the plans on the test set, beside the greedy one
# Said in full, for what `--config edge` trains with follows from what is found here.
COMMON = (
    "--env.order", "adaptive", "--env.candidates", "16", "--learner.instances", "32",
    "--learner.samples", "16", "--learner.entropy", "3e-4", "--algorithm.kind", "ppo",
)  # fmt: skip
_QUIET = ("--tracking.wandb", "off", "--run.eval-instances", "512", "--run.keep", "1")
_BLIND = ("--env.candidates", "0", "--network.no-residual", "--network.blind", "reduced-gains")
_OWN = ("--algorithm.kind", "self-labelling")
# What a variant changes; they are compared within their table (`tables.GROUPS`).
VARIANTS: Mapping[str, Sequence[str]] = {
    "shared": (),
    "critic": ("--algorithm.kind", "ppo-critic"),
    "preference": ("--algorithm.kind", "preference"),
    "self-labelling": _OWN,
    # A search has more to find from samples that differ.
    "local-search labels": (
        *_OWN, "--algorithm.labels", "local-search", "--algorithm.temperature", "3",
    ),
    "shared + layer": ("--algorithm.kind", "layer", "--algorithm.weight", "0.1"),
    # Without reduced gains nothing says which pairs to look at: all are.
    "without reduced gains": (*_OWN, *_BLIND),
    "without prices": (*_OWN, "--network.blind", "prices"),
    "without pairs": (*_OWN, "--network.blind", "pairs"),
    "without residual": (*_OWN, "--network.no-residual"),
    # Settings of `edge` that were chosen for the first learner, PPO.
    "samples at temperature 3": (*_OWN, "--algorithm.temperature", "3"),
    "entropy bonus 0.01": (*_OWN, "--learner.entropy", "0.01"),
}  # fmt: skip

Document = dict[str, Any]


@dataclass(frozen=True)
class Arguments:
    """Train variants of the learner on `edge` for equal times and compare what they learned."""

    variants: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Variants to train. Default: all."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds to train each of them with."""
    minutes: float = 10.0
    """Time of a run, in minutes of this machine where nothing else runs."""
    workers: int = 1
    """Runs at once, each on its own share of the cores."""
    runs: Path = Path("runs")
    """Where the run directories are, in a folder named as the file of results."""
    out: Path = OUT
    """JSON file of results; written after every run, its tables and pictures beside it."""


def main(words: Sequence[str] | None = None) -> int:
    """0 good, 1 a run failed, 2 refused, 130 stopped."""
    parsed = tyro.cli(Arguments, args=words, prog="python -m benchmarks.learners")
    return parts.status_of(partial(_main, parsed))


def _main(parsed: Arguments) -> int:
    check(parsed)
    book = Book(parsed.out, parsed.minutes)
    try:
        compare(book, parsed.variants or tuple(VARIANTS), parsed)
    except subprocess.CalledProcessError as error:
        print(f"error: {error}; finished runs stay", file=sys.stderr)
        return 1
    return 0


def check(parsed: Arguments) -> None:
    """Raises UsageError before anything is timed or trained."""
    if strange := [name for name in parsed.variants if name not in VARIANTS]:
        allowed = ", ".join(VARIANTS)
        raise UsageError(f"variants has {strange[0]!r}; must be among {allowed}")
    if parsed.minutes <= 0:
        raise UsageError(f"minutes is {parsed.minutes}; must be positive")
    most = len(_cores()) or os.cpu_count() or 1
    if not 1 <= parsed.workers <= most:
        raise UsageError(f"workers is {parsed.workers}; must be in 1..{most}, a core for each")
    checked_out(parsed.out)


def compare(book: Book, names: Sequence[str], parsed: Arguments) -> None:
    """Trains and judges what the book has not."""
    wanted = [(name, seed) for seed in parsed.seeds for name in names]  # a whole round first
    wanted = [(name, seed) for name, seed in wanted if book.run_of(name, seed) is None]
    folder = parsed.runs / parsed.out.stem  # runs of other files may have another length
    book.time_updates(names)
    for _ in trained(book, wanted, folder, parsed.workers):
        judge(book, folder)
        write_pages(book.document, parsed.out)
    judge(book, folder)
    write_pages(book.document, parsed.out)


def trained(
    book: Book, wanted: Sequence[tuple[str, int]], folder: Path, workers: int
) -> Iterator[None]:
    """Runs of variants and seeds, so many at once, each on its own share of the cores."""
    cores = _cores()
    free = [own.tolist() for own in np.array_split(cores, workers)]
    # Here, not below: classes are read by `ast.parse`, which fails in threads (Python 3.11).
    sizes = {name: config_of(name).learner for name, _ in wanted}

    def work(name: str, seed: int) -> None:
        own = free.pop()
        if cores:
            os.sched_setaffinity(0, own)  # this thread's and its children's
        try:
            train(book, name, seed, sizes[name], folder_of(folder, name, seed))
        finally:
            free.append(own)

    pool = ThreadPoolExecutor(workers)
    try:
        for done in as_completed([pool.submit(work, *one) for one in wanted]):
            yield done.result()
    finally:
        pool.shutdown(cancel_futures=True)  # those that have not begun


def _cores() -> list[int]:
    """Those that this process may use; none where a system does not say."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def folder_of(folder: Path, name: str, seed: int) -> Path:
    """The run directory of a variant and a seed."""
    return folder / f"{name.replace(' ', '-')}-{seed}"


class Book:
    """The results in their file; threads may write at once."""

    def __init__(self, path: Path, minutes: float) -> None:
        """Raises UsageError where the file's runs had another length, or other settings."""
        self.path, self._lock = path, RLock()
        empty = {"minutes": minutes, "common": list(COMMON), "update_s": {}, "runs": []}
        found = read(path) if path.exists() else empty
        for name in ("minutes", "common"):
            if found[name] != empty[name]:
                raise UsageError(f"{name} is {empty[name]}; must be {found[name]}, as in {path}")
        for run in found["runs"]:
            name, then = run["variant"], run.get("settings")
            if then is not None and then != list(VARIANTS[name]):
                raise UsageError(
                    f"the runs of {name!r} in {path} had {' '.join(then)}; must be "
                    f"{' '.join(VARIANTS[name])}, or removed"
                )
        self.document: Document = found

    def run_of(self, name: str, seed: int) -> Document | None:
        """The finished run of a variant and a seed."""
        finished = self.document["runs"]
        return next((r for r in finished if (r["variant"], r["seed"]) == (name, seed)), None)

    def updates_of(self, name: str) -> int:
        """How many updates fill the time of a run."""
        return round(60 * self.document["minutes"] / self.document["update_s"][name])

    def time_updates(self, names: Iterable[str]) -> None:
        """Measures the seconds of an update of those variants whose are not known yet.

        Later ones are measured beside another (`beside`), whose first measurement is kept.
        """
        known = self.document["update_s"]
        new = [name for name in names if name not in known]
        if not new:
            return
        found = seconds_of_updates(sorted({REFERENCE, *new, *map(beside, new)}))

        def cost(name: str) -> float:
            if name in known or name == REFERENCE:
                return float(known.get(name, found[name]))
            return found[name] / found[beside(name)] * cost(beside(name))

        self.document["update_s"] = {name: cost(name) for name in found} | known
        self.save()

    def add(self, run: Document) -> None:
        with self._lock:
            self.document["runs"].append(run)
            self.save()

    def save(self) -> None:
        with self._lock:
            replace_file(self.path, json.dumps(self.document, indent=1) + "\n")


def beside(name: str) -> str:
    """The variant that the cost of this one is measured against."""
    without = name.removesuffix(" + layer")
    return without if without != name else REFERENCE


def config_of(name: str) -> TrainConfig:
    """The settings of a variant."""
    return configured([*COMMON, *VARIANTS[name]], load_config("edge"))


def seconds_of_updates(names: Sequence[str]) -> dict[str, float]:
    """Seconds of an update of each variant: the median of rounds in which all are timed in turn."""
    learners = {name: config_of(name).to_learner() for name in names}
    states = {name: _start(learner, jax.random.key(0)) for name, learner in learners.items()}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(ROUNDS + 1):  # the first one compiles
        for name, learner in learners.items():
            begun = time.perf_counter()
            states[name] = jax.block_until_ready(_update(learner, states[name]))
            if turn:
                seconds[name].append(time.perf_counter() - begun)
    return {name: statistics.median(each) for name, each in seconds.items()}


_start = jax.jit(updates.init, static_argnums=0)


@partial(jax.jit, static_argnums=0)
def _update(learner: Learner, state: LearnerState) -> LearnerState:
    return updates.update(learner, state)[0]


def train(book: Book, name: str, seed: int, size: LearnerConfig, folder: Path) -> None:
    """A run, or the rest of one, by `train.py` in a process of its own; its curve to the book."""
    updates = book.updates_of(name)
    every = str(max(updates // EVALUATIONS, 1))
    words = [*COMMON, *VARIANTS[name], *_QUIET, "--learner.updates", str(updates)]
    words += ["--run.eval-every", every, "--run.log-every", every, "--seed", str(seed)]
    # A run that goes on refuses other settings than its own.
    begin = [] if is_run(folder) else ["--config", "edge"]
    print(f"{name}, seed {seed}: {updates} updates", flush=True)
    command = [sys.executable, "train.py", "--run", str(folder.resolve()), *begin, *words]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    rows = read_rows(folder / "metrics.jsonl")
    curve = [{"update": row["step"], "gap": row["gap"]} for row in rows if "gap" in row]
    if curve[-1]["update"] != updates:
        raise UsageError(
            f"{folder} holds a run of {curve[-1]['update']} updates; must be {updates}, or removed"
        )
    book.add(
        {
            "variant": name,
            "seed": seed,
            "settings": list(VARIANTS[name]),
            "updates": updates,
            "trajectories": updates * size.instances * size.samples,
            "curve": curve,  # to the plans of reduced-greedy, 512 instances
            "provenance": provenance(),
        }
    )
    print(f"{name}, seed {seed}: {100 * curve[-1]['gap']:.3f} %", flush=True)


def judge(book: Book, folder: Path) -> None:
    """Gaps of the last checkpoints on the test set `edge`, to proven optima."""
    testset = testsets.load("edge")
    instances, best = testset.on_device(), testset.gains
    for run in book.document["runs"]:
        mine = folder_of(folder, run["variant"], run["seed"])
        if "greedy" in run or not mine.is_dir():
            continue
        policy = load_policy(mine, "latest").replace(temperature=TEMPERATURE)
        for key, samples in (("greedy", 1), ("sampled", SAMPLES)):
            _, gains = best_of(policy, instances, samples, jax.random.key(0))
            run[key] = float(np.mean(equations.gap(best, gains)))
        book.save()
