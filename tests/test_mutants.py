"""The benchmark that puts faults into the package: their places, and the bookkeeping."""

from __future__ import annotations

import ast
import json
import subprocess
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from paths import ROOT

from benchmarks.common import UsageError
from benchmarks.quality import mutant_runs, mutants, mutation
from benchmarks.quality.mutant_table import MUTANTS
from benchmarks.quality.mutation import Mutant, Stale

pytestmark = pytest.mark.fast

SOURCE = '''
def plus(x):
    """Adds: x + 1."""
    return x + 1


class Box:
    def plus(self, x):
        return x + 1 + 1

    def minus(self, x):
        return x - 1
'''
TESTS = """
import pytest
from offload_jax.problem.sums import Box, plus

@pytest.mark.fast
def test_plus():
    assert plus(1) == 2

def test_minus():
    assert Box().minus(1) == 0
"""
PLUS = Mutant("plus", "plus", "x + 1", "x + 2", "problem", "tests/problem/test_sums.py")
MINUS = replace(PLUS, name="minus", function="Box.minus", old="- 1", new="- 2")
LIKEWISE = replace(PLUS, name="likewise", function="Box.plus", old="1 + 1", new="2")
GONE = replace(PLUS, name="gone", function="times")


@pytest.fixture
def tree(tmp_path) -> Path:
    """A repository with a package and tests that take no time."""
    root = tmp_path / "tree"
    (root / "offload_jax" / "problem").mkdir(parents=True)
    (root / "tests" / "problem").mkdir(parents=True)
    for folder in (root / "offload_jax", root / "offload_jax" / "problem"):
        (folder / "__init__.py").write_text("")
    (root / "offload_jax" / "problem" / "sums.py").write_text(SOURCE)
    (root / "tests" / "problem" / "test_sums.py").write_text(TESTS)
    (root / "pytest.ini").write_text("[pytest]\naddopts = -ra\nmarkers =\n    fast\n    slow\n")
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    return root


@pytest.fixture(scope="module")
def found() -> mutation.Places:
    return mutation.places(ROOT)


def test_every_fault_has_its_place(found) -> None:
    """Exactly one, in the room that it says, and what comes out is another program."""
    assert len(MUTANTS) == len({mutant.name for mutant in MUTANTS}) >= 60
    for mutant in MUTANTS:
        fault = mutation.mutated(mutant, found, ROOT)
        assert fault.path.parts[:2] == ("offload_jax", mutant.room), mutant
        before = (ROOT / fault.path).read_text(encoding="utf-8")
        assert ast.dump(ast.parse(before)) != ast.dump(ast.parse(fault.source)), mutant
        assert mutant.new in fault.source.splitlines()[fault.line - 1] or not mutant.new


def test_every_fault_has_its_tests() -> None:
    for mutant in MUTANTS:
        files = mutant_runs.test_files(ROOT, mutant.room, mutant.first)
        assert files[0] == mutant.first
        assert mutant.first in mutant_runs.test_files(ROOT, mutant.room, "another")
        assert all((ROOT / name).is_file() for name in files)


def test_a_function_is_found_wherever_it_is(tree) -> None:
    places = mutation.places(tree)
    fault = mutation.mutated(PLUS, places, tree)
    assert (str(fault.path), fault.line) == ("offload_jax/problem/sums.py", 4)  # not the docstring
    assert fault.diff == "-     return x + 1\n+     return x + 2"
    assert mutation.mutated(replace(PLUS, function="problem.plus"), places, tree) == fault
    (tree / "offload_jax" / "files").mkdir()
    old = tree / "offload_jax" / "problem" / "sums.py"
    moved = old.rename(tree / "offload_jax" / "files" / "other.py")
    fault = mutation.mutated(PLUS, mutation.places(tree), tree)
    assert fault.path == moved.relative_to(tree)
    (tree / "offload_jax" / "plus.py").write_text("def plus(x):\n    return x + 1\n")
    with pytest.raises(Stale, match="2 functions are named plus; must be one"):
        mutation.mutated(PLUS, mutation.places(tree), tree)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"function": "times"}, "0 functions are named times"),
        ({"old": "x + 3"}, "'x [+] 3' stands 0 times in plus"),
        ({"function": "Box.plus", "old": " + 1"}, "stands 2 times in Box.plus"),
        ({"new": "x +"}, "plus is no Python with 'x [+]'"),
    ],
)
def test_what_has_no_place_is_stale(tree, change, message) -> None:
    with pytest.raises(Stale, match=message):
        mutation.mutated(replace(PLUS, **change), mutation.places(tree), tree)


