"""The numbers of one instance as branch and bound needs them, and the levels of its step times.

A batch has few step times, as its load is a sum of images: each is a level. Where there are too
many, all are one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import numpy as np

from offload_jax.files.accuracy import accuracy_loss, amplitude, logistic
from offload_jax.plans.outcome import room
from offload_jax.problem.instance import Instance, neutral_padding

LEVELS = 40  # of a batch's step time, at most; seen: 17 on edge, 21 on paper with 20 users

Pair = tuple[int, int]  # user i, batch k


class Numbers:
    """The numbers of one instance in float64, and the levels of its batches' step times."""

    def __init__(self, instance: Instance) -> None:
        with jax.enable_x64(True):
            instance = neutral_padding(instance)
            # Before float64: in it sums that fit the instance's own type may be too much.
            instance = replace(instance, capacity=room(instance))
        i = jax.tree.map(lambda x: np.asarray(x, float if x.dtype.kind == "f" else None), instance)
        self.instance: Any = i  # an Instance of NumPy arrays
        self.real = np.asarray(i.mask)
        self.own = np.diag(i.interference)
        self.longest = i.steps - np.maximum(i.split_min[:, None], i.accuracy_centre)  # of e, (N, M)
        self.air = i.payload / (i.bandwidth * i.spectral_efficiency)  # s, with the whole band
        self.curve = (
            i.accuracy_local[:, None],
            i.accuracy_floor,
            i.accuracy_slope,
            i.accuracy_centre,
        )
        self.amplitude = amplitude(i.alpha[:, None], i.steps, *self.curve)
        fits = i.demand[:, None] <= i.capacity * (1 + 1e-9)
        alone = i.intercept + i.demand[:, None] * self.own
        worth = np.where(fits & self.real[:, None], self.worth(alone), 0)
        self.pairs: list[Pair] = [(int(u), int(k)) for u, k in np.argwhere(worth > 0)]
        self.able = sorted({u for u, _ in self.pairs})
        self.most = float(np.sum(np.max(worth, axis=1, initial=0)))
        self.unit = max(self.most / 10, 1e-300)  # s, of SCIP's objective
        rows, which = np.unique(i.interference, axis=0, return_inverse=True)
        # A group of batches that everything slows down alike has the same levels.
        which = np.where(np.isin(np.arange(len(which)), [k for _, k in self.pairs]), which, -1)
        self.groups = [
            Group(self, row, np.flatnonzero(which == g)) for g, row in enumerate(rows) if g in which
        ]

    def reply(self, step_time: np.ndarray, price: np.ndarray | float = 0.0) -> np.ndarray:
        """Edge steps (N, M) that are best at step times (N or 1, M) and a price per batch."""
        i = self.instance
        saving = i.local_step[:, None] - step_time - price * i.demand[:, None] * self.own
        steepest = self.amplitude * i.accuracy_slope
        v = np.clip(saving / np.where(steepest > 0, steepest, 1), 1e-300, 0.25)
        split = 2 * np.log1p(np.sqrt(1 - 4 * v)) - np.log(4 * v)
        e = i.steps - i.accuracy_centre - split / i.accuracy_slope
        e = np.where(saving >= steepest / 4, self.longest, np.clip(e, 0, self.longest))
        return np.where(saving > 0, e, 0)

    def loss(self, e: np.ndarray) -> np.ndarray:
        """What edge steps (N, M) cost in accuracy (s, alpha included); convex, 0 at 0."""
        i = self.instance
        lost = accuracy_loss(i.steps, i.steps - e, *self.curve)
        return np.asarray(i.alpha[:, None] * lost)

    def loss_at(self, user: int, batch: int, e: float) -> tuple[float, float]:
        """The same of one user and batch, and its slope."""
        i = self.instance
        floor, slope, centre = (x[user, batch] for x in self.curve[1:])
        split = i.steps - e
        lost = accuracy_loss(i.steps, split, i.accuracy_local[user], floor, slope, centre)
        at = logistic(slope * (split - centre))
        steep = self.amplitude[user, batch] * slope * at * (1 - at)
        return float(i.alpha[user] * lost), float(steep)

    def worth(self, step_time: np.ndarray) -> np.ndarray:
        """The most (s) that each user gains in each batch at these step times, (N, M)."""
        e = self.reply(step_time)
        saving = self.instance.local_step[:, None] - step_time
        return saving * e - self.loss(e) - self.air[:, None]


class Group:
    """Batches with one row of interference, and the levels of what it adds to their step times."""

    def __init__(self, data: Numbers, row: np.ndarray, batches: np.ndarray) -> None:
        i = data.instance
        self.row, self.batches, self.exact = row, [int(k) for k in batches], True
        self.items = [(u, k) for u, k in data.pairs if row[k] > 0 or k in self.batches]
        room = float(np.sum(row * np.minimum(i.capacity, i.demand[data.real].sum()))) * (1 + 1e-9)
        sums = np.zeros(1)
        for u in sorted({u for u, _ in self.items}):
            more = {float(row[k] * i.demand[u]) for v, k in self.items if v == u}
            sums = np.unique(np.concatenate([sums, *(sums + m for m in sorted(more))]))
            sums = sums[sums <= room]
            sums = sums[np.diff(sums, prepend=-room - 1) > 1e-9 * room]
            if len(sums) > LEVELS:  # and never fewer again
                self.exact, sums = False, np.zeros(1)
                break
        self.low = [float(x) for x in sums]
        self.high = self.low if self.exact else [room]

    def step_time(self, data: Numbers, level: int) -> np.ndarray:
        """What each user meets in each batch, s per step; without the others if there is one level.

        Shape (N or 1, M).
        """
        i = data.instance
        if self.exact:
            return (i.intercept + self.low[level])[None]
        return np.asarray(i.intercept + i.demand[:, None] * self.row)

    def level(self, data: Numbers, assignment: np.ndarray) -> int:
        """The level that a plan brings the group to."""
        load = sum(
            self.row[a - 1] * data.instance.demand[u] for u, a in enumerate(assignment) if a > 0
        )
        return max(0, int(np.searchsorted(self.low, load + 1e-7 * (1e-9 + self.low[-1]))) - 1)
