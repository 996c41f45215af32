"""The words of the project: axes, array aliases and status texts.

Axes, always in this order when several appear in one array:

- ``samples`` trajectories sampled from the same instance
- ``steps``   decisions of one episode
- ``users``   N requests, padded; `Instance.mask` tells which are real
- ``batches`` M batches of the edge server(s) that a user can be granted in
- ``servers`` G servers, each hosting some of the batches
- ``rows``    rows of a split problem: one per user, or one per (user, batch)
- ``*batch``  any number of trailing axes of instances computed side by side, none for one instance

Batch-last is a law of the environment and everything below it: each function works on one instance
or on any number, the instances along the last axes of every array (`steps` and other numbers of an
instance included). Elementwise work and sums over the few users then run along memory, which is 5x
faster on CPUs than batch-first, coalesced on GPUs, and lets loops stop on one scalar. `jax.vmap`
works too (`in_axes=-1` or any other), only slower.

A *decision* is one step of an episode (one action). A *plan* is one instance decided completely:
an assignment and a split point for each user. A *split point* n is the number of denoising steps
that run on the user's own device; the first T - n run on the edge.

An *assignment* is an integer per user: `DENY` (0, everything runs locally) or 1..M, the batch.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TypeAlias

import jax
from jaxtyping import Array, Float, Int

DENY = 0

Scalar: TypeAlias = Float[Array, "*batch"]  # one number per instance
Numbers: TypeAlias = Float[Array, "*#shape"]  # elementwise: any shapes that broadcast together
Assignment: TypeAlias = Int[Array, "users *batch"]
Key: TypeAlias = jax.Array  # typed PRNG key, consumed by the function that receives it


class Status(IntEnum):
    """How a split problem ended. `STATUS_TEXT` says the same in a sentence."""

    SOLVED = 0
    INVALID = 1
    UNCONVERGED = 2
    INFEASIBLE = 3


STATUS_TEXT = {
    Status.SOLVED: "solved",
    Status.INVALID: (
        "invalid input: a number of the problem is NaN or infinite (only a budget may be "
        "infinite), or contradicts another (a lower bound above the number of steps, a centre "
        "above the lower bound, a negative budget, weight, amplitude or rate, a slope that is not "
        "positive, a server that does not exist). The split points are NaN."
    ),
    Status.UNCONVERGED: (
        "the KKT residual is above its tolerance: the numbers of this problem are too badly "
        "scaled for its float type. Solve it in float64 (JAX_ENABLE_X64=1) or rescale times and "
        "accuracy worth."
    ),
    Status.INFEASIBLE: (
        "infeasible: no split points keep the users' own constraints under this assignment, as a "
        "whole and beside the budgets. Grant fewer users, or write what may be missed as a term "
        "with a price instead of a constraint. The split points are NaN."
    ),
}
