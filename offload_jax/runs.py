"""Training runs: the loop, its directory, and going on where a stopped one left off.

A run directory holds `config.yaml` (every setting), `run.json` (id, versions, commit, device),
`metrics.jsonl`, `checkpoints/`, `wandb/` and `learning_curve.png`.
"""

from __future__ import annotations

import fcntl
import json
import platform
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from offload_jax import learner as learning
from offload_jax import model
from offload_jax.checkpoint import CheckpointError, Checkpoints
from offload_jax.config import ConfigError, TrainConfig, parse_config, to_yaml
from offload_jax.evaluation import validation_set
from offload_jax.learner import Learner, LearnerState, Metrics
from offload_jax.policies import Policy, greedy_plan
from offload_jax.report import learning_curve
from offload_jax.tracking import MetricsFile, Mirror, read_rows

Row = dict[str, float]
Callback = Callable[[Row], None]
# Keys that never meet: training and evaluation draw from different branches of the seed.
_TRAINING, _VALIDATION = 0, 1


@dataclass(frozen=True)
class RunResult:
    """What a training run leaves behind."""

    folder: Path
    policy: Policy  # the best evaluated one
    rows: list[Row]  # of metrics.jsonl
    step: int  # updates made
    finished: bool  # False where the run was interrupted


def new_folder(config: TrainConfig, parent: Path = Path("runs")) -> Path:
    """A fresh run directory's path, by scenario and time."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    return parent / f"{config.scenario.kind}-{stamp}-{uuid.uuid4().hex[:4]}"


def train(
    config: TrainConfig,
    callbacks: Sequence[Callback] = (),
    folder: str | Path | None = None,
    warn: Callable[[str], None] = print,
) -> RunResult:
    """Trains, or goes on with the run in `folder` where that holds one.

    Every `run.log_every` updates a row goes to metrics.jsonl, W&B and the callbacks; every
    `run.eval_every` updates the greedy policy is evaluated and the state saved. Ctrl-C or SIGTERM
    saves and returns with `finished` False; a second Ctrl-C stops at once.
    """
    config.validate()
    folder = new_folder(config) if folder is None else Path(folder)
    with _claimed(folder):
        about = _write_about(folder, config)
        with (
            Checkpoints(folder / "checkpoints", config.run.keep) as checkpoints,
            Mirror(config.tracking, folder, about["id"], asdict(config), warn) as mirror,
            _stop_requests() as stop,
        ):
            state = _start_state(config, checkpoints)
            metrics = MetricsFile(folder / "metrics.jsonl", up_to_step=int(state.step))
            report = _Reporter(metrics, mirror, callbacks)
            try:
                state = _loop(config, state, checkpoints, report, stop)
            finally:
                metrics.close()
            checkpoints.wait()
    rows = read_rows(folder / "metrics.jsonl")
    learning_curve(rows, folder / "learning_curve.png")
    step = int(state.step)
    return RunResult(folder, load_policy(folder), rows, step, step >= config.learner.updates)


def _start_state(config: TrainConfig, checkpoints: Checkpoints) -> LearnerState:
    key = jax.random.fold_in(jax.random.key(config.seed), _TRAINING)
    state = learning.init(config.to_learner(), key)
    step = checkpoints.latest()
    return state if step is None else checkpoints.restore(step, state)


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def _update(learner: Learner, state: LearnerState) -> tuple[LearnerState, Metrics]:
    return learning.update(learner, state)


def _loop(
    config: TrainConfig,
    state: LearnerState,
    checkpoints: Checkpoints,
    report: _Reporter,
    stop: threading.Event,
) -> LearnerState:
    learner, every, updates = config.to_learner(), config.run, config.learner.updates
    validation_key = jax.random.fold_in(jax.random.key(config.seed), _VALIDATION)
    instances, best, _ = validation_set(config.scenario, every.eval_instances, validation_key)
    decisions = config.learner.instances * config.learner.samples * config.scenario.max_users
    step, pending, since = int(state.step), [], time.perf_counter()
    while step < updates and not stop.is_set():
        state, metrics = _update(learner, state)
        pending.append(metrics)
        step += 1
        last = step == updates
        if step % every.log_every and step % every.eval_every and not last:
            continue
        row = _mean(pending)
        seconds = time.perf_counter() - since
        row |= {
            "step": step,
            "seconds": seconds,
            "decisions_per_s": decisions * len(pending) / seconds,
        }
        # The first row too: it shows where learning starts.
        if step % every.eval_every == 0 or last or step == every.log_every:
            policy = Policy(state.params, config.network, config.env)
            gaps = model.gap(best, greedy_plan(policy, instances)[1])
            row["gap"] = float(jnp.mean(gaps))
            checkpoints.save(state, row["gap"])
        report(row)
        pending, since = [], time.perf_counter()
    if stop.is_set():
        checkpoints.save(state)
    return state


def _mean(metrics: list[Metrics]) -> Row:
    rows = jax.device_get(metrics)
    return {f.name: float(np.mean([getattr(row, f.name) for row in rows])) for f in fields(Metrics)}


class _Reporter:
    """Sends each row to the file first, then to the mirror and the callbacks."""

    def __init__(
        self,
        metrics: MetricsFile,
        mirror: Mirror,
        callbacks: Sequence[Callback],
    ) -> None:
        self.metrics, self.mirror, self.callbacks = metrics, mirror, callbacks

    def __call__(self, row: Row) -> None:
        self.metrics.append(row)
        self.mirror.log(row)
        for callback in self.callbacks:
            callback(row)


@contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """One process per run directory; the claim ends with the process, however it ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise ConfigError(f"run directory {folder} cannot be written: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(
                f"run directory {folder} is in use by another process; wait for it or name another"
            ) from None
        yield


