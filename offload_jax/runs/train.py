"""Training runs: starting them, and going on where a stopped one left off."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
from jax.sharding import SingleDeviceSharding

from offload_jax.evaluation.figures import learning_curve
from offload_jax.evaluation.figures import save as save_figure
from offload_jax.evaluation.reference import reference_name
from offload_jax.files.checks import CheckpointError, ConfigError
from offload_jax.files.plugins import Plugins
from offload_jax.learning import updates
from offload_jax.learning.devices import Devices
from offload_jax.learning.fit import check_domain, check_fit
from offload_jax.learning.trajectories import sample_instances
from offload_jax.learning.updates import LearnerState
from offload_jax.plans.outcome import check_all_local
from offload_jax.policy.policy import Policy
from offload_jax.runs import multihost, policy_folder, run_files, run_folder
from offload_jax.runs.checked import policy_learning
from offload_jax.runs.checkpoint import Checkpoints
from offload_jax.runs.config import TrainConfig, plugins_of, plugins_option, to_settings
from offload_jax.runs.loop import Member, describe_needs, loop, prepare, stop_requests
from offload_jax.runs.recorder import Callback, Recorder, Reporter, Row
from offload_jax.runs.restore import find, restore
from offload_jax.runs.tracking.metrics import read_rows
from offload_jax.runs.tracking.registry import find_makers, tracked
from offload_jax.runs.tracking.tracker import Noop, RunStart

_TRAINING = 0  # the branch of the seed that training draws from (evaluations: heldout.HELDOUT)


@dataclass(frozen=True)
class RunResult:
    """What a training run leaves behind."""

    folder: Path
    policy: Policy  # the best evaluated one
    rows: list[Row]  # of metrics.jsonl
    step: int  # updates made
    finished: bool  # False where the run was interrupted


def train(
    config: TrainConfig,
    callbacks: Sequence[Callback] = (),
    folder: str | Path | None = None,
    warn: Callable[[str], None] = print,
    tell: Callable[[str], None] | None = None,
    plugins: Plugins = (),
) -> RunResult:
    """Trains, or goes on with the run in `folder` where that holds one.

    Every `run.log_every` updates a row goes to metrics.jsonl, W&B and the callbacks; every
    `run.eval_every` updates the greedy policy is evaluated and the state saved, and every
    `run.save_s` seconds, too. Ctrl-C or SIGTERM saves and returns with `finished` False; a second
    one stops at once. `tell` hears what the run needs before the first update. `plugins` may be
    loaded for `init_from`, besides what the configuration itself names.

    In several processes (`multihost.started`) all have to call this, with one shared `folder`; the
    first one writes rows, mirrors and calls back. A stop of one stops all.

    Raises ConfigError for impossible settings, for a directory in use, unwritable or of something
    else, and for settings that cannot change within a run; RunError or CheckpointError where
    training diverges or the disk is full: the run can then go on from its last checkpoint.
    """
    config.validate()
    devices = config.find_devices()
    check_rules(config)
    find_makers(config.tracking)
    if folder is None or not run_folder.is_run(Path(folder)):
        check_init_from(config, plugins)
    started, first = time.perf_counter(), multihost.is_first()
    folder = Path(
        multihost.from_first(str(run_folder.new_folder(config) if folder is None else folder))
    )
    about: dict[str, Any] = {"id": "", "starts": [{}]}
    with ExitStack() as claim:
        multihost.first_only(
            lambda: about.update(claim.enter_context(run_folder.claimed(folder, config)))
        )
        heard = callbacks if first else ()
        state = _trained(
            config, folder, about, devices, heard, warn, tell or (lambda _: None), plugins
        )
        step, seconds = int(state.step), time.perf_counter() - started
        multihost.first_only(lambda: run_folder.write_end(folder, about, step, seconds))
    return read_result(folder, config, step)


def _trained(
    config: TrainConfig,
    folder: Path,
    about: dict[str, Any],
    devices: Devices,
    callbacks: Sequence[Callback],
    warn: Callable[[str], None],
    tell: Callable[[str], None],
    plugins: Plugins,
) -> LearnerState:
    """The state at the end of a run whose directory is claimed."""
    first, checkpoints_folder = multihost.is_first(), folder / run_files.CHECKPOINTS
    kept = {"config": to_settings(config), "versions": about["starts"][-1].get("versions")}
    with (
        Checkpoints(
            checkpoints_folder, config.run.keep, kept, warn, lambda *saved: tracker.artifact(*saved)
        ) as checkpoints,
        ExitStack() as trackers,  # told of the end when Ctrl-C is what it was before
        stop_requests() as stop,
    ):
        state, saved = _start_state(config, checkpoints, devices, warn, plugins)
        task = policy_learning(config, devices)
        about["starts"][-1] |= (needs := prepare(task, state))
        if first:
            tell(describe_needs(needs))
        # Not before: a start that fails leaves metrics.jsonl as it is.
        start = RunStart(folder, about["id"], to_settings(config), int(state.step), warn)
        tracker = trackers.enter_context(tracked(config.tracking, start)) if first else Noop()
        report = Reporter(tracker, callbacks, config.run, warn)
        state = loop(task, [Member(Recorder(config, checkpoints, report, saved))], state, stop)
        checkpoints.wait()
        if first:
            draw_curve(folder, config)
            tracker.figure("learning_curve", folder / run_files.CURVE)
    return state


def finish(
    folder: Path, config: TrainConfig, about: dict[str, Any], step: int, seconds: float
) -> None:
    """Writes how a start ended, and the learning curve."""
    run_folder.write_end(folder, about, step, seconds)
    draw_curve(folder, config)


def draw_curve(folder: Path, config: TrainConfig) -> None:
    """Draws learning_curve.png of a run's rows."""
    rows = read_rows(folder / run_files.ROWS)
    curve = learning_curve(rows, reference_name(config.scenario, config.splits.to_solver()))
    save_figure(curve, folder / run_files.CURVE)


