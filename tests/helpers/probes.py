"""Small problems with a known best plan, as a scenario to learn on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from offload_jax.problem.instance import Instance, stack, toy
from offload_jax.problem.scenario import EdgeScenario

# 1: the toy. 2: granting the first user fills the only batch that the second, better one fits in.
# 3: the same with a poor second user, so the first should be granted.
OPTIMA = ((1, 2, 0), (0, 1, 0), (1, 0, 0))
GAINS = (8.0, 5.6, 3.2)  # of the optima, s


def trap(second: float) -> Instance:
    """Two images of room in batch 1, none in batch 2; users 0 and 1 of 2 images, user 2 hopeless.

    A granted user gains 8 (l - s) with s = 0.3: 3.2 s for user 0 (l = 0.7), and
    8 (second - 0.3) for user 1.
    """
    instance, _, _ = toy()
    return replace(
        instance,
        local_step=jnp.array([0.7, second, 0.15]),
        demand=jnp.array([2.0, 2.0, 1.0]),
        capacity=jnp.array([2.0, 0.5]),
        wait=jnp.array([0.3, 0.2, 0.1]),
    )


def probes() -> Instance:
    """The three problems, the batch last."""
    with jax.ensure_compile_time_eval():  # also while a program is traced that samples them
        first, _, _ = toy()
        first = replace(first, wait=jnp.array([0.3, 0.2, 0.1]))
        return stack([first, trap(second=1.0), trap(second=0.4)])


@dataclass(frozen=True)
class ProbeScenario(EdgeScenario):
    """One of the probes, each equally likely: the best action depends on what is seen."""

    num_users: tuple[int, ...] = (3,)
    batches: int = 2
    servers: int = 1

    def sample(self, key) -> Instance:
        kind = jax.random.randint(key, (), 0, len(OPTIMA))
        return jax.tree.map(lambda x: x[..., kind], probes())
