"""The single-batch scenario of arXiv 2411.15781 as its public reference implementation fixes it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from offload_jax.files.checks import Checks
from offload_jax.problem.instance import Instance, strong_types
from offload_jax.problem.scenario.sized import SizedScenario
from offload_jax.problem.types import Key

# Device profile published with the reference implementation: GPU classes, best to worst, as
# (slope, intercept) in ms of one denoising step: a batch of b images takes slope * b + intercept.
DEVICE_PROFILE_MS = (
    (36.4604372881356, 13.766662146892603),
    (54.34808898305086, 21.377998305084585),
    (81.97367231638422, -8.380968361582118),
    (103.89720254237291, 15.591554237287905),
    (121.23045677966103, -1.084722033898572),
    (195.74602499999997, -67.00936666666654),
    (203.05215593220345, 3.775793220338527),
    (240.7149, 29.257100000000005),
    (174.45748305084751, 65.11335508474541),
    (281.0391983050848, 14.823680508473668),
    (344.0870694915255, -38.256000847458374),
)


@dataclass(frozen=True)
class PaperScenario(SizedScenario):
    """One batch on one server without a budget (arXiv 2411.15781)."""

    kind: Literal["paper"] = "paper"
    reference: ClassVar[str] = "top-b"  # method that training measures its gap against
    num_users: tuple[int, ...] = (4, 8, 12, 16, 20)  # N, each equally likely
    edge_gpus: tuple[int, ...] = (4, 8, 12, 16)  # E, each equally likely; divides edge step times
    steps: int = 200  # T
    split_min: int = 80  # steps
    capacity: int = 18  # images
    accuracy_slope: float = 0.0413  # a, 1/step
    accuracy_centre: float = 71.44  # b, steps
    payload: float = 4.4e6 + 216  # bit, latent down and prompt up
    spectral_efficiency: float = 10.0  # bit/s/Hz
    bandwidth: float = 100e6  # Hz
    window: float = 1.0  # s, over which requests arrive before the batch starts

    @property
    def num_batches(self) -> int:
        return 1

    def validate(self) -> None:
        """Raises ValueError naming the field, what is wrong and what is allowed."""
        check = Checks(self, "scenario")
        check.tuples_of_counts("num_users", "edge_gpus")
        check.counts("steps", "capacity")
        check.positive("accuracy_slope", "payload", "spectral_efficiency", "bandwidth")
        check.not_negative("window")
        good = 0 <= self.split_min <= self.steps
        check.require(good, "split_min", f"0..{self.steps} (steps)")
        good = -np.inf < self.accuracy_centre < self.steps
        check.require(good, "accuracy_centre", f"finite and below steps ({self.steps})")

    def hard_cells(self) -> list[str]:
        """Cells with few edge GPUs for many users.

        The others are easy, but for those with more users than places in the batch.
        """
        return [f"N{n}-E{e}" for n in self.num_users for e in self.edge_gpus if n >= 12 and e <= 8]

    def cells(self) -> dict[str, PaperScenario]:
        """One scenario per (N, E), padded like the others only in its own N."""
        return {
            f"N{n}-E{e}": replace(self.of_size(n), edge_gpus=(e,))
            for n in self.num_users
            for e in self.edge_gpus
        }

    def sample(self, key: Key) -> Instance:
        """One instance, its users padded to `max_users`, in order of arrival.

        Raises ValueError for an impossible scenario.
        """
        self.validate()
        width, steps = self.max_users, float(self.steps)
        keys = jax.random.split(key, 5)
        num_users = jax.random.choice(keys[0], jnp.array(self.num_users))
        gpus = jax.random.choice(keys[1], jnp.array(self.edge_gpus)).astype(float)
        mask = jnp.arange(width) < num_users

        profile = jnp.array(DEVICE_PROFILE_MS) / 1e3
        edge_slope, edge_intercept = profile[0] / gpus
        # Classes from rows 3..10, weights rising linearly from 1 to 2; the best devices come first.
        weights = np.linspace(1.0, 2.0, len(DEVICE_PROFILE_MS) - 3)
        ladder = jnp.array(np.cumsum(weights / weights.sum())[:-1])
        classes = 3 + jnp.sum(jax.random.uniform(keys[2], (width, 1)) > ladder, axis=1)
        classes = jnp.sort(jnp.where(mask, classes, len(DEVICE_PROFILE_MS)))
        classes = jnp.minimum(classes, len(DEVICE_PROFILE_MS) - 1)
        local_step = jnp.sum(profile[classes], axis=1)

        arrival = jnp.sort(jnp.where(mask, jax.random.uniform(keys[3], (width,)), 1.0))
        low = jnp.maximum((local_step - 20 * edge_slope - edge_intercept) / 0.01, 0)
        high = 0.05 * jnp.maximum((local_step - edge_slope - edge_intercept) / 0.0002, 0)
        alpha = low + (high - low) * jax.random.uniform(keys[4], (width,))

        centre = self.accuracy_centre
        accuracy_local = jax.nn.sigmoid(self.accuracy_slope * (steps - centre))
        instance = Instance(
            steps=jnp.asarray(steps),
            bandwidth=jnp.asarray(self.bandwidth),
            local_step=local_step,
            alpha=jnp.where(mask, alpha, 0),
            wait=jnp.where(mask, self.window * (1 - arrival), 0),
            demand=jnp.ones(width),
            payload=jnp.full(width, self.payload),
            spectral_efficiency=jnp.full(width, self.spectral_efficiency),
            split_min=jnp.full(width, float(self.split_min)),
            accuracy_local=jnp.full(width, accuracy_local),
            accuracy_floor=jnp.zeros((width, 1)),
            accuracy_slope=jnp.full((width, 1), self.accuracy_slope),
            accuracy_centre=jnp.full((width, 1), centre),
            intercept=edge_intercept[None],
            capacity=jnp.full(1, float(self.capacity)),
            server=jnp.zeros(1, jnp.int32),
            interference=edge_slope[None, None],
            budget=jnp.full(1, jnp.inf),
            mask=mask,
        )
        return strong_types(instance)
