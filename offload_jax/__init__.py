"""offload-jax: policies that split personalised diffusion inference between edge and device.

Names are loaded on first use (PEP 562): importing the package is quick and touches no device.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from offload_jax.baselines import solve
    from offload_jax.config import TrainConfig, load_config
    from offload_jax.env import EnvConfig, State, action_mask, reset, step
    from offload_jax.features import observe
    from offload_jax.instance import Instance, load_instances, save_instances
    from offload_jax.policies import Policy, decide
    from offload_jax.runs import load_policy, train
    from offload_jax.scenario import EdgeScenario, PaperScenario, sample
    from offload_jax.schema import Plan
    from offload_jax.splits import SplitProblem, solve_splits
    from offload_jax.value import Outcome, evaluate, split_problem

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
__all__ = sorted(_HOME)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
