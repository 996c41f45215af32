"""How methods behave with more time, and with more users."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from offload_jax.evaluation.compare import Decide
from offload_jax.methods import apply_method, baseline
from offload_jax.methods.search import Trace
from offload_jax.plans.candidates import gains_of
from offload_jax.plans.plan import Decision, forget_programs
from offload_jax.problem import equations
from offload_jax.problem.instance import Instance, taken
from offload_jax.problem.scenario import Scenario, sample_many
from offload_jax.problem.types import Key
from offload_jax.splits import NATIVE, Solver

Progress = Callable[[str], None]


def anytime(
    instances: Instance,
    decided: Mapping[str, Decision],
    budget_s: float,
    key: Key,
    known: np.ndarray | None = None,
    solver: Solver = NATIVE,
    progress: Progress = lambda what: None,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Of every method that has decided: seconds for each instance, and the mean gap by then.

    Searches are run again, for `budget_s` seconds an instance, all instances (one batch axis) side
    by side; other methods have the one moment at which they ended. U_best is the best of all these
    and of `known` gains (U - U_deny, s).
    """
    traces: dict[str, Trace] = {}
    for name, decision in decided.items():
        progress(f"gap against time: {name}")
        one = baseline(name)
        if one and one.search is not None:
            traces[name] = Trace()
            apply_method(name, instances, solver, budget_s, key, trace=traces[name])
        else:
            gain = np.asarray(gains_of(instances, decision.assignment, solver=solver))
            traces[name] = Trace([decision.seconds], [gain])
    last = [trace.gains[-1] for trace in traces.values()]
    best = np.max([*last, *([] if known is None else [known])], axis=0)

    def mean_gap(gain: np.ndarray) -> float:
        return float(np.mean(equations.gap(jnp.asarray(best), jnp.asarray(gain))))

    count = instances.mask.shape[-1]
    return {
        name: (np.array(trace.seconds) / count, np.array([mean_gap(g) for g in trace.gains]))
        for name, trace in traces.items()
    }


# Instances of each size: as many as keep the machine busy, few where each takes long.
_SIDE_BY_SIDE, _ONE_BY_ONE = 32, 3
_COMPILING = 10.0  # s that compiling may take


def scaling(
    scenario: Scenario,
    deciders: Mapping[str, Decide],
    sizes: Sequence[int],
    key: Key,
    solver: Solver = NATIVE,
    progress: Progress = lambda what: None,
) -> list[tuple[str, int, float]]:
    """(method, N, seconds per plan) for instances of exactly N users, compiling excluded.

    Methods are left out at sizes that they refuse.
    """
    found = []
    for size in sizes:
        keys = jax.random.split(jax.random.fold_in(key, size), _SIDE_BY_SIDE)
        instances = jax.jit(partial(sample_many, scenario.of_size(size)))(keys)
        few = taken(instances, slice(_ONE_BY_ONE))
        for name, decide in deciders.items():
            one = baseline(name)
            slow = one is not None and one.prove is not None
            chosen = few if slow else instances
            if one and one.refuse(chosen, solver):
                continue
            progress(f"time against users, N = {size}: {name}")
            forget_programs()  # none is met again
            decision = decide(chosen)
            if slow and decision.seconds < _COMPILING:  # compiled it may be faster
                decision = decide(chosen)
            found.append((name, size, decision.seconds / chosen.mask.shape[-1]))
    return found
