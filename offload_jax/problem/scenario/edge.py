"""Several batches of several cluster-wide models on servers with budgets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from offload_jax.files.checks import Checks
from offload_jax.problem.instance import Instance, strong_types
from offload_jax.problem.scenario.sized import SizedScenario
from offload_jax.problem.types import Key

Range = tuple[float, float]


@dataclass(frozen=True)
class EdgeScenario(SizedScenario):
    """Several batches of several cluster-wide models on servers with budgets.

    The numbers: A100 batch steps of 10 + 18 b ms (Stable Diffusion 1.5), consumer GPUs to phones at
    0.05-0.8 s per step, accuracy that is flat and then falls in the share of steps run on a shared
    model, more steeply and lower for dissimilar prompts.
    """

    kind: Literal["edge"] = "edge"
    num_users: tuple[int, ...] = tuple(range(8, 25))  # N, each equally likely
    batches: int = 6  # M
    servers: int = 3  # G
    models: int = 3  # cluster-wide models, dealt to the batches in turn
    steps: int = 50  # T
    share: Range = (0.4, 1.0)  # part of an A100 that a server has for this
    step_slope: float = 0.018  # s per image of one step on a whole A100
    step_intercept: float = 0.010  # s per step on a whole A100
    budget: float = 3.0  # GPU-seconds per server and window, inf = no limit
    capacity_factor: float = 8.0  # images; a batch holds max(floor(factor u), 4), u as follows
    capacity_share: Range = (0.6, 1.0)
    demand: tuple[int, ...] = (1, 2, 4)  # images of a request
    demand_weights: tuple[float, ...] = (0.6, 0.25, 0.15)
    local_step: Range = (0.08, 0.8)  # s per step and image, log-uniform
    alpha: Range = (0.15, 0.6)  # worth of accuracy as a share of T l
    wait: Range = (0.0, 1.0)  # s
    payload: float = 1e6  # bit per image
    spectral_efficiency: Range = (3.0, 10.0)  # bit/s/Hz
    bandwidth: float = 100e6  # Hz
    similarity_home: Range = (0.4, 1.0)  # of a user's prompt to its home model
    similarity_other: Range = (0.0, 0.5)
    split_min_share: float = 0.3  # of T

    @property
    def num_batches(self) -> int:
        return self.batches

    def validate(self, path: str = "scenario") -> None:
        """Raises ValueError naming the field (below `path`), what is wrong and what is allowed."""
        check = Checks(self, path)
        check.tuples_of_counts("num_users", "demand")
        check.counts("batches", "servers", "models", "steps")
        check.positive("step_slope", "payload", "bandwidth", "capacity_factor")
        check.not_negative("step_intercept")
        for name in ("servers", "models"):  # none may be left without a batch
            fewer = getattr(self, name) <= self.batches
            check.require(fewer, name, f"at most batches ({self.batches})")
        check.require(self.budget >= 0, "budget", "at least 0 (GPU-seconds) or inf")
        check.shares("split_min_share")
        weights = self.demand_weights
        good = len(weights) == len(self.demand) and min(weights) >= 0 and sum(weights) > 0
        check.require(good, "demand_weights", f"{len(self.demand)} weights >= 0, not all 0")
        check.ranges("share", "local_step", "spectral_efficiency", positive=True)
        check.ranges("capacity_share", "alpha", "wait")
        check.ranges("similarity_home", "similarity_other", at_most=1.0)

    def sample(self, key: Key) -> Instance:
        """One instance, its users padded to `max_users`, in order of arrival.

        Raises ValueError for an impossible scenario.
        """
        self.validate()
        width, steps = self.max_users, float(self.steps)
        keys = iter(jax.random.split(key, 12))
        users, pairs = (width,), (width, self.models)
        num_users = jax.random.choice(next(keys), jnp.array(self.num_users))
        mask = jnp.arange(width) < num_users

        server = np.arange(self.batches) * self.servers // self.batches
        model = np.arange(self.batches) % self.models
        share = _uniform(next(keys), (self.servers,), self.share)[server]
        slope = self.step_slope / share
        together = jnp.array(server[:, None] == server[None, :])
        room = jnp.floor(
            self.capacity_factor * _uniform(next(keys), (self.batches,), self.capacity_share)
        )

        weights = np.array(self.demand_weights) / sum(self.demand_weights)
        demand = jax.random.choice(
            next(keys), jnp.array(self.demand, float), users, p=jnp.array(weights)
        )
        per_image = jnp.exp(_uniform(next(keys), users, tuple(np.log(self.local_step))))
        local_step = demand * per_image
        alpha = _uniform(next(keys), users, self.alpha) * steps * local_step
        wait = jnp.where(mask, _uniform(next(keys), users, self.wait), -1.0)

        home = jax.random.randint(next(keys), users, 0, self.models)
        at_home = home[:, None] == jnp.arange(self.models)
        near = _uniform(next(keys), pairs, self.similarity_home)
        far = _uniform(next(keys), pairs, self.similarity_other)
        similarity = jnp.where(at_home, near, far)[:, model]
        instance = Instance(
            steps=jnp.asarray(steps),
            bandwidth=jnp.asarray(self.bandwidth),
            local_step=local_step,
            alpha=jnp.where(mask, alpha, 0),
            wait=jnp.maximum(-jnp.sort(-wait), 0),
            demand=demand,
            payload=self.payload * demand,
            spectral_efficiency=_uniform(next(keys), users, self.spectral_efficiency),
            split_min=jnp.full(width, self.split_min_share * steps),
            accuracy_local=jnp.ones(width),
            accuracy_floor=0.05 + 0.5 * similarity,
            accuracy_slope=jnp.full((width, self.batches), 8.3 / steps),
            accuracy_centre=(0.62 - 0.28 * similarity) * steps,
            intercept=self.step_intercept / share,
            capacity=jnp.maximum(room, 4),
            server=jnp.array(server, jnp.int32),
            interference=jnp.where(together, slope[None, :], 0),
            budget=jnp.full(self.servers, self.budget),
            mask=mask,
        )
        return strong_types(instance)


def _uniform(key: Key, shape: tuple[int, ...], bounds: Range) -> Array:
    return jax.random.uniform(key, shape, minval=bounds[0], maxval=bounds[1])
