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

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jaxtyping import Array, Float

from offload_jax import model
from offload_jax.gains import gain_of
from offload_jax.instance import Instance, neutral_padding
from offload_jax.splits import SplitProblem, best_reply, splits_config
from offload_jax.types import Assignment
from offload_jax.value import Solver


@dataclass(frozen=True)
class BoundConfig:
    """How the prices are found. On edge (N = 24) 300 rounds end 0.8 % above 900 of them."""

    rounds: int = 600  # Adam steps
    rate: float = 0.15  # the first step, as a share of the gain per user; the last is 1/100 of it
    blur: float = 0.05  # first width of the smoothed maximum over loads, likewise
    cells: int = 81  # of a server's loads, at most


_BLOCK = 25  # rounds of one call
_AT_ONCE = 2**22  # numbers of one array; instances beyond that come later


def refuse_bound(solver: Solver) -> str | None:
    """Why there is no bound, or None where there is one."""
    if splits_config(solver).rules:
        return "the bound is that of the plain problem; constraints and terms couple the users"
    return None


def upper_bound(
    instances: Instance,
    assignment: Assignment,
    budget_s: float | None = None,
    config: BoundConfig | None = None,
    show: Callable[[int, int], None] = lambda done, total: None,
) -> Float[np.ndarray, "instances"]:
    """Upper bounds (s) of U - U_deny over all plans of concrete instances (one batch axis).

    `assignment` holds good plans: they steer the search for prices, and no bound is below their
    gain. With `budget_s` (s, for all of them) the search ends early; what it has by then is a
    bound, too. Calls `show(instances done, of)`.
    """
    config = config or BoundConfig()
    count = instances.mask.shape[-1]
    bounds = np.zeros(count)
    parts = list(_parts(instances, config))
    done = 0
    for layout, chosen in parts:
        few = jax.tree.map(lambda x, c=chosen: x[..., c], instances)
        share = None if budget_s is None else budget_s / len(parts)
        bounds[chosen] = _search(few, assignment[..., chosen], layout, config, share)
        done += len(set(chosen.tolist()))
        show(done, count)
    return bounds


def _parts(instances: Instance, config: BoundConfig) -> list[tuple[_Layout, np.ndarray]]:
    """Groups of instances (their numbers) that are computed at once, each of the same layout.

    All groups of a layout have the same size, filled up with repetitions.
    """
    parts = []
    patterns, which = np.unique(np.asarray(instances.server), axis=1, return_inverse=True)
    for i, pattern in enumerate(patterns.T):
        members = np.flatnonzero(which.reshape(-1) == i)
        layout = _Layout.of(pattern, instances, config)
        each = instances.num_users * layout.cells.size * instances.num_servers * _RANGES
        size = -(-len(members) // -(-len(members) // max(1, _AT_ONCE // each)))
        for first in range(0, len(members), size):
            parts.append((layout, np.resize(members[first : first + size], size)))
    return parts


@dataclass(frozen=True)
class _Layout:
    """What is known before tracing: batches of each server, and how loads are cut into cells."""

    slots: tuple[tuple[int, ...], ...]  # of each server its batches; -1 where it has fewer
    cuts: int  # cells along each batch
    whole: bool  # demands are whole images, hence loads are

    @classmethod
    def of(cls, server: np.ndarray, instances: Instance, config: BoundConfig) -> _Layout:
        hosted = [np.flatnonzero(server == g).tolist() for g in range(instances.num_servers)]
        width = max(1, *(len(batches) for batches in hosted))
        slots = tuple(tuple(b + [-1] * (width - len(b))) for b in hosted)
        demand = np.where(instances.mask, instances.demand, 0)
        whole = bool(np.all(demand % 1 == 0))
        most = max(1, math.floor(config.cells ** (1 / width) + 1e-9))
        room = np.minimum(np.asarray(instances.capacity), demand.sum(axis=0))
        levels = math.floor(room.max()) + 1
        return cls(slots, min(most, levels) if whole else most, whole)

    @property
    def cells(self) -> np.ndarray:
        """Number of the cell along each slot: (cells, slots)."""
        return np.array(list(itertools.product(range(self.cuts), repeat=len(self.slots[0]))))


_RANGES = 3  # of the number of granted users


@struct.dataclass
class _Setting:
    """The problem, prepared. Axes: users, cells, slots, servers, ranges, *batch; some of size 1."""

    problem: SplitProblem
    accuracy: tuple[Array, ...]  # local, floor, slope, centre
    alpha: Array
    demand: Array
    possible: Array  # the user may be in that slot, in that cell
    exists: Array  # (cells, servers, 1, *batch): there are such loads
    room: Array  # (cells, slots, servers, 1, *batch): the largest load of the cell
    budget: Array  # (servers, 1, *batch)
    air: Array  # (users, ranges, *batch): s that a transfer costs at least
    fewest: Array  # (ranges, *batch) granted users
    most: Array
    fewest_air: Array  # R_lo: sum of the air times of the `fewest` users with the best radio
    unit: Float[Array, "*batch"]  # s, the gain per user
    gain: Float[Array, "*batch"]  # of the given plan


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
    layout: _Layout,
    config: BoundConfig,
    budget_s: float | None,
) -> np.ndarray:
    setting = _setting(layout, instances, assignment)
    shape = (*setting.possible.shape[:4], *setting.fewest.shape)
    prices = _Prices(
        user=jnp.full((shape[0], *shape[4:]), 0.3),
        image=jnp.zeros(shape[1:]),
        second=jnp.full((shape[1], *shape[3:]), 0.1),
        grant=jnp.zeros(shape[4:]),
    )
    schedule = jnp.array([config.rounds, config.rate, config.blur])
    carry = prices, _ADAM.init(prices), jnp.full(shape[4:], jnp.inf)
    if budget_s is not None:
        jax.block_until_ready(_improve(schedule, setting, carry, 0))  # compiles
    began = time.perf_counter()
    for first in range(0, config.rounds, _BLOCK):
        carry = _improve(schedule, setting, carry, first)
        jax.block_until_ready(carry)
        if budget_s is not None and time.perf_counter() - began > budget_s:
            break
    bound = jnp.maximum(jnp.max(carry[2], axis=0), setting.gain)
    # What the sum of so many rounded numbers may have lost.
    return np.asarray(bound * (1 + 64 * float(jnp.finfo(bound.dtype).eps)))


