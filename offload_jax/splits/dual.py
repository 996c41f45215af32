"""The native solver of the split problem: closed-form splits, one price per server.

Given the price nu of its server, a row's best split point is closed form. A server's use falls
as its price rises, so each binding budget is one monotone root, found by Newton steps that a
bracket keeps safe. Where every budget is slack at price zero no step is taken.

Everything below works on arrays whose first axis is ``rows`` or ``servers`` and whose trailing
axes, if any, are batches: the batch must be the fastest axis (5x faster than the slowest on CPUs,
and coalesced on GPUs), and the loop must stop on one scalar. `jax.vmap` would put the batch first
and mask every array of the loop, so `solve_dual` brings its own batching rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Float, Int

from offload_jax.segments import pick, total
from offload_jax.splits.problem import SplitProblem, drain, neutral, tolerance

# Random problems need 6 Newton steps in the median and 18 at most. Beyond that lie budgets whose
# use jumps (rows without an accuracy term), where only bisection helps: a bit of the price a step.
MAX_STEPS = 64
# The first guess, as a share of the largest useful price: best of 0, 1/3, 1/2 in mean and maximum.
FIRST_GUESS = 0.3


def solve_dual(
    problem: SplitProblem,
) -> tuple[Float[Array, "rows *batch"], Float[Array, "servers *batch"]]:
    """Optimal split points (steps) and prices (s per GPU-second) of a valid problem.

    Neither a certificate nor a derivative rule: see `problem.certify` and `implicit`.
    """
    return _solve(problem)


@custom_vmap
def _solve(problem: SplitProblem) -> tuple[Array, Array]:
    return _solve_batch_last(problem)


@_solve.def_vmap
def _solve_vmap(
    axis_size: int, in_batched: Sequence[SplitProblem], problem: SplitProblem
) -> tuple[tuple[Array, Array], tuple[bool, bool]]:
    # `in_batched` holds one SplitProblem of bools: which of the arrays have the new axis, in front.
    def batch_last(x: Array, batched: bool) -> Array:
        return (
            jnp.moveaxis(x, 0, -1)
            if batched
            else jnp.broadcast_to(x[..., None], (*x.shape, axis_size))
        )

    solution = _solve(jax.tree.map(batch_last, problem, in_batched[0]))
    return jax.tree.map(lambda x: jnp.moveaxis(x, -1, 0), solution), (True, True)


class _Rows(NamedTuple):
    """What the closed form needs, computed once per problem; leaves (rows, *batch).

    v = 4 sig (1 - sig) is the marginal of a row's curve as a share of its largest, c a / 4. It must
    equal `share - price * pull`, and falls from `v_lower` at n = lo to `v_upper` at n = T.
    """

    share: Array  # Delta / (c a / 4)
    pull: Array  # rho / (c a / 4)
    v_lower: Array
    v_upper: Array


def _rows(problem: SplitProblem) -> _Rows:
    tiny = jnp.finfo(problem.slope.dtype).tiny * 1e6

    def v_at(split: Array) -> Array:
        z = problem.slope * (split - problem.centre)
        return jnp.clip(
            4 * jax.nn.sigmoid(z) * jax.nn.sigmoid(-z), tiny, 1
        )  # not above 1 by rounding

    # Kept positive: then a row without an accuracy term has only its bounds to choose from.
    steepest = jnp.maximum(problem.amplitude * problem.slope / 4, tiny)
    return _Rows(
        problem.saving / steepest, problem.rate / steepest, v_at(problem.lower), v_at(problem.steps)
    )


def _logit(v: Array) -> Array:
    """a (n - b) where 4 sig (1 - sig) = v on the concave side; one logarithm, no cancellation."""
    return jnp.log((1 + jnp.sqrt(1 - v)) ** 2 / v)


def best_reply(
    problem: SplitProblem, price: Float[Array, "rows *batch"]
) -> Float[Array, "rows *batch"]:
    """Each row's best split point (steps) if it paid `price` (s per GPU-second); closed form."""
    return _best_reply(problem, _rows(problem), price)


def _best_reply(problem: SplitProblem, rows: _Rows, price: Float[Array, "rows *batch"]) -> Array:
    """Each row's best split point (steps) at the given price, exactly lo or T at a bound."""
    v = rows.share - price * rows.pull
    at_lower, at_upper = v >= rows.v_lower, v <= rows.v_upper
    split = problem.centre + _logit(jnp.clip(v, rows.v_upper, rows.v_lower)) / problem.slope
    split = jnp.clip(split, problem.lower, problem.steps)
    return jnp.where(at_lower, problem.lower, jnp.where(at_upper, problem.steps, split))


def _solve_batch_last(problem: SplitProblem) -> tuple[Array, Array]:
    problem = neutral(problem, problem.granted)
    num_servers = problem.budget.shape[0]
    limited = jnp.isfinite(problem.budget)
    budget = jnp.where(limited, problem.budget, 0)
    per_step = drain(problem)
    rows = _rows(problem)

    def reply(price: Array) -> tuple[Array, Array]:
        """Splits at the servers' prices, and the use above the budget."""
        split = _best_reply(problem, rows, pick(problem.server, price))
        return split, total(
            problem.server, per_step * (problem.steps - split), num_servers
        ) - budget

    def with_prices(_: None) -> tuple[Array, Array]:
        low, high = _bracket(problem, rows, per_step, budget, binding)
        # The root lies in the bracket up to rounding. Mixing both ends fills the budget exactly,
        # also where the use jumps: then the mixture is the fractional split of the marginal rows.
        split_low, over_low = reply(low)
        split_high, over_high = reply(high)
        drop = over_low - over_high
        mix = jnp.clip(jnp.where(drop > 0, -over_high / jnp.where(drop > 0, drop, 1), 0), 0, 1)
        mixed = split_high + pick(problem.server, mix) * (split_low - split_high)
        on_binding = pick(problem.server, binding.astype(mixed.dtype)) > 0
        price = jnp.where(binding, high + mix * (low - high), 0)
        return jnp.where(on_binding, mixed, free_split), price

    free_split, over = reply(jnp.zeros_like(budget))
    binding = limited & (over > 0)
    split, price = jax.lax.cond(
        jnp.any(binding), with_prices, lambda _: (free_split, jnp.zeros_like(budget)), None
    )
    return jnp.where(problem.granted, split, problem.steps), price


