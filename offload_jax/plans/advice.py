"""What an operator asks about a plan: what binds, what more of it is worth, who comes next.

Prices of the convex layer answer at the margin; beside each stands what solving again gives. All
worths are seconds of U (7), everybody else kept where they are and all split points re-solved.
Users and servers count from 0, as in instance files, batches from 1, as in assignments.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from offload_jax.plans.margins import Margins, margins
from offload_jax.plans.outcome import split_problem
from offload_jax.problem.instance import Instance
from offload_jax.problem.types import STATUS_TEXT, Status
from offload_jax.splits import NATIVE, Solver

# Why a user is denied: no reason; every batch that gains is full; all gain only without budgets;
# none gains, budgets or not; none leaves split points that keep the solver's rules.
OPEN, CAPACITY, BUDGET = "would be granted", "capacity", "budget"
WORTH, RULES = "not worth it", "rules"
REASONS = (OPEN, CAPACITY, BUDGET, WORTH, RULES)


@dataclass(frozen=True)
class Change:
    """One user granted in, moved to (batch from 1) or taken out of (0) a batch."""

    user: int
    batch: int
    gain: float  # s, solved again


@dataclass(frozen=True)
class ServerAdvice:
    """One server. What GPU-seconds are worth falls with every one: the price bounds `second`."""

    server: int
    budget: float  # GPU-seconds, inf: no limit
    use: float  # GPU-seconds
    binds: bool  # spent, and with a price
    price: float  # s per GPU-second, the next bit of one (envelope theorem); >= second
    second: float  # s, one whole GPU-second more, solved again
    decided: float  # s, the same if one user is decided anew; may be above the price
    change: Change | None  # that user, where this gains more than `second` does
    faster: float  # s, 1 % off the time of every step of its batches, at the margin


@dataclass(frozen=True)
class BatchAdvice:
    """One batch, and the best single change that one more image of memory makes possible.

    Its worth is what it gains above the best of its kind that there is room for already.
    """

    batch: int
    server: int
    capacity: float  # images
    load: float  # images
    room: float  # images
    full: bool  # none of the denied users fits
    image: float  # s, by granting a user, solved again
    image_user: int | None  # that user
    image_estimate: float  # s, the same from the reduced gains, to first order
    image_move: float  # s, by moving a granted user here, solved again
    image_mover: int | None  # that user


@dataclass(frozen=True)
class DeniedAdvice:
    """A denied user, in the batch that would gain most of those that `why` speaks of."""

    user: int
    demand: float  # images
    batch: int
    estimate: float  # s, reduced gain there, whether it fits or not
    gain: float  # s, solved again; -inf where the solver's rules leave no split points
    unlimited: float  # s, the same if no server had a budget
    missing: float  # images that the batch lacks, 0: it fits
    why: str  # OPEN, CAPACITY, BUDGET, WORTH or RULES


@dataclass(frozen=True)
class GrantedAdvice:
    """A granted user."""

    user: int
    demand: float  # images
    batch: int
    split: float  # steps on the own device
    use: float  # GPU-seconds
    worth: float  # s, U less U without this grant, solved again


@dataclass(frozen=True)
class Advice:
    """Everything about one plan."""

    gain: float  # s, U - U_deny
    rounding: float  # s, what is nearer to 0 than this may be 0
    steps: float
    bandwidth: float  # Hz
    wider: float  # s, 1 % more bandwidth, at the margin
    servers: tuple[ServerAdvice, ...]
    batches: tuple[BatchAdvice, ...]
    denied: tuple[DeniedAdvice, ...]  # by `REASONS`, then the largest reduced gain first
    granted: tuple[GrantedAdvice, ...]  # smallest worth first: who would be dropped first
    better: Change | None  # the best single change, where the plan is not locally optimal

    def to_json(self) -> dict[str, Any]:
        """For `json.dumps`; null for no limit, and for a gain of minus infinity."""
        header = {"format": "offload-jax/advice", "version": 1}
        return {**header, **_finite(asdict(self))}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def advise(instance: Instance, assignment: ArrayLike, solver: Solver = NATIVE) -> Advice:
    """Advice on one plan of one instance (no batch axis): (G + 2) N (M + 1) solves.

    Rules of the solver are kept by all that is solved again; estimates do not know them. Raises
    ValueError for a batch of instances, and for an assignment of the wrong shape, type or range,
    above a capacity, or without split points.
    """
    if instance.alpha.ndim != 1:
        raise ValueError(
            f"instance has users of shape {instance.alpha.shape}; must be one instance"
        )
    jax.eval_shape(lambda i: split_problem(i, assignment), instance)  # refuses, computes nothing
    plan = np.where(np.asarray(instance.mask), np.asarray(assignment), 0)
    found = jax.device_get(margins(instance, jnp.asarray(plan, jnp.int32), solver))
    _refuse(instance, found)
    facts = _Facts(jax.tree.map(np.asarray, instance), plan, found, solver)
    best = facts.best(found.changes)
    denied = sorted((_denied(facts, i) for i in facts.denied), key=lambda one: -one.estimate)
    return Advice(
        gain=float(found.outcome.gain),
        rounding=facts.rounding,
        steps=float(instance.steps),
        bandwidth=float(instance.bandwidth),
        wider=float(found.wider),
        servers=tuple(_server(facts, g) for g in range(instance.num_servers)),
        batches=tuple(_batch(facts, k) for k in range(instance.num_batches)),
        denied=tuple(sorted(denied, key=lambda one: REASONS.index(one.why))),
        granted=tuple(sorted((_granted(facts, i) for i in facts.granted), key=lambda g: g.worth)),
        better=best if best.gain > facts.rounding else None,
    )


def _refuse(instance: Instance, found: Margins) -> None:
    """Plans that cannot be executed: there is nothing to advise on."""
    over = np.flatnonzero(~found.within)
    if len(over):
        k = int(over[0])
        raise ValueError(
            f"assignment puts {found.load[k]:g} images in batch {k + 1}; must be at most its "
            f"capacity ({float(instance.capacity[k]):g})"
        )
    status = Status(int(found.outcome.status))
    if status != Status.SOLVED:
        raise ValueError(f"assignment has no split points; must have some: {STATUS_TEXT[status]}")


@dataclass(frozen=True, eq=False)
class _Facts:
    """The device's numbers in NumPy, with what is asked of them again and again."""

    instance: Instance
    plan: np.ndarray  # (N,), batch from 1, 0 denied or padded
    found: Any  # Margins, in NumPy
    solver: Solver

    @property
    def granted(self) -> list[int]:
        return np.flatnonzero(self.plan).tolist()

    @property
    def denied(self) -> list[int]:
        return np.flatnonzero(np.asarray(self.instance.mask) & (self.plan == 0)).tolist()

    @cached_property
    def rounding(self) -> float:
        """What U is uncertain by, s: rounding, and what interior points leave."""
        native, instance = self.solver == NATIVE, self.instance
        scale = instance.alpha + instance.steps * instance.local_step
        share = max(8 * np.finfo(scale.dtype).eps, 0 if native else 1e-6)
        return float(share * np.sum(scale[instance.mask]))

    def best(self, gains: np.ndarray) -> Change:
        """The choice of one user that gains most (N, M + 1), of those that there is room for."""
        possible = np.where(self.found.allowed, gains, -np.inf)
        user, choice = (int(x) for x in np.unravel_index(np.argmax(possible), gains.shape))
        return Change(user, choice, float(possible[user, choice]))

    def worth(self, value: float) -> float:
        """What cannot be worth less than nothing, without what rounding makes of nothing."""
        return value if value > self.rounding else 0.0


