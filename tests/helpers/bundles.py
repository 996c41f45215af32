"""A small policy that nobody trained, and its bundle."""

from __future__ import annotations

import json
import os
from pathlib import Path

import jax
import jaxtyping
import pytest
from filelock import FileLock

from offload_jax import deploy
from offload_jax.export.artifacts import ExportConfig
from offload_jax.export.bundle import write_bundle
from offload_jax.learning import updates
from offload_jax.policy.policy import Policy
from offload_jax.runs.config_file import from_settings

SMALL = {"kind": "edge", "num_users": (4, 5, 6), "batches": 2, "servers": 2, "models": 2}
CONFIG = from_settings(
    {
        "scenario": SMALL,
        "env": {"order": "adaptive", "candidates": 4},
        "network": {"width": 8, "heads": 2, "layers": 1},
    },
    "test",
)
WANTED = ExportConfig(sizes=(6,), samples=3)


def small_policy() -> Policy:
    state = jax.jit(updates.init, static_argnums=0)(CONFIG.to_learner(), jax.random.key(0))
    return Policy(state.params, CONFIG.network, CONFIG.to_env())


def small_bundle(tmp_path_factory: pytest.TempPathFactory) -> deploy.Bundle:
    """Made once for all test processes, as compiling takes most of a minute."""
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared
    with FileLock(shared / "bundle.lock"):
        folder = shared / "mine"
        return deploy.open_bundle(folder) if folder.exists() else _made(folder)


def _made(folder: Path) -> deploy.Bundle:
    """Made without checks of shapes, which do not know jax.export's symbols for sizes."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        policy = small_policy()
        return write_bundle(folder, policy, CONFIG, {}, "# Mine\n", WANTED, say=lambda _: None)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def instance(bundle: deploy.Bundle, i: int = 0) -> dict:
    """A copy of a test vector's instance, as loaded JSON."""
    return json.loads(json.dumps(bundle.vectors[i]["instance"]))
