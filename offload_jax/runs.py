"""Training runs: their directories, and going on where a stopped one left off.

A run directory holds `config.yaml` (every setting), `run.json` (id, versions, commit, device),
`metrics.jsonl`, `checkpoints/`, `wandb/` and `learning_curve.png`; and `quarantine/`, checkpoints
found damaged, where there were any.
"""

from __future__ import annotations

import fcntl
import json
import platform
import resource
import subprocess
import sys
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from jax.sharding import SingleDeviceSharding

from offload_jax import learner as learning
from offload_jax import processes
from offload_jax.charts import save as save_figure
from offload_jax.checkpoint import CheckpointError, Checkpoints, find, restore
from offload_jax.config import ConfigError, TrainConfig, load_config, to_yaml
from offload_jax.documents import replace_file
from offload_jax.evaluation import reference_name
from offload_jax.figures import learning_curve
from offload_jax.learner import LearnerState
from offload_jax.loop import describe_needs, loop, prepare, stop_requests
from offload_jax.mesh import Devices
from offload_jax.mirror import Mirror
from offload_jax.policies import Policy
from offload_jax.reporting import Callback, Reporter, Row
from offload_jax.tracking import MetricsFile, read_rows
from offload_jax.value import check_all_local

_TRAINING = 0  # the branch of the seed that training draws from (validation: validation.VALIDATION)


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
    tell: Callable[[str], None] | None = None,
) -> RunResult:
    """Trains, or goes on with the run in `folder` where that holds one.

    Every `run.log_every` updates a row goes to metrics.jsonl, W&B and the callbacks; every
    `run.eval_every` updates the greedy policy is evaluated and the state saved, and every
    `run.save_s` seconds, too. Ctrl-C or SIGTERM saves and returns with `finished` False; a second
    one stops at once. `tell` hears what the run needs before the first update.

    In several processes (`processes.started`) all have to call this, with one shared `folder`; the
    first one writes rows, mirrors and calls back. A stop of one stops all.

    Raises ConfigError for impossible settings, for a directory in use, unwritable or of something
    else, and for settings that cannot change within a run; RunError or CheckpointError where
    training diverges or the disk is full: the run can then go on from its last checkpoint.
    """
    config.validate()
    devices = config.find_devices()
    check_rules(config)
    if folder is None or not is_run(Path(folder)):
        check_init_from(config)
    started, first = time.perf_counter(), processes.is_first()
    folder = Path(processes.from_first(str(new_folder(config) if folder is None else folder)))
    about: dict[str, Any] = {"id": "", "starts": [{}]}
    with ExitStack() as claim:
        processes.first_only(lambda: about.update(claim.enter_context(claimed(folder, config))))
        heard = callbacks if first else ()
        state = _trained(config, folder, about, devices, heard, warn, tell or (lambda _: None))
        step, seconds = int(state.step), time.perf_counter() - started
        processes.first_only(lambda: _write_end(folder, about, step, seconds))
    return read_result(folder, config, step)


def _trained(
    config: TrainConfig,
    folder: Path,
    about: dict[str, Any],
    devices: Devices,
    callbacks: Sequence[Callback],
    warn: Callable[[str], None],
    tell: Callable[[str], None],
) -> LearnerState:
    """The state at the end of a run whose directory is claimed."""
    first, checkpoints_folder = processes.is_first(), folder / "checkpoints"
    tracking = config.tracking if first else replace(config.tracking, wandb="off")
    kept = {"config": asdict(config), "versions": about["starts"][-1].get("versions")}
    with (
        Mirror(tracking, folder, about["id"], asdict(config), warn) as mirror,
        Checkpoints(
            checkpoints_folder, config.run.keep, kept, warn, mirror.checkpoint
        ) as checkpoints,
        stop_requests() as stop,
    ):
        state, since_row = _start_state(config, checkpoints, devices, warn)
        about["starts"][-1] |= (needs := prepare(config.to_learner(devices), state))
        if first:
            tell(describe_needs(needs))
        rows = folder / "metrics.jsonl"
        metrics = MetricsFile(rows, up_to_step=int(state.step)) if first else None
        may_fail = config.run.failed_save == "go-on"
        report = Reporter(metrics, mirror, callbacks, may_fail, warn)
        try:
            state = loop(config, state, checkpoints, report, stop, since_row, devices)
            report.finish()
        finally:
            if metrics:
                metrics.close()
        checkpoints.wait()
        if first:
            draw_curve(folder, config)
            mirror.picture("learning_curve", folder / "learning_curve.png")
    return state


