"""Settings of an update that every algorithm shares."""

from __future__ import annotations

from dataclasses import dataclass

from offload_jax.files.checks import Checks


@dataclass(frozen=True)
class LearnerConfig:
    """How much is collected in an update, and how the optimiser goes about it."""

    updates: int = 400
    instances: int = 128  # per update
    samples: int = 16  # trajectories of each instance
    epochs: int = 1  # passes over the samples of one update
    minibatches: int = 2  # optimiser steps per pass, splitting the instances
    lr: float = 1e-3  # learning rate of Adam, falls to 0 along a cosine
    max_grad_norm: float = 1.0  # global norm
    entropy: float = 0.01  # weight of the entropy bonus, falls to 0 linearly

    def validate(self) -> None:
        """Raises ValueError naming the field and the allowed values."""
        check = Checks(self, "learner")
        check.counts("updates", "instances", "samples", "epochs", "minibatches")
        if self.instances % self.minibatches:
            raise ValueError(
                f"learner.minibatches is {self.minibatches}; "
                f"must divide learner.instances ({self.instances})"
            )
        check.positive("lr", "max_grad_norm")
        check.not_negative("entropy")
