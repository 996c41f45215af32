"""Every learning algorithm by name, one file each."""

from __future__ import annotations

from offload_jax.learning.algorithm import Algorithm
from offload_jax.learning.algorithms.layer import Layer
from offload_jax.learning.algorithms.ppo import PPO, PPOCritic
from offload_jax.learning.algorithms.preference import Preference
from offload_jax.learning.algorithms.self_labelling import SelfLabelling

ALGORITHMS: dict[str, type[Algorithm]] = {
    "ppo": PPO,
    "ppo-critic": PPOCritic,
    "self-labelling": SelfLabelling,
    "preference": Preference,
    "layer": Layer,
}
