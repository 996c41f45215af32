"""Local search: the best of all moves and exchanges, again and again, until none improves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from offload_jax.methods.heuristics import reduced_greedy
from offload_jax.methods.moves import Moves, top
from offload_jax.methods.search import Found, Search, found_at, shaken, start_from
from offload_jax.problem.instance import Instance
from offload_jax.problem.types import Assignment, Key
from offload_jax.splits import NATIVE, Solver

# Share of the users that a restart moves at random.
SHAKEN = 0.3


@struct.dataclass
class _Walk:
    assignment: Int[Array, "users *batch"]
    gain: Float[Array, "*batch"]


def local_search(shake: float = SHAKEN, first_shake: float = 0.0) -> Search:
    """From reduced-greedy's plan downhill; then from the best plan, shaken, for ever.

    It is done when every instance has reached a plan that no move and no exchange improves. A round
    takes steps to the best of the neighbours that promise most, until none of those improves; then
    it looks at all N (M + 1) + N (N - 1) / 2 of them and goes on with the best of those likewise.
    `first_shake` shakes the first plan too: 1 starts anywhere.
    """

    def start(instance: Instance, key: Key, solver: Solver) -> Found:
        plan = reduced_greedy(instance, solver)
        if first_shake:
            plan, key = shaken(instance, plan, key, first_shake)
        plan, gain = start_from(instance, plan, solver)
        return found_at(plan, gain, key, _Walk(plan, gain))

    def advance(instance: Instance, found: Found, solver: Solver) -> Found:
        walk, better = _round(instance, found.memory, solver)
        found = found.offered(walk.assignment, walk.gain)
        # At a local optimum the next descent starts.
        again, key = shaken(instance, found.best, found.key, shake)
        plan, gain = start_from(instance, jnp.where(better, walk.assignment, again), solver)
        return replace(found, key=key, done=found.done | ~better, memory=_Walk(plan, gain))

    return Search(start, advance)


def descend(
    instance: Instance, assignment: Assignment, solver: Solver = NATIVE
) -> tuple[Assignment, Float[Array, "*batch"]]:
    """A plan after one round of local search from an assignment, and its gain (s).

    Never worse than the assignment, nor than denying everybody.
    """
    walk, _ = _round(instance, _Walk(*start_from(instance, assignment, solver)), solver)
    return walk.assignment, walk.gain


def _round(instance: Instance, walk: _Walk, solver: Solver) -> tuple[_Walk, Bool[Array, "*batch"]]:
    """Downhill along what promises most, then along the best of all; and whether that helped."""
    moves = Moves(instance.num_users, instance.num_batches)

    def promising(walk: _Walk) -> Array:
        return moves.promising(instance, walk.assignment, solver)

    walk, _ = _descended(instance, moves, walk, promising, solver)
    gains = moves.gains(instance, walk.assignment, moves.all(walk.assignment), solver)
    good = top(gains)
    return _descended(instance, moves, walk, lambda _: good, solver)


def _descended(
    instance: Instance, moves: Moves, walk: _Walk, choose: Callable[[_Walk], Array], solver: Solver
) -> tuple[_Walk, Bool[Array, "*batch"]]:
    """Steps to the best of the chosen neighbours until no instance improves, and which did."""

    def step(carry: tuple[_Walk, Array, Array]) -> tuple[_Walk, Array, Array]:
        walk, ever, _ = carry
        walk, better = _step(instance, moves, walk, choose(walk), solver)
        return walk, ever | better, jnp.any(better)

    nowhere = jnp.zeros(walk.gain.shape, bool)
    walk, ever, _ = jax.lax.while_loop(lambda c: c[2], step, (walk, nowhere, jnp.bool_(True)))
    return walk, ever


def _step(
    instance: Instance,
    moves: Moves,
    walk: _Walk,
    numbers: Int[Array, "candidates *#batch"],
    solver: Solver,
) -> tuple[_Walk, Bool[Array, "*batch"]]:
    """To the best of these neighbours, where it is better than where one stands."""
    gains = moves.gains(instance, walk.assignment, numbers, solver)
    gain, best = jnp.max(gains, axis=0), jnp.argmax(gains, axis=0)
    better = gain > walk.gain + rounding(walk.gain)
    numbers = jnp.broadcast_to(numbers, gains.shape)
    plan = moves.take(walk.assignment, jnp.take_along_axis(numbers, best[None], axis=0)[0])
    plan = jnp.where(better, plan, walk.assignment)
    return _Walk(plan, jnp.where(better, gain, walk.gain)), better


def rounding(gain: Float[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Differences of gains that may be rounding: a step that small could be taken for ever."""
    return 16 * jnp.finfo(gain.dtype).eps * jnp.maximum(jnp.abs(gain), 1)