_ADAM = optax.scale_by_adam(b1=0.9, b2=0.99, eps=1e-12)
_Carry = tuple[_Prices, optax.OptState, Array]


@jax.jit
def _improve(schedule: Array, setting: _Setting, carry: _Carry, first: Array) -> _Carry:
    """A block of Adam steps on the prices; keeps the least bound of each range.

    `schedule` is (rounds, rate, blur).
    """
    rounds, rate, blur = schedule

    def one(carry: _Carry, number: Array) -> tuple[_Carry, None]:
        prices, state, best = carry
        decay = 0.01 ** (number / rounds)
        slope, bound = jax.grad(_dual, has_aux=True)(prices, setting, blur * decay)
        step, state = _ADAM.update(slope, state, prices)
        prices = jax.tree.map(lambda x, dx: x - rate * decay * dx, prices, step).kept()
        return (prices, state, jnp.minimum(best, bound)), None

    return jax.lax.scan(one, carry, first + jnp.arange(_BLOCK))[0]


def _dual(prices: _Prices, setting: _Setting, blur: Array) -> tuple[Array, Array]:
    """(the dual function, smoothed and summed over ranges and instances; the bounds themselves)."""
    unit, limited = setting.unit, jnp.isfinite(setting.budget)
    user, grant = unit * prices.user, unit * prices.grant
    image = unit * prices.image
    second = jnp.where(limited, unit * prices.second, 0)
    reply = _replies(setting, second) - (setting.air + grant)[:, None, None, None]
    # Not minus infinity: differences of two of them would spoil the gradient.
    never = -1e6 * unit
    reply = jnp.where(setting.possible, reply - image * setting.demand, never)
    wish = jnp.maximum(_largest(reply, axis=2) - user[:, None, None], 0)
    spent = second * jnp.where(limited, setting.budget, 0)
    server = jnp.sum(wish, axis=0) + spent + jnp.sum(image * setting.room, axis=1)
    server = jnp.where(setting.exists, server, never)  # (cells, servers, ranges, *batch)
    worst = _largest(server, axis=0)
    width = blur * unit
    smooth = worst + width * jax.nn.logsumexp((server - worst) / width, axis=0)
    # q of the granted pay mu - R_lo each, whichever q of the range is best for the bound.
    owed = grant - setting.fewest_air
    owed = jnp.maximum(setting.fewest * owed, setting.most * owed)
    base = jnp.sum(user, axis=0) + setting.fewest * setting.fewest_air + owed
    real = setting.most >= setting.fewest
    bound = jnp.where(real, base + jnp.sum(worst, axis=0), -jnp.inf)
    return jnp.sum(jnp.where(real, (base + jnp.sum(smooth, axis=0)) / unit, 0)), bound


def _largest(x: Array, axis: int) -> Array:
    """The maximum along an axis, its derivative by position.

    That of `jnp.max` compares with the maximum, which XLA may compute twice and round differently:
    then nothing is the largest, and the derivative is 0/0.
    """
    winner = jnp.argmax(jax.lax.stop_gradient(x), axis=axis, keepdims=True)
    return jnp.squeeze(jnp.take_along_axis(x, winner, axis=axis), axis)


def _replies(setting: _Setting, second: Array) -> Array:
    """What each user gains from its best split point in each slot and cell, budgets paid (s)."""
    problem = setting.problem
    shape = (*setting.possible.shape[:4], *second.shape[2:])
    price = jnp.broadcast_to(second[None, :, None], shape)
    split = jax.lax.stop_gradient(best_reply(problem, price))  # the envelope theorem
    loss = model.accuracy_loss(problem.steps, split, *setting.accuracy)
    saved = (problem.steps - split) * (problem.saving - price * problem.rate)
    return saved - setting.alpha * loss


