"""The learner: sample instances, roll out, and update towards what did best.

Inside an update arrays have this device's share of the instances; on one device that is all.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Int

from offload_jax.learning.algorithm import Collected, Learner, Parts
from offload_jax.learning.devices import Devices
from offload_jax.learning.loss import loss
from offload_jax.learning.trajectories import sample_instances
from offload_jax.policy.rollout import Transition
from offload_jax.problem import equations
from offload_jax.problem.contracts import Returned
from offload_jax.problem.instance import Instance
from offload_jax.problem.scenario import sample
from offload_jax.problem.types import Key


@struct.dataclass
class LearnerState:
    """Everything that training changes; a checkpoint holds exactly this."""

    params: Any  # of the network
    optimizer: optax.OptState
    key: Key
    step: Int[Array, ""]  # updates made


# One update in numbers. `score`: mean 0.1 U / N of the sampled trajectories (at their temperature).
# `gain`: mean gain over all-local as a share of the all-local time; `best_of_samples`: the same for
# the best sample of each instance. `entropy`: nats per decision. `loss`, and parts of it that the
# algorithm reports. `grad_norm`: global, before clipping. `sound`: False where a number was not
# finite, and the update was not applied.
Metrics = dict[str, Array]
METRICS = ("score", "gain", "best_of_samples", "loss", "entropy", "grad_norm")  # of every algorithm


def init(learner: Learner, key: Key) -> LearnerState:
    """Fresh parameters, optimiser and key."""
    instance_key, params_key, key = jax.random.split(key, 3)
    instance, env = sample(learner.scenario, instance_key), learner.env
    observation = env.observe(instance, env.reset(instance))
    params = learner.network.init(params_key, env.describe(instance), observation)
    optimizer = learner.optimizer().init(params)
    return LearnerState(params=params, optimizer=optimizer, key=key, step=jnp.int32(0))


def update(learner: Learner, state: LearnerState) -> tuple[LearnerState, Metrics]:
    """One update: collect trajectories, say what they teach, some passes over them.

    Where an observation, reward, gradient or parameter is not finite, the state stays as it was.
    Spread over `learner.devices`, whose number must divide the rows of `shuffle`.
    """
    return learner.devices.spread(partial(_update, learner))(state)


def _update(learner: Learner, state: LearnerState) -> tuple[LearnerState, Metrics]:
    key, sample_key, roll_key, shuffle_key = jax.random.split(state.key, 4)
    instances, collected = collect(learner, state.params, sample_key, roll_key)
    updated, parts = optimize(learner, state, instances, collected, shuffle_key)
    # Joined, for dozens of small reductions would double the time to compile an update.
    learned, _ = ravel_pytree((parts, updated.params, updated.optimizer))
    numbers = (collected.decisions.observation, collected.decisions.reward, learned)
    metrics = summarize(learner, instances, collected) | parts
    metrics["faulty"] = 1.0 - all_finite(numbers)
    metrics = learner.devices.mean(metrics)  # with the share of devices that met such a number
    sound = metrics.pop("faulty") == 0
    updated = replace(updated, key=key, step=state.step + 1)
    state = jax.tree.map(lambda new, old: jnp.where(sound, new, old), updated, state)
    return state, metrics | {"sound": sound}


def skip(state: LearnerState) -> LearnerState:
    """Past an update that cannot be made: the next one draws other instances."""
    return replace(state, key=jax.random.split(state.key, 4)[0], step=state.step + 1)


def all_finite(tree: Any) -> Bool[Array, ""]:
    """Whether every number of a tree is finite; what holds no floats counts as finite."""
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in floats]))


def collect(
    learner: Learner, params: Any, sample_key: Key, roll_key: Key
) -> tuple[Instance, Collected]:
    """Fresh instances, and what the algorithm makes of them."""
    count = learner.config.instances
    instances = sample_instances(learner.scenario, sample_key, count, learner.devices)
    policy, algorithm = learner.policy(params), learner.algorithm
    collected = algorithm.collect(learner, policy, instances, roll_key)
    returned = Returned("Algorithm.collect", algorithm, {"instances": instances.steps.shape[0]})
    returned.record(collected, Collected)
    returned.record(collected.decisions, Transition, "steps")
    return instances, collected


def optimize(
    learner: Learner, state: LearnerState, instances: Instance, collected: Collected, key: Key
) -> tuple[LearnerState, Parts]:
    """`epochs` passes over the samples in `minibatches` steps each; returns the mean loss parts."""
    config = learner.config
    optimizer = learner.optimizer()
    progress = state.step / config.updates

    def step(carry: Any, chosen: Int[Array, "part"]) -> tuple[Any, Parts]:
        params, opt_state = carry
        picked = jax.tree.map(lambda x: jnp.take(x, chosen, axis=-1), instances)
        part = collected.taken(chosen)
        (_, parts), grads = jax.value_and_grad(loss, argnums=1, has_aux=True)(
            learner, params, picked, part, progress
        )
        grads, parts = learner.devices.sum((grads, parts))
        parts["grad_norm"] = optax.tree.norm(grads)
        changes, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, changes), opt_state), parts

    def one_pass(carry: Any, key: Key) -> tuple[Any, dict[str, Array]]:
        order = shuffle(key, config.instances, config.minibatches)
        return jax.lax.scan(step, carry, _own(order, learner.devices))

    start = (state.params, state.optimizer)
    (params, opt_state), parts = jax.lax.scan(one_pass, start, jax.random.split(key, config.epochs))
    return replace(state, params=params, optimizer=opt_state), jax.tree.map(jnp.mean, parts)


def shuffle(key: Key, instances: int, minibatches: int) -> Int[Array, "minibatches part"]:
    """Minibatches of instances: of each row of neighbours, one goes into every minibatch.

    So whole rows can stay on their device, whatever the number of devices. Instances are drawn
    independently, so their rows are as good as random ones.
    """
    row = jnp.arange(instances).reshape(-1, minibatches)
    return jax.random.permutation(key, row, axis=1, independent=True).T


def _own(order: Int[Array, "minibatches part"], devices: Devices) -> Int[Array, "minibatches own"]:
    """A device's share of every minibatch, as indices into its own instances."""
    own = devices.mine(order, axis=1)
    return own - jnp.min(own)


def summarize(learner: Learner, instances: Instance, collected: Collected) -> Metrics:
    """What the sampled trajectories gained."""
    local, gains = learner.env.all_local(instances), collected.gain
    share = gains / (local.time * local.users)[:, None]
    base = equations.score(instances, local.objective)
    return {
        "score": jnp.mean(base[:, None] + 0.1 * gains / local.users[:, None]),
        "gain": jnp.mean(share),
        "best_of_samples": jnp.mean(jnp.max(share, axis=1)),
    }
