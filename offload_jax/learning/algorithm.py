"""What an algorithm is: what it collects in an update, and the loss of that.

Inside an update arrays have this device's share of the instances; on one device that is all.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Float, Int

from offload_jax.env.environment import Environment
from offload_jax.learning.config import LearnerConfig
from offload_jax.learning.devices import ONE_DEVICE, Devices
from offload_jax.policy.network import Network
from offload_jax.policy.policy import Policy
from offload_jax.policy.rollout import Transition
from offload_jax.problem.instance import Instance
from offload_jax.problem.scenario import Scenario
from offload_jax.problem.types import Key, Scalar

Parts = dict[str, Float[Array, ""]]  # of a loss, by the name of their metric


@struct.dataclass
class Collected:
    """What an update has collected; instances are on axis 1 of what is learned from."""

    gain: Float[Array, "instances samples"]  # U - U_deny of the sampled plans, s
    decisions: Transition  # whose likelihood is looked at again
    targets: Any = None  # what the algorithm needs besides, leaves (steps, instances, samples)

    def taken(self, chosen: Int[Array, "part"]) -> Collected:
        """Those of some instances."""
        return Collected(
            gain=self.gain[chosen],
            decisions=_taken(self.decisions, chosen),
            targets=_taken(self.targets, chosen),
        )


@struct.dataclass
class Replay:
    """The collected decisions under the parameters that are being updated."""

    policy: Policy
    instances: Instance
    encoding: Any  # of the network
    logits: Float[Array, "steps instances samples actions"]
    values: Float[Array, "steps instances samples"]
    weight: Float[Array, "steps instances samples"]  # makes means over all devices' real decisions


@runtime_checkable
class Algorithm(Protocol):
    """A frozen record of an algorithm's own settings.

    Its floats may differ between the members of a population: they are traced there.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def validate(self, learner: Learner) -> None:
        """Raises ValueError naming the field (of `algorithm` or `learner`) and what is allowed."""

    def collect(self, learner: Learner, policy: Policy, instances: Instance, key: Key) -> Collected:
        """Plays `learner.config.samples` trajectories of each instance, and picks what teaches."""

    def loss(self, learner: Learner, replay: Replay, collected: Collected) -> tuple[Scalar, Parts]:
        """What the policy is pulled towards, and parts of it to report.

        Means over all devices, of which this device contributes its own summands.
        """


@dataclass(frozen=True)
class Learner:
    """What is static in training: hashable, so that `update` is traced once."""

    scenario: Scenario
    env: Environment
    network: Network
    algorithm: Algorithm
    config: LearnerConfig
    devices: Devices = ONE_DEVICE

    def policy(self, params: Any) -> Policy:
        """The policy of some parameters."""
        return Policy(params, self.network, self.env)

    def optimizer(self) -> optax.GradientTransformation:
        config = self.config
        steps = config.updates * config.epochs * config.minibatches
        rate = optax.cosine_decay_schedule(config.lr, steps)
        return optax.chain(optax.clip_by_global_norm(config.max_grad_norm), optax.adam(rate))

    def numbers(self) -> dict[str, float]:
        """The settings that may differ within a population: all floats, by `section.name`."""
        sections = {"learner": self.config, "algorithm": self.algorithm}
        return {
            f"{section}.{field.name}": getattr(record, field.name)
            for section, record in sections.items()
            for field in fields(record)  # type: ignore[arg-type]
            if isinstance(getattr(record, field.name), float)
        }

    def with_numbers(self, numbers: Mapping[str, Any]) -> Learner:
        """With other values of `numbers`, traced ones too: then it can be hashed no more."""

        def of(section: str) -> dict[str, Any]:
            return {k.partition(".")[2]: v for k, v in numbers.items() if k.startswith(section)}

        changed: Learner = _with(
            self,
            {
                "config": _with(self.config, of("learner.")),
                "algorithm": _with(self.algorithm, of("algorithm.")),
                "devices": ONE_DEVICE,
            },
        )
        return changed


def _with(record: Any, values: Mapping[str, Any]) -> Any:
    """A copy with other values, which may be traced: not for `replace`, which checks fields."""
    made = copy(record)
    for name, value in values.items():
        object.__setattr__(made, name, value)
    return made


def _taken(tree: Any, chosen: Int[Array, "part"]) -> Any:
    return jax.tree.map(lambda x: jnp.take(x, chosen, axis=1), tree)
