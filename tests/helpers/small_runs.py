"""Settings of runs that take seconds."""

from __future__ import annotations

from offload_jax.learning.config import LearnerConfig
from offload_jax.policy.transformer import Transformer
from offload_jax.problem.scenario import PaperScenario
from offload_jax.runs.config import RunConfig, TrainConfig
from offload_jax.runs.tracking.metrics import TrackingConfig


def tiny(updates: int, wandb: str = "off") -> TrainConfig:
    return TrainConfig(
        scenario=PaperScenario(num_users=(4,)),
        network=Transformer(width=16, layers=1, heads=2),
        learner=LearnerConfig(updates=updates, instances=8, samples=4),
        run=RunConfig(log_every=1, eval_every=2, eval_instances=16),
        tracking=TrackingConfig(wandb=wandb),
    )
