"""Numbers that are not finite: found in the update they arise in, named, and never applied."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from offload_jax.files.checks import RunError
from offload_jax.learning import likelihood, nonfinite, updates
from offload_jax.learning.algorithms import self_labelling
from offload_jax.learning.algorithms.self_labelling import SelfLabelling
from offload_jax.learning.config import LearnerConfig
from offload_jax.learning.devices import ONE_DEVICE
from offload_jax.learning.updates import LearnerState
from offload_jax.policy.transformer import Transformer
from offload_jax.problem.scenario import PaperScenario
from offload_jax.runs.checkpoint import Checkpoints
from offload_jax.runs.config import RunConfig, TrainConfig
from offload_jax.runs.recorder import Recorder, Reporter
from offload_jax.runs.task import PolicyLearning
from offload_jax.runs.tracking.metrics import TrackingConfig, read_rows
from offload_jax.runs.train import initial_state, load_policy, train

CONFIG = TrainConfig(
    scenario=PaperScenario(num_users=(4,)),
    network=Transformer(width=16, layers=1, heads=2),
    learner=LearnerConfig(updates=6, instances=2, samples=2, minibatches=1),
    run=RunConfig(log_every=1, eval_every=2, eval_instances=16),
    tracking=TrackingConfig(wandb="off"),
)


@pytest.mark.slow  # a program of its own; the parts of it are in the others
def test_a_wrong_gradient_is_named(monkeypatch) -> None:
    """The loss itself stays finite: its derivative at 0 does not."""

    def entropy(logits):
        return real(logits) + jnp.sqrt(jnp.sum(0 * jnp.where(logits > -1e9, logits, 0)))

    real = likelihood.entropy
    monkeypatch.setattr(likelihood, "entropy", entropy)
    config = replace(CONFIG, learner=replace(CONFIG.learner, entropy=0.03))  # traced anew
    told = nonfinite.explain(config.to_learner(), initial_state(config))
    assert told.startswith("gradient of params/")


def test_a_wrong_gradient_of_imitation_is_named(monkeypatch) -> None:
    """It is looked for in the loss that was trained, and not in another objective's."""

    def imitation(logits, wanted):
        return real(logits, wanted) + jnp.sqrt(jnp.sum(0 * jnp.where(wanted, logits, 0)))

    real = self_labelling.imitation
    monkeypatch.setattr(self_labelling, "imitation", imitation)
    config = replace(CONFIG, algorithm=SelfLabelling())
    told = nonfinite.explain(config.to_learner(), initial_state(config))
    assert told.startswith("gradient of params/")


@pytest.fixture(scope="module")
def faulty() -> Iterator[TrainConfig]:
    """In some updates the waiting time of user 2 of instance 1 is no number."""
    collect = updates.collect

    def sometimes_wrong(learner, params, sample_key, roll_key):
        instances, collected = collect(learner, params, sample_key, roll_key)
        decisions = collected.decisions
        wrong = jax.random.uniform(sample_key) < 0.4
        wait = instances.wait.at[2, 1].set(jnp.where(wrong, jnp.nan, 1.0))
        reward = decisions.reward + jnp.where(wrong, jnp.nan, 0.0)
        decisions = replace(decisions, reward=reward)
        return replace(instances, wait=wait), replace(collected, decisions=decisions)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(updates, "collect", sometimes_wrong)
        yield replace(CONFIG, learner=replace(CONFIG.learner, entropy=0.02))  # traced anew


def same(mine: LearnerState, theirs: LearnerState) -> bool:
    plain = [replace(s, key=jax.random.key_data(s.key)) for s in (mine, theirs)]
    equal = partial(np.array_equal, equal_nan=True)
    return all(jax.tree.leaves(jax.tree.map(equal, *plain)))


