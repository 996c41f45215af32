"""Child processes of test_multihost, with virtual devices.

`trace CONFIG`, `updates CONFIG HOST:PORT I`, `faulty CONFIG HOST:PORT FOLDER I`.

Each prints its findings as the last line, in JSON.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from offload_jax.files.checks import ConfigError
from offload_jax.learning import updates
from offload_jax.learning.devices import local_copy
from offload_jax.runs import loop, multihost
from offload_jax.runs.config import TrainConfig
from offload_jax.runs.config_file import load_config
from offload_jax.runs.task import PolicyLearning
from offload_jax.runs.train import initial_state, train

COLLECTIVES = "all_reduce|all_gather|all_to_all|collective_permute|reduce_scatter"


def trace(config: TrainConfig) -> dict[str, Any]:
    """The collectives of an update on all devices, and what is said of impossible settings."""
    devices = config.find_devices()
    state = devices.place(initial_state(config))
    text = PolicyLearning(config, devices).lower(state).as_text()
    few = replace(config, learner=replace(config.learner, instances=8))
    many = replace(config, run=replace(config.run, devices=9))
    return {
        "devices": devices.count,
        "collectives": re.findall(rf"stablehlo\.({COLLECTIVES})", text),
        "few": refusal(few),
        "many": refusal(many),
    }


def refusal(config: TrainConfig) -> str:
    try:
        config.find_devices()
    except ConfigError as error:
        return str(error)
    return ""


def updated(config: TrainConfig, address: str, process: str) -> dict[str, Any]:
    """The metrics of a run's updates in one of two processes, and what they agree upon."""
    with multihost.started(multihost.DistributedConfig(address, 2, int(process))):
        devices = config.find_devices()
        state = devices.place(initial_state(config))
        task = PolicyLearning(config, devices)
        needs = loop.prepare(task, state)
        rows = []
        for _ in range(config.learner.updates):
            state, metrics = task.update(state)
            rows.append({name: float(x) for name, x in jax.device_get(metrics).items()})
        here = local_copy(state)  # as a fault is looked into
        refused = ""
        try:
            multihost.first_only(lambda: load_config("nowhere"))
        except ConfigError as error:
            refused = str(error)
        return {
            "needs": needs,
            "rows": rows,
            "whole": {"step": int(here.step), "key": jax.random.key_data(here.key).tolist()},
            "stops": [multihost.any_of_all(f) for f in (False, process == "1")],
            "text": multihost.from_first(f"said by {process}"),
            "refused": refused,
        }


def faulty(config: TrainConfig, address: str, folder: str, process: str) -> dict[str, Any]:
    """A run in one of two processes, some of whose updates are not finite and skipped."""
    collect = updates.collect

    def sometimes_wrong(learner: Any, params: Any, sample_key: Any, roll_key: Any) -> Any:
        instances, collected = collect(learner, params, sample_key, roll_key)
        decisions = collected.decisions
        wrong = jax.random.uniform(sample_key) < 0.4
        wait = instances.wait.at[0].set(jnp.where(wrong, jnp.nan, 1.0))
        reward = decisions.reward + jnp.where(wrong, jnp.nan, 0.0)
        decisions = replace(decisions, reward=reward)
        return replace(instances, wait=wait), replace(collected, decisions=decisions)

    updates.collect = sometimes_wrong
    said: list[str] = []
    with multihost.started(multihost.DistributedConfig(address, 2, int(process))):
        rows = train(config, folder=folder, warn=said.append).rows
    skipped = sum(int(row.get("skipped", 0)) for row in rows)
    return {"steps": [row["step"] for row in rows], "skipped": skipped, "said": said}


if __name__ == "__main__":
    action, source, *others = sys.argv[1:]
    known = {"trace": trace, "updates": updated, "faulty": faulty}
    found = known[action](load_config(source), *others)
    print(json.dumps(found))