@contextmanager
def claimed(folder: Path, config: TrainConfig) -> Iterator[dict[str, Any]]:
    """A run directory for this process alone: its config.yaml and run.json, the latter returned.

    Raises ConfigError where it is in use, or the settings cannot change within its run.
    """
    with _claimed(folder):
        if is_run(folder):
            config = resumed(read_config(folder), config)
        yield _write_about(folder, config)


def finish(
    folder: Path, config: TrainConfig, about: dict[str, Any], step: int, seconds: float
) -> None:
    """Writes how a start ended, and the learning curve."""
    _write_end(folder, about, step, seconds)
    draw_curve(folder, config)


def draw_curve(folder: Path, config: TrainConfig) -> None:
    """Draws learning_curve.png of a run's rows."""
    rows = read_rows(folder / "metrics.jsonl")
    curve = learning_curve(rows, reference_name(config.scenario, config.splits))
    save_figure(curve, folder / "learning_curve.png")


def read_result(folder: Path, config: TrainConfig, step: int) -> RunResult:
    """What a run directory holds after `step` updates."""
    rows = read_rows(folder / "metrics.jsonl")
    return RunResult(folder, load_policy(folder), rows, step, step >= config.learner.updates)


def initial_state(config: TrainConfig) -> LearnerState:
    """The state before the first update."""
    key = jax.random.fold_in(jax.random.key(config.seed), _TRAINING)
    return _init(config.to_learner(), key)


def check_rules(config: TrainConfig) -> None:
    """Raises ConfigError for constraints that all-local plans of the scenario break."""
    if config.splits.constraints:
        instances = learning.sample_instances(config.scenario, jax.random.key(config.seed), 64)
        try:
            check_all_local(instances, config.splits)
        except ValueError as error:
            raise ConfigError(str(error)) from None


_init = jax.jit(learning.init, static_argnums=0)  # as one program: 6 s sooner than op by op


def _start_state(
    config: TrainConfig,
    checkpoints: Checkpoints,
    devices: Devices,
    warn: Callable[[str], None],
) -> tuple[LearnerState, list[Row]]:
    """The state to start from, and the metrics of its updates that are in no row yet."""
    state, saved = initial_state(config), checkpoints.newest()
    if saved is not None:
        return restore(saved, devices.place(state)), saved.about["since_row"]
    if config.init_from is not None:
        state = replace(state, params=load_policy(config.init_from, warn=warn).params)
    return devices.place(state), []


def check_init_from(config: TrainConfig) -> None:
    """Raises ConfigError where init_from is no run, or one of another network."""
    if config.init_from is None:
        return
    if not is_run(Path(config.init_from)):
        raise ConfigError(f"init_from is {config.init_from!r}; must be a run directory")
    theirs = asdict(read_config(config.init_from).network)
    for name, mine in asdict(config.network).items():
        if mine != theirs[name]:
            raise ConfigError(
                f"network.{name} is {mine!r}; must be {theirs[name]!r}, as in {config.init_from}, "
                "whose parameters init_from takes"
            )


def is_run(folder: Path) -> bool:
    """Whether a folder is a run directory."""
    return (folder / "config.yaml").is_file()


