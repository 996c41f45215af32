"""The whole decision as functions of arrays, to be exported.

A program is features, encoder, decoding loop, optimal split points, rounding and the expected
latency and accuracy, in one function of the arrays that `deploy.ports` describes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import export
from jaxtyping import Array

from offload_jax.deploy import ports
from offload_jax.methods.heuristics import RECHECKED, reduced_greedy
from offload_jax.plans.plan import execute
from offload_jax.policy.decoding import best_plan, draw_plans, greedy_plan
from offload_jax.policy.policy import Policy
from offload_jax.policy.rollout import begin
from offload_jax.problem import equations
from offload_jax.problem.instance import Instance, neutral_padding
from offload_jax.problem.types import Assignment


def to_instance(arrays: Sequence[Array]) -> Instance:
    """The instances (batch last) of a program's inputs."""
    named = {
        port.name: jnp.moveaxis(x, 0, -1) for port, x in zip(ports.INPUTS, arrays, strict=True)
    }
    users = named["alpha"].shape[0]
    mask = jnp.arange(users)[:, None] < named.pop("num_users")
    return neutral_padding(Instance(**named, mask=mask))


def programs(policy: Policy) -> dict[str, Callable[..., tuple[Array, ...]]]:
    """A function of arrays for each entry of a bundle."""

    def greedy(*arrays: Array) -> tuple[Array, ...]:
        instances = to_instance(arrays)
        return _outputs(instances, greedy_plan(policy, instances)[0])

    def best(*arrays: Array) -> tuple[Array, ...]:
        instances, draws = to_instance(arrays[:-1]), jnp.moveaxis(arrays[-1], 1, 0)
        plans, gains = draw_plans(policy, begin(policy, instances, draws.shape[-1]), draws)
        return _outputs(instances, best_plan(plans, gains)[0])

    def fallback(*arrays: Array) -> tuple[Array, ...]:
        instances = to_instance(arrays)
        return _outputs(instances, reduced_greedy(instances))

    return {"greedy": greedy, "best": best, "fallback": fallback}


def _outputs(instances: Instance, assignment: Assignment) -> tuple[Array, ...]:
    """What a program returns, in the order of `ports.OUTPUTS`, the batch first."""
    rounded = execute(instances, assignment)
    placed = equations.place(instances, assignment)
    whole = rounded.integer_split.astype(rounded.outcome.split.dtype)
    outputs = {
        "assignment": assignment.astype(jnp.int32),
        "split": rounded.outcome.split,
        "integer_split": rounded.integer_split,
        "latency": equations.user_latency(instances, placed, whole),
        "accuracy": equations.user_accuracy(instances, placed, whole),
        "price": rounded.outcome.price,
        "objective": rounded.outcome.objective,
        "integer_objective": rounded.integer_objective,
    }
    return tuple(jnp.moveaxis(outputs[port.name], -1, 0) for port in ports.OUTPUTS)


def lowered(
    entry: str, program: Callable[..., Any], sizes: Mapping[str, Any], platforms: Sequence[str]
) -> export.Exported:
    """A program for arrays of these sizes, which may be symbols; `batch` is one of them."""
    arrays = [
        jax.ShapeDtypeStruct(port.shape(sizes["batch"], dict(sizes)), jnp.dtype(port.dtype))
        for port in ports.inputs_of(entry)
    ]
    return export.export(jax.jit(program), platforms=platforms)(*arrays)


def least_users(sizes: Mapping[str, int]) -> int:
    """Requests are padded to at least as many: the fallback looks at so many pairs at once."""
    return -(-RECHECKED // sizes["M"])
