"""The loss of collected decisions: the algorithm's own, and the entropy bonus."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from offload_jax.learning import likelihood
from offload_jax.learning.algorithm import Collected, Learner, Parts, Replay
from offload_jax.problem.contracts import Returned
from offload_jax.problem.instance import Instance


def loss(
    learner: Learner,
    params: Any,
    instances: Instance,
    collected: Collected,
    progress: Float[Array, ""],
) -> tuple[Float[Array, ""], Parts]:
    """Loss of collected decisions under new parameters; the second result holds its parts.

    Means over the decisions of all devices, of which this device contributes its own summands.
    """
    policy, decisions = learner.policy(params), collected.decisions
    encoding = policy.encode(instances)
    logits, values = policy.decode_steps(encoding, decisions.observation)
    real = decisions.real.astype(values.dtype)
    weight = real / jnp.maximum(learner.devices.sum(jnp.sum(real)), 1)
    replay = Replay(policy, instances, encoding, logits, values, weight)
    returned = Returned("Algorithm.loss", learner.algorithm)
    found = learner.algorithm.loss(learner, replay, collected)
    own, parts = returned.parts(found, "the loss", "its parts by name")
    for name, part in {"the loss": own, **parts}.items():
        returned.array(name, part)
    entropy = jnp.sum(per_decision(likelihood.entropy)(logits) * weight)
    total = own - learner.config.entropy * (1 - progress) * entropy
    return total, {"loss": total, "entropy": entropy, **parts}


def per_decision(f: Callable[..., Array]) -> Callable[..., Array]:
    """`f` of one decision, over the axes (steps, instances, samples)."""
    return jax.vmap(jax.vmap(jax.vmap(f)))


def mean_of_all(learner: Learner, each: Float[Array, "..."]) -> Float[Array, ""]:
    """This device's summand of the mean over all devices."""
    return jnp.sum(each) / learner.devices.sum(jnp.sum(jnp.ones_like(each)))
