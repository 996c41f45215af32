"""A campus: laptops on one GPU with two batches, and no limit on GPU time."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from offload_jax.files.checks import Checks
from offload_jax.problem.instance import Instance, strong_types
from offload_jax.problem.scenario import SizedScenario

BATCHES, STEPS = 2, 20


@dataclass(frozen=True)
class Campus(SizedScenario):
    """Users differ in the speed of their laptops and in what accuracy is worth to them."""

    num_users: tuple[int, ...] = (4, 6)  # N, each equally likely
    local_step: tuple[float, float] = (0.1, 0.6)  # s per step, from the fastest to the slowest
    worth: tuple[float, float] = (1.0, 5.0)  # s per unit of accuracy

    def validate(self) -> None:
        check = Checks(self, "scenario")
        check.tuples_of_counts("num_users")
        check.ranges("local_step", "worth", positive=True)

    def sample(self, key: jax.Array) -> Instance:
        users = (self.max_users,)  # the last of them are padding
        pairs = (self.max_users, BATCHES)
        keys = jax.random.split(key, 3)
        count = jax.random.choice(keys[0], jnp.array(self.num_users))
        low, high = self.local_step
        slow = jax.random.uniform(keys[1], users, minval=low, maxval=high)
        low, high = self.worth
        alpha = jax.random.uniform(keys[2], users, minval=low, maxval=high)
        instance = Instance(
            steps=jnp.asarray(float(STEPS)),
            bandwidth=jnp.asarray(1e8),  # Hz
            local_step=slow,
            alpha=alpha,
            wait=jnp.zeros(users),
            demand=jnp.ones(users),  # images
            payload=jnp.full(users, 1e6),  # bit
            spectral_efficiency=jnp.full(users, 5.0),  # bit/s/Hz
            split_min=jnp.full(users, 5.0),  # steps
            accuracy_local=jnp.ones(users),
            accuracy_floor=jnp.full(pairs, 0.2),
            accuracy_slope=jnp.full(pairs, 0.4),  # 1/step
            accuracy_centre=jnp.full(pairs, 8.0),  # steps
            intercept=jnp.full(BATCHES, 0.01),  # s per step
            capacity=jnp.full(BATCHES, 3.0),  # images
            server=jnp.zeros(BATCHES, jnp.int32),  # both on server 0
            interference=jnp.full((BATCHES, BATCHES), 0.02),  # s per step and image
            budget=jnp.full(1, jnp.inf),  # GPU-seconds of each server
            mask=jnp.arange(self.max_users) < count,
        )
        return strong_types(instance)