def test_a_run_judges_every_fault_and_is_not_done_twice(tree, monkeypatch, capsys) -> None:
    """One that quick tests notice, one that others do, one that none does, one without a place."""
    monkeypatch.setattr(mutants, "ROOT", tree)
    monkeypatch.setattr(mutants, "MUTANTS", (PLUS, MINUS, LIKEWISE, GONE))
    monkeypatch.setitem(mutant_runs.TESTS, "problem", ("tests/problem",))
    out = tree.parent / "mutants.json"
    assert mutants.main(["--out", str(out)]) == 1
    rows = json.loads(out.read_text())["mutants"]
    states = {name: row["state"] for name, row in rows.items()}
    wanted = {"plus": "killed", "minus": "killed", "likewise": "survived", "gone": "stale"}
    assert states == wanted
    assert rows["minus"]["by"] == "tests/problem/test_sums.py::test_minus"
    told = capsys.readouterr().out
    assert "survived: likewise, offload_jax/problem/sums.py:9\n-         return x + 1 + 1" in told
    assert (tree / "offload_jax" / "problem" / "sums.py").read_text() == SOURCE

    monkeypatch.setattr(mutants, "tried", None)  # nothing is run again
    assert mutants.main(["--out", str(out)]) == 1
    assert mutants.main(["--out", str(out), "--only", "plus", "minus"]) == 0
    assert capsys.readouterr().out.count("survived: likewise") == 1


def test_tests_that_fail_anyway_mean_nothing(tree, monkeypatch, capsys) -> None:
    monkeypatch.setattr(mutants, "ROOT", tree)
    monkeypatch.setattr(mutants, "MUTANTS", (PLUS,))
    monkeypatch.setitem(mutant_runs.TESTS, "problem", ("tests/problem",))
    (tree / "tests" / "problem" / "test_sums.py").write_text("def test_it():\n    assert False\n")
    assert mutants.main(["--out", str(tree.parent / "mutants.json")]) == 1
    told = capsys.readouterr().out
    assert "error: tests/problem/test_sums.py::test_it fails without any fault" in told
    assert not (tree.parent / "mutants.json").exists()


def test_a_stopped_run_leaves_nothing(tree, monkeypatch, capsys) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(mutants, "ROOT", tree)
    monkeypatch.setattr(mutants, "MUTANTS", (PLUS,))
    monkeypatch.setattr(mutants, "tried", stop)
    assert mutants.main(["--out", str(tree.parent / "mutants.json")]) == 130
    assert capsys.readouterr().err == "stopped; the same command goes on after what is done\n"


def test_stopping_ends_the_tests_that_run(tree, monkeypatch) -> None:
    monkeypatch.setitem(mutant_runs.TESTS, "problem", ("tests/problem",))
    (tree / "tests" / "problem" / "test_sums.py").write_text(
        "import pathlib, pytest, time\npathlib.Path('began').write_text('')\ntime.sleep(100)\n"
    )
    with mutant_runs.workers(tree, 1, 60) as pool, pool.copy() as folder:

        def stop() -> None:
            while not (folder / "began").exists():
                pass
            pool.stop()

        threading.Thread(target=stop, daemon=True).start()
        with pytest.raises(mutant_runs.Stopped):
            pool.tested(folder, "problem", PLUS.first)
    assert not folder.exists()


def test_too_long_is_killed(tree, monkeypatch) -> None:
    monkeypatch.setitem(mutant_runs.TESTS, "problem", ("tests/problem",))
    with mutant_runs.workers(tree, 1, 0.1) as pool, pool.copy() as folder:
        result = pool.tested(folder, "problem", PLUS.first)
    assert (result.passed, result.by) == (False, "time-out")
    row = mutants.row_of(PLUS, mutation.mutated(PLUS, mutation.places(tree), tree), result)
    assert row["state"] == "killed"
    assert "killed by the time limit: plus" in "\n".join(mutants.report([row]))


def test_how_pytest_ended() -> None:
    failed = "...\nFAILED tests/a.py::test_x[a b] - assert 1\nFAILED tests/a.py::test_y\n"
    assert mutant_runs.killer(1, failed) == "tests/a.py::test_x[a b]"
    assert mutant_runs.killer(2, "ERROR tests/a.py\n") == "tests/a.py"
    assert mutant_runs.killer(-11, "") == "pytest ended with -11"
    assert mutant_runs.killer(0, "") == mutant_runs.killer(5, "") == ""
    assert mutant_runs.killer(None, "") == "time-out"
    slow = "E  Failed: Timeout (>300.0s) from pytest-timeout.\nFAILED tests/a.py::test_x - Failed"
    assert mutant_runs.killer(1, slow) == "time-out, tests/a.py::test_x"
    with pytest.raises(RuntimeError, match="pytest ended with 4"):
        mutant_runs.killer(4, "no such file")


def test_what_is_run() -> None:
    some = mutants.choose(mutants.Arguments(sample=5, seed=1))
    assert len(some) == 5
    assert some == mutants.choose(mutants.Arguments(sample=5, seed=1))
    assert some != mutants.choose(mutants.Arguments(sample=5, seed=2))
    assert mutants.choose(mutants.Arguments(only=("gap-sign",)))[0].function == "gap"
    for wrong, message in (
        ({"only": ("gap",)}, "only has 'gap'; must be among"),
        ({"sample": 0}, "sample is 0; must be in 1"),
        ({"workers": 0}, "workers is 0; must be at least 1"),
    ):
        with pytest.raises(UsageError, match=message):
            mutants.choose(mutants.Arguments(**wrong))
