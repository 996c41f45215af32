"""Whole episodes under random legal actions: decisions per second of the environment alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import inputs
from benchmarks.speed.timing import Case, Work
from offload_jax.env.config import EnvConfig
from offload_jax.env.state import State, action_mask
from offload_jax.env.step import reset, step
from offload_jax.problem.instance import Instance
from offload_jax.problem.scenario import EdgeScenario, PaperScenario, Scenario

ENV = EnvConfig(order="arrival", reward="dense")


def cases(quick: bool) -> list[Case]:
    """Both scenarios with all users real; the target is the single-batch scenario's."""
    scenarios: dict[str, tuple[Scenario, float | None]] = {
        "paper N=20": (PaperScenario(num_users=(20,)), 2e6),
        "edge N=24 M=6 G=3": (EdgeScenario(num_users=(24,)), None),
    }
    return [
        Case(f"{name}, batch {batch}", "decisions", partial(_prepare, scenario, batch), target)
        for name, (scenario, target) in scenarios.items()
        for batch in ((8,) if quick else (512, 2048, 8192))
    ]


def play(instances: Instance, key: jax.Array) -> tuple[State, jax.Array]:
    """One episode of each instance (batch last): the final state and all rewards."""
    batch = instances.steps.shape

    def decide(state: State, key: jax.Array) -> tuple[State, jax.Array]:
        legal = action_mask(instances, state, ENV).astype(jnp.float32)
        # Inverse CDF: one uniform per decision. An illegal action has no width, so none is drawn.
        upto = jnp.cumsum(legal, axis=0)
        draw = jax.random.uniform(key, batch) * upto[-1]
        action = jnp.sum(upto <= draw, axis=0, dtype=jnp.int32)
        return step(instances, state, action, ENV)

    return jax.lax.scan(decide, reset(instances, ENV), jax.random.split(key, instances.num_users))


def _prepare(scenario: Scenario, batch: int) -> Work:
    arguments = list(zip(inputs.batches(scenario, batch), inputs.keys(1), strict=True))
    return Work(play, arguments, batch * scenario.max_users, _notes)


def _notes(outputs: Sequence[Any], seconds: float) -> dict[str, float]:
    del seconds
    granted = [jnp.mean(final.assignment > 0) for final, _ in outputs]
    return {"granted_share": float(jnp.mean(jnp.stack(granted)))}
