"""`--run.checks`: a good update is the same; a bad one ends the run with its fault."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import pytest
from linear import Linear
from small_runs import tiny

from offload_jax.files.checks import ConfigError, RunError
from offload_jax.learning.devices import ONE_DEVICE
from offload_jax.policy.networks import NETWORKS
from offload_jax.problem.scenario import SCENARIOS, PaperScenario
from offload_jax.runs import run_folder
from offload_jax.runs.checked import CheckedLearning, policy_learning
from offload_jax.runs.population import check_alike
from offload_jax.runs.task import PolicyLearning
from offload_jax.runs.tracking.metrics import read_rows
from offload_jax.runs.train import initial_state, train


@dataclass(frozen=True)
class Broken(PaperScenario):
    """In one of 32 instances user 2 has waited for ever."""

    def sample(self, key):
        instance = super().sample(key)
        wrong = jax.random.uniform(key) < 1 / 32
        wait = instance.wait.at[2].set(jnp.where(wrong, jnp.inf, instance.wait[2]))
        return replace(instance, wait=wait)


RUN = replace(tiny(6).run, eval_every=6)
# With this seed the first two updates meet no such instance, and the third does.
PLAIN = replace(tiny(6), scenario=Broken(num_users=(4,)), network=Linear(), run=RUN, seed=1)
CHECKED = replace(PLAIN, run=replace(RUN, checks=True))


@pytest.fixture(scope="module")
def watched() -> CheckedLearning:
    """What trains with these settings, compiled once for this module."""
    return policy_learning(CHECKED, ONE_DEVICE)


def test_good_updates_are_the_same_and_traced_once(watched) -> None:
    plain = policy_learning(PLAIN, ONE_DEVICE)
    assert (type(plain), type(watched)) == (PolicyLearning, CheckedLearning)
    state, other = initial_state(CHECKED), initial_state(PLAIN)
    for _ in range(2):
        (state, metrics), (other, wanted) = watched.update(state), plain.update(other)
        chex.assert_trees_all_close(metrics, wanted, rtol=1e-4)
    with pytest.raises(RunError) as caught:
        watched.update(replace(state, step=state.step.astype(jnp.int16)))
    assert str(caught.value) == (
        "run.checks: update 3 is traced a second time, which takes as long as compiling does: "
        "state.step was int32[] and is int16[]; must stay as it is"
    )


def test_a_bad_update_ends_the_run(watched, tmp_path, monkeypatch) -> None:
    """Rows and state of the updates before are kept."""
    monkeypatch.setitem(SCENARIOS, "broken", Broken)
    monkeypatch.setitem(NETWORKS, "linear", Linear)
    monkeypatch.setattr("offload_jax.runs.train.check_domain", lambda _: None)
    monkeypatch.setattr("offload_jax.runs.train.policy_learning", lambda *_: watched)
    needs = {"devices": 1, "processes": 1, "memory_mb_per_device": None}
    monkeypatch.setattr("offload_jax.runs.train.prepare", lambda *_: needs)
    with pytest.raises(RunError) as caught:
        train(CHECKED, folder=tmp_path / "run")
    told = str(caught.value)
    assert told.startswith("run.checks: update 3: instance.wait[user 2, instance ")
    assert "] is inf; must be finite. That update was not applied. Mend the code" in told
    assert [row["step"] for row in read_rows(tmp_path / "run" / "metrics.jsonl")] == [1, 2]
    assert run_folder.read_config(tmp_path / "run", plugins=None).run.checks


def test_a_bad_scenario_starts_no_run(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"users\[2\]\.wait: is Infinity; must"):
        train(CHECKED, folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.fast
def test_what_cannot_be_watched_is_refused(monkeypatch) -> None:
    with pytest.raises(ConfigError, match=r"run\.checks is True; must be False with a population"):
        check_alike({"alone": CHECKED})
    two = SimpleNamespace(count=2)
    monkeypatch.setattr("offload_jax.runs.config.find_devices", lambda _: two)
    with pytest.raises(ConfigError, match=r"run\.checks is True, with 2 devices; must be False"):
        CHECKED.find_devices()
