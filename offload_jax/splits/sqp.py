"""The split problem through cvxpylayers: a sequence of quadratic programs, the last differentiated.

The logistic curve is no atom of disciplined convex programming. Around a point n' the problem is

    maximise    sum_i  w_i (q_i' d_i - 1/2 r_i^2 d_i^2),   d = n - n'
    subject to  lo - n' <= d <= T - n',   sum_{i on g} w_i rho_i (T - n'_i - d_i) <= W_g

and users' own rules, with q' the slope and -r^2 the curvature of a row's term. Newton's steps with
a line search end where the answer is d = 0; there the program's optimality conditions, and so its
derivative, are those of the split problem: differentiating this last program alone gives the exact
implicit derivative. Nothing is shared with the native solver but the problem and its certificate:
each proves the other.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Bool, Float

from offload_jax.problem.arrays import any_row, one_hot, pick, total
from offload_jax.problem.types import Status
from offload_jax.splits.layer import Answer
from offload_jax.splits.problem import (
    Solution,
    SplitProblem,
    drain,
    is_valid,
    marginal,
    neutral,
    rows_objective,
    with_status,
)
from offload_jax.splits.qp import SplitProgram, split_program
from offload_jax.splits.rules import NO_RULES, Facts, Rules

MAX_PROGRAMS = 20
# Parts of a program's step that are tried, 1/2 to these powers; the best is taken.
HALVINGS = tuple(range(8))
# The marginal c a sig (1 - sig) has its inflection at a (n - b) = log(2 + sqrt(3)): there the
# curvature is largest, and Newton's steps towards larger n never overshoot.
INFLECTION = 1.317
# Curvature below this share of c a^2 counts as this share: it is 0 at n = b and far out at n = T.
# With 1e-3 the sequence stalled at 2 of 1,000 problems, and flat rows had a wrong derivative.
FLATTEST = 1e-8
# ... and below these in the program's units: of rows that can move (without an accuracy term they
# have none), and of rows at a bound, where it does not matter if they stay and units may be coarse.
STRAIGHTEST, STRAIGHTEST_HELD = 1e-7, 0.3
# A weight below this counts as this, since a row of weight 0 would have no optimum; the line search
# does not see rows below LIGHT.
LIGHTEST, LIGHT = 1e-5, 1e-3
# Largest residual that counts as solved: the worst of 2,000 problems had 1e-7 with MOREAU and 1e-4
# with DIFFCP, in float64; its error of the objective is of the order of its square.
TOLERANCE = 1e-4


def solve_conic(
    problem: SplitProblem, solver: str, rules: Rules = NO_RULES, facts: Facts | None = None
) -> Solution:
    """Solves split problems by cvxpylayers; reverse mode in all their floats, and in the facts'.

    `rules` refer to one row per user; where they leave no split points the status is INFEASIBLE.
    """
    valid = is_valid(problem)
    steps = jnp.where(valid, problem.steps, 1)
    budget = jnp.where(valid, problem.budget, jnp.inf)
    sound = neutral(replace(problem, steps=steps, budget=budget), problem.granted & valid)
    closed = _closed(sound)
    on_closed = pick(problem.server, closed.astype(steps.dtype)) > 0
    inner = neutral(sound, sound.granted & (problem.lower < steps) & ~on_closed)
    program = split_program(*problem.saving.shape[:1], *budget.shape[:1], solver, rules)
    facts = {} if facts is None else facts

    at = stop_gradient(_sequence(*stop_gradient((inner, facts)), program, rules))
    answer = _solve_program(inner, facts, at, program, any_row(inner.granted) | bool(rules))
    split = at + answer.move
    split += stop_gradient(_snapped(inner, split) - split)
    split = jnp.where(inner.granted, split, problem.steps)
    price = jnp.where(closed, stop_gradient(_choke_price(sound)), answer.price)
    if rules:
        return _judged(problem, valid, answer, split, price, rules, facts)
    # A row of no weight has no condition of its own: it is answered as if it weighed LIGHTEST.
    paid = marginal(problem, split) + pick(problem.server, price) * problem.rate
    judged = replace(problem, saving=jnp.where(problem.weight < LIGHTEST, paid, problem.saving))
    return with_status(judged, split, price, TOLERANCE)


class LocalProgram(NamedTuple):
    """Numbers of the quadratic program around a point, in the order of its parameters.

    Moves are measured in steps that give every row the curvature 1: beside larger numbers, the
    solvers' regularisation would blur flat rows and light ones.
    """

    slope: Float[Array, "rows *batch"]
    lower: Float[Array, "rows *batch"]
    upper: Float[Array, "rows *batch"]
    use: Float[Array, "servers rows *batch"]  # of a budget, around 1
    need: Float[Array, "servers *batch"]  # use at the point above the budget; -1 without a budget


class Units(NamedTuple):
    """What the program's numbers are measured in."""

    move: Float[Array, "rows *batch"]  # steps
    price: Float[Array, "servers *batch"]  # s per GPU-second
    worth: Float[Array, "*batch"]  # s


