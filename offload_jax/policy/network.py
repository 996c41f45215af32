"""What a policy needs of a network: one interface, implemented by a record of settings."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol, runtime_checkable

from flax import linen as nn
from jaxtyping import Array, Float

from offload_jax.problem.types import Key


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


class FlaxNetwork:
    """A `Network` whose flax module has methods `encode` and `decode`, and calls both at once."""

    def module(self) -> nn.Module:
        """The module of these settings."""
        raise NotImplementedError

    def validate(self) -> None:
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
