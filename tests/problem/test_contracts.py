"""Own code that returns what its interface does not allow is refused before it is compiled."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import pytest
from linear import Linear
from probes import ProbeScenario

from offload_jax.env.environment import Snapshot
from offload_jax.files.checks import InterfaceError
from offload_jax.learning import updates
from offload_jax.learning.algorithm import Learner
from offload_jax.learning.algorithms.ppo import PPO
from offload_jax.learning.config import LearnerConfig
from offload_jax.problem.contracts import Returned
from offload_jax.problem.instance import Instance, toy
from offload_jax.splits.implicit import solve_native
from offload_jax.splits.rules import NO_RULES

pytestmark = pytest.mark.fast

HEALTHY = Learner(
    ProbeScenario(),
    Snapshot(),
    Linear(),
    PPO(),
    LearnerConfig(instances=2, samples=2, minibatches=1),
)


class Tall(Linear):
    def decode(self, params, encoding, observation):
        logits, value = super().decode(params, encoding, observation)
        return logits[:, None], value


class Valueless(Linear):
    def decode(self, params, encoding, observation):
        return super().decode(params, encoding, observation)[0]


class ManyValues(Linear):
    def decode(self, params, encoding, observation):
        logits, value = super().decode(params, encoding, observation)
        return logits, jnp.stack([value, value])


class Blunt(Snapshot):
    def step(self, instance, state, action):
        following, reward = super().step(instance, state, action)
        return following, jnp.sum(reward)


class Growing(Snapshot):
    def step(self, instance, state, action):
        following, reward = super().step(instance, state, action)
        return replace(following, price=jnp.concatenate([following.price] * 2)), reward


class Half(Snapshot):
    def observe(self, instance, state):
        seen = super().observe(instance, state)
        return replace(seen, mask=seen.mask.astype(jnp.float32))


class BatchFirst(Snapshot):
    def observe(self, instance, state):
        seen = super().observe(instance, state)
        return replace(seen, overall=seen.overall.T)


@dataclass(frozen=True)
class Short(ProbeScenario):
    def sample(self, key):
        instance = super().sample(key)
        return replace(instance, wait=instance.wait[:2])


@dataclass(frozen=True)
class Whole(ProbeScenario):
    def sample(self, key):
        instance = super().sample(key)
        return replace(instance, demand=instance.demand.astype(jnp.int32))


@dataclass(frozen=True)
class Mean(PPO):
    def collect(self, learner, policy, instances, key):
        collected = super().collect(learner, policy, instances, key)
        return replace(collected, gain=jnp.mean(collected.gain, axis=1))


@dataclass(frozen=True)
class Each(PPO):
    def loss(self, learner, replay, collected):
        own, parts = super().loss(learner, replay, collected)
        return own, {**parts, "own": jnp.stack([own, own])}


@dataclass(frozen=True)
class Flat:
    name: str = "flat"
    rules: object = NO_RULES

    def validate(self):
        pass

    def solve(self, problem, facts=None):
        solved = solve_native(problem)
        return replace(solved, price=jnp.sum(solved.price, axis=0))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"network": Tall()},
         "Network.decode of Tall returned logits of shape (3, 1); must be (3,), (actions)"),
        ({"network": Valueless()},
         "Network.decode of Valueless returned a "),
        ({"network": ManyValues()},
         "Network.decode of ManyValues returned value of shape (2,); must be (), a scalar"),
        ({"env": Blunt()},
         "Environment.step of Blunt returned reward of shape (); must be (4,), (episodes)"),
        ({"env": Growing()},
         "Environment.step of Growing returned a state unlike that before (Trees 0 and 1 differ in "
         "leaves 'price': shapes: (1, 4) != (2, 4)); must be of the same structure"),
        ({"env": Half()},
         "Environment.observe of Half returned mask of type float32; must be booleans"),
        ({"env": BatchFirst()},
         "Environment.observe of BatchFirst returned an observation (Tree leaf '"),
        ({"scenario": Short()},
         "Scenario.sample of Short returned wait of shape (2,); must be (3,), (users)"),
        ({"scenario": Whole()},
         "Scenario.sample of Whole returned demand of type int32; must be floats"),
        ({"algorithm": Mean()},
         "Algorithm.collect of Mean returned gain of shape (2,); must be (2, any), (instances, "),
        ({"algorithm": Each()},
         "Algorithm.loss of Each returned own of shape (2,); must be (), a scalar"),
        ({"env": Snapshot(solver=Flat())},
         "Solver.solve of Flat returned price of shape (4,); must be (1, 4), (servers, inst"),
    ],
)  # fmt: skip
def test_what_own_code_returns_is_refused(changes, told) -> None:
    start = jax.eval_shape(partial(updates.init, HEALTHY), jax.random.key(0))
    learner = replace(HEALTHY, **changes)

    def collect(state):
        updates.collect(learner, state.params, state.key, state.key)

    update = partial(updates.update, learner) if "algorithm" in changes else collect
    with pytest.raises(InterfaceError) as caught:
        jax.eval_shape(update, start)
    assert str(caught.value).startswith(told)


def test_the_first_state_of_a_run_is_made_of_a_good_instance() -> None:
    with pytest.raises(InterfaceError, match=r"Scenario\.sample of Short returned wait"):
        jax.eval_shape(partial(updates.init, replace(HEALTHY, scenario=Short())), jax.random.key(0))


def test_records_may_have_batches_and_must_be_records() -> None:
    found = Returned("Scenario.sample", ProbeScenario(), {"users": 3, "instances": 1})
    one, *_ = toy()
    found.record(jax.tree.map(lambda x: x[..., None], one), Instance, "instances")
    with pytest.raises(InterfaceError, match=r"returned steps of shape \(\); must be \(1,\)"):
        found.record(one, Instance, "instances")
    with pytest.raises(InterfaceError, match="returned a tuple; must be a record Instance"):
        found.record(toy(), Instance)
    with pytest.raises(InterfaceError, match="returned alpha as float; must be an array"):
        found.record(replace(one, alpha=1.0), Instance)
