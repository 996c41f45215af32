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

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Float, Int

from offload_jax.problem.arrays import pick, total
from offload_jax.splits.problem import SplitProblem, drain, neutral, tolerance

# Random problems need 6 Newton steps in the median and 18 at most. Beyond that lie budgets whose
# use jumps (rows without an accuracy term), where only bisection helps: a bit of the price a step.
MAX_STEPS = 64
# The first guess, as a share of the largest useful price: best of 0, 1/3, 1/2 in mean and maximum.
FIRST_GUESS = 0.3


@custom_vmap
def solve_dual(
    problem: SplitProblem,
) -> tuple[Float[Array, "rows *batch"], Float[Array, "servers *batch"]]:
    """Optimal split points (steps) and prices (s per GPU-second) of a valid problem.

    Neither a certificate nor a derivative rule: see `problem.with_status` and `implicit`.
    """
    return _solve_batch_last(problem)


@solve_dual.def_vmap
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

    solution = solve_dual(jax.tree.map(batch_last, problem, in_batched[0]))
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
        split = jnp.where(on_binding, mixed, free_split)
        return _settle(problem, per_step, budget, binding, split), price

    free_split, over = reply(jnp.zeros_like(budget))
    binding = limited & (over > 0)
    split, price = jax.lax.cond(
        jnp.any(binding), with_prices, lambda _: (free_split, jnp.zeros_like(budget)), None
    )
    return jnp.where(problem.granted, split, problem.steps), price


def _settle(
    problem: SplitProblem, per_step: Array, budget: Array, binding: Array, split: Array
) -> Array:
    """Splits whose use is the budget to the last bits, for what rounding each row left over.

    One row of each binding server takes all of it up, the inner one with the largest use per step:
    it moves least. In float32 a price would multiply the rest to more than the tolerance.
    """
    num_servers = budget.shape[0]
    over = total(problem.server, per_step * (problem.steps - split), num_servers) - budget
    inner = (split > problem.lower) & (split < problem.steps)
    strength = jnp.where(inner, per_step, 0)
    strongest = [
        jnp.max(jnp.where(problem.server == g, strength, 0), axis=0) for g in range(num_servers)
    ]
    chosen = (strength > 0) & (strength == pick(problem.server, jnp.stack(strongest)))
    takers = total(problem.server, chosen.astype(split.dtype), num_servers)  # equal rows share
    share = jnp.where(binding & (takers > 0), over / jnp.maximum(takers, 1), 0)
    move = pick(problem.server, share) / jnp.where(chosen, per_step, 1)
    return jnp.clip(split + jnp.where(chosen, move, 0), problem.lower, problem.steps)


class _Search(NamedTuple):
    """State of the price search; leaves (servers, *batch)."""

    price: Array  # tried next
    low: Array  # over budget
    high: Array  # within budget
    width: Array  # of the bracket, now
    width_before: Array  # and a step ago
    open: Array  # not yet closed


def _bracket(
    problem: SplitProblem, rows: _Rows, per_step: Array, budget: Array, binding: Array
) -> tuple[Array, Array]:
    """A narrow price bracket of each binding server: its low end over budget, its high end within.

    Shapes (servers, *batch).
    """
    hair = _hair(budget)
    top, tol = _price_scale(problem, per_step, budget.shape[0])
    excess = _excess_of(problem, rows, per_step, budget)
    # Nothing to search for in a server without a budget: at its largest price all run locally.
    search = binding & (budget > 0)
    price, low = jnp.where(search, FIRST_GUESS * top, top), jnp.where(search, 0, top)
    start = _Search(price, low, top, top, top, search)

    def unfinished(carry: tuple[_Search, Int[Array, ""]]) -> Array:
        return jnp.any(carry[0].open) & (carry[1] < MAX_STEPS)

    def step(carry: tuple[_Search, Int[Array, ""]]) -> tuple[_Search, Int[Array, ""]]:
        return _newton(carry[0], *excess(carry[0].price), tol), carry[1] + 1

    found, _ = jax.lax.while_loop(unfinished, step, (start, jnp.asarray(0)))
    # A hair wider, so that a row which jumps at the root is on its lower side at one end and on its
    # upper at the other, whatever the rounding.
    low = jnp.where(search, jnp.maximum(found.low - hair * found.high, 0), top)
    return low, jnp.where(search, found.high * (1 + hair), top)


def _hair(x: Array) -> float:
    """A relative difference that is rounding."""
    return float(8 * jnp.finfo(x.dtype).eps)


