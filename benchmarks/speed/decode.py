"""Policy decoding: plans per second, greedy and best of 64, with random parameters."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax

from benchmarks import inputs
from benchmarks.speed.timing import Case, Work
from offload_jax.env.environment import Snapshot
from offload_jax.learning.algorithm import Learner
from offload_jax.learning.algorithms.ppo import PPO
from offload_jax.learning.config import LearnerConfig
from offload_jax.policy.decoding import best_of
from offload_jax.policy.policy import Policy
from offload_jax.policy.transformer import Transformer
from offload_jax.problem.instance import Instance
from offload_jax.problem.scenario import EdgeScenario, PaperScenario, Scenario

ENV, NETWORK = Snapshot(), Transformer()


def cases(quick: bool) -> list[Case]:
    """Both scenarios with all users real, both decodings; the larger scenario where quick."""
    scenarios: dict[str, Scenario] = {
        "paper N=20": PaperScenario(num_users=(20,)),
        "edge N=24 M=6 G=3": EdgeScenario(num_users=(24,)),
    }
    decodings = {"greedy": 1, "best of 64": 64}
    if quick:
        scenarios.pop("paper N=20")
        decodings = {"greedy": 1, "best of 4": 4}
    return [
        Case(
            f"{name}, {decoding}, batch {batch}",
            "plans",
            partial(_prepare, scenario, samples, batch),
        )
        for name, scenario in scenarios.items()
        for decoding, samples in decodings.items()
        for batch in ((2,) if quick else (1, 64, 1024))
        if batch * samples <= 4096  # more would take minutes and be no faster per plan
    ]


def decode(samples: int, params: Any, instances: Instance, key: jax.Array) -> Any:
    """(assignment, gain in s) of each instance, batch last."""
    return best_of(Policy(params, NETWORK, ENV), instances, samples, key)


def _prepare(scenario: Scenario, samples: int, batch: int) -> Work:
    # The network works for any number of users and batches, so one scenario's serves all.
    learner = Learner(PaperScenario(), ENV, NETWORK, PPO(), LearnerConfig())
    params = inputs.fresh_state(learner).params
    arguments = [
        (params, instances, key)
        for instances, key in zip(inputs.batches(scenario, batch), inputs.keys(3), strict=True)
    ]
    return Work(partial(decode, samples), arguments, batch, partial(_notes, batch))


def _notes(batch: int, outputs: Sequence[Any], seconds: float) -> dict[str, float]:
    del outputs
    return {"ms_per_plan": 1e3 * seconds / batch}