def test_a_run_stops_at_them_or_goes_on_without(faulty, tmp_path) -> None:
    with pytest.raises(RunError) as caught:
        train(faulty, folder=tmp_path / "run")
    told = str(caught.value)
    assert ": instance.wait[user 2, instance 1] is nan (1 of 8 numbers" in told
    failed = int(told.split("diverged at update ")[1].split(":")[0])
    assert f"a checkpoint of update {failed - 1} is kept" in told
    said: list[str] = []
    skipping = replace(faulty, run=replace(faulty.run, not_finite="skip"))
    done = train(skipping, folder=tmp_path / "run", warn=said.append)
    assert done.finished
    assert [row["step"] for row in done.rows] == [1, 2, 3, 4, 5, 6]
    skipped = [int(row["step"]) for row in done.rows if "skipped" in row]
    assert skipped[0] == failed
    assert [text.split(":")[0] for text in said] == [f"skipped update {step}" for step in skipped]


@pytest.mark.fast
def test_a_checkpoint_knows_what_was_skipped() -> None:
    kept, checkpoints, report = {}, object.__new__(Checkpoints), object.__new__(Reporter)
    checkpoints.wait = lambda: None
    checkpoints.save = lambda *_, **about: kept.update(about)
    report.behind = lambda: False
    recorder = Recorder(CONFIG, checkpoints, report)
    recorder.period.skip()
    recorder.period.skip()
    recorder.save(object.__new__(LearnerState))
    again = Recorder(CONFIG, checkpoints, report, kept)
    assert (again.period.skipped, again.period.skipped_in_a_row) == (2, 2)


def test_a_fault_that_cannot_be_explained_loses_nothing(faulty, tmp_path, monkeypatch) -> None:
    """As where there is no memory to look into it."""

    def no_memory(*_):
        raise MemoryError

    monkeypatch.setattr(nonfinite, "explain", no_memory)
    often = replace(faulty, run=replace(faulty.run, eval_every=6))
    with pytest.raises(MemoryError):
        train(often, folder=tmp_path / "run")
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    source = load_policy(tmp_path / "run", "latest").source
    assert source.endswith(f"update {len(rows)}")


def test_nothing_of_a_failed_update_is_applied(faulty) -> None:
    task = PolicyLearning(faulty, ONE_DEVICE)
    seeds = (initial_state(replace(faulty, seed=seed)) for seed in range(99))
    for before in seeds:
        after, metrics = task.update(jax.tree.map(jnp.copy, before))
        assert same(before, after) != bool(metrics["sound"])
        if not metrics["sound"]:
            return
    raise AssertionError("no update failed")


def test_a_wrong_parameter_comes_first(faulty) -> None:
    state = initial_state(faulty)
    leaves, tree = jax.tree.flatten(state.params)
    [path, _], *_ = jax.tree_util.tree_leaves_with_path(state.params)
    leaves[0] = leaves[0].at[0].set(jnp.inf)
    state = replace(state, params=jax.tree.unflatten(tree, leaves))
    told, name = nonfinite.explain(faulty.to_learner(), state), "/".join(key.key for key in path)
    assert told.startswith(f"parameter {name}[axis 0 0, axis 1 0] is inf (8 of")


def test_an_observation_is_placed_by_its_axes() -> None:
    pairs = np.zeros((4, 2, 3, 1, 2, 5))  # steps, instances, samples, candidates, batches, features
    pairs[3, 1, 2, 0, 1, 4] = -np.inf
    axes = (*nonfinite._BATCH, "candidate", "batch", "step_features")
    [told] = nonfinite._in_array("observation.pairs", pairs, axes)
    assert told.startswith(
        "observation.pairs[step 3, instance 1, sample 2, candidate 0, batch 1, step_features 4] is "
        "-inf (1 of 240 numbers"
    )


def test_skipping_draws_other_instances() -> None:
    state = initial_state(CONFIG)
    past = updates.skip(state)
    assert int(past.step) == 1
    assert not np.array_equal(*(jax.random.key_data(s.key) for s in (state, past)))
    assert same(replace(past, key=state.key, step=state.step), state)
