"""What an update pulls the policy towards: advantages, and the loss of recorded decisions.

As in an update, arrays have this device's share of the instances.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from offload_jax.env.description import local_time
from offload_jax.env.observation import in_sight
from offload_jax.env.state import State
from offload_jax.learning import likelihood
from offload_jax.learning.algorithms import ppo, preference, self_labelling
from offload_jax.learning.algorithms.layer import expected_loss
from offload_jax.learning.config import Learner
from offload_jax.policy.network import Encoding
from offload_jax.policy.rollout import Transition, decode_steps, encode, looks_at_empty
from offload_jax.problem import equations
from offload_jax.problem.instance import Instance

Parts = dict[str, Float[Array, ""]]  # of the loss, by the name of their metric


@struct.dataclass
class Targets:
    """What the loss pulls towards; leaves (steps, instances, samples)."""

    advantage: Float[Array, "steps instances samples"]
    value: Float[Array, "steps instances samples"]


def advantages(
    learner: Learner, instances: Instance, final: State, batch: Transition
) -> Targets | None:
    """Whole-episode advantages, in units of what each instance has to gain.

    None for objectives other than the surrogate, which need none.
    """
    if learner.config.objective != "surrogate":
        return None
    shape = batch.reward.shape[1:]
    gains = final.gain.reshape(shape)
    scale = best_gain(instances, gains)[:, None]
    if learner.config.baseline == "shared":
        advantage = jax.vmap(ppo.leave_one_out)(gains / scale)
        advantage = jnp.broadcast_to(advantage, batch.reward.shape)
        return Targets(advantage=advantage, value=jnp.zeros_like(advantage))
    unit = 0.1 * local_time(instances)[:, None]  # the critic predicts returns in all-local times

    def one_stream(rewards: Array, values: Array, free: Array) -> tuple[Array, Array]:
        values = ppo.forced_values(values, rewards, free)
        advantage = ppo.generalized_advantage(rewards, values, learner.hyperparameters.gae_decay)
        return advantage, advantage + values

    over_streams = jax.vmap(jax.vmap(one_stream, in_axes=1, out_axes=1), in_axes=1, out_axes=1)
    raw, target = over_streams(batch.reward / unit, batch.value, batch.real)
    users = equations.num_real_users(instances)[:, None]
    return Targets(advantage=raw * 10 * unit * users / scale, value=target)


def best_gain(
    instances: Instance, gains: Float[Array, "instances samples"]
) -> Float[Array, "instances"]:
    """The unit of what is learned (s): differences in it are differences of the gap.

    An instance's best sample estimates its optimum; where nothing is gained it is no less than a
    hundredth of an all-local run.
    """
    return jnp.maximum(jnp.max(gains, axis=1), 0.01 * local_time(instances))


def loss(
    learner: Learner,
    params: Any,
    instances: Instance,
    batch: Transition,
    targets: Targets | None,
    progress: Float[Array, ""],
) -> tuple[Float[Array, ""], Parts]:
    """Loss of recorded decisions under new parameters; the second result holds its parts.

    Means over the decisions of all devices (of preferences over instances, of the layer over
    samples), of which this device contributes its own summands.
    """
    traced, network = learner.hyperparameters, learner.module()
    encoding = encode(network, params, instances)
    logits, values = decode_steps(network, params, encoding, batch.observation)
    real = batch.real.astype(values.dtype)
    weight = real / jnp.maximum(learner.devices.sum(jnp.sum(real)), 1)
    entropy = jnp.sum(_map3(likelihood.entropy)(logits) * weight)
    total = _policy_loss(learner, logits, batch, targets, weight)
    total = total - traced.entropy * (1 - progress) * entropy
    layer = error = jnp.zeros_like(total)
    if learner.config.layer:
        layer = _layer_loss(learner, params, encoding, instances, batch, logits)
        total = total + learner.config.layer * layer
    if learner.config.baseline == "critic":
        assert targets is not None  # the objective is the surrogate
        error = jnp.sum(ppo.value_error(values, targets.value) * weight)
        total = total + traced.value * error
    return total, {"loss": total, "entropy": entropy, "value_error": error, "layer": layer}


def _policy_loss(
    learner: Learner,
    logits: Float[Array, "steps instances samples actions"],
    batch: Transition,
    targets: Targets | None,
    weight: Float[Array, "steps instances samples"],
) -> Float[Array, ""]:
    """What the objective pulls the policy towards; `weight` makes means over all decisions."""
    traced = learner.hyperparameters
    if learner.config.objective == "layer":
        return jnp.zeros(())
    if learner.config.objective == "imitation":
        # What a policy does not look at it cannot learn to take.
        assert batch.wanted is not None  # recorded on the way to a plan
        seen = in_sight(batch.observation) & batch.wanted
        known = jnp.any(seen, axis=-1)
        wanted = jnp.where(known[..., None], seen, batch.wanted)
        return jnp.sum(_map3(self_labelling.imitation)(logits, wanted) * (weight * known))
    log_prob = _map3(likelihood.log_prob)(logits, batch.action)
    if learner.config.objective == "preference":
        total, gained = (jnp.sum(x, axis=0) for x in (log_prob * batch.real, batch.reward))
        prefer = jax.vmap(preference.preference, in_axes=(0, 0, None))
        each = prefer(total, gained, traced.sharpness)
        return jnp.sum(each) / learner.devices.sum(jnp.sum(jnp.ones_like(each)))
    assert targets is not None
    log_ratio = log_prob - batch.log_prob
    surrogate = ppo.clipped_surrogate(log_ratio, targets.advantage, traced.clip)
    return jnp.sum(surrogate * weight)


def _layer_loss(
    learner: Learner,
    params: Any,
    encoding: Encoding,
    instances: Instance,
    batch: Transition,
    logits: Float[Array, "steps instances samples actions"],
) -> Float[Array, ""]:
    """`expected_loss`, the mean over all devices' samples.

    Of the recorded decisions, where users are decided in turn. One-shot and in adaptive order it is
    of the empty plan: what is recorded depends on a sample's decisions before (one-shot by the
    mask), and has the candidates only.
    """
    env, observation = learner.env, batch.observation
    if env.one_shot or env.order == "adaptive":
        observation = looks_at_empty(instances, replace(env, candidates=0))
        logits, _ = decode_steps(learner.module(), params, encoding, observation)
    users = equations.num_real_users(instances)
    gains = jnp.sum(batch.reward, axis=0) * 10 * users[:, None]
    unit = best_gain(instances, gains)
    each = expected_loss(instances, observation, logits, unit, env.solver)
    return jnp.sum(each) / learner.devices.sum(jnp.sum(jnp.ones_like(each)))


def _map3(f: Callable[..., Array]) -> Callable[..., Array]:
    """`f` on one stream, over the axes (steps, instances, samples)."""
    return jax.vmap(jax.vmap(jax.vmap(f)))
