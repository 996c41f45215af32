"""Settings of the learner: what is static in its program, and what is traced."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, get_args

import optax
from flax import struct
from jaxtyping import Array, Float

from offload_jax.env.config import EnvConfig
from offload_jax.files.checks import Checks
from offload_jax.learning.devices import ONE_DEVICE, Devices
from offload_jax.policy.network import NetworkConfig
from offload_jax.policy.transformer import ActorCritic
from offload_jax.problem.scenario import Scenario

Baseline = Literal["shared", "critic"]
Objective = Literal["surrogate", "preference", "imitation", "layer"]
Labels = Literal["best-sample", "local-search"]


@struct.dataclass
class Hyperparameters:
    """The settings that may differ within a population: traced, while all others are static."""

    lr: Float[Array, ""] | float
    max_grad_norm: Float[Array, ""] | float
    clip: Float[Array, ""] | float
    entropy: Float[Array, ""] | float
    value: Float[Array, ""] | float
    gae_decay: Float[Array, ""] | float
    sharpness: Float[Array, ""] | float
    temperature: Float[Array, ""] | float


@dataclass(frozen=True)
class LearnerConfig:
    """Settings of the learner; those also in Hyperparameters are traced, the others static."""

    baseline: Baseline = "shared"  # shared: the other samples of the instance; critic: GAE
    # surrogate: PPO's; preference: best sample against the others; imitation: the best plan found;
    # layer: nothing but -V(p)
    objective: Objective = "surrogate"
    labels: Labels = "best-sample"  # what is imitated: that one, or a local search's plan from it
    paths: int = 4  # trajectories to the plan that is imitated
    layer: float = 0.0  # weight of -V(p): what the convex layer says the probabilities are worth
    updates: int = 400
    instances: int = 128  # per update
    samples: int = 16  # trajectories of each instance
    epochs: int = 1  # passes over the samples of one update
    minibatches: int = 2  # optimiser steps per pass, splitting the instances
    lr: float = 1e-3  # learning rate of Adam, falls to 0 along a cosine
    max_grad_norm: float = 1.0  # global norm
    clip: float = 0.2  # of PPO's probability ratio
    entropy: float = 0.01  # weight of the entropy bonus, falls to 0 linearly
    value: float = 0.5  # weight of the critic's error (critic baseline only)
    gae_decay: float = 1.0  # lambda of GAE (critic baseline only)
    temperature: float = 1.0  # of the samples that plans to imitate come from
    sharpness: float = 0.1  # of preferences, per nat of log-probability (preference only)

    def hyperparameters(self) -> Hyperparameters:
        """The traced settings."""
        return Hyperparameters(**{f.name: getattr(self, f.name) for f in fields(Hyperparameters)})

    def validate(self) -> None:
        """Raises ValueError naming the field and the allowed values."""
        check = Checks(self, "learner")
        check.one_of("baseline", get_args(Baseline))
        check.one_of("objective", get_args(Objective))
        check.one_of("labels", get_args(Labels))
        check.counts("updates", "instances", "samples", "paths", "epochs", "minibatches")
        if self.instances % self.minibatches:
            raise ValueError(
                f"learner.minibatches is {self.minibatches}; "
                f"must divide learner.instances ({self.instances})"
            )
        alone = self.baseline == "shared" and self.samples < 2
        needed = "at least 2 with learner.baseline shared, which compares samples"
        check.require(not alone, "samples", needed)
        both = self.objective != "surrogate" and self.baseline == "critic"
        check.require(not both, "objective", "surrogate with learner.baseline critic")
        useful = self.objective != "layer" or self.layer > 0
        check.require(useful, "layer", "above 0 with learner.objective layer")
        check.positive("lr", "max_grad_norm", "clip", "sharpness", "temperature")
        check.not_negative("entropy", "value", "layer")
        check.shares("gae_decay")


@dataclass(frozen=True)
class Learner:
    """What is static in training: hashable, so that `update` is traced once."""

    scenario: Scenario
    env: EnvConfig
    network: NetworkConfig
    config: LearnerConfig
    devices: Devices = ONE_DEVICE
    traced: Hyperparameters | None = None  # instead of the config's; only inside a trace

    @property
    def hyperparameters(self) -> Hyperparameters:
        return self.config.hyperparameters() if self.traced is None else self.traced

    def module(self) -> ActorCritic:
        return ActorCritic(self.network)

    def optimizer(self) -> optax.GradientTransformation:
        config, traced = self.config, self.hyperparameters
        steps = config.updates * config.epochs * config.minibatches
        rate = optax.cosine_decay_schedule(traced.lr, steps)
        return optax.chain(optax.clip_by_global_norm(traced.max_grad_norm), optax.adam(rate))
