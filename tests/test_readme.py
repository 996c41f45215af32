"""README and tutorials keep their promises: commands and examples run, numbers are the results'."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from paths import ROOT

from benchmarks import fill
from offload_jax.cli import COMMANDS
from offload_jax.runs.config import presets

README = ROOT / "README.md"
RUN = (README, *sorted((ROOT / "docs" / "tutorials").glob("*.md")))  # what is executed
# What makes a command quick enough for a test: same code, smaller numbers.
QUICK = {
    "train.py": ["--config", "smoke", "--learner.updates", "4", "--run.log_every", "2"],
    "eval.py": ["--per-cell", "2", "--samples", "1", "4"],
}
INSTALL = re.compile(r"python -m pip install -e (\.|'\.\[test\]')")


def blocks(language: str, page: Path) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def lines(*pages: Path) -> list[str]:
    """The commands of pages, each one once."""
    found = [block for page in pages for block in blocks("sh", page)]
    return [*dict.fromkeys(line for block in found for line in block.splitlines())]


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
    there = lines(README)
    assert "python -m pip install -e . && python train.py" in there
    assert "python -m pip install -e '.[test]' && python -m pytest" in there


@pytest.mark.fast
def test_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").split()) <= 600


def test_commands(folder) -> None:
    ran = []
    for command in dict.fromkeys(c for line in lines(*RUN) for c in line.split(" && ")):
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
    """Those of a page in order, as in a notebook; each page with names of its own."""
    texts = ["\n".join(blocks("python", page)) for page in RUN]
    programs = "\n".join(f"exec(compile({text!r}, 'page', 'exec'), {{}})" for text in texts)
    out = run([sys.executable, "-c", programs], folder)
    assert out.count("optimal") == 2
    assert (folder / "site.json").is_file()


@pytest.mark.fast
def test_results_are_those_of_the_files() -> None:
    texts = {page: page.read_text("utf-8") for page in fill.pages()}
    shown = {found[1] for text in texts.values() for found in fill.MARKED.findall(text)}
    names = "paper/table speed layers edge/table edge_large/table quality endurance"
    names += " scaling serving worked generalisation learners-learners learners-layer"
    names += " ablations-sight ablations-one-shot ablations-settings per_dqn"
    assert shown == {f"benchmarks/results/{name}.md" for name in names.split()}
    for page, text in texts.items():
        assert fill.filled(text) == text, f"{page.name}: python -m benchmarks.fill"


@pytest.mark.fast
def test_a_part_of_a_table() -> None:
    text = "about\n\n| a | b | c |\n|---|---:|---:|\n| x, y | 1 | 2 |\n| z | 3 | 4 |"
    wanted = "about\n\n| a | c |\n| --- | ---: |\n| z | 4 |\n| x, y | 2 |"
    assert fill.part(text, ["z", "x, y"], ["c"]) == wanted
    with pytest.raises(KeyError):
        fill.part(text, ["z"], ["d"])


@pytest.mark.fast
def test_files_exist() -> None:
    """Those named in code style; links and pictures are in test_docs.py."""
    text = "".join(page.read_text("utf-8") for page in fill.pages())
    named = re.findall(r"`((?:docs|benchmarks|configs|offload_jax|tests)/[\w./-]+)`", text)
    assert len(named) >= 4
    for name in named:
        assert (ROOT / name).exists(), name


@pytest.mark.fast
def test_examples_of_pages_that_are_not_run() -> None:
    """Python compiles, YAML is read, commands and configurations exist."""
    for page in fill.pages():
        for text in blocks("python", page):
            compile(text, page.name, "exec")
        for text in blocks("yaml", page):
            yaml.safe_load(text)
        text = page.read_text("utf-8")
        named = set(re.findall(r"(?:^ *|`)offload-jax ([a-z]+)(?= )", text, re.MULTILINE))
        named -= {"decides"}  # the project itself, at the start of a line
        assert named <= COMMANDS.keys(), f"{page.name}: {named - COMMANDS.keys()}"
        configs = set(re.findall(r"--config ([a-z_]+)\b(?![./])", text))
        assert configs <= set(presets()), f"{page.name}: {configs}"
