"""The training loop: updates, rows of metrics, evaluations and checkpoints, until told to stop."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from offload_jax import learner as learning
from offload_jax import model, processes
from offload_jax.checkpoint import Checkpoints
from offload_jax.config import TrainConfig
from offload_jax.env import EnvConfig
from offload_jax.evaluation import validation_set
from offload_jax.instance import Instance
from offload_jax.learner import Learner, LearnerState, Metrics
from offload_jax.mesh import ONE_DEVICE, Devices, memory_mb
from offload_jax.networks import NetworkConfig
from offload_jax.policies import Policy, greedy_plan
from offload_jax.tracking import MetricsFile, Mirror

Row = dict[str, float]
Callback = Callable[[Row], None]
VALIDATION = 1  # the branch of the seed that evaluations draw from: never what training saw


class RunError(RuntimeError):
    """A run that cannot go on; its directory is as good as before, and the message says more."""


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def _update(learner: Learner, state: LearnerState) -> tuple[LearnerState, Metrics]:
    return learning.update(learner, state)


def loop(
    config: TrainConfig,
    state: LearnerState,
    checkpoints: Checkpoints,
    report: Reporter,
    stop: threading.Event,
    devices: Devices = ONE_DEVICE,
) -> LearnerState:
    """Updates until all are made or `stop` is set, with rows, evaluations and checkpoints.

    In several processes, `stop` in one of them stops all after the same update.
    """
    learner, every, updates = config.to_learner(devices), config.run, config.learner.updates
    validation_gap = validation(config, devices)
    decisions = config.learner.instances * config.learner.samples * config.scenario.max_users
    step, pending, since = int(state.step), [], time.perf_counter()
    while step < updates and not processes.any_of_all(stop.is_set()):
        state, metrics = _update(learner, state)
        pending.append(metrics)
        step += 1
        last = step == updates
        if step % every.log_every and step % every.eval_every and not last:
            continue
        row = _finite_mean(pending, step)
        seconds = time.perf_counter() - since
        row |= {
            "step": step,
            "seconds": seconds,
            "decisions_per_s": decisions * len(pending) / seconds,
        }
        # The first row too: it shows where learning starts.
        if step % every.eval_every == 0 or last or step == every.log_every:
            row["gap"] = validation_gap(state.params)
        report.write(row)
        if "gap" in row:  # after the row: a checkpoint on disk means that its rows are, too
            checkpoints.save(state, row["gap"])
        report.tell(row)
        pending, since = [], time.perf_counter()
    if processes.any_of_all(stop.is_set()):
        if pending:
            _finite_mean(pending, step)
        checkpoints.save(state)
    return state


def prepare(learner: Learner, state: LearnerState) -> dict[str, Any]:
    """Compiles the update; says what it runs on and what it needs."""
    return needs_of(_update.lower(learner, state), learner.devices)


def needs_of(program: jax.stages.Lowered, devices: Devices) -> dict[str, Any]:
    """Compiles a program; what it runs on and needs, for run.json and the first line of a run."""
    memory = memory_mb(program.compile())
    processes.any_of_all(False)  # compiling takes some longer, and a first collective waits 30 s
    return {
        "devices": devices.count,
        "processes": jax.process_count(),
        "memory_mb_per_device": memory,
    }


def describe_needs(needs: dict[str, Any]) -> str:
    """The first line of a run."""
    devices, found = needs["devices"], needs["processes"]
    memory = needs["memory_mb_per_device"]
    text = f"{devices} device{'s' * (devices > 1)} ({jax.devices()[0].device_kind})"
    text += f" in {found} processes" if found > 1 else ""
    return text + (f"; an update needs {memory:,.1f} MB on each" if memory is not None else "")


def validation(config: TrainConfig, devices: Devices) -> Callable[[Any], float]:
    """The mean gap of the greedy policy on fixed instances, as a function of its parameters."""
    instances, best = validation_instances(config)
    if config.run.eval_instances % devices.count:
        devices = ONE_DEVICE  # every device evaluates all of them
    network, env = config.network, config.to_env()
    return lambda params: float(_spread_gap(network, env, devices, params, instances, best))


def validation_instances(config: TrainConfig) -> tuple[Instance, Float[Array, "instances"]]:
    """The run's own, the same at every evaluation, and their reference gains (s)."""
    key = jax.random.fold_in(jax.random.key(config.seed), VALIDATION)
    return validation_set(config.scenario, config.run.eval_instances, key, config.splits)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _spread_gap(
    network: NetworkConfig,
    env: EnvConfig,
    devices: Devices,
    params: Any,
    instances: Instance,
    best: Float[Array, "instances"],
) -> Float[Array, ""]:
    def gap(params: Any, instances: Instance, best: Array) -> Array:
        own = devices.mine((instances, best), axis=-1)
        return devices.mean(mean_gap(network, env, params, *own))

    return devices.spread(gap)(params, instances, best)


def mean_gap(
    network: NetworkConfig,
    env: EnvConfig,
    params: Any,
    instances: Instance,
    best: Float[Array, "instances"],
) -> Float[Array, ""]:
    """The greedy policy's mean gap to the gains `best`."""
    return jnp.mean(model.gap(best, greedy_plan(Policy(params, network, env), instances)[1]))


def _finite_mean(metrics: list[Metrics], step: int) -> Row:
    """The mean of some updates' metrics. Raises RunError rather than keep what has diverged."""
    rows = jax.device_get(metrics)
    row = {f.name: float(np.mean([getattr(row, f.name) for row in rows])) for f in fields(Metrics)}
    for name, value in row.items():
        if not np.isfinite(value):
            raise RunError(
                f"training diverged before update {step}: {name} is {value}. Its checkpoints "
                "remain; start a new run with a lower learner.lr or learner.max_grad_norm."
            )
    return row


class Reporter:
    """Puts each row into the file first, then tells the mirror and the callbacks."""

    def __init__(
        self, metrics: MetricsFile | None, mirror: Mirror, callbacks: Sequence[Callback]
    ) -> None:
        """Without a file, as in every process but the first one, rows go nowhere."""
        self.metrics, self.mirror, self.callbacks = metrics, mirror, callbacks

    def write(self, row: Row) -> None:
        """Returns when the row is on disk; raises RunError where that fails."""
        if self.metrics is None:
            return
        try:
            self.metrics.append(row)
        except OSError as error:
            raise RunError(
                f"{self.metrics.path} cannot be written: {error.strerror}. Nothing before update "
                f"{row['step']} is lost: mend that and go on with the run."
            ) from None

    def tell(self, row: Row) -> None:
        self.mirror.log(row)
        for callback in self.callbacks:
            callback(row)


@contextmanager
def stop_requests() -> Iterator[threading.Event]:
    """An event set by Ctrl-C or SIGTERM; the handlers before are back afterwards."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may handle signals
        return

    def request(number: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        # Compiling goes on for some seconds. Not print: a handler may run in the middle of one.
        os.write(2, b"\nstopping after this update; once more to stop at once\n")

    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
