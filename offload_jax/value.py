"""From an assignment to its value: the split problem it poses, solved, and what comes out."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from offload_jax import model
from offload_jax.instance import Instance
from offload_jax.model import Placement
from offload_jax.segments import pick
from offload_jax.splits import SplitProblem, solver_named
from offload_jax.types import Assignment


@struct.dataclass
class Outcome:
    """What an assignment with its optimal splits is worth."""

    objective: Float[Array, "*batch"]  # U, s
    gain: Float[Array, "*batch"]  # U - U_deny, s, without the cancellation in U
    score: Float[Array, "*batch"]  # 0.1 U / N
    split: Float[Array, "users *batch"]  # n, steps that run on the user's device
    price: Float[Array, "servers *batch"]  # s per GPU-second of each server's budget
    latency: Float[Array, "users *batch"]  # s; 0 for padded users
    accuracy: Float[Array, "users *batch"]  # 0 for padded users
    feasible: Bool[Array, "*batch"]  # capacities (1) and budgets (6) hold, splits were solved
    status: Int[Array, "*batch"]  # types.Status of the split problem
    residual: Float[Array, "*batch"]  # its KKT residual


def split_problem(instance: Instance, assignment: ArrayLike) -> SplitProblem:
    """The convex program that an assignment (ints 0..M per user) poses, one row per user.

    Refuses an assignment as `evaluate` does.
    """
    return problem_of(instance, model.place(instance, _checked(instance, assignment)))


def problem_of(instance: Instance, placed: Placement) -> SplitProblem:
    """The same of a placement: Delta = l - s, rho = X_kk d, c = alpha (P - f) / sig(a (T - b))."""
    top = jax.nn.sigmoid(placed.slope * (instance.steps - placed.centre))
    amplitude = instance.alpha * (instance.accuracy_local - placed.floor) / top
    lower = jnp.maximum(instance.split_min, placed.centre)
    return SplitProblem(
        saving=instance.local_step - placed.edge_step,
        rate=placed.rate,
        amplitude=jnp.where(placed.granted, amplitude, 0),
        slope=placed.slope,
        centre=placed.centre,
        lower=jnp.where(placed.granted, lower, instance.steps),
        weight=jnp.ones_like(instance.alpha),
        granted=placed.granted,
        server=jnp.where(placed.granted, pick(placed.batch, instance.server), -1),
        steps=instance.steps,
        budget=instance.budget,
    )


def fits(instance: Instance, load: Float[Array, "..."]) -> Bool[Array, "..."]:
    """(1) Whether each batch holds the load, up to rounding; shapes (..., batches, *batch)."""
    slack = 8 * jnp.finfo(load.dtype).eps * jnp.maximum(instance.capacity, 1)
    return load <= instance.capacity + slack


def evaluate(instance: Instance, assignment: ArrayLike, solver: str = "native") -> Outcome:
    """Solves the splits of one assignment (ints 0..M per user) and reports everything about it.

    Differentiable in the instance's floats. Raises ValueError for a wrong shape or type, and for
    integers outside 0..M where their values are known (not under `jit`).
    """
    assignment = _checked(instance, assignment)
    placed = model.place(instance, assignment)
    solution = solver_named(solver)(problem_of(instance, placed))
    use = model.server_use(instance, placed, solution.split)
    slack = 1e-5 * jnp.maximum(instance.budget, 1)
    within = jnp.all(
        jnp.where(jnp.isfinite(instance.budget), use <= instance.budget + slack, True), axis=0
    )
    value = model.objective(instance, placed, solution.split)
    return Outcome(
        objective=value,
        gain=model.gain(instance, placed, solution.split),
        score=model.score(instance, value),
        split=solution.split,
        price=solution.price,
        latency=model.user_latency(instance, placed, solution.split),
        accuracy=model.user_accuracy(instance, placed, solution.split),
        feasible=jnp.all(fits(instance, placed.load), axis=0) & within & (solution.status == 0),
        status=solution.status,
        residual=solution.residual,
    )


def _checked(instance: Instance, assignment: ArrayLike) -> Assignment:
    shape, wanted = jnp.shape(assignment), jnp.shape(instance.alpha)
    if shape != wanted:
        raise ValueError(f"assignment has shape {shape}; must be {wanted}, one integer per user")
    if not jnp.issubdtype(jnp.result_type(assignment), jnp.integer):
        raise ValueError(
            f"assignment has type {jnp.result_type(assignment)}; must be integers 0..M"
        )
    if not isinstance(assignment, jax.core.Tracer):
        low, high = int(np.min(assignment)), int(np.max(assignment))
        if low < 0 or high > instance.num_batches:
            raise ValueError(
                f"assignment ranges over {low}..{high}; must be 0 (deny) to {instance.num_batches}"
            )
    return jnp.asarray(assignment)
