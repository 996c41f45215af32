"""What a policy's probabilities are worth: the gradient through the convex layer.

The probabilities with which a policy decides every user are a soft assignment p, and V(p) is what
that is worth with its optimal splits (`soft_value`). It takes users for independent. In adaptive
order it looks at the empty plan, and its gradient has no noise of sampled actions; users decided in
turn have those before them sampled.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from offload_jax.env.config import EnvConfig
from offload_jax.env.observation import Observation
from offload_jax.files.checks import Checks
from offload_jax.learning.algorithm import Collected, Learner, Parts, Replay
from offload_jax.learning.algorithms.ppo import PPO
from offload_jax.learning.loss import mean_of_all
from offload_jax.learning.soft_value import soft_evaluate
from offload_jax.learning.trajectories import best_gain
from offload_jax.policy.rollout import repeat, split_samples
from offload_jax.problem.instance import Instance
from offload_jax.problem.types import Scalar, Status
from offload_jax.splits import Solver


@dataclass(frozen=True)
class Layer(PPO):
    """PPO, and the gradient through the convex layer beside it."""

    weight: float = 0.1  # of -V(p)
    surrogate: float = 1.0  # weight of PPO's own loss; 0: nothing but the layer's gradient

    def validate(self, learner: Learner) -> None:
        super().validate(learner)
        check = Checks(self, "algorithm")
        check.positive("weight")
        check.not_negative("surrogate")
        if not isinstance(learner.env, EnvConfig):
            raise ValueError(
                "algorithm is layer; must be another one with the environment "
                f"{type(learner.env).__name__}: the layer's objective is that of snapshots"
            )
        if learner.env.solver.rules:
            raise ValueError(
                "algorithm is layer; must be another one with splits.constraints or splits.terms, "
                "which speak of one split per user"
            )

    def loss(self, learner: Learner, replay: Replay, collected: Collected) -> tuple[Scalar, Parts]:
        own, parts = super().loss(learner, replay, collected)
        layer = layer_loss(learner, replay, collected)
        return self.surrogate * own + self.weight * layer, {**parts, "layer": layer}


def layer_loss(learner: Learner, replay: Replay, collected: Collected) -> Scalar:
    """`soft_loss`, the mean over all devices' samples.

    Of the recorded decisions, where users are decided in turn. In adaptive order it is of the empty
    plan: what is recorded depends on a sample's decisions before, and has the candidates only.
    """
    observation, logits = collected.decisions.observation, replay.logits
    instances = replay.instances
    if observation.adaptive:
        env = replace(learner.env, candidates=0)
        seen = split_samples(env.observe(instances, env.reset(instances)), 1)
        observation = jax.tree.map(lambda x: x[None], seen)  # the one step that is looked at
        logits, _ = replay.policy.decode_steps(replay.encoding, observation)
    unit = best_gain(learner, instances, collected.gain)
    each = soft_loss(instances, observation, logits, unit, learner.env.solver)
    return mean_of_all(learner, each)


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


def soft_loss(
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
