"""Under watch, every kind of fault in own code is told with its array and its place."""

from __future__ import annotations

from dataclasses import dataclass, replace

import chex
import jax
import jax.numpy as jnp
import pytest
from jax.experimental import checkify
from linear import Linear
from probes import ProbeScenario, probes

from offload_jax.env.checked import Checked
from offload_jax.env.environment import Snapshot
from offload_jax.env.state import is_current
from offload_jax.learning.algorithm import Learner
from offload_jax.learning.algorithms.ppo import PPO
from offload_jax.learning.checked import CheckedPolicy, watched
from offload_jax.learning.config import LearnerConfig
from offload_jax.problem.instance import taken
from offload_jax.splits.implicit import solve_native
from offload_jax.splits.rules import NO_RULES

pytestmark = pytest.mark.fast


def watched_by(f):
    """A function whose assertions are raised."""
    return chex.chexify(jax.jit(f), async_check=False)


def told(f, *arguments) -> str:
    """What the first failing assertion of such a function says."""
    with pytest.raises(checkify.JaxRuntimeError) as caught:
        f(*arguments)
    return str(caught.value)


FAULTS = ("none", "granting", "stranger", "padded", "spendthrift", "overdoing", "paying", "lost")


class Faulty(Snapshot):
    """A snapshot with the fault of a traced number, so that all of them are one program."""

    fault = None

    def has(self, name):
        return Faulty.fault == FAULTS.index(name)

    def action_mask(self, instance, state):
        return super().action_mask(instance, state) | self.has("granting") | self.has("stranger")

    def step(self, instance, state, action):
        """Grants whoever wants to be; pads are granted; pays twice; gains no number."""
        right, _ = super().step(instance, state, action)
        granted = jnp.where(is_current(instance, state), action, state.assignment)
        granted = jnp.where(self.has("granting"), granted, right.assignment)
        granted = jnp.where(self.has("stranger"), granted - 1, granted)
        granted = jnp.where(self.has("padded") & ~instance.mask, 1, granted)
        following = replace(right, assignment=granted)
        wrong = self.has("lost") & (jnp.arange(action.shape[0]) == 3)
        following = replace(following, gain=jnp.where(wrong, jnp.nan, following.gain))
        reward = following.gain - state.gain
        return following, jnp.where(self.has("paying"), 2 * reward, reward)


@dataclass(frozen=True)
class Wasteful:
    """Runs all that may run at the edge there, or more than may."""

    name: str = "wasteful"
    rules: object = NO_RULES

    def validate(self):
        pass

    def solve(self, problem, facts=None):
        right, env = solve_native(problem), Faulty()
        lower = jnp.where(problem.granted, problem.lower, problem.steps)
        split = jnp.where(env.has("spendthrift"), lower, right.split)
        return replace(right, split=jnp.where(env.has("overdoing"), lower - 1, split))


def instances():
    """Two of the probes: users of 2, 2 and 1 images, batches of 2 and 1 or none; a user missing."""
    both = taken(probes(), jnp.array([1, 2]))
    mask = jnp.array([[True, True], [True, True], [True, False]])
    return replace(both, mask=mask, budget=jnp.array([[jnp.inf, 0.5]]))


def in_twos(instance):
    """Two samples of each instance."""
    return jax.tree.map(lambda x: jnp.repeat(x, 2, axis=-1), instance)


def episode(fault, actions):
    """Both samples of an instance take the same actions (steps, instances)."""
    Faulty.fault = fault
    checked, instance = Checked(Faulty(solver=Wasteful()), 2), in_twos(instances())

    def step(state, action):
        return checked.step(instance, state, jnp.repeat(action, 2))

    return jax.lax.scan(step, checked.reset(instance), actions)


@pytest.fixture(scope="module")
def watched_episode():
    return watched_by(episode)


@pytest.mark.parametrize(
    ("fault", "actions", "message"),
    [
        ("granting", [[0, 1], [1, 1], [0, 0]],
         "load[batch 0, instance 1, sample 0] is 4; must be at most 2, its capacity"),
        ("none", [[1, 0], [1, 0], [0, 0]],
         "action[instance 0, sample 0] is 1; must be one that the mask allows"),
        ("stranger", [[0, 0], [0, 0], [0, 0]],
         "assignment[user 0, instance 0, sample 0] is -1; must be in 0..2, and 0 for padded users"),
        ("padded", [[0, 0], [0, 0], [0, 0]],
         "assignment[user 2, instance 1, sample 0] is 1; must be in 0..0, and 0 for padded users"),
        ("spendthrift", [[0, 1], [0, 0], [0, 0]],
         "GPU-seconds[server 0, instance 1, sample 0] is 1.6; must be at most 0.5, its budget"),
        ("overdoing", [[0, 0], [1, 0], [0, 0]],
         "split[user 0, instance 0, sample 0] is 9; must be at least 10 steps"),
        ("paying", [[0, 0], [1, 0], [0, 0]],
         "sum of rewards[instance 0, sample 0] is 11.2; must be 5.6 s, what the plan gained"),
        ("lost", [[0, 0], [0, 0], [0, 0]],
         "gain[instance 1, sample 1] is nan; must be finite"),
    ],
)  # fmt: skip
def test_a_fault_of_the_environment_is_told(watched_episode, fault, actions, message) -> None:
    said = told(watched_episode, FAULTS.index(fault), jnp.array(actions))
    assert said.startswith(message)