def read_result(folder: Path, config: TrainConfig, step: int) -> RunResult:
    """What a run directory holds after `step` updates."""
    rows = read_rows(folder / run_files.ROWS)
    policy = load_policy(folder, plugins=plugins_of(config))
    return RunResult(folder, policy, rows, step, step >= config.learner.updates)


def initial_state(config: TrainConfig) -> LearnerState:
    """A state before the first update, with random parameters."""
    key = jax.random.fold_in(jax.random.key(config.seed), _TRAINING)
    return _init(config.to_learner(), key)


def check_rules(config: TrainConfig) -> None:
    """Raises ConfigError for constraints that all-local plans of the scenario break.

    And for code of the user's own that does not fit together.
    """
    try:
        if plugins_of(config):
            check_fit(config.to_learner())
        if config.run.checks:
            check_domain(config.scenario)
        if config.splits.constraints:
            instances = sample_instances(config.scenario, jax.random.key(config.seed), 64)
            check_all_local(instances, config.splits.to_solver())
    except ValueError as error:
        raise ConfigError(str(error)) from None


_init = jax.jit(updates.init, static_argnums=0)  # as one program: 6 s sooner than op by op


def _start_state(
    config: TrainConfig,
    checkpoints: Checkpoints,
    devices: Devices,
    warn: Callable[[str], None],
    plugins: Plugins = (),
) -> tuple[LearnerState, Mapping[str, Any]]:
    """The state to start from, and what its checkpoint says about it."""
    saved = checkpoints.newest()
    if saved is not None:
        return restore(saved, devices.place(initial_state(config))), saved.about
    return devices.place(first_state(config, warn, plugins)), {}


def first_state(
    config: TrainConfig, warn: Callable[[str], None], plugins: Plugins = ()
) -> LearnerState:
    """The state before the first update, its parameters those of `init_from` where one is given."""
    state = initial_state(config)
    if config.init_from is None:
        return state
    policy = load_policy(config.init_from, warn=warn, plugins=_with_own(config, plugins))
    return replace(state, params=policy.params)


def _with_own(config: TrainConfig, plugins: Plugins) -> Plugins:
    """The plugins, and what the configuration itself names."""
    return None if plugins is None else [*plugins, *plugins_of(config)]


def check_init_from(config: TrainConfig, plugins: Plugins = ()) -> None:
    """Raises ConfigError where init_from holds no policy, or one of another network."""
    if config.init_from is None:
        return
    try:
        found = settings_of(config.init_from, _with_own(config, plugins))
    except ConfigError as error:
        there = run_folder.is_run(Path(config.init_from)) or policy_folder.is_policy(
            config.init_from
        )
        names = ", ".join(policy_folder.names())
        wrong = f"must be a run directory, a policy folder or one of {names} ({error})"
        wrong = f"it cannot be used: {error}" if there else wrong
        raise ConfigError(f"init_from is {config.init_from!r}; {wrong}") from None
    theirs = to_settings(found)["network"]
    for name, mine in to_settings(config)["network"].items():
        if mine != theirs.get(name):
            raise ConfigError(
                f"network.{name} is {mine!r}; must be {theirs.get(name)!r}, as in "
                f"{config.init_from}, whose parameters init_from takes"
            )


def settings_of(source: str | Path, plugins: Plugins = ()) -> TrainConfig:
    """What a policy was trained for (`load_policy`). Raises ConfigError where there is none."""
    if policy_folder.is_policy(source):
        return policy_folder.load(source, plugins)[1]
    return run_folder.read_config(source, plugins)


def load_policy(
    source: str | Path,
    which: str = "best",
    warn: Callable[[str], None] = warnings.warn,
    plugins: Plugins = (),
) -> Policy:
    """A shipped policy by its name, that of a policy folder, or of a run directory.

    The names are strings: a run directory that bears one is Path("edge") or "./edge".
    Of a run it is the best evaluated checkpoint, or the ``latest``. Damaged checkpoints are left
    out, and `warn` is told. Code of your own that it names is loaded only from `plugins`: files or
    modules.

    Raises ConfigError where there is none, PolicyError or CheckpointError for one that is damaged.
    """
    if which not in ("best", "latest"):
        raise ValueError(f"which is {which!r}; must be one of best, latest")
    if policy_folder.is_policy(source):
        return policy_folder.load(source, plugins)[0]
    folder, config = Path(source), run_folder.read_config(source, plugins)
    like = jax.eval_shape(lambda key: updates.init(config.to_learner(), key), jax.random.key(0))
    # Here, on one device, wherever and on how many it was trained.
    here = SingleDeviceSharding(jax.local_devices()[0])
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), like)
    saved = find(folder / run_files.CHECKPOINTS, which, warn)
    if saved is None:
        raise CheckpointError(
            f"run {folder} has no checkpoint yet; train on with: train.py --run {folder}"
            f"{plugins_option(config)}"
        )
    state = restore(saved, like)
    return Policy(state.params, config.network, config.to_env(), f"{folder} at update {saved.step}")