@partial(jax.jit, static_argnums=0)
def _setting(layout: _Layout, instance: Instance, assignment: Assignment) -> _Setting:
    instance = neutral_padding(instance)
    slots = np.array(layout.slots).T  # (slots, servers)
    there = jnp.array(slots >= 0)[:, :, None, None]

    def of_users(x: Array) -> Array:
        return x[:, None, None, None, None]

    def of_pairs(x: Array) -> Array:
        return x[:, slots][:, None, :, :, None]

    least, room, exists = _loads(layout, instance, slots)
    interference = instance.interference[slots[:, None], slots[None, :]]  # (slots, slots, servers)
    interference = jnp.where(there[:, None, :, 0] & there[None, :, :, 0], interference, 0)
    own = model.own_slope(instance)[slots][:, :, None]
    demand = of_users(instance.demand)
    # A batch holds its user at least, even where its cell begins with fewer images.
    more = jnp.maximum(demand - least, 0) * own
    times = instance.intercept[slots] + jnp.sum(interference * least[:, None, :, :, 0], axis=2)
    local, floor = of_users(instance.accuracy_local), of_pairs(instance.accuracy_floor)
    slope, centre = of_pairs(instance.accuracy_slope), of_pairs(instance.accuracy_centre)
    alpha, steps = of_users(instance.alpha), instance.steps
    problem = SplitProblem(
        saving=of_users(instance.local_step) - times[:, :, :, None] - more,
        rate=demand * own,
        amplitude=alpha * (local - floor) / jax.nn.sigmoid(slope * (steps - centre)),
        slope=slope,
        centre=centre,
        lower=jnp.maximum(of_users(instance.split_min), centre),
        weight=jnp.ones(()),
        granted=jnp.ones((), bool),
        server=jnp.zeros((), jnp.int32),
        steps=steps,
        budget=jnp.zeros(()),
    )
    gain = jnp.maximum(gain_of(instance, assignment), 0)
    real = model.num_real_users(instance)
    return _Setting(
        problem=problem,
        accuracy=(local, floor, slope, centre),
        alpha=alpha,
        demand=demand,
        possible=of_users(instance.mask) & there & (demand <= room + 1e-6),
        exists=exists,
        room=room,
        budget=instance.budget[:, None],
        unit=jnp.maximum(gain / real, 1e-3 * jnp.max(instance.local_step * steps, axis=0)),
        gain=gain,
        **_ranges(instance, assignment),
    )


def _loads(layout: _Layout, instance: Instance, slots: np.ndarray) -> tuple[Array, Array, Array]:
    """Least and largest load of every slot in every cell, and which cells there are.

    Shapes (cells, slots, servers, 1, *batch) and, without slots, the last.
    """
    number = jnp.array(layout.cells)[:, :, None, None, None]
    everything = jnp.sum(jnp.where(instance.mask, instance.demand, 0), axis=0)
    capacity = jnp.minimum(instance.capacity, everything)[slots]
    capacity = jnp.where(jnp.array(slots >= 0)[:, :, None], capacity, 0)[None, :, :, None]
    if not layout.whole:
        least, room = capacity * number / layout.cuts, capacity * (number + 1) / layout.cuts
        return least, room, jnp.ones_like(least[:, 0], bool)
    # Integers: exact in floats of this size, so no load falls between two cells.
    levels = jnp.floor(capacity + 1e-6) + 1
    least = jnp.floor_divide(number * levels + layout.cuts - 1, layout.cuts)
    room = jnp.floor_divide((number + 1) * levels + layout.cuts - 1, layout.cuts) - 1
    return least, room, jnp.all(least <= room, axis=1)


def _ranges(instance: Instance, assignment: Assignment) -> dict[str, Array]:
    """Ranges of the number of granted users: below 3/4 of the given plan's, up to it, and above."""
    count = jnp.sum((assignment > 0) & instance.mask, axis=0)
    real = jnp.sum(instance.mask, axis=0)
    middle = -(-3 * count // 4)
    fewest = jnp.stack([jnp.zeros_like(count), middle, count])
    most = jnp.stack([middle - 1, count - 1, real])
    air = instance.payload / (instance.bandwidth * instance.spectral_efficiency)
    air = jnp.where(instance.mask, air, 0)
    quickest = jnp.sort(jnp.where(instance.mask, air, jnp.max(air, axis=0)), axis=0)
    sums = jnp.concatenate([jnp.zeros_like(quickest[:1]), jnp.cumsum(quickest, axis=0)])
    return {
        "air": fewest * air[:, None],
        "fewest": fewest.astype(air.dtype),
        "most": most.astype(air.dtype),
        "fewest_air": jnp.take_along_axis(sums, fewest, axis=0),
    }
