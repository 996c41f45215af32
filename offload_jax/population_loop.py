"""The training of a population: one update of all members at a time, and their files."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from offload_jax import folders, runs
from offload_jax import learner as learning
from offload_jax.checkpoint import Checkpoints
from offload_jax.config import TrainConfig
from offload_jax.env import EnvConfig
from offload_jax.hyperparameters import Hyperparameters
from offload_jax.instance import Instance
from offload_jax.learner import Learner, LearnerState, Metrics
from offload_jax.loop import describe_needs, needs_of, stop_requests
from offload_jax.mesh import ONE_DEVICE, Devices, local_copy
from offload_jax.networks import NetworkConfig
from offload_jax.population import Members, check_alike, member_devices, write_members
from offload_jax.reporting import Row, RunError
from offload_jax.saved import restore
from offload_jax.tracking import MetricsFile
from offload_jax.validation import mean_gap, validation_instances

Callback = Callable[[dict[str, Row]], None]  # is told the members' rows of one step


def train_population(
    members: Members,
    folder: str | Path,
    callbacks: Sequence[Callback] = (),
    warn: Callable[[str], None] = print,
    tell: Callable[[str], None] | None = None,
) -> dict[str, runs.RunResult]:
    """Trains all members, or goes on with those in `folder`, from the newest update they share.

    As `runs.train` for each of them, but W&B is left out, and a member that diverges is told of by
    `warn` and gets no further rows (nor a result, where it has no checkpoint), while the others go
    on. They are dealt to the devices: to as many as get equal numbers of them.

    Raises ConfigError for settings that are impossible or differ in more than Hyperparameters and
    seed, RunError where all members have diverged.
    """
    check_alike(members)
    started, devices = time.perf_counter(), member_devices(members)
    with ExitStack() as stack:
        stop = stack.enter_context(stop_requests())
        group = [
            _Member(name, config, Path(folder), stack, warn) for name, config in members.items()
        ]
        write_members(Path(folder), members)  # last: every member has its settings
        states = _start(group)
        step = int(states.step[0])
        for member in group:
            member.open_rows(step, stack)
        learner = group[0].config.to_learner(devices)
        traced, states = devices.deal((_traced(group), states))
        if tell:
            needs = needs_of(_update_all.lower(learner, traced, states), devices)
            tell(f"{len(group)} members; {describe_needs(needs)}")
        step = _loop(group, learner, traced, states, stop, callbacks, warn)
        for member in group:
            member.finish(step, time.perf_counter() - started)
        learned = [member for member in group if member.checkpoints.good]
    return {m.name: runs.read_result(m.folder, m.config, step) for m in learned}


class _Member:
    """One run's directory, open until the stack ends."""

    def __init__(
        self,
        name: str,
        config: TrainConfig,
        parent: Path,
        stack: ExitStack,
        warn: Callable[[str], None],
    ) -> None:
        self.name, self.config, self.folder = name, config, parent / name
        self.about = stack.enter_context(folders.claimed(self.folder, config))
        folder = self.folder / "checkpoints"
        kept = {"config": asdict(config), "versions": self.about["starts"][-1]["versions"]}
        self.checkpoints = stack.enter_context(Checkpoints(folder, config.run.keep, kept, warn))
        self.diverged = "diverged" in self.about

    def open_rows(self, step: int, stack: ExitStack) -> None:
        self.metrics = MetricsFile(self.folder / "metrics.jsonl", up_to_step=step)
        stack.callback(self.metrics.close)

    def diverges(self, step: int) -> None:
        """It stays in the program, but nothing more is written of it, also when it goes on."""
        self.diverged = True
        self.about["diverged"] = step
        folders.save_about(self.folder, self.about)

    def finish(self, step: int, seconds: float) -> None:
        self.checkpoints.wait()
        runs.finish(self.folder, self.config, self.about, step, seconds)


def _start(group: Sequence[_Member]) -> LearnerState:
    """All members' states, stacked, at the newest update that all have saved.

    Those that diverged start afresh, as ballast.
    """
    fresh = [runs.initial_state(member.config) for member in group]
    steps = [{s.step for s in m.checkpoints.good} for m in group if not m.diverged]
    shared = set.intersection(*steps) if steps else set()
    if not shared:
        return _stacked(fresh)
    step = max(shared)
    states = [
        replace(like, step=jnp.int32(step)) if m.diverged else restore(m.checkpoints.at(step), like)
        for m, like in zip(group, fresh, strict=True)
    ]
    return _stacked(states)


def _traced(group: Sequence[_Member]) -> Hyperparameters:
    """Of all members; leaves (members,)."""
    settings = [member.config.learner.hyperparameters() for member in group]
    return jax.tree.map(lambda *values: jnp.array(values, float), *settings)


