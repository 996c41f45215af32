"""A run on eight virtual devices, as a child process of test_mesh: CONFIG FOLDER STOP_AFTER.

Prints as JSON which collectives the compiled update has, and what is said of impossible settings.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from dataclasses import replace
from pathlib import Path

import jax

from offload_jax import loop, runs
from offload_jax.config import ConfigError, TrainConfig, load_config

COLLECTIVES = r"all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"


def collectives(config: TrainConfig) -> list[str]:
    devices = config.find_devices()
    learner, state = config.to_learner(devices), devices.place(runs.initial_state(config))
    text = loop._update.lower(learner, state).compile().as_text()
    return re.findall(rf" ({COLLECTIVES})(?:-start)?\(", text)


def refusal(config: TrainConfig) -> str:
    try:
        config.find_devices()
    except ConfigError as error:
        return str(error)
    return ""


def main(source: str, folder: str, last: str) -> None:
    config = load_config(source)

    def stop(row: loop.Row) -> None:
        if row["step"] == int(last):
            os.kill(os.getpid(), signal.SIGTERM)

    told: list[str] = []
    runs.train(config, [stop], Path(folder), tell=told.append)
    few = replace(config, learner=replace(config.learner, instances=8))
    many = replace(config, run=replace(config.run, devices=9))
    found = {
        "devices": len(jax.devices()),
        "collectives": collectives(config),
        "told": told,
        "few": refusal(few),
        "many": refusal(many),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