def program_at(p: SplitProblem, at: Float[Array, "rows *batch"]) -> tuple[LocalProgram, Units]:
    """The program around `at`. Neither the point, nor curvatures, nor units have derivatives."""
    steepest = p.amplitude * p.slope
    largest = jnp.max(jnp.maximum(steepest / 4, jnp.abs(p.saving)) * p.granted, axis=0)
    worth = jnp.where(largest > 0, largest, 1) * p.steps
    weight = jnp.where(p.granted, jnp.maximum(p.weight, LIGHTEST), 1)
    steepness = marginal(p, at)
    curvature = p.slope * steepness * jnp.tanh(p.slope * (at - p.centre) / 2)  # 2 sig - 1
    curvature = jnp.maximum(curvature, FLATTEST * steepest * p.slope) * p.steps**2 / worth
    near = 1e-6 * p.steps
    moving = (at > p.lower + near) & (at < p.steps - near)
    curvature = jnp.maximum(curvature, jnp.where(moving, STRAIGHTEST, STRAIGHTEST_HELD))
    unit = p.steps / jnp.sqrt(weight * curvature)
    unit, worth = stop_gradient((unit, worth))

    here = one_hot(p.server, p.budget.shape[0])
    each = jnp.where(here & p.granted, p.rate * weight * unit, 0)
    # Rows at a bound may have a use that dwarfs that of the rows which can move.
    biggest, strongest = jnp.max(each, axis=1), jnp.max(jnp.where(moving, each, 0), axis=1)
    limited = jnp.isfinite(p.budget) & (biggest > 0)
    size = jnp.where(strongest > 0, strongest, biggest)
    size = stop_gradient(jnp.where(limited, size, 1))
    # A row lifted to LIGHTEST counts where it moves, not where it is: at the end it does not move.
    over = total(p.server, drain(p) * (p.steps - at), p.budget.shape[0])
    over -= jnp.where(limited, p.budget, 0)
    program = LocalProgram(
        slope=jnp.where(p.granted, (steepness - p.saving) * weight * unit / worth, 0),
        lower=jnp.where(p.granted, (p.lower - at) / unit, -1),
        upper=jnp.where(p.granted, (p.steps - at) / unit, 1),
        use=jnp.where(limited[:, None], each / size[:, None], 0),
        need=jnp.where(limited, over / size, -1),
    )
    return program, Units(unit, worth / size, worth)


class _Move(NamedTuple):
    """What a program answers."""

    move: Float[Array, "rows *batch"]  # d, steps
    price: Float[Array, "servers *batch"]  # s per GPU-second
    residual: Float[Array, "*batch"]  # of the cone program
    solved: Bool[Array, "*batch"]


def _solve_program(
    p: SplitProblem,
    facts: Facts,
    at: Array,
    program: SplitProgram,
    active: Bool[Array, "*batch"],
    rough: bool = False,
) -> _Move:
    """The answer of the program around `at`; zeros where not `active`."""
    numbers, units = program_at(p, at)
    values = list(numbers)
    if program.has_worth:
        values.append(units.worth)
    # A user's split is his own only where it can move.
    unit = jnp.where(p.granted, units.move, 0)
    values += program.rule_values(facts, at, unit)
    answer: Answer = program.layer(
        *map(_batch_first, values, program.layer.ndims), active=active, rough=rough
    )
    move, dual = (jnp.moveaxis(x, -1, 0) for x in answer.values[:2])
    return _Move(unit * move, units.price * dual, answer.residual, answer.solved)


def _batch_first(x: Array, core: int) -> Array:
    """The layer's parameters have `core` axes of their own, and the batch before them."""
    return jnp.moveaxis(x, range(core), range(-core, 0)) if core else x


class _Newton(NamedTuple):
    """State of the sequence."""

    at: Float[Array, "rows *batch"]
    open: Bool[Array, "*batch"]  # still moving
    solved: Array  # programs so far