def _stacked(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def _update_all(
    learner: Learner, traced: Hyperparameters, states: LearnerState
) -> tuple[LearnerState, Metrics]:
    """One update of every member; leaves (members, ...)."""

    def one(own: Hyperparameters, state: LearnerState) -> tuple[LearnerState, Metrics]:
        return learning.update(replace(learner, devices=ONE_DEVICE, traced=own), state)

    return learner.devices.spread_members(jax.vmap(one))(traced, states)


def _validation(group: Sequence[_Member], devices: Devices) -> Callable[[Any], np.ndarray]:
    """Every member's gap, each on the instances that it would have alone."""
    config = group[0].config
    of_seed = {m.config.seed: m.config for m in group}
    sets = {seed: validation_instances(config) for seed, config in of_seed.items()}
    dealt = devices.deal(_stacked([sets[m.config.seed] for m in group]))
    network, env = config.network, config.to_env()
    return lambda params: np.asarray(_gaps(network, env, devices, params, *dealt), float)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _gaps(
    network: NetworkConfig,
    env: EnvConfig,
    devices: Devices,
    params: Any,
    instances: Instance,
    best: Float[Array, "members instances"],
) -> Float[Array, "members"]:
    of_members = jax.vmap(partial(mean_gap, network, env))
    return devices.spread_members(of_members)(params, instances, best)


def _loop(
    group: Sequence[_Member],
    learner: Learner,
    traced: Hyperparameters,
    states: LearnerState,
    stop: threading.Event,
    callbacks: Sequence[Callback],
    warn: Callable[[str], None],
) -> int:
    """Updates until all are made or `stop` is set; how many there are then."""
    every, updates, step = group[0].config.run, learner.config.updates, int(states.step[0])
    if step >= updates:
        return step
    validation_gaps = _validation(group, learner.devices)
    decisions = learner.config.instances * learner.config.samples * learner.scenario.max_users
    pending, since = [], time.perf_counter()
    while step < updates and not stop.is_set():
        states, metrics = _update_all(learner, traced, states)
        pending.append(metrics)
        step += 1
        last = step == updates
        if step % every.log_every and step % every.eval_every and not last:
            continue
        seconds = time.perf_counter() - since
        rows = _rows(pending, step, seconds, decisions)
        if step % every.eval_every == 0 or last or step == every.log_every:
            gaps = validation_gaps(states.params)
            rows = [row | {"gap": float(gap)} for row, gap in zip(rows, gaps, strict=True)]
        written = _write(group, rows, warn)
        if "gap" in rows[0]:  # after the rows: a checkpoint on disk means that they are, too
            _save(group, states, [row["gap"] for row in rows])
        for callback in callbacks:
            callback(written)
        pending, since = [], time.perf_counter()
    if stop.is_set():
        _save(group, states, [None] * len(group))
    return step


def _rows(pending: Sequence[Metrics], step: int, seconds: float, decisions: int) -> list[Row]:
    """Each member's mean metrics of some updates that took `seconds` for all members together."""
    found = jax.device_get(pending)
    means = {f.name: np.mean([getattr(m, f.name) for m in found], axis=0) for f in fields(Metrics)}
    del means["sound"]
    common = {
        "step": step,
        "seconds": seconds,
        "decisions_per_s": decisions * len(pending) / seconds,  # of one member
    }
    members = range(len(means["score"]))
    return [{name: float(x[i]) for name, x in means.items()} | common for i in members]


def _write(
    group: Sequence[_Member], rows: Sequence[Row], warn: Callable[[str], None]
) -> dict[str, Row]:
    """Writes the rows of the members that go on, and returns them by name."""
    written = {}
    for member, row in zip(group, rows, strict=True):
        if _goes_on(member, row, warn):
            member.metrics.append(row)
            written[member.name] = row
    if not written:
        raise RunError(
            f"all members diverged before update {rows[0]['step']}. Their checkpoints remain; "
            "start anew with lower learner.lr or learner.max_grad_norm."
        )
    return written


def _goes_on(member: _Member, row: Row, warn: Callable[[str], None]) -> bool:
    """Whether a member's numbers are finite, and were; says so once where they are not."""
    bad = [name for name, value in row.items() if not np.isfinite(value)]
    if bad and not member.diverged:
        member.diverges(int(row["step"]))
        warn(
            f"{member.name} diverged before update {row['step']}: {bad[0]} is {row[bad[0]]}. It "
            "gets no further rows or checkpoints; the others go on."
        )
    return not member.diverged


def _save(group: Sequence[_Member], states: LearnerState, gaps: Sequence[float | None]) -> None:
    whole = local_copy(states)
    for i, (member, gap) in enumerate(zip(group, gaps, strict=True)):
        if not member.diverged:
            member.checkpoints.save(jax.tree.map(lambda x, i=i: x[i], whole), gap)