@contextmanager
def _stop_requests() -> Iterator[threading.Event]:
    """An event set by Ctrl-C or SIGTERM; the handlers before are back afterwards."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may handle signals
        return

    def request(number: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _write_about(folder: Path, config: TrainConfig) -> dict[str, Any]:
    """Writes config.yaml and run.json; a run that goes on keeps its id and notes the restart."""
    path = folder / "run.json"
    about: dict[str, Any] = {"id": uuid.uuid4().hex[:8], "starts": []}
    if path.exists():
        about = json.loads(path.read_text())
    about["starts"].append({"time": datetime.now().astimezone().isoformat(), **provenance()})
    path.write_text(json.dumps(about, indent=1))
    (folder / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    return about


def provenance() -> dict[str, Any]:
    """Versions, commit and device: what a number in a file must be read with."""
    packages = ("offload-jax", "jax", "jaxlib", "flax", "optax", "numpy")
    found = {}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    device = jax.devices()[0]
    return {
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted": bool(_git("status", "--porcelain")),
        "python": platform.python_version(),
        "versions": found,
        "device": f"{jax.device_count()} x {device.device_kind} ({device.platform})",
        "machine": platform.machine(),
    }


def _git(*words: str) -> str | None:
    here = Path(__file__).resolve().parent
    try:
        done = subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def read_config(folder: str | Path) -> TrainConfig:
    """The settings of a run directory. Raises ConfigError where it is none."""
    path = Path(folder) / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"run is {str(folder)!r}; must be a run directory (with a config.yaml)")
    return parse_config(path.read_text(encoding="utf-8"), str(path))


def load_policy(folder: str | Path, which: str = "best") -> Policy:
    """The policy of a run directory: the best evaluated checkpoint, or the ``latest``.

    Raises ConfigError where the folder is no run, CheckpointError where it has no good checkpoint.
    """
    if which not in ("best", "latest"):
        raise ValueError(f"which is {which!r}; must be one of best, latest")
    folder, config = Path(folder), read_config(folder)
    like = jax.eval_shape(lambda key: learning.init(config.to_learner(), key), jax.random.key(0))
    with Checkpoints(folder / "checkpoints", config.run.keep) as checkpoints:
        step = checkpoints.best() if which == "best" else checkpoints.latest()
        if step is None:
            raise CheckpointError(
                f"run {folder} has no checkpoint yet; train on with: train.py --run {folder}"
            )
        state = checkpoints.restore(step, like)
    return Policy(state.params, config.network, config.env, f"{folder} at update {step}")


def newest_run(parent: Path = Path("runs")) -> Path:
    """The run directory under `parent` that was started last; ConfigError where there is none."""
    found = sorted(parent.glob("*/config.yaml"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise ConfigError(f"no run under {parent}/; train one first, or name one with --run DIR")
    return found[-1].parent


def resumed(saved: TrainConfig, wanted: TrainConfig) -> TrainConfig:
    """The settings to go on with: `wanted`, which may differ from `saved` only in harmless ways.

    Raises ConfigError naming the settings that cannot change within a run.
    """
    same = replace(
        saved,
        run=wanted.run,
        tracking=wanted.tracking,
        learner=replace(saved.learner, updates=wanted.learner.updates),
    )
    for part in fields(TrainConfig):
        if getattr(same, part.name) != getattr(wanted, part.name):
            raise ConfigError(
                f"{part.name} differs from the run's config.yaml; a run that goes on may change "
                "only run.*, tracking.* and learner.updates. Start a new run for anything else."
            )
    return wanted
