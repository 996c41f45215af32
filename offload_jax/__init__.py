"""offload-jax: policies that split personalised diffusion inference between edge and device.

Names are loaded on first use (PEP 562): importing the package is quick and touches no device.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what type checkers see; `_HOMES` below is what runs
    from offload_jax.env.config import EnvConfig as EnvConfig
    from offload_jax.env.observation import observe as observe
    from offload_jax.env.state import State as State
    from offload_jax.env.state import action_mask as action_mask
    from offload_jax.env.step import reset as reset
    from offload_jax.env.step import step as step
    from offload_jax.files.records import Plan as Plan
    from offload_jax.methods import solve as solve
    from offload_jax.plans.outcome import Outcome as Outcome
    from offload_jax.plans.outcome import evaluate as evaluate
    from offload_jax.plans.outcome import split_problem as split_problem
    from offload_jax.policy.decoding import decide as decide
    from offload_jax.policy.policy import Policy as Policy
    from offload_jax.problem.instance import Instance as Instance
    from offload_jax.problem.instance import load_instances as load_instances
    from offload_jax.problem.instance import save_instances as save_instances
    from offload_jax.problem.scenario import EdgeScenario as EdgeScenario
    from offload_jax.problem.scenario import PaperScenario as PaperScenario
    from offload_jax.problem.scenario import sample as sample
    from offload_jax.runs.config import TrainConfig as TrainConfig
    from offload_jax.runs.config_file import load_config as load_config
    from offload_jax.runs.train import load_policy as load_policy
    from offload_jax.runs.train import train as train
    from offload_jax.splits import SplitProblem as SplitProblem
    from offload_jax.splits import solve_splits as solve_splits

_HOMES = {
    "env.config": ("EnvConfig",),
    "env.observation": ("observe",),
    "env.state": ("State", "action_mask"),
    "env.step": ("reset", "step"),
    "files.records": ("Plan",),
    "methods": ("solve",),
    "plans.outcome": ("Outcome", "evaluate", "split_problem"),
    "policy.decoding": ("decide",),
    "policy.policy": ("Policy",),
    "problem.instance": ("Instance", "load_instances", "save_instances"),
    "problem.scenario": ("EdgeScenario", "PaperScenario", "sample"),
    "runs.config": ("TrainConfig",),
    "runs.config_file": ("load_config",),
    "runs.train": ("load_policy", "train"),
    "splits": ("SplitProblem", "solve_splits"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
