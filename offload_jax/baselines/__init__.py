"""Every method a policy is compared with, by name, over any number of instances (batch last)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax

from offload_jax.baselines.exact import refuse_top_b, top_b
from offload_jax.baselines.heuristics import deny, grant, greedy, myopic, reduced_greedy
from offload_jax.instance import Instance
from offload_jax.plans import add_batch, to_plans
from offload_jax.schema import Plan
from offload_jax.types import Assignment
from offload_jax.value import Solver, check_all_local

__all__ = ["METHODS", "Method", "method_named", "solve"]


@dataclass(frozen=True)
class Method:
    """One way to assign users."""

    assign: Callable[..., Assignment]  # (instances, solver), pure and jit-able, batch last
    optimal: bool = False  # its plans are proven
    refuse: Callable[..., str | None] = lambda instances, solver: None  # why it does not apply


METHODS: dict[str, Method] = {
    "deny": Method(deny),
    "grant": Method(grant),
    "myopic": Method(myopic),
    "greedy": Method(greedy),
    "reduced-greedy": Method(reduced_greedy),
    "top-b": Method(top_b, optimal=True, refuse=refuse_top_b),
}


def method_named(name: str) -> Method:
    """The method of that name; a ValueError lists the names there are."""
    if name not in METHODS:
        raise ValueError(f"method is {name!r}; must be one of {', '.join(METHODS)}")
    return METHODS[name]


def solve(
    instance: Instance, method: str, budget_s: float | None = None, solver: Solver = "native"
) -> Plan:
    """Decides one instance by a named method; `solver` finds the split points.

    `budget_s` is the time (s) an anytime method may take; the methods here end by themselves in
    milliseconds and ignore it. `seconds` of the plan excludes compiling. Raises ValueError for an
    unknown method, a budget that is not positive, or an instance that the method does not apply to.
    """
    chosen = method_named(method)
    if budget_s is not None and not budget_s > 0:
        raise ValueError(f"budget_s is {budget_s}; must be above 0 (s), or None for no limit")
    if instance.alpha.ndim != 1:
        raise ValueError(
            f"instance has users of shape {instance.alpha.shape}; must be one instance"
        )
    refusal = chosen.refuse(instance, solver)
    if refusal:
        raise ValueError(f"method is {method!r}, which does not apply: {refusal}")
    batch = add_batch(instance)
    check_all_local(batch, solver)
    assign = jax.jit(partial(chosen.assign, solver=solver)).lower(batch).compile()
    start = time.perf_counter()
    assignment = jax.block_until_ready(assign(batch))
    seconds = time.perf_counter() - start
    return to_plans(batch, assignment, method, seconds, chosen.optimal, solver)[0]
