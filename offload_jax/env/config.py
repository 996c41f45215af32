"""What is static about the environment: the order of decisions, the reward, the solver."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from offload_jax.files.checks import Checks
from offload_jax.plans.outcome import Solver
from offload_jax.splits import SOLVERS, splits_config

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
    one_shot: bool = False  # a policy sees the empty plan only: it decides everybody in one pass

    def validate(self) -> None:
        """Raises ValueError naming the field and the allowed values."""
        check = Checks(self, "env")
        check.one_of("order", get_args(Order))
        check.one_of("reward", get_args(Reward))
        check.not_negative("candidates")
        adaptive = self.order == "adaptive"
        check.require(adaptive or not self.candidates, "candidates", f"0 with order {self.order}")
        check.require(not (adaptive and self.one_shot), "one_shot", "false with order adaptive")


@dataclass(frozen=True)
class EnvConfig(EpisodeConfig):
    """Static choices of the environment (hashable: a jit argument by value)."""

    solver: Solver = "native"  # of the split layer; a SplitsConfig brings rules of your own

    def validate(self) -> None:
        """Raises ValueError naming the field and the allowed values."""
        super().validate()
        if isinstance(self.solver, str):
            Checks(self, "env").one_of("solver", SOLVERS)
        splits_config(self.solver).validate()