def _server(facts: _Facts, g: int) -> ServerAdvice:
    found, price = facts.found, float(facts.found.outcome.price[g])
    budget, use = float(facts.instance.budget[g]), float(found.use[g])
    now, then = facts.best(found.changes), facts.best(found.richer[..., g])
    decided = facts.worth(then.gain - now.gain)
    more = then.gain - found.second[g] > facts.rounding and decided > 0
    return ServerAdvice(
        server=g,
        budget=budget,
        use=use,
        binds=price > 0 and use >= budget - 1e-4 * max(1.0, budget),
        price=price,
        second=facts.worth(float(found.second[g])),
        decided=decided,
        change=then if more else None,
        faster=float(found.faster[g]),
    )


def _batch(facts: _Facts, k: int) -> BatchAdvice:
    found, denied = facts.found, facts.denied
    image, user = _image(facts, denied, k, found.changes[:, 1:])
    estimate, _ = _image(facts, denied, k, found.estimate)
    move, mover = _image(facts, facts.granted, k, found.changes[:, 1:])
    return BatchAdvice(
        batch=k + 1,
        server=int(facts.instance.server[k]),
        capacity=float(facts.instance.capacity[k]),
        load=float(found.load[k]),
        room=float(facts.instance.capacity[k] - found.load[k]),
        full=bool(denied) and not found.room[denied, k].any(),
        image=image,
        image_user=user,
        image_estimate=estimate,
        image_move=move,
        image_mover=mover,
    )


def _image(facts: _Facts, users: list[int], k: int, gains: np.ndarray) -> tuple[float, int | None]:
    """(worth of one more image in batch k to these users, s, and which of them would take it).

    `gains` (N, M) are of their grants, or of their moves.
    """
    found = facts.found
    own = facts.plan[users, None] == np.arange(1, gains.shape[1] + 1)
    now = np.max(np.where(found.room[users] & ~own, gains[users], 0), initial=0)
    new = found.more[users, k] & ~found.room[users, k] & ~own[:, k]
    new_gains = np.where(new, gains[users, k], -np.inf)
    best = facts.worth(float(np.max(new_gains, initial=-np.inf) - now))
    return best, users[int(np.argmax(new_gains))] if best else None


def _denied(facts: _Facts, user: int) -> DeniedAdvice:
    found, instance = facts.found, facts.instance
    gains, room = found.changes[user, 1:], found.room[user]
    now, free = gains > facts.rounding, found.unlimited[user, 1:] > facts.rounding
    why, among = WORTH, np.ones_like(room)
    cases = ((OPEN, now & room), (CAPACITY, now), (BUDGET, free & room), (BUDGET, free))
    for reason, batches in reversed(cases):
        if batches.any():
            why, among = reason, batches
    by = found.unlimited[user, 1:] if why == BUDGET else gains
    k = int(np.argmax(np.where(among, by, -np.inf)))
    missing = float(found.load[k] + instance.demand[user] - instance.capacity[k])
    return DeniedAdvice(
        user=user,
        demand=float(instance.demand[user]),
        batch=k + 1,
        estimate=float(found.estimate[user, k]),
        gain=float(gains[k]),
        unlimited=float(found.unlimited[user, k + 1]),
        missing=0.0 if room[k] else missing,
        why=RULES if np.all(gains == -np.inf) else why,
    )


def _granted(facts: _Facts, user: int) -> GrantedAdvice:
    found, split = facts.found, float(facts.found.outcome.split[user])
    return GrantedAdvice(
        user=user,
        demand=float(facts.instance.demand[user]),
        batch=int(facts.plan[user]),
        split=split,
        use=float(found.rate[user] * (facts.instance.steps - split)),
        worth=-float(found.changes[user, 0]),
    )
