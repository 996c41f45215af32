"""Self-labelling: the policy imitates the best plan found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from offload_jax.env.observation import in_sight
from offload_jax.files.checks import Checks
from offload_jax.learning.algorithm import Collected, Learner, Parts, Replay
from offload_jax.learning.loss import per_decision
from offload_jax.learning.trajectories import drawn
from offload_jax.methods.local_search import descend
from offload_jax.policy.decoding import best_plan
from offload_jax.policy.policy import Policy
from offload_jax.policy.rollout import begin, play, record
from offload_jax.problem.instance import Instance
from offload_jax.problem.types import Assignment, Key, Scalar

Labels = Literal["best-sample", "local-search"]


@dataclass(frozen=True)
class SelfLabelling:
    """Samples find a plan of each instance; `paths` trajectories to it are made likelier."""

    labels: Labels = "best-sample"  # the best sample, or a local search's plan from it
    paths: int = 4  # trajectories to the plan that is imitated
    temperature: float = 1.0  # of the samples

    def validate(self, learner: Learner) -> None:
        check = Checks(self, "algorithm")
        check.one_of("labels", get_args(Labels))
        check.counts("paths")
        check.positive("temperature")
        compares = learner.config.samples > 1 or self.labels == "local-search"
        needed = "at least 2 with algorithm self-labelling and labels best-sample"
        Checks(learner.config, "learner").require(compares, "samples", needed)

    def collect(self, learner: Learner, policy: Policy, instances: Instance, key: Key) -> Collected:
        samples = learner.config.samples
        episodes = begin(policy, instances, samples)
        final = play(policy, episodes, drawn(learner, self.temperature), key)
        paths = begin(policy, instances, self.paths, episodes.encoding)
        plan, key = self.best_found(learner, instances, final), jax.random.fold_in(key, 1)
        _, decisions = record(policy, paths, drawn(learner), key, plan)
        return Collected(final.gain.reshape(-1, samples), decisions)

    def best_found(self, learner: Learner, instances: Instance, final: Any) -> Assignment:
        """What is imitated: each instance's best final state, or what local search makes of it."""
        samples = learner.config.samples
        plans = final.assignment.reshape(final.assignment.shape[0], -1, samples)
        plan, _ = best_plan(plans, final.gain.reshape(-1, samples))
        searches = self.labels == "local-search"
        return descend(instances, plan, learner.env.solver)[0] if searches else plan

    def loss(self, learner: Learner, replay: Replay, collected: Collected) -> tuple[Scalar, Parts]:
        decisions = collected.decisions
        assert decisions.wanted is not None  # recorded on the way to a plan
        # What a policy does not look at it cannot learn to take.
        seen = in_sight(decisions.observation) & decisions.wanted
        known = jnp.any(seen, axis=-1)
        wanted = jnp.where(known[..., None], seen, decisions.wanted)
        each = per_decision(imitation)(replay.logits, wanted)
        return jnp.sum(each * (replay.weight * known)), {}


def imitation(logits: Float[Array, "actions"], wanted: Bool[Array, "actions"]) -> Scalar:
    """-log of the probability that the policy takes one of the wanted actions."""
    among = jnp.where(wanted, logits, -jnp.inf)
    return jax.nn.logsumexp(logits) - jax.nn.logsumexp(among)
