"""An upper bound of what any plan can gain, for instances of any size: Lagrangian duality.

Fix, in thought, the load of every batch and the number of granted users. Then step times are known
and users are independent, but for four things they share, each of which gets a price:

- a user is granted on one server at most (price pi_i of the user),
- a batch holds its load (price lambda of an image),
- a server spends its budget (price nu of a GPU-second),
- so many users are granted (price mu).

Every user replies to the prices with its best batch and split point in closed form, and what comes
out is a bound **whatever the prices are**. Servers are then independent, too: of each, the worst
case over its loads is taken, and the whole is minimised over the prices. Loads are cut into cells
where there are too many: a cell counts the step times of its smallest loads and the room of its
largest. What batches of other servers slow down is left out. Both only weaken the bound.

The radio's share, granted users times the sum of their air times, is a product of two unknowns: it
is bounded from below (McCormick) in a few ranges of the number of granted users, each with prices
of its own; the bound is the worst of them.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jaxtyping import Array, Float

from offload_jax.methods.relaxation import RANGES, Grid, Relaxation, relaxed
from offload_jax.problem import equations
from offload_jax.problem.instance import Instance, taken
from offload_jax.problem.types import Assignment
from offload_jax.splits import Solver, best_reply


@dataclass(frozen=True)
class BoundConfig:
    """How the prices are found (benchmarks/quality/methods.py tells what more rounds are worth)."""

    rounds: int = 600  # Adam steps
    rate: float = 0.15  # the first step, as a share of the gain per user; the last is 1/100 of it
    blur: float = 0.05  # first width of the smoothed maximum over loads, likewise
    cells: int = 81  # of a server's loads, at most


ROUNDING = 8.0  # of the smallest step of a float, as a share of the sum of alpha + T l
_BLOCK = 25  # rounds of one call
_AT_ONCE = 2**22  # numbers of one array; instances beyond that come later


def refuse_bound(solver: Solver) -> str | None:
    """Why there is no bound, or None where there is one."""
    if solver.rules:
        return "the bound is that of the plain problem; constraints and terms couple the users"
    return None


def upper_bound(
    instances: Instance,
    assignment: Assignment,
    budget_s: float | None = None,
    config: BoundConfig | None = None,
) -> Float[np.ndarray, "instances"]:
    """Upper bounds (s) of U - U_deny over all plans of concrete instances (one batch axis).

    `assignment` holds good plans: they steer the search for prices, and no bound is below their
    gain. With `budget_s` (s, for all of them) the search ends early; what it has by then is a
    bound, too.
    """
    config = config or BoundConfig()
    bounds = np.zeros(instances.mask.shape[-1])
    parts = list(_parts(instances, config))
    for layout, chosen in parts:
        few = taken(instances, chosen)
        share = None if budget_s is None else budget_s / len(parts)
        bounds[chosen] = _search(few, assignment[..., chosen], layout, config, share)
    return bounds


def _parts(instances: Instance, config: BoundConfig) -> list[tuple[Grid, np.ndarray]]:
    """Groups of instances (their numbers) that are computed at once, each of the same layout.

    All groups of a layout have the same size, filled up with repetitions.
    """
    parts = []
    patterns, which = np.unique(np.asarray(instances.server), axis=1, return_inverse=True)
    for i, pattern in enumerate(patterns.T):
        members = np.flatnonzero(which.reshape(-1) == i)
        layout = Grid.of(pattern, instances, config.cells)
        each = instances.num_users * layout.cells.size * instances.num_servers * RANGES
        size = -(-len(members) // -(-len(members) // max(1, _AT_ONCE // each)))
        for first in range(0, len(members), size):
            parts.append((layout, np.resize(members[first : first + size], size)))
    return parts


@struct.dataclass
class _Prices:
    """In units that make one step size fit all: the gain per user, per image or GPU-second."""

    user: Array  # (users, ranges, *batch)
    image: Array  # (cells, slots, servers, ranges, *batch)
    second: Array  # (cells, servers, ranges, *batch)
    grant: Array  # (ranges, *batch)

    def kept(self) -> _Prices:
        """Back to where the sign of a price must be; that of a grant may be any."""
        return _Prices(
            user=jnp.maximum(self.user, 0),
            image=jnp.maximum(self.image, 0),
            second=jnp.maximum(self.second, 0),
            grant=self.grant,
        )


def _search(
    instances: Instance,
    assignment: Assignment,
    layout: Grid,
    config: BoundConfig,
    budget_s: float | None,
) -> np.ndarray:
    relaxation = relaxed(layout, instances, assignment)
    shape = (*relaxation.possible.shape[:4], *relaxation.fewest.shape)
    prices = _Prices(
        user=jnp.full((shape[0], *shape[4:]), 0.3),
        image=jnp.zeros(shape[1:]),
        second=jnp.full((shape[1], *shape[3:]), 0.1),
        grant=jnp.zeros(shape[4:]),
    )
    schedule = jnp.array([config.rounds, config.rate, config.blur])
    carry = prices, _ADAM.init(prices), jnp.full(shape[4:], jnp.inf)
    if budget_s is not None:
        jax.block_until_ready(_improve(schedule, relaxation, carry, 0))  # compiles
    began = time.perf_counter()
    for first in range(0, config.rounds, _BLOCK):
        carry = _improve(schedule, relaxation, carry, first)
        jax.block_until_ready(carry)
        if budget_s is not None and time.perf_counter() - began > budget_s:
            break
    bound = jnp.maximum(jnp.max(carry[2], axis=0), relaxation.gain)
    # What rounding may have taken off the sums: they are of numbers as large as these.
    worth = instances.alpha + instances.steps * instances.local_step
    scale = jnp.sum(jnp.where(instances.mask, worth, 0), axis=0)
    return np.asarray(bound + ROUNDING * float(jnp.finfo(bound.dtype).eps) * scale)


_ADAM = optax.scale_by_adam(b1=0.9, b2=0.99, eps=1e-12)
_Carry = tuple[_Prices, optax.OptState, Array]


@jax.jit
def _improve(schedule: Array, relaxation: Relaxation, carry: _Carry, first: Array) -> _Carry:
    """A block of Adam steps on the prices; keeps the least bound of each range.

    `schedule` is (rounds, rate, blur).
    """
    rounds, rate, blur = schedule

    def one(carry: _Carry, number: Array) -> tuple[_Carry, None]:
        prices, state, best = carry
        decay = 0.01 ** (number / rounds)
        slope, bound = jax.grad(_dual, has_aux=True)(prices, relaxation, blur * decay)
        step, state = _ADAM.update(slope, state, prices)
        prices = jax.tree.map(lambda x, dx: x - rate * decay * dx, prices, step).kept()
        return (prices, state, jnp.fmin(best, bound)), None

    return jax.lax.scan(one, carry, first + jnp.arange(_BLOCK))[0]


def _dual(prices: _Prices, relaxation: Relaxation, blur: Array) -> tuple[Array, Array]:
    """(the dual function, smoothed and summed over ranges and instances; the bounds themselves)."""
    unit, limited = relaxation.unit, jnp.isfinite(relaxation.budget)
    user, grant = unit * prices.user, unit * prices.grant
    image = unit * prices.image
    second = jnp.where(limited, unit * prices.second, 0)
    reply = _replies(relaxation, second) - (relaxation.air + grant)[:, None, None, None]
    # Not minus infinity: differences of two of them would spoil the gradient.
    never = -1e6 * unit
    reply = jnp.where(relaxation.possible, reply - image * relaxation.demand, never)
    wish = jnp.maximum(_largest(reply, axis=2) - user[:, None, None], 0)
    spent = second * jnp.where(limited, relaxation.budget, 0)
    server = jnp.sum(wish, axis=0) + spent + jnp.sum(image * relaxation.room, axis=1)
    server = jnp.where(relaxation.exists, server, never)  # (cells, servers, ranges, *batch)
    worst = _largest(server, axis=0)
    width = blur * unit
    smooth = worst + width * jax.nn.logsumexp((server - worst) / width, axis=0)
    # q of the granted pay mu - R_lo each, whichever q of the range is best for the bound.
    owed = grant - relaxation.fewest_air
    owed = jnp.maximum(relaxation.fewest * owed, relaxation.most * owed)
    base = jnp.sum(user, axis=0) + relaxation.fewest * relaxation.fewest_air + owed
    real = relaxation.most >= relaxation.fewest
    bound = jnp.where(real, base + jnp.sum(worst, axis=0), -jnp.inf)
    return jnp.sum(jnp.where(real, (base + jnp.sum(smooth, axis=0)) / unit, 0)), bound


def _largest(x: Array, axis: int) -> Array:
    """The maximum along an axis, its derivative by position.

    That of `jnp.max` compares with the maximum, which XLA may compute twice and round differently:
    then nothing is the largest, and the derivative is 0/0.
    """
    winner = jnp.argmax(jax.lax.stop_gradient(x), axis=axis, keepdims=True)
    return jnp.squeeze(jnp.take_along_axis(x, winner, axis=axis), axis)


def _replies(relaxation: Relaxation, second: Array) -> Array:
    """What each user gains from its best split point in each slot and cell, budgets paid (s)."""
    problem = relaxation.problem
    shape = (*relaxation.possible.shape[:4], *second.shape[2:])
    price = jnp.broadcast_to(second[None, :, None], shape)
    split = jax.lax.stop_gradient(best_reply(problem, price))  # the envelope theorem
    saving = problem.saving - price * problem.rate
    return equations.user_gain(relaxation.curve, split, saving, jnp.zeros(()))
