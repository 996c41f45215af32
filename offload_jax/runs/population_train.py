"""The training of a population: one update of all members at a time, and their directories."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from offload_jax.files.checks import ConfigError
from offload_jax.files.plugins import Plugins
from offload_jax.learning import nonfinite, updates
from offload_jax.learning.algorithm import Learner
from offload_jax.learning.devices import Devices, local_copy
from offload_jax.learning.updates import LearnerState, Metrics
from offload_jax.problem.instance import Instance
from offload_jax.runs import run_files, run_folder, train
from offload_jax.runs.checkpoint import Checkpoints
from offload_jax.runs.config import TrainConfig, to_settings
from offload_jax.runs.heldout import heldout_instances, mean_gap
from offload_jax.runs.loop import Member, describe_needs, loop, prepare, stop_requests
from offload_jax.runs.population import (
    Members,
    check_alike,
    is_population,
    member_devices,
    write_members,
)
from offload_jax.runs.recorder import Recorder, Reporter, Row
from offload_jax.runs.restore import restore
from offload_jax.runs.task import PolicyLearning
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
    plugins: Plugins = (),
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
        train.check_init_from(first, plugins)
    started, devices = time.perf_counter(), member_devices(members)
    with ExitStack() as stack:
        stop = stack.enter_context(stop_requests())
        runs = [_Run(name, config, Path(folder), stack, warn) for name, config in members.items()]
        write_members(Path(folder), members)  # last: every member has its settings
        states = _start(runs, plugins)
        step = int(states.step[0])
        task, states = PopulationLearning(list(members.values()), devices), devices.deal(states)
        if tell:
            tell(f"{len(runs)} members; {describe_needs(prepare(task, states))}")
        kept = [run.member(step, stack) for run in runs]
        if step < first.learner.updates:
            states = loop(task, kept, states, stop, lambda rows: _call(callbacks, rows))
        step = int(np.max(local_copy(states).step))
        for run in runs:
            run.finish(step, time.perf_counter() - started)
    going = [run for run in runs if not run.diverged]
    return {one.name: train.read_result(one.folder, one.config, step) for one in going}


def _call(callbacks: Sequence[Callback], rows: dict[str, Row]) -> None:
    for callback in callbacks:
        callback(rows)


class _Run:
    """One member's directory, open until the stack ends."""

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
        folder = self.folder / run_files.CHECKPOINTS
        kept = {"config": to_settings(config), "versions": self.about["starts"][-1]["versions"]}
        self.checkpoints = stack.enter_context(Checkpoints(folder, config.run.keep, kept, warn))
        self.diverged = "diverged" in self.about

    def member(self, step: int, stack: ExitStack) -> Member:
        """What the loop keeps: its rows, those up to a step, to go on from there."""
        off = replace(self.config.tracking, wandb="off")
        start = RunStart(self.folder, self.about["id"], to_settings(self.config), step, self.warn)
        tracker = stack.enter_context(tracked(off, start))
        report = Reporter(tracker, (), self.config.run, self.warn)
        at_step = [one for one in self.checkpoints.good if one.step == step]
        saved = at_step[0].about if at_step else {}
        recorder = Recorder(self.config, self.checkpoints, report, saved)
        member = Member(recorder, self.name, self._diverge)
        member.diverged = self.diverged
        return member

    def _diverge(self, step: int) -> None:
        """It stays in the program, but nothing more is written of it."""
        self.diverged = True
        self.about["diverged"] = step
        run_folder.save_about(self.folder, self.about)

    def finish(self, step: int, seconds: float) -> None:
        self.checkpoints.wait()
        train.finish(self.folder, self.config, self.about, step, seconds)


def _start(group: Sequence[_Run], plugins: Plugins = ()) -> LearnerState:
    """All members' states, stacked, at the newest update that all have saved.

    Those that diverged start afresh, as ballast. Raises ConfigError where there is no such update.
    """
    steps = {m.folder: {s.step for s in m.checkpoints.good} for m in group if not m.diverged}
    if not any(steps.values()):
        return _stacked([train.first_state(m.config, m.warn, plugins) for m in group])
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


class PopulationLearning(PolicyLearning):
    """The policies of all members, in one program."""

    def __init__(self, configs: Sequence[TrainConfig], devices: Devices) -> None:
        super().__init__(configs[0], devices)
        self.configs = configs
        numbers = [config.to_learner().numbers() for config in configs]
        stacked = jax.tree.map(lambda *values: jnp.array(values, float), *numbers)
        self.numbers: Numbers = devices.deal(stacked)

    @cached_property
    def _heldout(self) -> Any:
        """Each on the instances that it would have alone."""
        of_seed = {config.seed: config for config in self.configs}
        sets = {seed: heldout_instances(config) for seed, config in of_seed.items()}
        return self.devices.deal(_stacked([sets[config.seed] for config in self.configs]))

    def lower(self, state: LearnerState) -> jax.stages.Lowered:
        return _update_all.lower(self.learner, self.numbers, state)

    def update(self, state: LearnerState) -> tuple[LearnerState, Metrics]:
        return _update_all(self.learner, self.numbers, state)

    def evaluate(self, state: LearnerState) -> list[float]:
        return [float(gap) for gap in _gaps(self.learner, state.params, *self._heldout)]

    def split(self, state: LearnerState) -> list[LearnerState]:
        whole = local_copy(state)
        return [_taken(whole, i) for i in range(len(self.configs))]

    def join(self, state: LearnerState, parts: Mapping[int, LearnerState]) -> LearnerState:
        own = enumerate(self.split(state))
        joined: LearnerState = self.devices.deal(_stacked([parts.get(i, x) for i, x in own]))
        return joined

    def explain(self, number: int, part: LearnerState) -> str:
        return nonfinite.explain(self.configs[number].to_learner(), local_copy(part))


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def _update_all(
    learner: Learner, traced: Numbers, states: LearnerState
) -> tuple[LearnerState, Metrics]:
    """One update of every member; leaves (members, ...)."""

    def one(own: Numbers, state: LearnerState) -> tuple[LearnerState, Metrics]:
        return updates.update(learner.with_numbers(own), state)

    return learner.devices.spread_members(jax.vmap(one))(traced, states)


@partial(jax.jit, static_argnums=0)
def _gaps(
    learner: Learner, params: Any, instances: Instance, best: Float[Array, "members instances"]
) -> Float[Array, "members"]:
    def of_one(params: Any, instances: Instance, best: Array) -> Array:
        return mean_gap(learner.policy(params), instances, best)

    return learner.devices.spread_members(jax.vmap(of_one))(params, instances, best)


def _stacked(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _taken(tree: Any, i: int) -> Any:
    """One member's share of leaves (members, ...)."""
    return jax.tree.map(lambda x: x[i], tree)
