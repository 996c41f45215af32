"""A learner whose updates assert that their numbers are good ones (`--run.checks`).

For programs under `chex.chexify`. What is learned, and what a state holds, stays the same.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float

from offload_jax.env.checked import Checked
from offload_jax.learning.algorithm import Learner
from offload_jax.policy.policy import Policy
from offload_jax.problem.assertions import require, require_finite, require_finite_tree


@struct.dataclass
class CheckedPolicy(Policy):
    """A policy whose legal logits, and values, are finite."""

    def decode(
        self, encoding: Any, observation: Any
    ) -> tuple[Float[Array, "instances samples actions"], Float[Array, "instances samples"]]:
        found = super().decode(encoding, observation)
        _require_decoded(found, observation.mask, ("instance", "sample"))
        return found

    def decode_steps(
        self, encoding: Any, observation: Any
    ) -> tuple[
        Float[Array, "steps instances samples actions"], Float[Array, "steps instances samples"]
    ]:
        plain = super().decode
        found: Any = jax.vmap(lambda seen: plain(encoding, seen))(observation)
        _require_decoded(found, observation.mask, ("step", "instance of a minibatch", "sample"))
        return found


@dataclass(frozen=True)
class CheckedLearner(Learner):
    """A learner whose environment, policy and gradients are watched."""

    def policy(self, params: Any) -> Policy:
        env = Checked(self.env, self.config.instances)
        return CheckedPolicy(params, self.network, env)

    def optimizer(self) -> optax.GradientTransformation:
        plain = super().optimizer()

        def update(gradient: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
            require_finite_tree(gradient, "gradient")
            return plain.update(gradient, state, params)

        return optax.GradientTransformation(plain.init, update)


def watched(learner: Learner) -> CheckedLearner:
    """The same learner, watched."""
    return CheckedLearner(**{part.name: getattr(learner, part.name) for part in fields(learner)})


def _require_decoded(found: tuple[Array, Array], mask: Array, axes: tuple[str, ...]) -> None:
    logits, value = found
    good = jnp.where(mask, jnp.isfinite(logits), jnp.isneginf(logits))
    must = "finite where the action is legal, and -inf where it is not"
    require(good, logits, "logits", (*axes, "action"), must)
    require_finite(value, "value", axes)