def test_a_good_environment_passes(watched_episode) -> None:
    state, rewards = watched_episode(0, jnp.array([[0, 1], [1, 0], [0, 0]]))
    assert state.assignment[:, ::2].T.tolist() == [[0, 1, 0], [1, 0, 0]]
    assert rewards.sum(axis=0).tolist() == pytest.approx(state.gain.tolist())


def test_a_fault_of_the_scenario_is_told() -> None:
    """A padded user's numbers do not matter, nor does an infinite budget."""
    good = instances()
    wrong = replace(good, wait=good.wait.at[2].set(jnp.array([1.0, jnp.nan])))
    describe = watched_by(Checked(Snapshot(), 2).describe)
    describe(wrong)
    wrong = replace(wrong, wait=wrong.wait.at[1, 1].set(jnp.nan))
    message = "instance.wait[user 1, instance 1] is nan; must be finite"
    assert told(describe, wrong).startswith(message)


def test_a_fault_of_what_is_seen_or_reachable_is_told() -> None:
    class Blind(Snapshot):
        def observe(self, instance, state):
            seen = super().observe(instance, state)
            return replace(seen, pairs=seen.pairs.at[0, 1, 4, 2].set(jnp.inf))

    def seen(instance, user):
        checked = Checked(Blind(), 2)
        state = checked.reset(instance)
        leading = checked.leading_to(instance, state, jnp.full((3, 4), user))
        return leading, checked.observe(instance, state)

    seen, two = watched_by(seen), in_twos(instances())
    place = "[row 0, column 1, step_features 4, instance 1, sample 0]"
    assert told(seen, two, 0).startswith(f"observation.pairs{place} is inf; must be finite")
    message = "legal actions to the plan[instance 0, sample 0] is 0; must be at least 1"
    assert told(seen, two, 2).startswith(message)


@dataclass(frozen=True)
class Fixed:
    """Logits and a value that are given."""

    value: float

    def decode(self, params, encoding, observation):
        return params[encoding], jnp.asarray(self.value)


def test_a_fault_of_the_network_is_told() -> None:
    @jax.tree_util.register_dataclass
    @dataclass(frozen=True)
    class Seen:
        mask: jax.Array

    mask = Seen(jnp.array([[[True, True, False]], [[True, True, True]]]))
    good = jnp.array([[0.0, 1.0, -jnp.inf], [0.0, 1.0, 2.0]])
    stacked = jax.tree.map(lambda x: x[None], mask)

    def decode(params, value):
        policy = CheckedPolicy(params, Fixed(value), Checked(Snapshot(), 2))
        return policy.decode(jnp.arange(2), mask)

    def decode_steps(params):
        policy = CheckedPolicy(params, Fixed(0.0), Checked(Snapshot(), 2))
        return policy.decode_steps(jnp.arange(2), stacked)

    decode, decode_steps = watched_by(decode), watched_by(decode_steps)
    decode(good, 0.0)
    must = "must be finite where the action is legal, and -inf where it is not"
    message = f"logits[instance 1, sample 0, action 2] is nan; {must}"
    assert told(decode, good.at[1, 2].set(jnp.nan), 0.0).startswith(message)
    message = f"logits[step 0, instance of a minibatch 0, sample 0, action 2] is 1; {must}"
    assert told(decode_steps, good.at[0, 2].set(1.0)).startswith(message)
    message = "value[instance 0, sample 0] is nan; must be finite"
    assert told(decode, good, jnp.nan).startswith(message)


def test_a_fault_of_the_gradient_is_told() -> None:
    learner = Learner(ProbeScenario(), Snapshot(), Linear(), PPO(), LearnerConfig())
    optimizer = watched(learner).optimizer()
    params = {"first": jnp.ones(2), "second": {"kernel": jnp.ones((2, 2))}}
    wrong = jnp.array([[0.0, 1.0], [jnp.inf, 0.0]])
    step = watched_by(lambda gradient: optimizer.update(gradient, optimizer.init(params), params))
    message = "gradient[second/kernel] is inf; must be finite"
    assert told(step, {"first": jnp.ones(2), "second": {"kernel": wrong}}).startswith(message)