def _sequence(
    p: SplitProblem, facts: Facts, program: SplitProgram, rules: Rules
) -> Float[Array, "rows *batch"]:
    """A point from where the program's step is negligible."""
    # The step is still taken, and Newton squares what is left. Below this lies the solvers' noise.
    enough = 1e-5 if jnp.finfo(p.slope.dtype).bits == 64 else 1e-4

    def worth(split: Array) -> Array:
        return rows_objective(p, split) + (rules.worth(facts, split) if rules else 0)

    def step(state: _Newton) -> _Newton:
        found = _solve_program(p, facts, state.at, program, state.open, rough=True)
        tried = [state.at + 0.5**k * found.move for k in HALVINGS]
        # The start may break a budget, so the first step is taken whole.
        common = jnp.argmax(jnp.stack([worth(split) for split in tried]), axis=0)
        common = jnp.where(state.solved == 0, 0, common)
        # A row that weighs next to nothing in that must look after itself.
        own = jnp.argmax(jnp.stack([_row_worth(p, split, found.price) for split in tried]), axis=0)
        part = jnp.where(p.weight < LIGHT, own, common)
        at = jnp.where(state.open, state.at + 0.5**part * found.move, state.at)
        moves = jnp.max(jnp.abs(found.move), axis=0) > enough * p.steps
        keeps_on = found.solved | (not rules)  # without rules there is always a solution
        return _Newton(at, state.open & moves & keeps_on, state.solved + 1)

    start = jnp.clip(p.centre + INFLECTION / p.slope, p.lower, p.steps)
    first = _Newton(start, any_row(p.granted), jnp.asarray(0))

    def unfinished(state: _Newton) -> Array:
        return jnp.any(state.open) & (state.solved < MAX_PROGRAMS)

    return jax.lax.while_loop(unfinished, step, first).at


def _row_worth(p: SplitProblem, split: Array, price: Array) -> Float[Array, "rows *batch"]:
    """Each row's term at the servers' prices, in seconds."""
    curve = p.amplitude * jax.nn.sigmoid(p.slope * (split - p.centre))
    return curve - (p.saving - pick(p.server, price) * p.rate) * split


def _snapped(p: SplitProblem, split: Array) -> Float[Array, "rows *batch"]:
    """Splits exactly at a bound where they are next to it: interior points end a hair beside it."""
    near = p.steps * (1e-7 if jnp.finfo(split.dtype).bits == 64 else 1e-6)
    split = jnp.where(split < p.lower + near, p.lower, split)
    return jnp.where(split > p.steps - near, p.steps, split)


def _closed(p: SplitProblem) -> Bool[Array, "servers *batch"]:
    """Servers whose budget is nothing: all their rows stay at T, where no interior is left."""
    everything = jnp.where(p.granted, p.rate * (p.steps - p.lower), 0)
    return p.budget <= jnp.finfo(p.slope.dtype).eps * total(p.server, everything, p.budget.shape[0])


def _choke_price(p: SplitProblem) -> Float[Array, "servers *batch"]:
    """The lowest price at which every row of a server wants to stay at T."""
    at_end = marginal(p, jnp.broadcast_to(p.steps, p.saving.shape))
    wanted = jnp.where(p.granted & (p.rate > 0), p.saving - at_end, 0)
    wanted = jnp.maximum(wanted / jnp.where(p.rate > 0, p.rate, 1), 0)
    return jnp.max(jnp.where(one_hot(p.server, p.budget.shape[0]), wanted, 0), axis=1)


def _judged(
    problem: SplitProblem,
    valid: Bool[Array, "*batch"],
    answer: _Move,
    split: Array,
    price: Array,
    rules: Rules,
    facts: Facts,
) -> Solution:
    """The verdict where rules join in: of the last program, of its step, and of the rules."""
    left = jnp.max(jnp.abs(answer.move), axis=0) / jnp.where(valid, problem.steps, 1)
    missed = rules.violation(facts, split)
    residual = stop_gradient(jnp.maximum(answer.residual, jnp.maximum(left, missed)))
    allowed = TOLERANCE
    status = jnp.where(residual <= allowed, Status.SOLVED, Status.UNCONVERGED)
    status = jnp.where(answer.solved, status, Status.INFEASIBLE)
    status = jnp.where(valid, status, Status.INVALID)
    return Solution(
        split=jnp.where(valid & answer.solved, split, jnp.nan),
        price=jnp.where(valid & answer.solved, price, jnp.nan),
        status=status.astype(jnp.int32),
        residual=jnp.where(valid, residual, jnp.nan),
    )
