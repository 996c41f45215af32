"""What granting one more user would gain: exactly, and to first order from the layer's prices."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from offload_jax import model
from offload_jax.instance import Instance
from offload_jax.model import Placement
from offload_jax.segments import any_row, one_hot, pick
from offload_jax.splits import SplitProblem, best_reply
from offload_jax.types import Assignment
from offload_jax.value import Solver, fits, gain, solve_placed


def reduced_gains(
    instance: Instance,
    placed: Placement,
    split: Float[Array, "users *batch"],
    price: Float[Array, "servers *batch"],
) -> Float[Array, "users batches *batch"]:
    """First-order gain (s) of also granting user i in batch k, for all pairs at once, no solve.

    The user's best reply to the current step times and prices, less what it costs the others:
    lambda_k seconds per image it adds to batch k, and kappa seconds of their time on the air.
    Meant for denied users; minus infinity where the batch lacks capacity.
    """
    return jnp.where(
        fits(instance, placed.load + instance.demand[:, None]),
        move_gains(instance, placed, split, price),
        -jnp.inf,
    )


def move_gains(
    instance: Instance,
    placed: Placement,
    split: Float[Array, "users *batch"],
    price: Float[Array, "servers *batch"],
) -> Float[Array, "users batches *batch"]:
    """What each user gains in each batch over being denied, to first order; finite for every pair.

    All else unchanged: the gain of moving user i from batch k to l is r_il - r_ik. Denied users
    have their `reduced_gains`, capacities aside. A granted user is compared with being denied, so
    its own load, transfer and edge steps count for nothing here.
    """
    edge_steps = jnp.where(placed.granted, instance.steps - split, 0)
    # X_kl of the own batch k of every user, for all l: what it costs them, and what they cost.
    theirs = _pick_rows(placed.batch, instance.interference)
    caused = _pick_rows(placed.batch, jnp.swapaxes(instance.interference, 0, 1))
    # Congestion: sum over granted j of (T - n_j) X_{A_j k}, s per image in batch k.
    weighed = edge_steps[:, None] * theirs
    congestion = jnp.sum(weighed, axis=0) - weighed
    airtime = model.airtime(instance)
    on_air = jnp.where(placed.granted, airtime, 0)
    radio = jnp.sum(on_air, axis=0) - on_air
    own = reply_gains(
        instance,
        placed.step_time - caused * instance.demand[:, None],
        pick(instance.server, price),
        placed.num_granted - placed.granted,
    )
    return own - instance.demand[:, None] * congestion - radio[:, None]


def _pick_rows(
    batch: Int[Array, "users *batch"], table: Float[Array, "batches batches *batch"]
) -> Float[Array, "users batches *batch"]:
    """table[batch[i]] of each user, 0 where it is in none."""
    numbers = range(table.shape[0])
    return sum(
        (jnp.where((batch == k)[:, None], table[k], 0) for k in numbers), start=jnp.zeros(())
    )


def reply_gains(
    instance: Instance,
    step_time: Float[Array, "..."],
    batch_price: Float[Array, "batches *batch"],
    num_granted: Float[Array, "..."],
) -> Float[Array, "users batches *batch"]:
    """Each user's own gain (s) from joining each batch with its best split, all else unchanged.

    `step_time`, (batches, *batch), and `num_granted`, (*batch), are those before the user joins;
    with a first axis of users each meets its own. Budgets are paid at their price.
    """
    rate = instance.demand[:, None] * model.own_slope(instance)  # (users, batches)
    saving = instance.local_step[:, None] - step_time - rate
    problem = pair_problem(instance, saving, jnp.ones_like(saving))
    price = jnp.broadcast_to(batch_price, saving.shape).reshape(problem.saving.shape)
    split = best_reply(problem, price).reshape(saving.shape)
    local, floor = instance.accuracy_local[:, None], instance.accuracy_floor
    slope, centre = instance.accuracy_slope, instance.accuracy_centre
    loss = model.accuracy_loss(instance.steps, split, local, floor, slope, centre)
    saved = (instance.steps - split) * (saving - batch_price * rate)
    air = model.transfer_time(
        instance.payload, instance.spectral_efficiency, instance.bandwidth, num_granted + 1
    )
    return saved - instance.alpha[:, None] * loss - air[:, None]


def pair_problem(
    instance: Instance,
    saving: Float[Array, "users batches *batch"],
    weight: Float[Array, "users batches *batch"],
) -> SplitProblem:
    """The split problem of every user in every batch: users * batches rows, a user's together.

    `saving` is s/step that the user saves there; padded users are not granted.
    """
    users, batches = instance.num_users, instance.num_batches
    local, floor = instance.accuracy_local[:, None], instance.accuracy_floor
    slope, centre = instance.accuracy_slope, instance.accuracy_centre
    amplitude = instance.alpha[:, None] * (local - floor)
    amplitude = amplitude / jax.nn.sigmoid(slope * (instance.steps - centre))

    def flat(x: Array) -> Array:
        x = jnp.broadcast_to(x, (users, batches, *saving.shape[2:]))
        return x.reshape(users * batches, *x.shape[2:])

    return SplitProblem(
        saving=flat(saving),
        rate=flat(instance.demand[:, None] * model.own_slope(instance)),
        amplitude=flat(amplitude),
        slope=flat(slope),
        centre=flat(centre),
        lower=flat(jnp.maximum(instance.split_min[:, None], centre)),
        weight=flat(weight),
        granted=flat(instance.mask[:, None]),
        server=flat(instance.server),
        steps=instance.steps,
        budget=instance.budget,
    )


def exact_gains(
    instance: Instance, assignment: Assignment, solver: Solver = "native"
) -> Float[Array, "users batches *batch"]:
    """Exact gain (s) of also granting user i in batch k, every other user kept, splits re-solved.

    N M solves. Minus infinity where the batch lacks capacity or the user is granted or padded.
    """
    users, batches = instance.num_users, instance.num_batches
    placed = model.place(instance, assignment)
    now = gain_of(instance, assignment, solver)

    def with_pairs(pairs: Int[Array, "chunk"]) -> Int[Array, "users chunk *batch"]:
        return moved(assignment, pairs // batches, pairs % batches + 1)

    gains = candidate_gains(instance, with_pairs, users * batches, solver)
    gains = gains.reshape(users, batches, *now.shape) - now
    open_ = (instance.mask & ~placed.granted)[:, None]
    return jnp.where(open_, gains, -jnp.inf)


def gain_of(
    instance: Instance, assignment: Assignment, solver: Solver = "native"
) -> Float[Array, "*batch"]:
    """U - U_deny (s) of an assignment with its optimal splits; see `value.gain`."""
    return _gain_placed(instance, model.place(instance, assignment), solver)


gains_of = jax.jit(gain_of, static_argnames="solver")  # of concrete instances


def feasible_gain(
    instance: Instance, assignment: Assignment, solver: Solver = "native"
) -> Float[Array, "*batch"]:
    """`gain_of`; minus infinity where a batch is over capacity."""
    placed = model.place(instance, assignment)
    over = any_row(~fits(instance, placed.load))
    return jnp.where(over, -jnp.inf, _gain_placed(instance, placed, solver))


def _gain_placed(instance: Instance, placed: Placement, solver: Solver) -> Float[Array, "*batch"]:
    solution = solve_placed(instance, placed, solver)
    return gain(instance, placed, solution.split, solver)


# Problems that are solved side by side. Of 256 to 32,768 the fastest on 2 CPU cores lie around
# here: enough to hide what a call costs, few enough to stay in the cache.
SIDE_BY_SIDE = 2048


def candidate_gains(
    instance: Instance,
    make: Callable[[Int[Array, "chunk"]], Int[Array, "users chunk *batch"]],
    count: int,
    solver: Solver = "native",
) -> Float[Array, "candidates *batch"]:
    """`feasible_gain` of the candidates `make(0..count-1)`, a chunk at a time.

    A single instance is as fast per candidate as many are.
    """
    shape = jnp.shape(instance.steps)
    chunk = count
    if all(isinstance(size, int) for size in shape):  # an exported program's batch is a symbol
        chunk = min(count, max(1, SIDE_BY_SIDE // max(1, math.prod(shape))))
    rounds = -(-count // chunk)
    copies = repeated(instance, chunk)
    indices = jnp.minimum(jnp.arange(rounds * chunk), count - 1).reshape(rounds, chunk)
    gains = jax.lax.map(lambda index: feasible_gain(copies, make(index), solver), indices)
    return gains.reshape(rounds * chunk, *shape)[:count]


def repeated(instance: Instance, count: int) -> Instance:
    """The instance (or batch of them) `count` times along a new first batch axis."""
    axes = jnp.ndim(instance.steps)

    def repeat(x: Array) -> Array:
        at = x.ndim - axes
        return jnp.broadcast_to(jnp.expand_dims(x, at), (*x.shape[:at], count, *x.shape[at:]))

    return jax.tree.map(repeat, instance)


def moved(
    assignment: Int[Array, "users *batch"],
    user: Int[Array, "chunk ..."],
    to: Int[Array, "chunk ..."],
) -> Int[Array, "users chunk *batch"]:
    """The assignment with one user at a time moved to a batch (from 1; 0 to deny).

    `user` and `to` are the same for all instances, or of each: (chunk,) or (chunk, *batch).
    """
    user, to = (x.reshape(*x.shape, *(1,) * (assignment.ndim - x.ndim)) for x in (user, to))
    chosen = one_hot(user, assignment.shape[0])
    return jnp.where(chosen, to, assignment[:, None]).astype(jnp.int32)


def exchanged(
    assignment: Int[Array, "users ..."],
    one: Bool[Array, "users ..."],
    other: Bool[Array, "users ..."],
) -> Int[Array, "users ..."]:
    """The assignment with two users, each the only True one of its mask, in each other's place.

    Axes after the users broadcast.
    """
    first, second = (jnp.sum(jnp.where(on, assignment, 0), axis=0) for on in (one, other))
    return jnp.where(one, second, jnp.where(other, first, assignment)).astype(jnp.int32)
