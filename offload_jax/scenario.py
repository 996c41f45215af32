"""Distributions of instances: frozen ranges with units, checked before anything is sampled.

`PaperScenario` is the single-batch scenario of arXiv 2411.15781 as its public reference
implementation fixes it. `EdgeScenario` has several batches, cluster-wide models and servers with
budgets; `MixtureScenario` draws from several of those. Sampling is pure, unbatched and jit-able:
`jax.vmap(scenario.sample)(keys)`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from offload_jax.checks import Checks
from offload_jax.instance import Instance, pad_users, strong_types
from offload_jax.types import Key

Range = tuple[float, float]

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
class PaperScenario:
    """One batch on one server without a budget (arXiv 2411.15781)."""

    kind: Literal["paper"] = "paper"
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
    def max_users(self) -> int:
        return max(self.num_users)

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

    def of_size(self, users: int) -> PaperScenario:
        """The same with N users in every instance."""
        return replace(self, num_users=(users,))

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


@dataclass(frozen=True)
class EdgeScenario:
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
    def max_users(self) -> int:
        return max(self.num_users)

    @property
    def num_batches(self) -> int:
        return self.batches

    def validate(self) -> None:
        """Raises ValueError naming the field, what is wrong and what is allowed."""
        check = Checks(self, "scenario")
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

    def hard_cells(self) -> list[str]:
        """All of them: batches compete in every cell."""
        return [f"N{n}" for n in self.num_users]

    def cells(self) -> dict[str, EdgeScenario]:
        """One scenario per number of users."""
        return {f"N{n}": self.of_size(n) for n in self.num_users}

    def of_size(self, users: int) -> EdgeScenario:
        """The same with N users in every instance."""
        return replace(self, num_users=(users,))

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


@dataclass(frozen=True)
class MixtureScenario:
    """Instances of several edge scenarios, each as likely as its weight says."""

    kind: Literal["mixture"] = "mixture"
    parts: tuple[EdgeScenario, ...] = (EdgeScenario(),)  # of the same batches and servers
    weights: tuple[float, ...] = ()  # one for each part; default: all the same

    @property
    def num_users(self) -> tuple[int, ...]:
        return tuple(sorted({n for part in self.parts for n in part.num_users}))

    @property
    def max_users(self) -> int:
        return max(self.num_users)

    @property
    def num_batches(self) -> int:
        return self.parts[0].num_batches

    def validate(self) -> None:
        """Raises ValueError naming the field, what is wrong and what is allowed."""
        check, first = Checks(self, "scenario"), self.parts[:1]
        check.require(bool(first), "parts", "at least one edge scenario")
        for part in self.parts:
            part.validate()
            for name in ("batches", "servers"):
                Checks(part, "scenario.parts").require(
                    getattr(part, name) == getattr(first[0], name),
                    name,
                    f"the same in all parts ({getattr(first[0], name)})",
                )
        good = len(self.weights) == len(self.parts) and min(self.weights, default=0) >= 0
        good = not self.weights or (good and sum(self.weights) > 0)
        check.require(good, "weights", f"{len(self.parts)} weights >= 0, not all 0, or none")

    def hard_cells(self) -> list[str]:
        """All of them, as for edge scenarios."""
        return list(self.cells())

    def cells(self) -> dict[str, EdgeScenario]:
        """One scenario per part."""
        return {f"part {i + 1}": part for i, part in enumerate(self.parts)}

    def of_size(self, users: int) -> MixtureScenario:
        """The same with N users in every instance."""
        return replace(self, parts=tuple(part.of_size(users) for part in self.parts))

    def sample(self, key: Key) -> Instance:
        """One instance, its users padded to the largest part's, in order of arrival.

        Raises ValueError for an impossible scenario.
        """
        self.validate()
        which, key = jax.random.split(key)
        weights = np.array(self.weights or [1.0] * len(self.parts))
        part = jax.random.choice(which, len(self.parts), p=jnp.array(weights / weights.sum()))

        def sampler(scenario: EdgeScenario) -> Callable[[Key], Instance]:
            return lambda key: pad_users(scenario.sample(key), self.max_users)

        return jax.lax.switch(part, [sampler(one) for one in self.parts], key)


Scenario = PaperScenario | EdgeScenario | MixtureScenario

SCENARIOS = {"paper": PaperScenario, "edge": EdgeScenario, "mixture": MixtureScenario}  # by kind

PRESETS: dict[str, Scenario] = {
    "paper": PaperScenario(),
    "edge": EdgeScenario(),
    "edge_large": EdgeScenario(num_users=tuple(range(50, 101)), batches=16, servers=8, models=4),
}


def from_settings(settings: Mapping[str, Any]) -> Scenario:
    """The scenario of which `dataclasses.asdict` (or its JSON) gave these settings."""
    tuples = {k: tuple(v) if isinstance(v, list | tuple) else v for k, v in settings.items()}
    if "parts" in tuples:
        tuples["parts"] = tuple(from_settings(part) for part in tuples["parts"])
    return SCENARIOS[settings["kind"]](**tuples)


def sample(scenario: Scenario, key: Key) -> Instance:
    """One instance of a scenario; unbatched and pure, `jax.vmap` over keys for many."""
    return scenario.sample(key)


def _uniform(key: Key, shape: tuple[int, ...], bounds: Range) -> Array:
    return jax.random.uniform(key, shape, minval=bounds[0], maxval=bounds[1])
