"""The training of a population: one update of all members at a time, and their files."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from offload_jax.env.environment import Environment
from offload_jax.files.checks import ConfigError, RunError
from offload_jax.learning import learner as learning
from offload_jax.learning.algorithm import Learner
from offload_jax.learning.devices import Devices, local_copy
from offload_jax.learning.learner import LearnerState, Metrics
from offload_jax.policy.network import Network
from offload_jax.problem.instance import Instance
from offload_jax.runs import run_folder, train
from offload_jax.runs.checkpoint import Checkpoints
from offload_jax.runs.config import TrainConfig, to_settings
from offload_jax.runs.heldout import mean_gap, validation_instances
from offload_jax.runs.loop import describe_needs, needs_of, past_fault, stop_requests
from offload_jax.runs.population import (
    Members,
    check_alike,
    is_population,
    member_devices,
    write_members,
)
from offload_jax.runs.recorder import Recorder, Reporter, Row, gap_due, row_due
from offload_jax.runs.restore import restore
from offload_jax.runs.tracking.registry import find_makers, tracked
from offload_jax.runs.tracking.tracker import RunStart

Numbers = dict[str, Array]  # settings that differ between members (`Learner.numbers`)
Callback = Callable[[dict[str, Row]], None]  # is told the members' rows of one step


def train_population(
    members: Members,
    folder: str | Path,
    callbacks: Sequence[Callback] = (),
    warn: Callable[[str], None] = print,
    tell: Callable[[str], None] | None = None,
) -> dict[str, train.RunResult]:
    """Trains all members, or goes on with those in `folder`, from the newest update they share.

    As `train.train` for each of them, but W&B is left out, and a member that diverges is told of by
    `warn` and gets neither further rows nor a result, while the others go on. They are dealt to the
    devices: to as many as get equal numbers of them.

    Raises ConfigError for settings that are impossible or differ in more than `Learner.numbers` and
    the seed, and for members that have no update in common to go on from, RunError where all
    members have diverged.
    """
    check_alike(members)
    first = next(iter(members.values()))  # they share all that is looked at here
    train.check_rules(first)
    find_makers(first.tracking)
    if not is_population(Path(folder)):
        train.check_init_from(first)
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
            member.open(step, stack)
        learner = group[0].config.to_learner(devices)
        traced, states = devices.deal((_traced(group), states))
        if tell:
            needs = needs_of(_update_all.lower(learner, traced, states), devices)
            tell(f"{len(group)} members; {describe_needs(needs)}")
        step = _loop(group, learner, traced, states, step, stop, callbacks)
        for member in group:
            member.finish(step, time.perf_counter() - started)
    going = [member for member in group if not member.diverged]
    return {m.name: train.read_result(m.folder, m.config, step) for m in going}


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
        self.name, self.config, self.folder, self.warn = name, config, parent / name, warn
        self.about = stack.enter_context(run_folder.claimed(self.folder, config))
        folder = self.folder / "checkpoints"
        kept = {"config": to_settings(config), "versions": self.about["starts"][-1]["versions"]}
        self.checkpoints = stack.enter_context(Checkpoints(folder, config.run.keep, kept, warn))
        self.diverged = "diverged" in self.about

    def open(self, step: int, stack: ExitStack) -> None:
        """Opens its rows, those up to a step, to go on from there."""
        off = replace(self.config.tracking, wandb="off")
        start = RunStart(self.folder, self.about["id"], to_settings(self.config), step, self.warn)
        tracker = stack.enter_context(tracked(off, start))
        report = Reporter(tracker, (), self.config.run, self.warn)
        at_step = [one for one in self.checkpoints.good if one.step == step]
        saved = at_step[0].about if at_step else {}
        self.recorder = Recorder(self.config, self.checkpoints, report, saved)

    def past_fault(self, state: LearnerState) -> LearnerState:
        """The state after the update that could not be made, or as it is where that diverges.

        A member that diverges stays in the program, but nothing more is written of it.
        """
        try:
            return past_fault(self.recorder, state)
        except RunError as error:
            self.diverged = True
            self.about["diverged"] = int(state.step) + 1
            run_folder.save_about(self.folder, self.about)
            self.warn(f"{self.name}: {error} The others go on.")
            return state

    def finish(self, step: int, seconds: float) -> None:
        self.checkpoints.wait()
        train.finish(self.folder, self.config, self.about, step, seconds)


def _start(group: Sequence[_Member]) -> LearnerState:
    """All members' states, stacked, at the newest update that all have saved.

    Those that diverged start afresh, as ballast. Raises ConfigError where there is no such update.
    """
    steps = {m.folder: {s.step for s in m.checkpoints.good} for m in group if not m.diverged}
    if not any(steps.values()):
        return _stacked([train.first_state(member.config, member.warn) for member in group])
    shared = set.intersection(*steps.values())
    if not shared:
        have = "; ".join(
            f"{f}: {', '.join(map(str, sorted(s))) or 'none'}" for f, s in steps.items()
        )
        raise ConfigError(
            f"the members have no checkpoint of one update ({have}); must have one to go on "
            "together. Go on with each alone: train.py --run MEMBER"
        )
    step = max(shared)
    fresh = [train.initial_state(member.config) for member in group]
    states = [
        replace(like, step=jnp.int32(step)) if m.diverged else restore(m.checkpoints.at(step), like)
        for m, like in zip(group, fresh, strict=True)
    ]
    return _stacked(states)


def _traced(group: Sequence[_Member]) -> Numbers:
    """Of all members; leaves (members,)."""
    settings = [member.config.to_learner().numbers() for member in group]
    return jax.tree.map(lambda *values: jnp.array(values, float), *settings)


def _stacked(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def _update_all(
    learner: Learner, traced: Numbers, states: LearnerState
) -> tuple[LearnerState, Metrics]:
    """One update of every member; leaves (members, ...)."""

    def one(own: Numbers, state: LearnerState) -> tuple[LearnerState, Metrics]:
        return learning.update(learner.with_numbers(own), state)

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
    network: Network,
    env: Environment,
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
    traced: Numbers,
    states: LearnerState,
    step: int,
    stop: threading.Event,
    callbacks: Sequence[Callback],
) -> int:
    """Updates after `step` until all are made or `stop` is set; how many there are then."""
    config = group[0].config
    if step >= config.learner.updates:
        return step
    validation_gaps = _validation(group, learner.devices)
    while step < config.learner.updates and not stop.is_set():
        states, metrics = _update_all(learner, traced, states)
        step += 1
        states = _record(group, learner.devices, states, metrics)
        if row_due(config, step):
            gaps = validation_gaps(states.params) if gap_due(config, step) else None
            rows = {m.name: m.recorder.row(*now) for m, now in _going_on(group, states, gaps)}
            for callback in callbacks:
                callback(rows)
        if any(member.recorder.save_due() for member in group):
            _save(group, states)
    for member in group:
        member.recorder.report.finish()
    _save(group, states)  # no update is saved twice
    return step


def _record(
    group: Sequence[_Member], devices: Devices, states: LearnerState, metrics: Metrics
) -> LearnerState:
    """Keeps every member's metrics of an update; the states, past the updates that failed.

    Raises RunError where all members have diverged.
    """
    found, past = jax.device_get(metrics), {}
    for i, member in enumerate(group):
        if member.diverged:
            continue
        if found["sound"][i]:
            member.recorder.period.add(_taken(found, i))
        else:
            past[i] = member.past_fault(_taken(local_copy(states), i))
    if all(member.diverged for member in group):
        raise RunError(
            "all members have diverged. Their checkpoints remain; start anew with lower "
            "learner.lr or learner.max_grad_norm."
        )
    if not past:
        return states
    whole = local_copy(states)
    return devices.deal(_stacked([past.get(i, _taken(whole, i)) for i in range(len(group))]))


def _taken(tree: Any, i: int) -> Any:
    """One member's share of leaves (members, ...)."""
    return jax.tree.map(lambda x: x[i], tree)


def _going_on(
    group: Sequence[_Member], states: LearnerState, gaps: np.ndarray | None = None
) -> Iterator[tuple[_Member, tuple[LearnerState, float | None]]]:
    """The members that have not diverged, with state and gap."""
    whole = local_copy(states)
    for i, member in enumerate(group):
        if not member.diverged:
            yield member, (_taken(whole, i), None if gaps is None else float(gaps[i]))


def _save(group: Sequence[_Member], states: LearnerState) -> None:
    for member, (state, _) in _going_on(group, states):
        member.recorder.save(state)
