"""Whole episodes: a policy decides every user of many instances, several samples of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from offload_jax.env.config import EnvConfig
from offload_jax.env.description import Description, describe
from offload_jax.env.observation import Observation, observe
from offload_jax.env.state import State, action_mask, leading_to
from offload_jax.env.step import reset, settle, step, step_unsolved
from offload_jax.policy.network import Encoding
from offload_jax.policy.sampling import is_key
from offload_jax.policy.transformer import ActorCritic
from offload_jax.problem import equations
from offload_jax.problem.instance import Instance
from offload_jax.splits import splits_config

# (logits with -inf at illegal actions, the step's key or draws) -> action; leading batch axes.
Chooser = Callable[[Float[Array, "*batch actions"], Any], Int[Array, "*batch"]]


@struct.dataclass
class Transition:
    """One decision of each trajectory; `unroll` stacks them along a first axis ``steps``."""

    observation: Observation  # leaves (instances, samples, ...)
    action: Int[Array, "*steps instances samples"]
    log_prob: Float[Array, "*steps instances samples"]  # of the action when it was taken
    value: Float[Array, "*steps instances samples"]  # the critic's estimate of the return to go
    reward: Float[Array, "*steps instances samples"]  # change of the score
    real: Bool[Array, "*steps instances samples"]  # False on padded steps and after a stop
    wanted: Bool[Array, "*steps instances samples actions"] | None = None  # lead to a given plan


def repeat(instances: Instance, samples: int) -> Instance:
    """Each instance `samples` times in a row along the (last) batch axis."""
    return jax.tree.map(lambda x: jnp.repeat(x, samples, axis=-1), instances)


def split_samples(tree: Any, samples: int) -> Any:
    """Batch-last leaves (..., instances * samples) to leading (instances, samples, ...)."""

    def move(x: Array) -> Array:
        x = x.reshape(*x.shape[:-1], -1, samples)
        return jnp.moveaxis(x, (-2, -1), (0, 1))

    return jax.tree.map(move, tree)


def encode(network: ActorCritic, params: Any, instances: Instance) -> Encoding:
    """Encodes a batch of instances (batch last); leaves get a leading ``instances`` axis."""
    description = jax.tree.map(lambda x: jnp.moveaxis(x, -1, 0), describe(instances))

    def one(described: Description) -> Any:
        return network.apply(params, described, method="encode")

    return jax.vmap(one)(description)


def decode(
    network: ActorCritic, params: Any, encoding: Encoding, observation: Observation
) -> tuple[Float[Array, "instances samples actions"], Float[Array, "instances samples"]]:
    """Logits and values.

    Leaves of the encoding are (instances, ...), of the observation (instances, samples, ...).
    """

    def one(encoded: Encoding, observed: Observation) -> Any:
        return network.apply(params, encoded, observed, method="decode")

    return jax.vmap(jax.vmap(one, in_axes=(None, 0)))(encoding, observation)


def decode_steps(
    network: ActorCritic, params: Any, encoding: Encoding, observation: Observation
) -> tuple[
    Float[Array, "steps instances samples actions"], Float[Array, "steps instances samples"]
]:
    """`decode` of observations with a first axis ``steps``."""
    return jax.vmap(lambda seen: decode(network, params, encoding, seen))(observation)


def unroll(
    network: ActorCritic,
    params: Any,
    instances: Instance,
    samples: int,
    chance: Any,
    choose: Chooser,
    env: EnvConfig,
    record: bool = True,
    encoding: Encoding | None = None,
    start: State | None = None,
    steps: int | None = None,
    plan: Int[Array, "users instances"] | None = None,
) -> tuple[State, Transition | None]:
    """Decides `samples` trajectories of each instance (batch last), an episode each.

    `chance` is a key, or draws whose leaves have a first axis ``steps``, or None where `choose`
    needs neither; it gets its share of them at every step.
    `encoding` of the instances is made unless it is given. Episodes begin at `start`, its batch
    axis ``instances * samples``, and have `steps` decisions; by default they are whole ones. With a
    feasible `plan` all of them end there: `choose` sees other actions as illegal, and the
    transitions say which ones it could take.

    Returns the final state, its batch axis ``instances * samples``, and the transitions stacked
    along a first axis ``steps`` (None unless `record`).
    """
    encoding = encode(network, params, instances) if encoding is None else encoding
    repeated = repeat(instances, samples)
    if start is None and steps is None and plan is None and in_one_pass(env, record):
        chances = _per_step(chance, instances.num_users)
        return _unroll_at_once(
            network, params, instances, samples, chances, choose, env, record, encoding
        )
    goal = None if plan is None else jnp.repeat(plan, samples, axis=-1)

    def decide(state: State, chance: Any) -> tuple[State, Transition | None]:
        observation = split_samples(observe(repeated, state, env), samples)
        logits, value = decode(network, params, encoding, observation)
        wanted, open_ = None, logits
        if goal is not None:
            wanted = split_samples(leading_to(repeated, state, goal, env), samples)
            open_ = jnp.where(wanted, logits, -jnp.inf)
        action = choose(open_, chance)
        following, reward = step(repeated, state, action.reshape(-1), env)
        if not record:
            return following, None
        transition = Transition(
            observation=observation,
            action=action,
            log_prob=_log_prob(logits, action),
            value=value,
            reward=reward.reshape(action.shape),
            real=jnp.sum(observation.mask, axis=-1) > 1,
            wanted=wanted,
        )
        return following, transition

    chances = _per_step(chance, instances.num_users if steps is None else steps)
    return jax.lax.scan(decide, reset(repeated, env) if start is None else start, chances)


def _per_step(chance: Any, steps: int) -> Any:
    """What `choose` gets, along a first axis ``steps``."""
    if is_key(chance):
        return jax.random.split(chance, steps)
    # An array where nothing is needed, too: an exported scan has its length from that.
    return jnp.arange(steps) if chance is None else chance


def _log_prob(
    logits: Float[Array, "*batch actions"], action: Int[Array, "*batch"]
) -> Float[Array, "*batch"]:
    taken = jax.nn.one_hot(action, logits.shape[-1], dtype=bool)
    return jnp.sum(jnp.where(taken, jax.nn.log_softmax(logits), 0), axis=-1)


def in_one_pass(env: EnvConfig, record: bool = False) -> bool:
    """Whether `unroll` needs one pass of the network and one solve for an episode.

    Not where the solver's constraints may refuse a grant, or a record has a reward for every step.
    """
    plain = not splits_config(env.solver).rules
    return env.one_shot and plain and (env.reward == "terminal" or not record)


def looks_at_empty(instances: Instance, env: EnvConfig) -> Observation:
    """What a policy sees of the empty plan at the turn of every user (one turn in adaptive order).

    Leaves (steps, instances, 1, ...).
    """
    start = reset(instances, env)

    def look(time: Int[Array, ""]) -> Observation:
        state = replace(start, time=jnp.broadcast_to(time, start.time.shape))
        return split_samples(observe(instances, state, env), 1)

    return jax.vmap(look)(jnp.arange(1 if env.order == "adaptive" else instances.num_users))


def _unroll_at_once(
    network: ActorCritic,
    params: Any,
    instances: Instance,
    samples: int,
    chances: Any,
    choose: Chooser,
    env: EnvConfig,
    record: bool,
    encoding: Encoding,
) -> tuple[State, Transition | None]:
    """`unroll` for policies that see the empty plan only: all users are looked at side by side."""
    repeated, seen = repeat(instances, samples), looks_at_empty(instances, env)
    logits, value = decode_steps(network, params, encoding, seen)

    def decide(state: State, turn: tuple[Array, Any]) -> tuple[State, Any]:
        logits, chance = turn
        legal = split_samples(action_mask(repeated, state, env), samples)
        logits = jnp.where(legal, logits, -jnp.inf)
        action = choose(logits, chance)
        following = step_unsolved(repeated, state, action.reshape(-1), env)
        return following, (legal, action, _log_prob(logits, action)) if record else None

    state, made = jax.lax.scan(decide, reset(repeated, env), (logits, chances))
    final = settle(repeated, state, env)
    if not record:
        return final, None
    legal, action, log_prob = made
    reward = jnp.zeros_like(log_prob)
    total = equations.score(repeated, final.gain).reshape(reward.shape[1:])

    def each(x: Array) -> Array:
        return jnp.broadcast_to(x, (*x.shape[:2], samples, *x.shape[3:]))

    return final, Transition(
        observation=replace(jax.tree.map(each, seen), mask=legal),
        action=action,
        log_prob=log_prob,
        value=each(value),
        reward=reward.at[-1].set(total),
        real=jnp.sum(legal, axis=-1) > 1,
    )
