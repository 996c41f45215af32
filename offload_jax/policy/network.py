"""What a policy needs of a network: one interface, implemented by a record of settings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from offload_jax.env.observation import Observation
from offload_jax.problem.types import Key

UNSEEN = -50.0  # logit of pairs that are not looked at, below all others


@runtime_checkable
class Network(Protocol):
    """An actor-critic as a frozen record of its settings; works on one instance (callers `vmap`).

    Decoding is light, since it is done at every step; what is the same at all of them is encoded.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def validate(self) -> None:
        """Raises ValueError naming the field and the allowed values."""

    def init(self, key: Key, description: Any, observation: Any) -> Any:
        """Fresh parameters, from what the environment shows of an instance and of a state."""

    def encode(self, params: Any, description: Any) -> Any:
        """What all decisions about an instance share: any pytree."""

    def decode(
        self, params: Any, encoding: Any, observation: Any
    ) -> tuple[Float[Array, "actions"], Float[Array, ""]]:
        """Logits of all actions, illegal ones (`observation.mask`) minus infinity, and the value.

        The value estimates what is still to come, in all-local times.
        """


class FlaxNetwork(ABC):
    """A `Network` whose flax module has methods `encode` and `decode`, and calls both at once."""

    @abstractmethod
    def module(self) -> nn.Module:
        """The module of these settings."""

    def validate(self) -> None:  # noqa: B027 (most have nothing to refuse)
        """Raises ValueError naming the field and the allowed values."""

    def init(self, key: Key, description: Any, observation: Any) -> Any:
        return self.module().init(key, description, observation)

    def encode(self, params: Any, description: Any) -> Any:
        return self.module().apply(params, description, method="encode")

    def decode(
        self, params: Any, encoding: Any, observation: Any
    ) -> tuple[Float[Array, "actions"], Float[Array, ""]]:
        found: Any = self.module().apply(params, encoding, observation, method="decode")
        return found


def all_logits(
    observation: Observation, grants: Float[Array, "rows columns"], reject: Float[Array, ""]
) -> Float[Array, "actions"]:
    """Logits of all actions, from those of granting a pair in view and that of refusing.

    Refusing is denying the current user, or stopping in adaptive order. Pairs out of view
    (`env.candidates`) are far behind all others: legal, so that plans can be replayed, and never
    taken otherwise. Illegal actions have minus infinity.
    """
    flat, chosen, pairs = grants.reshape(-1), observation.chosen, observation.mask.shape[0] - 1
    if chosen is not None:
        legal = jnp.take(observation.mask, chosen) & (jnp.arange(chosen.shape[0]) < pairs)
        least = jnp.min(jnp.where(legal, flat, reject), initial=reject)
        flat = (jnp.full(pairs, UNSEEN, flat.dtype) + least).at[chosen].set(flat)
    both = [flat, reject[None]] if observation.adaptive else [reject[None], flat]
    return jnp.where(observation.mask, jnp.concatenate(both), -jnp.inf)
