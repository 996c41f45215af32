"""One update of the learner: collecting, advantages and optimiser steps together."""

from __future__ import annotations

import resource
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax

from benchmarks import inputs
from benchmarks.speed.timing import Case, Work
from offload_jax.env.config import EpisodeConfig, Order
from offload_jax.learning import updates
from offload_jax.learning.algorithm import Learner
from offload_jax.learning.algorithms.ppo import PPO
from offload_jax.runs.config_file import load_config
from offload_jax.runs.train import settings_of


def cases(quick: bool) -> list[Case]:
    """The shipped configurations, the small one first: peak memory never falls."""
    learners = {name: load_config(name).to_learner() for name in ("smoke", "paper")}
    if quick:
        tiny = replace(learners["smoke"].config, instances=4, samples=2)
        learners = {"smoke": replace(learners["smoke"], config=tiny)}
    else:
        learners |= {f"edge N=24, {order}": _edge(order) for order in ("arrival", "adaptive")}
    return [
        Case(
            f"{name}, {learner.config.instances} instances x {learner.config.samples} samples",
            "trajectories",
            partial(_prepare, learner),
        )
        for name, learner in learners.items()
    ]


def _edge(order: Order) -> Learner:
    """PPO with the shipped network on edge at its largest; 16 candidates in adaptive order."""
    config = load_config("edge")
    env = EpisodeConfig(order, candidates=16 if order == "adaptive" else 0)
    size = replace(config.learner, instances=32, samples=16)
    network, scenario = settings_of("edge").network, config.scenario.of_size(24)
    config = replace(config, env=env, algorithm=PPO(), learner=size)
    return replace(config, network=network, scenario=scenario).to_learner()


def _prepare(learner: Learner) -> Work:
    state = inputs.fresh_state(learner)
    trajectories = learner.config.instances * learner.config.samples
    update = partial(updates.update, learner)
    decisions = trajectories * statistics.mean(learner.scenario.num_users)  # padding is none
    return Work(update, [(state,)], trajectories, partial(_notes, decisions))


def _notes(decisions: float, outputs: Sequence[Any], seconds: float) -> dict[str, float]:
    """Decisions, and the process's high-water mark, so far, in memory of host and device."""
    del outputs
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage counts bytes there, KiB elsewhere
    notes = {
        "decisions_per_s": decisions / seconds,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6,
    }
    on_device = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in on_device:
        notes["device_peak_mb"] = on_device["peak_bytes_in_use"] / 1e6
    return notes