def check_folder(folder: Path) -> None:
    """Raises ConfigError where a folder is neither a run nor free to become one."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"run directory {folder} is a file; must be a run, empty or new")
    # A start that was killed at once may have left these.
    ours = {".lock", "config.yaml.tmp", "run.json", "run.json.tmp"}
    if folder.is_dir() and not is_run(folder):
        strange = sorted({path.name for path in folder.iterdir()} - ours)
        if strange:
            raise ConfigError(
                f"run directory {folder} holds other files ({strange[0]}) and is no run; must be a "
                "run (with a config.yaml), empty or new"
            )


@contextmanager
def _claimed(folder: Path) -> Iterator[None]:
    """One process per run directory; the claim ends with the process, however it ends."""
    check_folder(folder)
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


def _write_about(folder: Path, config: TrainConfig) -> dict[str, Any]:
    """Writes config.yaml and run.json; a run that goes on keeps its id and notes the restart."""
    replace_file(folder / "config.yaml", to_yaml(config))
    path = folder / "run.json"
    about: dict[str, Any] = {"id": uuid.uuid4().hex[:8], "starts": []}
    if path.exists():
        try:
            about = json.loads(path.read_bytes())
        except ValueError as error:
            raise ConfigError(f"{path} is not JSON ({error}); remove it to go on") from None
    about["starts"].append({"time": datetime.now().astimezone().isoformat(), **provenance()})
    replace_file(path, json.dumps(about, indent=1))
    return about


def _write_end(folder: Path, about: dict[str, Any], step: int, seconds: float) -> None:
    """Adds to run.json how far this start came, and what it took, compiling included."""
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes there, KiB elsewhere
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
    about["starts"][-1] |= {"step": step, "seconds": seconds, "peak_memory_mb": peak}
    save_about(folder, about)


def save_about(folder: Path, about: dict[str, Any]) -> None:
    """Writes run.json."""
    replace_file(folder / "run.json", json.dumps(about, indent=1))


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
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():  # installed, perhaps inside somebody else's repository
        return None
    try:
        done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def read_config(folder: str | Path) -> TrainConfig:
    """The settings of a run directory. Raises ConfigError where it is none."""
    if not is_run(Path(folder)):
        inner = next(Path(folder).glob("*/config.yaml"), None)
        hint = f", such as {inner.parent}" if inner else ""
        raise ConfigError(
            f"run is {str(folder)!r}; must be a run directory (with a config.yaml){hint}"
        )
    return load_config(Path(folder) / "config.yaml")


def load_policy(
    folder: str | Path, which: str = "best", warn: Callable[[str], None] = warnings.warn
) -> Policy:
    """The policy of a run directory: the best evaluated checkpoint, or the ``latest``.

    Damaged checkpoints are left out, and `warn` is told.

    Raises ConfigError where the folder is no run, CheckpointError where it has no good checkpoint.
    """
    if which not in ("best", "latest"):
        raise ValueError(f"which is {which!r}; must be one of best, latest")
    folder, config = Path(folder), read_config(folder)
    like = jax.eval_shape(lambda key: learning.init(config.to_learner(), key), jax.random.key(0))
    # Here, on one device, wherever and on how many it was trained.
    here = SingleDeviceSharding(jax.local_devices()[0])
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), like)
    saved = find(folder / "checkpoints", which, warn)
    if saved is None:
        raise CheckpointError(
            f"run {folder} has no checkpoint yet; train on with: train.py --run {folder}"
        )
    state = restore(saved, like)
    return Policy(state.params, config.network, config.to_env(), f"{folder} at update {saved.step}")


def newest_run(parent: Path = Path("runs")) -> Path:
    """The run under `parent` that was started last. Raises ConfigError where there is none."""
    found = sorted(parent.glob("*/config.yaml"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise ConfigError(f"no run under {parent}/; train one first, or name one with --run DIR")
    return found[-1].parent


def resumed(saved: TrainConfig, wanted: TrainConfig) -> TrainConfig:
    """The settings to go on with: `wanted`, which may differ from `saved` only in harmless ways.

    Raises ConfigError naming the setting that cannot change within a run.
    """
    same = replace(
        saved,
        run=replace(wanted.run, eval_instances=saved.run.eval_instances),
        tracking=wanted.tracking,
        learner=replace(saved.learner, updates=wanted.learner.updates),
    )
    before, after = _flat(asdict(same)), _flat(asdict(wanted))
    for name in before | after:
        if before.get(name) != after.get(name):
            raise ConfigError(
                f"{name} is {after.get(name)!r}; must stay {before.get(name)!r}, as in the run's "
                "config.yaml. A run that goes on may change only tracking.*, learner.updates and "
                "run.* but for run.eval_instances; start a new run for anything else."
            )
    return wanted


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by their dotted names."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        inner = isinstance(value, dict)
        flat |= _flat(value, f"{prefix}{key}.") if inner else {prefix + key: value}
    return flat
