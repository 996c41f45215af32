"""What is static about the decision process of a snapshot: the order, the reward, the solver."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from offload_jax.files.checks import Checks
from offload_jax.splits import NATIVE, Solver, solver_named

Order = Literal["arrival", "sorted", "adaptive"]
Reward = Literal["dense", "terminal"]


@dataclass(frozen=True)
class EpisodeConfig:
    """How an episode goes."""

    order: Order = "arrival"  # who is decided next
    reward: Reward = (
        "dense"  # dense: change of the score at each step; terminal: all of it at the end
    )
    candidates: int = 0  # adaptive: pairs of largest reduced gain that a policy sees; 0: all

    def validate(self) -> None:
        """Raises ValueError naming the field and the allowed values."""
        check = Checks(self, "env")
        check.one_of("order", get_args(Order))
        check.one_of("reward", get_args(Reward))
        check.not_negative("candidates")
        adaptive = self.order == "adaptive"
        check.require(adaptive or not self.candidates, "candidates", f"0 with order {self.order}")


@dataclass(frozen=True)
class EnvConfig(EpisodeConfig):
    """Static choices of the environment (hashable: a jit argument by value)."""

    if TYPE_CHECKING:
        solver: Solver = NATIVE  # of the split layer
    else:
        solver: Solver | str = NATIVE  # a name becomes the solver

    def __post_init__(self) -> None:
        """Raises ValueError for what is no solver, nor the name of one."""
        object.__setattr__(self, "solver", solver_named(self.solver, "env.solver"))

    def validate(self) -> None:
        """Raises ValueError naming the field and the allowed values."""
        super().validate()
        self.solver.validate()
