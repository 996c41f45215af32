"""What a policy's probabilities are worth: the gradient through the convex layer.

The probabilities with which a policy decides every user are a soft assignment p, and V(p) is what
that is worth with its optimal splits (`soft_value`). It takes users for independent, which those of
a one-shot policy are until a batch is full. Of the empty plan (one-shot, or in adaptive order) its
gradient has no noise of sampled actions; users decided in turn have those before them sampled.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from offload_jax.env.observation import Observation
from offload_jax.learning.soft_value import soft_evaluate
from offload_jax.plans.outcome import Solver
from offload_jax.policy.rollout import repeat
from offload_jax.problem.instance import Instance
from offload_jax.problem.types import Status

# Of expected images above capacities, as a share of all images and in units of the best gain: twice
# what an image gains on average, so that hoping for room seldom pays.
OVERLOAD = 2.0


def soft_assignment(
    observation: Observation, logits: Float[Array, "steps instances samples actions"]
) -> Float[Array, "users choices instances samples"]:
    """The probabilities of {deny, 1..M} of every user.

    In arrival and sorted order a user's are those of its own turn. In adaptive order, where logits
    are those of the first decision among all pairs, each user chooses among its batches and what
    stopping weighs. Stopping itself ends the plan for all, so no gradient reaches its logit.
    """
    if not observation.adaptive:
        chances = jax.nn.softmax(logits, axis=-1)
        return jnp.einsum("tisn,tisa->nais", observation.current, chances)
    first = logits[0]
    shape = (*first.shape[:2], observation.undecided.shape[-1])
    stop = jnp.broadcast_to(jax.lax.stop_gradient(first[..., -1:, None]), (*shape, 1))
    rows = jnp.concatenate([stop, first[..., :-1].reshape(*shape, -1)], axis=-1)
    return jnp.moveaxis(jax.nn.softmax(rows, axis=-1), (0, 1), (2, 3))


def expected_loss(
    instances: Instance,
    observation: Observation,
    logits: Float[Array, "steps instances samples actions"],
    unit: Float[Array, "instances"],
    solver: Solver,
) -> Float[Array, "instances samples"]:
    """(V_deny - V(p)) in each instance's unit (s), and the price of expected overload.

    Where the layer's status is not solved the loss is 0.
    """
    chances = soft_assignment(observation, logits)
    count, samples = chances.shape[2:]
    outcome = soft_evaluate(
        repeat(instances, samples), chances.reshape(*chances.shape[:2], -1), solver
    )
    demand = jnp.sum(jnp.where(instances.mask, instances.demand, 0), axis=0)
    gain, overload, solved = (
        x.reshape(count, samples)
        for x in (
            outcome.gain,
            jnp.sum(outcome.overload, axis=0),
            outcome.status == Status.SOLVED,
        )
    )
    loss = OVERLOAD * overload / demand[:, None] - gain / unit[:, None]
    return jnp.where(solved, loss, 0)