def _price_scale(problem: SplitProblem, per_step: Array, num_servers: int) -> tuple[Array, Array]:
    """Of each server: the largest useful price, and a difference of prices that is negligible."""
    uses = per_step > 0
    rate = jnp.where(uses, problem.rate, 1)
    # At the largest Delta / rho of a server every row on it runs locally, which is feasible.
    dear = jnp.where(uses, problem.saving / rate, 0)
    # A price this near leaves a stationarity residual well below `problem.tolerance`.
    steepest = jnp.maximum(problem.amplitude * problem.slope / 4, jnp.abs(problem.saving))
    span = jnp.where(uses, steepest / rate, jnp.inf)
    here = [problem.server == g for g in range(num_servers)]
    top = jnp.stack([jnp.max(jnp.where(on, dear, 0), axis=0) for on in here])
    finest = jnp.stack([jnp.min(jnp.where(on, span, jnp.inf), axis=0) for on in here])
    # Rounding must not hold a row back at its own largest price.
    top = jnp.maximum(top, 0) * (1 + _hair(top))
    return top, jnp.minimum(finest, top) * (tolerance(top.dtype) * 0.3)


def _excess_of(
    problem: SplitProblem, rows: _Rows, per_step: Array, budget: Array
) -> Callable[[Array], tuple[Array, Array]]:
    """A function of the prices: use above the budget, and how fast it falls with the price."""
    num_servers, dtype = budget.shape[0], budget.dtype
    # use = sum of w rho (T - n) = all_edge - sum of reach * a (n - b): no division in the loop.
    reach = per_step / problem.slope
    reach_pull = reach * rows.pull
    # At a bound a (n - b) is known exactly; its logarithm is off by 1e-4 where v is almost 1.
    z_lower = problem.slope * (problem.lower - problem.centre)
    z_upper = problem.slope * (problem.steps - problem.centre)
    all_edge = total(problem.server, reach * z_upper, num_servers) - budget
    # Masks as factors: inside the loop XLA's CPU backend then sums without a selected copy.
    on_server = [(problem.server == g).astype(dtype) for g in range(num_servers)]

    def excess(price: Array) -> tuple[Array, Array]:
        paid = sum(on * price[g] for g, on in enumerate(on_server))
        raw = rows.share - paid * rows.pull
        v = jnp.clip(raw, rows.v_upper, rows.v_lower)
        r = jnp.sqrt(1 - v)
        inside = (raw == v) & (r > 0)
        fall = jnp.where(inside, reach_pull / jnp.maximum(r * v, jnp.finfo(dtype).tiny), 0)
        z = jnp.where(raw >= rows.v_lower, z_lower, jnp.log((1 + r) ** 2 / v))
        used = reach * jnp.where(raw <= rows.v_upper, z_upper, z)
        per_server = [(jnp.sum(on * used, axis=0), jnp.sum(on * fall, axis=0)) for on in on_server]
        used, fall = (jnp.stack(sums) for sums in zip(*per_server, strict=True))
        return all_edge - used, fall

    return excess


def _newton(search: _Search, over: Array, fall: Array, tol: Array) -> _Search:
    """One step, given use above the budget at `search.price` and its slope.

    Newton from inside the bracket; a step that leaves it, or that did not halve it within two, is
    replaced by bisection.
    """
    price, low, high, width, width_before, open_ = search
    low = jnp.where(open_ & (over > 0), jnp.maximum(low, price), low)
    high = jnp.where(open_ & ~(over > 0), jnp.minimum(high, price), high)
    step = over / jnp.where(fall > 0, fall, 1)
    # Newton's target is kept `small` inside the bracket; at the end it goes `small` beyond the
    # root: so the bracket closes from its other side too. Arriving alone is no proof, since
    # the step may come from a steep piece that ends before the root.
    small = jnp.maximum(tol, _hair(high) * high)
    beyond = jnp.where(over > 0, small, -small)
    target = price + step + jnp.where(jnp.abs(step) <= small, beyond, 0)
    slow = (high - low > width_before / 2) & (jnp.abs(step) > (high - low) / 10)
    good = (fall > 0) & (target > low - small) & (target < high + small) & ~slow
    target = jnp.where(good, jnp.clip(target, low + small, high - small), (low + high) / 2)
    closed = high - low <= 2 * small
    price = jnp.where(open_, target, price)
    return _Search(price, low, high, high - low, width, open_ & ~closed)
