"""offload-jax: policies that split personalised diffusion inference between edge and device.

Names are loaded on first use (PEP 562): importing the package is quick and touches no device.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what type checkers see; `_HOMES` below is what runs
    from offload_jax.baselines import solve as solve
    from offload_jax.config import TrainConfig as TrainConfig
    from offload_jax.config import load_config as load_config
    from offload_jax.env import EnvConfig as EnvConfig
    from offload_jax.env import State as State
    from offload_jax.env import action_mask as action_mask
    from offload_jax.env import reset as reset
    from offload_jax.env import step as step
    from offload_jax.features import observe as observe
    from offload_jax.instance import Instance as Instance
    from offload_jax.instance import load_instances as load_instances
    from offload_jax.instance import save_instances as save_instances
    from offload_jax.policies import Policy as Policy
    from offload_jax.policies import decide as decide
    from offload_jax.runs import load_policy as load_policy
    from offload_jax.runs import train as train
    from offload_jax.scenario import EdgeScenario as EdgeScenario
    from offload_jax.scenario import PaperScenario as PaperScenario
    from offload_jax.scenario import sample as sample
    from offload_jax.schema import Plan as Plan
    from offload_jax.splits import SplitProblem as SplitProblem
    from offload_jax.splits import solve_splits as solve_splits
    from offload_jax.value import Outcome as Outcome
    from offload_jax.value import evaluate as evaluate
    from offload_jax.value import split_problem as split_problem

_HOMES = {
    "baselines": ("solve",),
    "config": ("TrainConfig", "load_config"),
    "env": ("EnvConfig", "State", "action_mask", "reset", "step"),
    "features": ("observe",),
    "instance": ("Instance", "load_instances", "save_instances"),
    "policies": ("Policy", "decide"),
    "runs": ("load_policy", "train"),
    "scenario": ("EdgeScenario", "PaperScenario", "sample"),
    "schema": ("Plan",),
    "splits": ("SplitProblem", "solve_splits"),
    "value": ("Outcome", "evaluate", "split_problem"),
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
