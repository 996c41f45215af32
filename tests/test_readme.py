"""README keeps its promises: commands and examples run, numbers are those of the results."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

from benchmarks import fill

pytestmark = pytest.mark.usefixtures("quick_compiler")
README = (ROOT / "README.md").read_text(encoding="utf-8")
# What makes a command quick enough for a test: same code, smaller numbers.
QUICK = {
    "train.py": ["--config", "smoke", "--learner.updates", "4", "--run.log_every", "2"],
    "eval.py": ["--per-cell", "2", "--samples", "1", "4"],
}
INSTALL = re.compile(r"python -m pip install -e (\.|'\.\[test\]')")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def run(words: list[str], folder: Path) -> str:
    done = subprocess.run(
        words,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "default"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{words}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("readme")


def test_the_two_commands_are_there() -> None:
    lines = [line for block in blocks("sh") for line in block.splitlines()]
    assert "python -m pip install -e . && python train.py" in lines
    assert "python -m pip install -e '.[test]' && python -m pytest" in lines


def test_commands(folder) -> None:
    ran = []
    for line in (line for block in blocks("sh") for line in block.splitlines()):
        for command in line.split(" && "):
            if INSTALL.fullmatch(command) or command == "python -m pytest":
                continue  # the environment of this very test
            words = command.split()
            if words[0] == "python":
                script = words[1]
                words = [sys.executable, str(ROOT / script), *words[2:], *QUICK[script]]
            else:
                assert words[0] == "offload-jax"
                words = [sys.executable, "-m", "offload_jax", *words[1:]]
            [newest] = (folder / "runs").iterdir() if "RUN_DIRECTORY" in words else [None]
            out = run([str(newest) if w == "RUN_DIRECTORY" else w for w in words], folder)
            ran.append((command.split()[:2], out))
    said = {words[-1]: out for words, out in ran}
    assert set(said) == {"train.py", "eval.py", "info"}
    assert "compare it with the baselines: python eval.py --run" in said["train.py"]
    assert "gap to the optimum (top-b)" in said["eval.py"]
    assert "update: 4 of 4" in said["info"]


def test_python_examples(folder) -> None:
    """In order, in one process, as in a notebook."""
    out = run([sys.executable, "-c", "\n".join(blocks("python"))], folder)
    assert "optimal" in out
    assert (folder / "site.json").is_file()


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.fast
def test_results_are_those_of_the_files() -> None:
    texts = {page: page.read_text("utf-8") for page in PAGES}
    shown = {name for text in texts.values() for _, name, _ in fill.MARKED.findall(text)}
    names = "paper/table speed layers edge/table edge_large/table quality endurance"
    names += " scaling serving worked generalisation learners-learners learners-layer"
    names += " ablations-sight ablations-one-shot ablations-settings per_dqn"
    assert shown == {f"benchmarks/results/{name}.md" for name in names.split()}
    for page, text in texts.items():
        assert fill.filled(text) == text, f"{page.name}: python -m benchmarks.fill"


@pytest.mark.fast
def test_files_and_pictures_exist() -> None:
    named = re.findall(r"`((?:docs|benchmarks|configs)/[\w./]+)`", README)
    named += re.findall(r"!\[.*?\]\((\S+?)\)", README)
    assert len(named) >= 4
    for name in named:
        assert (ROOT / name).exists(), name
