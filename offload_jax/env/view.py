"""Which pairs of user and batch an observation is about."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from offload_jax.env.config import EnvConfig
from offload_jax.env.state import State, is_current, open_pairs
from offload_jax.problem.arrays import one_hot
from offload_jax.problem.instance import Instance


@dataclass(frozen=True)
class View:
    """Which pairs are looked at: chosen ones, those of the current user, or all there are."""

    current: Float[Array, "users *batch"]  # 1 for the current user; all 0 in adaptive order
    chosen: Int[Array, "rows *batch"] | None  # user * M + batch
    adaptive: bool
    batches: int  # M

    def of(self, x: Float[Array, "users_or_1 batches_or_1 *batch"]) -> Array:
        """These pairs' numbers, (rows, columns, *batch), of those of all pairs.

        x has 1 for an axis that it does not depend on.
        """
        if self.chosen is None:
            return x if self.adaptive or x.shape[0] == 1 else _only(self.current, x)
        rows, columns, *batch = x.shape
        row, column = self.chosen // self.batches, self.chosen % self.batches
        place = row * (rows > 1) * columns + column * (columns > 1)
        return jnp.take_along_axis(x.reshape(-1, *batch), place, axis=0)[:, None]

    def of_everybody(self, x: Float[Array, "users batches *batch"]) -> Array:
        """What all users have where a row's pairs are: (rows or 1, users, columns, *batch)."""
        if self.chosen is None:
            return x[None]
        batch = jnp.broadcast_to(self.chosen % self.batches, (x.shape[0], *self.chosen.shape))
        return jnp.moveaxis(jnp.take_along_axis(x, batch, axis=1), 1, 0)[:, :, None]

    def themselves(self) -> Array:
        """Whether a row is about a user: (rows, users, *batch)."""
        users = self.current.shape[0]
        if self.chosen is not None:
            return jnp.moveaxis(one_hot(self.chosen // self.batches, users), 0, 1)
        if self.adaptive:
            return jnp.eye(users, dtype=bool).reshape(users, users, *(1,) * (self.current.ndim - 1))
        return self.current[None] > 0


def view_of(
    instance: Instance, state: State, env: EnvConfig, gains: Float[Array, "users batches *batch"]
) -> View:
    """What is looked at in a state; `gains` say which pairs are the best candidates."""
    adaptive, chosen = env.order == "adaptive", None
    current = is_current(instance, state).astype(gains.dtype) * (0.0 if adaptive else 1.0)
    users, batches = gains.shape[:2]
    if env.candidates:
        local = jnp.maximum(instance.local_step, jnp.finfo(gains.dtype).tiny)
        rated = jnp.where(open_pairs(instance, state), gains / local[:, None], -jnp.inf)
        rated = jnp.moveaxis(rated.reshape(users * batches, *gains.shape[2:]), 0, -1)
        # Never fewer than asked for, whatever N: the last pair again stands for what is missing.
        none = jnp.full((*rated.shape[:-1], env.candidates), -jnp.inf, rated.dtype)
        _, chosen = jax.lax.top_k(jnp.concatenate([rated, none], axis=-1), env.candidates)
        chosen = jnp.moveaxis(jnp.minimum(chosen, users * batches - 1), -1, 0)
    return View(current, chosen, adaptive, batches)


def _only(current: Float[Array, "users *batch"], x: Array) -> Array:
    """The current user's row of x (users, ..., *batch), as the only one of its first axis."""
    chosen = current.reshape(current.shape[0], *(1,) * (x.ndim - current.ndim), *current.shape[1:])
    return jnp.sum(x * chosen, axis=0, keepdims=True)
