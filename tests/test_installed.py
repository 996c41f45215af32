"""Installed outside of a checkout: what lies beside the code is found, and so is every process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

SHIPPED = """
import json
import offload_jax as oj
from offload_jax.evaluation import testsets
from offload_jax.runs import policy_folder
from offload_jax.runs.config import presets
print(json.dumps({
    "from": oj.__file__,
    "presets": presets(),
    "policies": [oj.load_policy(name).source for name in policy_folder.names()],
    "instances": [len(testsets.load(name).best) for name in sorted(testsets.SHIPPED)],
}))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with `site`, where all lies as a wheel would have it."""
    folder = tmp_path_factory.mktemp("installed")
    skip = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "offload_jax", folder / "site" / "offload_jax", ignore=skip)
    shutil.copytree(ROOT / "configs", folder / "site" / "offload_jax" / "configs")
    return folder


def python(place: Path, *words: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(place / "site")}
    command = [sys.executable, "-P", *words]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_policies_test_sets_and_presets_are_found(place) -> None:
    assert json.loads(python(place, "-c", SHIPPED)) == {
        "from": str(place / "site" / "offload_jax" / "__init__.py"),
        "presets": sorted(path.stem for path in (ROOT / "configs").glob("*.yaml")),
        "policies": ["edge", "edge_arrival", "edge_large", "edge_sites", "paper"],
        "instances": [512, 64],
    }


def test_a_run_is_mirrored_and_of_no_commit(place) -> None:
    small = ["--learner.updates", "2", "--run.log-every", "1", "--run.eval-instances", "8"]
    python(place, "-m", "offload_jax", "train", "--config", "smoke", "--run", "one", *small)
    [start] = json.loads((place / "one" / "run.json").read_text())["starts"]
    assert start["commit"] is None  # whatever repository the working folder may be in
    [mirrored] = (place / "one" / "wandb").glob("offline-run-*/*.wandb")
    assert mirrored.read_bytes().count(b"best_of_samples") >= 2
