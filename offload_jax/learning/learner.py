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
from jaxtyping import Array, Bool, Float, Int

from offload_jax.env.description import describe, local_time
from offload_jax.env.observation import observe
from offload_jax.env.state import State
from offload_jax.env.step import reset
from offload_jax.learning.config import Learner
from offload_jax.learning.devices import ONE_DEVICE, Devices
from offload_jax.learning.loss import Parts, Targets, advantages, loss
from offload_jax.methods.local_search import descend
from offload_jax.policy.policy import best_plan
from offload_jax.policy.rollout import Transition, encode, unroll
from offload_jax.policy.sampling import inverse_cdf
from offload_jax.problem import equations
from offload_jax.problem.instance import Instance
from offload_jax.problem.scenario import Scenario
from offload_jax.problem.types import Assignment, Key


@struct.dataclass
class LearnerState:
    """Everything that training changes; a checkpoint holds exactly this."""

    params: Any  # of ActorCritic(network)
    optimizer: optax.OptState
    key: Key
    step: Int[Array, ""]  # updates made


@struct.dataclass
class Metrics:
    """One update in numbers."""

    score: Float[Array, ""]  # mean 0.1 U / N of the sampled trajectories (at their temperature)
    gain: Float[Array, ""]  # mean gain over all-local as a share of the all-local time
    best_of_samples: Float[Array, ""]  # the same for the best sample of each instance
    entropy: Float[Array, ""]  # nats per decision
    loss: Float[Array, ""]
    value_error: Float[Array, ""]  # 0 without a critic
    layer: Float[Array, ""]  # `algorithms.layer.expected_loss`; 0 without that objective
    grad_norm: Float[Array, ""]  # global, before clipping
    sound: Bool[Array, ""]  # False where a number was not finite: the update was not applied


def sample_instances(
    scenario: Scenario, key: Key, count: int, devices: Devices = ONE_DEVICE
) -> Instance:
    """This device's share of `count` fresh instances, the batch last."""
    return jax.vmap(scenario.sample, out_axes=-1)(devices.mine(jax.random.split(key, count)))


def init(learner: Learner, key: Key) -> LearnerState:
    """Fresh parameters, optimiser and key."""
    instance_key, params_key, key = jax.random.split(key, 3)
    instance = learner.scenario.sample(instance_key)
    observation = observe(instance, reset(instance, learner.env), learner.env)
    params = learner.module().init(params_key, describe(instance), observation)
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
    instances, final, batch = collect(learner, state.params, sample_key, roll_key)
    targets = advantages(learner, instances, final, batch)
    updated, parts = optimize(learner, state, instances, batch, targets, shuffle_key)
    # Joined, for dozens of small reductions would double the time to compile an update.
    learned, _ = ravel_pytree((parts, updated.params, updated.optimizer))
    numbers = (batch.observation, batch.reward, learned)
    metrics = summarize(learner, instances, final, parts) | {"faulty": 1.0 - all_finite(numbers)}
    metrics = learner.devices.mean(metrics)  # with the share of devices that met such a number
    sound = metrics.pop("faulty") == 0
    updated = replace(updated, key=key, step=state.step + 1)
    state = jax.tree.map(lambda new, old: jnp.where(sound, new, old), updated, state)
    return state, Metrics(**metrics, sound=sound)


def skip(state: LearnerState) -> LearnerState:
    """Past an update that cannot be made: the next one draws other instances."""
    return replace(state, key=jax.random.split(state.key, 4)[0], step=state.step + 1)


def all_finite(tree: Any) -> Bool[Array, ""]:
    """Whether every number of a tree is finite; what holds no floats counts as finite."""
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in floats]))


def collect(
    learner: Learner, params: Any, sample_key: Key, roll_key: Key
) -> tuple[Instance, State, Transition]:
    """Fresh instances, final states of `samples` trajectories of each, and what is learned from.

    Those are the decisions of the samples; to imitate, of `paths` trajectories to the best plan.
    """
    config, network = learner.config, learner.module()
    instances = sample_instances(learner.scenario, sample_key, config.instances, learner.devices)
    imitates = config.objective == "imitation"
    heat = learner.hyperparameters.temperature if imitates else 1.0
    encoding = encode(network, params, instances)
    roll = partial(unroll, network, params, instances, env=learner.env, encoding=encoding)
    choose = partial(_draw, learner, heat)
    final, batch = roll(config.samples, roll_key, choose, record=not imitates)
    if imitates:
        plan, key = best_found(learner, instances, final), jax.random.fold_in(roll_key, 1)
        _, batch = roll(config.paths, key, partial(_draw, learner, 1.0), plan=plan)
    assert batch is not None  # recorded
    return instances, final, batch


def _draw(learner: Learner, temperature: Any, logits: Array, key: Key) -> Array:
    """Actions by draws for the whole batch, of which a device uses its share."""
    samples = logits.shape[1]
    draws = jax.random.uniform(key, (learner.config.instances, samples, 1))
    return inverse_cdf(logits / temperature, learner.devices.mine(draws))


def best_found(learner: Learner, instances: Instance, final: State) -> Assignment:
    """What is imitated: each instance's best final state, or what local search makes of it."""
    samples = learner.config.samples
    plans = final.assignment.reshape(final.assignment.shape[0], -1, samples)
    plan, _ = best_plan(plans, final.gain.reshape(-1, samples))
    searches = learner.config.labels == "local-search"
    return descend(instances, plan, learner.env.solver)[0] if searches else plan


def optimize(
    learner: Learner,
    state: LearnerState,
    instances: Instance,
    batch: Transition,
    targets: Targets | None,
    key: Key,
) -> tuple[LearnerState, Parts]:
    """`epochs` passes over the samples in `minibatches` steps each; returns the mean loss parts."""
    config = learner.config
    optimizer = learner.optimizer()
    progress = state.step / config.updates

    def step(carry: Any, chosen: Int[Array, "part"]) -> tuple[Any, Parts]:
        params, opt_state = carry
        picked = jax.tree.map(lambda x: jnp.take(x, chosen, axis=-1), instances)
        part = jax.tree.map(lambda x: jnp.take(x, chosen, axis=1), (batch, targets))
        (_, parts), grads = jax.value_and_grad(loss, argnums=1, has_aux=True)(
            learner, params, picked, *part, progress
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


def summarize(learner: Learner, instances: Instance, final: State, parts: Parts) -> Parts:
    """The update's metrics by name, `sound` left out."""
    users = equations.num_real_users(instances)
    gains = final.gain.reshape(-1, learner.config.samples)
    share = gains / (local_time(instances) * users)[:, None]
    base = equations.score(instances, equations.objective_denied(instances))
    return {
        "score": jnp.mean(base[:, None] + 0.1 * gains / users[:, None]),
        "gain": jnp.mean(share),
        "best_of_samples": jnp.mean(jnp.max(share, axis=1)),
        **parts,
    }
