"""Whole episodes: a policy decides every user of many instances, several samples of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from offload_jax.policy.policy import Policy
from offload_jax.policy.sampling import is_key, log_prob
from offload_jax.problem.contracts import Returned
from offload_jax.problem.instance import Instance

# (logits with -inf at illegal actions, the step's key or draws) -> action; leading batch axes.
Chooser = Callable[[Float[Array, "*batch actions"], Any], Int[Array, "*batch"]]


@struct.dataclass
class Episodes:
    """Episodes under way, `samples` of each instance side by side."""

    instances: Instance  # each `samples` times in a row: batch axis ``instances * samples``
    state: Any  # of the environment, the same batch axis
    encoding: Any  # of the network, leaves (instances, ...)
    samples: int = struct.field(pytree_node=False)


@struct.dataclass
class Transition:
    """One decision of each trajectory; stacked along a first axis ``steps``."""

    observation: Any  # the environment's; leaves (instances, samples, ...)
    action: Int[Array, "*steps instances samples"]
    log_prob: Float[Array, "*steps instances samples"]  # of the action when it was taken
    value: Float[Array, "*steps instances samples"]  # the critic's estimate of the return to go
    reward: Float[Array, "*steps instances samples"]  # s
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


def begin(policy: Policy, instances: Instance, samples: int, encoding: Any = None) -> Episodes:
    """Episodes of instances (batch last) before their first decision.

    The instances are encoded, unless that has been done.
    """
    encoding = policy.encode(instances) if encoding is None else encoding
    repeated = repeat(instances, samples)
    state = policy.env.reset(repeated)
    returned = _returned(policy, "reset", repeated)
    returned.array("gain of the state", state.gain, "episodes")
    returned.array("assignment of the state", state.assignment, "users", "episodes", kind="Int")
    return Episodes(repeated, state, encoding, samples)


def play(
    policy: Policy, episodes: Episodes, choose: Chooser, chance: Any, steps: int | None = None
) -> Any:
    """The final state, its batch axis ``instances * samples``; after `steps`, or the whole episode.

    `chance` is a key, or draws whose leaves have a first axis ``steps``, or None where `choose`
    needs neither; it gets its share of them at every step.
    """

    def decide(state: Any, chance: Any) -> tuple[Any, None]:
        _, logits, _ = _look(policy, episodes, state)
        action = choose(logits, chance)
        return _step(policy, episodes.instances, state, action)[0], None

    return jax.lax.scan(decide, episodes.state, _per_step(policy, episodes, chance, steps))[0]


def record(
    policy: Policy,
    episodes: Episodes,
    choose: Chooser,
    chance: Any,
    plan: Int[Array, "users instances"] | None = None,
) -> tuple[Any, Transition]:
    """`play` of whole episodes, and their transitions, stacked along a first axis ``steps``.

    With a feasible `plan` all of them end there: `choose` sees other actions as illegal, and the
    transitions say which ones it could take.
    """
    goal = None if plan is None else jnp.repeat(plan, episodes.samples, axis=-1)
    instances, samples = episodes.instances, episodes.samples

    def decide(state: Any, chance: Any) -> tuple[Any, Transition]:
        observation, logits, value = _look(policy, episodes, state)
        wanted, open_ = None, logits
        if goal is not None:
            leading = policy.env.leading_to(instances, state, goal)
            returned = _returned(policy, "leading_to", instances, actions=logits.shape[-1])
            returned.array("what leads to a plan", leading, "actions", "episodes", kind="Bool")
            wanted = split_samples(leading, samples)
            open_ = jnp.where(wanted, logits, -jnp.inf)
        action = choose(open_, chance)
        following, reward = _step(policy, instances, state, action)
        transition = Transition(
            observation=observation,
            action=action,
            log_prob=log_prob(logits, action),
            value=value,
            reward=reward.reshape(action.shape),
            real=jnp.sum(observation.mask, axis=-1) > 1,
            wanted=wanted,
        )
        return following, transition

    return jax.lax.scan(decide, episodes.state, _per_step(policy, episodes, chance, None))


def _look(policy: Policy, episodes: Episodes, state: Any) -> tuple[Any, Array, Array]:
    """(observation, logits, value) of a state."""
    observation = policy.env.observe(episodes.instances, state)
    returned = _returned(policy, "observe", episodes.instances)
    returned.array("mask", observation.mask, "actions", "episodes", kind="Bool")
    returned.batch_last("observation", observation, "episodes")
    seen = split_samples(observation, episodes.samples)
    return seen, *policy.decode(episodes.encoding, seen)


def _step(
    policy: Policy, instances: Instance, state: Any, action: Int[Array, "instances samples"]
) -> tuple[Any, Float[Array, "episodes"]]:
    """The state after an action, and the reward (s)."""
    found = policy.env.step(instances, state, action.reshape(-1))
    returned = _returned(policy, "step", instances)
    following, reward = returned.parts(found, "state", "reward")
    returned.array("reward", reward, "episodes")
    returned.same("state", following, state)
    return following, reward


def _returned(policy: Policy, method: str, instances: Instance, **sizes: int) -> Returned:
    """What a method of the environment returned, for episodes of these instances."""
    sizes |= {"users": instances.num_users, "episodes": instances.steps.shape[0]}
    return Returned(f"Environment.{method}", policy.env, sizes)


def _per_step(policy: Policy, episodes: Episodes, chance: Any, steps: int | None) -> Any:
    """What `choose` gets, along a first axis ``steps``."""
    steps = policy.env.num_steps(episodes.instances) if steps is None else steps
    if is_key(chance):
        return jax.random.split(chance, steps)
    # An array where nothing is needed, too: an exported scan has its length from that.
    return jnp.arange(steps) if chance is None else chance
