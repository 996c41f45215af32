"""Policy decoding: plans per second, greedy and best of 64, with random parameters."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax

from benchmarks.timing import VARIANTS, Case, Work
from offload_jax import learner as learning
from offload_jax.env import EnvConfig
from offload_jax.instance import Instance
from offload_jax.learner import Learner, LearnerConfig
from offload_jax.networks import NetworkConfig
from offload_jax.policies import Policy, best_of
from offload_jax.scenario import EdgeScenario, PaperScenario, Scenario

ENV, NETWORK = EnvConfig(), NetworkConfig()


def cases(quick: bool) -> list[Case]:
    """Both scenarios with all users real, both decodings."""
    scenarios: dict[str, Scenario] = {
        "paper N=20": PaperScenario(num_users=(20,)),
        "edge N=24 M=6 G=3": EdgeScenario(num_users=(24,)),
    }
    decodings = {"greedy": 1, "best of 4": 4} if quick else {"greedy": 1, "best of 64": 64}
    return [
        Case(
            f"{name}, {decoding}, batch {batch}",
            "plans",
            partial(_prepare, scenario, samples, batch),
        )
        for name, scenario in scenarios.items()
        for decoding, samples in decodings.items()
        for batch in ((2,) if quick else (1, 64, 1024))
    ]


def decode(samples: int, params: Any, instances: Instance, key: jax.Array) -> Any:
    """(assignment, gain in s) of each instance, batch last."""
    return best_of(Policy(params, NETWORK, ENV), instances, samples, key)


def _prepare(scenario: Scenario, samples: int, batch: int) -> Work:
    learner = Learner(scenario, ENV, NETWORK, LearnerConfig())
    params = jax.jit(partial(learning.init, learner))(jax.random.key(0)).params
    sample = jax.jit(partial(learning.sample_instances, scenario, count=batch))
    keys = jax.random.split(jax.random.key(1), 2 * VARIANTS).reshape(VARIANTS, 2)
    inputs = [(params, sample(instance_key), draw_key) for instance_key, draw_key in keys]
    return Work(partial(decode, samples), inputs, batch)
