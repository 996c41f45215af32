"""What learning, decoding and evaluation see of a decision process, and every process by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

from flax import struct
from jaxtyping import Array, Bool, Float, Int

from offload_jax.env.config import EnvConfig, EpisodeConfig
from offload_jax.env.description import Description, describe, local_time
from offload_jax.env.observation import Observation, observe
from offload_jax.env.state import State, action_mask, leading_to
from offload_jax.env.step import advance, reset, reward
from offload_jax.plans.outcome import objective_denied
from offload_jax.problem import equations
from offload_jax.problem.instance import Instance
from offload_jax.splits import Solver


@struct.dataclass
class AllLocal:
    """What it is like if everybody is denied: the units of what is learned."""

    objective: Float[Array, "*batch"]  # U_deny, s, the solver's own terms included
    time: Float[Array, "*batch"]  # mean time of a run on the own device, s
    users: Float[Array, "*batch"]  # N, at least 1


@runtime_checkable
class Environment(Protocol):
    """A decision process over instances (batch last): pure functions of a frozen record.

    Its states have `gain`, U - U_deny in s of what has been decided so far, and `assignment`.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]
    Settings: ClassVar[type]  # what a configuration says of it: a frozen dataclass of its own

    @property
    def solver(self) -> Solver:
        """Of the split points."""

    def validate(self) -> None:
        """Raises ValueError naming the field and the allowed values."""

    def num_steps(self, instance: Instance) -> int:
        """Decisions of an episode (static)."""

    def reset(self, instance: Instance) -> Any:
        """The state before the first decision."""

    def step(
        self, instance: Instance, state: Any, action: Int[Array, "*batch"]
    ) -> tuple[Any, Float[Array, "*batch"]]:
        """The state after a decision, and what it was worth in s."""

    def observe(self, instance: Instance, state: Any) -> Any:
        """What a network's decoder sees of a state; `mask` (actions, *batch) are legal actions."""

    def action_mask(self, instance: Instance, state: Any) -> Bool[Array, "actions *batch"]:
        """Legal actions."""

    def leading_to(
        self, instance: Instance, state: Any, plan: Int[Array, "users *batch"]
    ) -> Bool[Array, "actions *batch"]:
        """Legal actions after which a feasible plan can still be reached."""

    def describe(self, instance: Instance) -> Any:
        """What a network's encoder sees of an instance."""

    def all_local(self, instance: Instance) -> AllLocal:
        """The units of what is learned."""


@dataclass(frozen=True)
class Snapshot(EnvConfig):
    """The decision process of one snapshot of requests (`env.step`)."""

    Settings: ClassVar[type] = EpisodeConfig

    def num_steps(self, instance: Instance) -> int:
        return instance.num_users

    def reset(self, instance: Instance) -> State:
        return reset(instance, self)

    def step(
        self, instance: Instance, state: State, action: Int[Array, "*batch"]
    ) -> tuple[State, Float[Array, "*batch"]]:
        following = advance(instance, state, action, self)
        return following, reward(instance, state, following, self)

    def observe(self, instance: Instance, state: State) -> Observation:
        return observe(instance, state, self)

    def action_mask(self, instance: Instance, state: State) -> Bool[Array, "actions *batch"]:
        return action_mask(instance, state, self)

    def leading_to(
        self, instance: Instance, state: State, plan: Int[Array, "users *batch"]
    ) -> Bool[Array, "actions *batch"]:
        return leading_to(instance, state, plan, self)

    def describe(self, instance: Instance) -> Description:
        return describe(instance)

    def all_local(self, instance: Instance) -> AllLocal:
        return AllLocal(
            objective=objective_denied(instance, self.solver),
            time=local_time(instance),
            users=equations.num_real_users(instance),
        )


ENVIRONMENTS: dict[str, type[Environment]] = {"snapshot": Snapshot}
