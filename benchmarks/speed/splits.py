"""The native solver: split problems per second, forward and with their derivative.

The problems are those of sampled instances under random assignments that keep the capacities. An
answer is the whole Solution, certificate included. Two layouts: batch last, the documented fast
one, and `jax.vmap` over a leading axis.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import inputs
from benchmarks.speed.timing import Case, Work
from offload_jax.plans.outcome import split_problem
from offload_jax.problem.instance import Instance
from offload_jax.problem.scenario import EdgeScenario, PaperScenario, Scenario
from offload_jax.splits import Solution, SplitProblem, solve_splits

# Everything real in a problem: what the backward pass differentiates with respect to.
FLOATS = ("saving", "rate", "amplitude", "slope", "centre", "lower", "weight", "steps", "budget")
LAYOUTS = ("batch last", "vmap")


def cases(quick: bool) -> list[Case]:
    """Every kind of problem and pass, in both layouts; vmap only of the last where quick."""
    kinds: list[tuple[str, Scenario, bool, float]] = [
        ("N=20 M=1 no budget, forward", PaperScenario(num_users=(20,)), False, 2e6),
        ("N=24 M=6 G=3 budgets, forward", EdgeScenario(num_users=(24,)), False, 300e3),
        ("N=24 M=6 G=3 budgets, forward+backward", EdgeScenario(num_users=(24,)), True, 120e3),
    ]
    return [
        Case(
            f"{name}, {layout}, batch {batch}",
            "problems",
            partial(_prepare, scenario, backward, layout, batch),
            target,
        )
        for name, scenario, backward, target in kinds
        for layout in (LAYOUTS if backward or not quick else LAYOUTS[:1])
        for batch in ((8,) if quick else (512, 2048, 4096, 8192))
    ]


def forward(problem: SplitProblem, worth: jax.Array, solver: str = "native") -> Solution:
    """The solution; `worth` only counts in the backward pass."""
    del worth
    return solve_splits(problem, solver)


def forward_backward(
    problem: SplitProblem, worth: jax.Array, solver: str = "native"
) -> tuple[Solution, Any]:
    """The solution, and the gradient of sum(worth * split) in every real number of the problem."""

    def linear(floats: dict[str, jax.Array]) -> tuple[jax.Array, Solution]:
        solution = solve_splits(replace(problem, **floats), solver)
        return jnp.sum(worth * solution.split), solution

    gradient, solution = jax.grad(linear, has_aux=True)(
        {name: getattr(problem, name) for name in FLOATS}
    )
    return solution, gradient


@jax.jit
def draw(instances: Instance, key: jax.Array) -> tuple[SplitProblem, jax.Array]:
    """Problems (batch last) and weights of a linear functional of their splits."""
    assignment_key, worth_key = jax.random.split(key)
    shape = instances.alpha.shape
    wanted = jax.random.randint(assignment_key, shape, 0, instances.num_batches + 1)
    problem = split_problem(instances, _within_capacity(instances, wanted))
    return problem, jax.random.normal(worth_key, shape)


def _within_capacity(instances: Instance, wanted: jax.Array) -> jax.Array:
    """Denies whoever finds the wanted batch full, the earlier users and the denied ones counted."""
    kept = wanted
    for k in range(instances.num_batches):
        mine = wanted == k + 1
        filled = jnp.cumsum(jnp.where(mine, instances.demand, 0), axis=0)
        kept = jnp.where(mine & (filled > instances.capacity[k]), 0, kept)
    return kept


def _prepare(scenario: Scenario, backward: bool, layout: str, batch: int) -> Work:
    arguments = [
        draw(instances, key)
        for instances, key in zip(inputs.batches(scenario, batch), inputs.keys(2), strict=True)
    ]
    function: Callable[..., Any] = forward_backward if backward else forward
    if layout == "vmap":
        function = jax.vmap(function)
        arguments = jax.tree.map(lambda x: jnp.moveaxis(x, -1, 0), arguments)
    notes = partial(_notes, backward, -1 if layout == "vmap" else 0)
    return Work(function, arguments, batch, notes)


def _notes(
    backward: bool, server_axis: int, outputs: Sequence[Any], seconds: float
) -> dict[str, float]:
    """Shares of problems and of servers whose budget binds, and how well all was solved."""
    del seconds
    solutions = [output[0] if backward else output for output in outputs]
    binds = np.concatenate([np.moveaxis(s.price > 0, server_axis, -1) for s in solutions])
    return {
        "binding_problems": float(np.mean(np.any(binds, axis=-1))),
        "binding_servers": float(np.mean(binds)),
        "worst_kkt_residual": float(max(jnp.max(s.residual) for s in solutions)),
        "unsolved": sum(int(jnp.sum(s.status != 0)) for s in solutions),
    }
