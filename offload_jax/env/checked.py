"""An environment that asserts, at every step, what must hold of any plan (`--run.checks`).

For programs under `chex.chexify`. States, observations and rewards are those of the environment
inside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from offload_jax.env.environment import AllLocal, Environment
from offload_jax.plans.outcome import budget_slack, problem_of, room
from offload_jax.problem import equations
from offload_jax.problem.arrays import one_hot
from offload_jax.problem.assertions import require, require_finite
from offload_jax.problem.contracts import arrays_of
from offload_jax.problem.instance import Instance
from offload_jax.splits import Solver

BOUNDS = 1e-4  # of T: how far a split may be outside of its bounds (`splits.problem.tolerance`)
TELESCOPES = 1e-5  # of all that is at stake: rounding of a sum of a hundred rewards in float32


@struct.dataclass
class Watched:
    """A state of the environment inside, and what its episode has earned."""

    inside: Any
    decisions: Int[Array, ""]  # made so far
    start: Float[Array, "episodes"]  # gain at the start, s
    earned: Float[Array, "episodes"]  # sum of the rewards, s

    def __getattr__(self, name: str) -> Any:
        """What the state inside has: `gain`, `assignment`, whatever an algorithm looks at."""
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.inside, name)


@dataclass(frozen=True)
class Checked:
    """An environment under watch; its episodes are a number of samples of each instance."""

    Settings: ClassVar[type] = object  # no configuration names it

    inside: Environment
    instances: int  # of an update

    @property
    def solver(self) -> Solver:
        return self.inside.solver

    def validate(self) -> None:
        self.inside.validate()

    def num_steps(self, instance: Instance) -> int:
        return self.inside.num_steps(instance)

    def reset(self, instance: Instance) -> Watched:
        state = self.inside.reset(instance)
        return Watched(state, jnp.int32(0), state.gain, jnp.zeros_like(state.gain))

    def step(
        self, instance: Instance, state: Watched, action: Int[Array, "episodes"]
    ) -> tuple[Watched, Float[Array, "episodes"]]:
        mask = self.action_mask(instance, state)
        legal = jnp.any(mask & one_hot(action, mask.shape[0]), axis=0)
        self._require(legal, action, "action", (), "one that the mask allows")
        following, reward = self.inside.step(instance, state.inside, action)
        after = Watched(following, state.decisions + 1, state.start, state.earned + reward)
        self._require_plan(instance, following.assignment)
        if hasattr(following, "split"):
            self._require_splits(instance, following.assignment, following.split)
        self._require_rewards(instance, after, reward)
        return after, reward

    def observe(self, instance: Instance, state: Watched) -> Any:
        seen = self.inside.observe(instance, state.inside)
        for name, array, axes in arrays_of("observation", seen):
            if jnp.issubdtype(array.dtype, jnp.inexact):
                self._require(jnp.isfinite(array), array, name, axes, "finite")
        return seen

    def action_mask(self, instance: Instance, state: Watched) -> Bool[Array, "actions episodes"]:
        return self.inside.action_mask(instance, state.inside)

    def leading_to(
        self, instance: Instance, state: Watched, plan: Int[Array, "users episodes"]
    ) -> Bool[Array, "actions episodes"]:
        leading = self.inside.leading_to(instance, state.inside, plan)
        ways = jnp.sum(leading & self.action_mask(instance, state), axis=0)
        self._require(ways > 0, ways, "legal actions to the plan", (), "at least 1")
        return leading

    def describe(self, instance: Instance) -> Any:
        for name, array, axes in arrays_of("instance", instance, after=("instance",)):
            fine = jnp.isposinf(array) if name == "instance.budget" else jnp.zeros_like(array, bool)
            if axes[0] == "user":  # what a padded user's numbers are does not matter
                fine |= ~instance.mask if array.ndim == 2 else ~instance.mask[:, None]
            require_finite(array, name, axes, ~fine)
        return self.inside.describe(instance)

    def all_local(self, instance: Instance) -> AllLocal:
        return self.inside.all_local(instance)

    def _require_plan(self, instance: Instance, assignment: Int[Array, "users episodes"]) -> None:
        """Batches that there are, for real users only, and no batch above its capacity (1)."""
        most = jnp.where(instance.mask, instance.num_batches, 0)  # padded users are denied
        there = (assignment >= 0) & (assignment <= most)
        must = "in 0..{limit}, and 0 for padded users"
        self._require(there, assignment, "assignment", ("user",), must, most)
        load, must = equations.place(instance, assignment).load, "at most {limit}, its capacity"
        held = load <= room(instance)
        self._require(held, load, "load", ("batch",), must, instance.capacity)

    def _require_splits(
        self,
        instance: Instance,
        assignment: Int[Array, "users episodes"],
        split: Float[Array, "users episodes"],
    ) -> None:
        """Within their bounds, and no server above its budget (6)."""
        placed = equations.place(instance, assignment)
        lower, steps = problem_of(instance, placed).lower, instance.steps
        low = split >= lower - BOUNDS * steps
        self._require(low, split, "split", ("user",), "at least {limit} steps", lower)
        self._require(split <= steps * (1 + BOUNDS), split, "split", ("user",), "at most T", steps)
        use, must = equations.server_use(instance, placed, split), "at most {limit}, its budget"
        kept = use <= instance.budget + budget_slack(instance)
        self._require(kept, use, "GPU-seconds", ("server",), must, instance.budget)

    def _require_rewards(
        self, instance: Instance, state: Watched, reward: Float[Array, "episodes"]
    ) -> None:
        """Finite, and at the end as much together as the plan gained."""
        for name, array in (("gain", state.gain), ("reward", reward)):
            self._require(jnp.isfinite(array), array, name, (), "finite")
        each = instance.alpha + instance.steps * instance.local_step
        stake = jnp.sum(jnp.where(instance.mask, each, 0), axis=0) + jnp.abs(state.gain)
        gained = state.gain - state.start
        good = jnp.abs(state.earned - gained) <= TELESCOPES * stake
        good |= state.decisions < self.num_steps(instance)
        must = "{limit} s, what the plan gained"
        self._require(good, state.earned, "sum of rewards", (), must, gained)

    def _require(
        self,
        good: Bool[Array, "*axes episodes"],
        found: Any,
        name: str,
        axes: tuple[str, ...],
        must: str,
        limit: Any = 0.0,
    ) -> None:
        """`require`, told by instance and sample."""
        samples = max(good.shape[-1] // self.instances, 1)

        def apart(x: Any) -> Array:
            return jnp.broadcast_to(x, good.shape).reshape(*good.shape[:-1], -1, samples)

        require(apart(good), apart(found), name, (*axes, "instance", "sample"), must, apart(limit))