# price, low, high, width, width before, still open, steps taken
_Search: TypeAlias = tuple[Array, Array, Array, Array, Array, Array, Int[Array, ""]]


def _bracket(
    problem: SplitProblem, rows: _Rows, per_step: Array, budget: Array, binding: Array
) -> tuple[Array, Array]:
    """A narrow price bracket of each binding server: its low end over budget, its high end within.

    Newton from inside the bracket; a step that leaves it, or that did not halve it within two, is
    replaced by bisection. Shapes (servers, *batch).
    """
    server, num_servers = problem.server, budget.shape[0]
    dtype = budget.dtype
    # At the largest Delta / rho of a server every row on it runs locally, which is feasible.
    dear = jnp.where(per_step > 0, problem.saving / jnp.where(per_step > 0, problem.rate, 1), 0)
    top = jnp.stack([jnp.max(jnp.where(server == g, dear, 0), axis=0) for g in range(num_servers)])
    # Rounding must not hold a row back at its own largest price.
    hair = 8 * jnp.finfo(dtype).eps
    top = jnp.maximum(top, 0) * (1 + hair)
    # A price this near leaves a stationarity residual well below `problem.tolerance`.
    steepest = jnp.maximum(problem.amplitude * problem.slope / 4, jnp.abs(problem.saving))
    span = jnp.where(per_step > 0, steepest / jnp.where(per_step > 0, problem.rate, 1), jnp.inf)
    finest = [jnp.min(jnp.where(server == g, span, jnp.inf), axis=0) for g in range(num_servers)]
    tol = jnp.minimum(jnp.stack(finest), top) * (tolerance(dtype) * 0.3)
    # use = sum of w rho (T - n) = all_edge - sum of reach * a (n - b): no division in the loop.
    reach = per_step / problem.slope
    reach_pull = reach * rows.pull
    # Masks as factors: inside the loop XLA's CPU backend then sums without a selected copy.
    on_server = [(server == g).astype(dtype) for g in range(num_servers)]
    all_edge = total(server, reach * _logit(rows.v_upper), num_servers) - budget

    def excess(price: Array) -> tuple[Array, Array]:
        """Use above the budget, and how fast it falls with the price."""
        paid = sum(on * price[g] for g, on in enumerate(on_server))
        raw = rows.share - paid * rows.pull
        v = jnp.clip(raw, rows.v_upper, rows.v_lower)
        r = jnp.sqrt(1 - v)
        inside = (raw == v) & (r > 0)
        fall = jnp.where(inside, reach_pull / jnp.maximum(r * v, jnp.finfo(dtype).tiny), 0)
        used = reach * jnp.log((1 + r) ** 2 / v)
        per_server = [(jnp.sum(on * used, axis=0), jnp.sum(on * fall, axis=0)) for on in on_server]
        used, fall = (jnp.stack(sums) for sums in zip(*per_server, strict=True))
        return all_edge - used, fall

    def unfinished(carry: _Search) -> Array:
        *_, open_, count = carry
        return jnp.any(open_) & (count < MAX_STEPS)

    def newton(carry: _Search) -> _Search:
        price, low, high, width, width_before, open_, count = carry
        over, fall = excess(price)
        low = jnp.where(open_ & (over > 0), jnp.maximum(low, price), low)
        high = jnp.where(open_ & ~(over > 0), jnp.minimum(high, price), high)
        step = over / jnp.where(fall > 0, fall, 1)
        # Newton's target is kept `small` inside the bracket; at the end it goes `small` beyond the
        # root: so the bracket closes from its other side too. Arriving alone is no proof, since
        # the step may come from a steep piece that ends before the root.
        small = jnp.maximum(tol, hair * high)
        target = (
            price + step + jnp.where(jnp.abs(step) <= small, jnp.where(over > 0, small, -small), 0)
        )
        slow = (high - low > width_before / 2) & (jnp.abs(step) > (high - low) / 10)
        good = (fall > 0) & (target > low - small) & (target < high + small) & ~slow
        target = jnp.clip(target, low + small, high - small)
        target = jnp.where(good, target, (low + high) / 2)
        closed = high - low <= 2 * small
        price = jnp.where(open_, target, price)
        return price, low, high, high - low, width, open_ & ~closed, count + 1

    # Nothing to search for in a server without a budget: at its largest price all run locally.
    search = binding & (budget > 0)
    price, low = jnp.where(search, FIRST_GUESS * top, top), jnp.where(search, 0, top)
    carry = (price, low, top, top, top, search, jnp.asarray(0))
    _, low, high, *_ = jax.lax.while_loop(unfinished, newton, carry)
    # A hair wider, so that a row which jumps at the root is on its lower side at one end and on its
    # upper at the other, whatever the rounding.
    low = jnp.where(search, jnp.maximum(low - hair * high, 0), top)
    return low, jnp.where(search, high * (1 + hair), top)
