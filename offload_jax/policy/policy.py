"""A policy: a network's parameters with what is needed to use them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from offload_jax.env.environment import Environment
from offload_jax.policy.network import Network
from offload_jax.problem.contracts import Returned
from offload_jax.problem.instance import Instance
from offload_jax.splits import Solver


@struct.dataclass
class Policy:
    """Parameters with what is needed to use them. Works for any N, M and G.

    A pytree: functions of policies compile once for all parameters of the same settings.
    """

    params: Any  # of the network
    network: Network = struct.field(pytree_node=False)
    env: Environment = struct.field(pytree_node=False)
    source: str = struct.field(pytree_node=False, default="memory")  # where they came from
    # Of sampled plans: above 1 they differ more from the greedy one.
    temperature: Float[Array, ""] | float = 1.0

    def with_solver(self, solver: Solver) -> Policy:
        """The same decisions, their splits by another solver."""
        return replace(self, env=replace(self.env, solver=solver))

    def encode(self, instances: Instance) -> Any:
        """What all decisions about these instances (batch last) share.

        Leaves get a leading axis ``instances``.
        """
        shown = jax.tree.map(lambda x: jnp.moveaxis(x, -1, 0), self.env.describe(instances))
        return jax.vmap(lambda one: self.network.encode(self.params, one))(shown)

    def decode(
        self, encoding: Any, observation: Any
    ) -> tuple[Float[Array, "instances samples actions"], Float[Array, "instances samples"]]:
        """Logits and values.

        Leaves of the encoding are (instances, ...), of the observation (instances, samples, ...).
        """

        def one(encoded: Any, observed: Any) -> Any:
            found = self.network.decode(self.params, encoded, observed)
            sizes = {"actions": observed.mask.shape[0]}
            returned = Returned("Network.decode", self.network, sizes)
            logits, value = returned.parts(found, "logits", "value")
            returned.array("logits", logits, "actions")
            returned.array("value", value)
            return logits, value

        return jax.vmap(jax.vmap(one, in_axes=(None, 0)))(encoding, observation)

    def decode_steps(
        self, encoding: Any, observation: Any
    ) -> tuple[
        Float[Array, "steps instances samples actions"], Float[Array, "steps instances samples"]
    ]:
        """`decode` of observations with a first axis ``steps``."""
        return jax.vmap(lambda seen: self.decode(encoding, seen))(observation)
