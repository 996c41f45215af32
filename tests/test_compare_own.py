"""Comparing this tree with another commit: the bookkeeping; how fast anything is, no test judges.

Both sides are small repositories whose benchmarks take no time: how fast they are is written there.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from scipy import stats

from benchmarks import trees
from benchmarks.__main__ import main
from benchmarks.common import UsageError
from benchmarks.speed import compare, sides, table

pytestmark = pytest.mark.fast
HERE = {"seconds": {"decode: a": 1.0, "splits: b": 2.0}, "errors": {}}

SUITE = """
NAMES = ("splits", "decode")
def provenance():
    return {"device": "stub", "commit": "of the scratch folder"}
"""
CASES = """
from types import SimpleNamespace
def cases(quick):
    return [SimpleNamespace(name=name) for name in NAMES]
"""
TIMING = """
import os
import offload_jax
def measure(case, repeats):
    if case.name == "broken":
        raise ValueError("broken here")
    with open(os.environ["ORDER"], "a") as file:
        file.write(f"{offload_jax.__file__.split(os.sep)[-4]} ")
    return {"median_s": 1 / offload_jax.RATE}
"""


def git(root: Path, *words: str) -> str:
    who = ("-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "commit.gpgsign=false")
    plain = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    env = plain | {"GIT_CONFIG_GLOBAL": os.devnull}
    done = subprocess.run(
        ["git", *who, *words], cwd=root, env=env, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def fill(folder: Path, splits: list[str], decode: list[str]) -> None:
    """Benchmarks with these cases."""
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "suite.py").write_text(SUITE)
    (folder / "timing.py").write_text(TIMING)
    (folder / "splits.py").write_text(f"NAMES = {splits}\n{CASES}")
    (folder / "decode.py").write_text(f"NAMES = {decode}\n{CASES}")


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """A commit with rate 2 and its suite where it was first; then rate 3, and a suite in a room."""
    root = tmp_path / "repository"
    fill(root / "benchmarks", ["one"], ["a", "old"])
    (root / "offload_jax").mkdir()
    (root / "offload_jax" / "__init__.py").write_text("RATE = 2.0\n")
    (root / "requirements.lock").write_text("jax==1\n")
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "slow")
    (root / "offload_jax" / "__init__.py").write_text("RATE = 3.0\n")
    shutil.rmtree(root / "benchmarks")
    fill(root / "benchmarks" / "speed", ["one"], ["a", "new"])
    (root / "benchmarks" / "__init__.py").write_text("")
    monkeypatch.setenv("ORDER", str(tmp_path / "order"))
    return root


def test_each_side_runs_its_own_benchmarks_in_turn(checkout, tmp_path) -> None:
    said: list[str] = []
    asked = compare.Asked("HEAD", only=("splits",), rounds=3, out=tmp_path / "out.json")
    found = compare.compare(asked, said.append, checkout)
    [row] = found["results"]
    assert (row["case"], row["slower"], row["before"]) == ("splits: one", False, None)
    assert row["ratios"] == pytest.approx([1.5] * 3)
    assert (row["low"], row["high"]) == pytest.approx((1.5, 1.5))
    assert row["ratio"] == pytest.approx(1.5)
    order = (tmp_path / "order").read_text().split()
    assert order == ["this", "other", "other", "this", "this", "other"]
    assert said == ["rounds: 1 of 3", "rounds: 2 of 3", "rounds: 3 of 3"]
    head = git(checkout, "rev-parse", "HEAD")
    assert found["this"]["commit"] == found["other"]["commit"] == head
    assert found["this"]["uncommitted"]
    assert found["this"]["device"] == "stub"
    assert found["this"]["environment"] == found["other"]["environment"]
    assert json.loads(asked.out.read_text()) == found
    assert len(git(checkout, "worktree", "list").splitlines()) == 1
    lines = "\n".join(table.comparison(found))
    assert "with uncommitted changes, the interpreter " in lines
    assert "1.500  1.500 to 1.500" in lines


def test_a_comparison_goes_on_where_it_was_stopped(checkout, tmp_path) -> None:
    said: list[str] = []

    def stop(text: str) -> None:
        said.append(text)
        if text == "rounds: 2 of 3":
            raise KeyboardInterrupt

    asked = compare.Asked("HEAD", ("splits",), 3, out=tmp_path / "out.json")
    with pytest.raises(KeyboardInterrupt):
        compare.compare(asked, stop, checkout)
    assert len(json.loads(asked.out.read_text())["rounds"]) == 2
    assert len(compare.compare(asked, said.append, checkout)["rounds"]) == 3
    assert said == ["rounds: 1 of 3", "rounds: 2 of 3", "rounds: 3 of 3"]
    with pytest.raises(UsageError, match="a comparison with another 'repeats'"):
        compare.compare(compare.Asked("HEAD", ("splits",), 3, 7, out=asked.out), print, checkout)
    (checkout / "offload_jax" / "__init__.py").write_text("RATE = 4.0\n")
    with pytest.raises(UsageError, match="a comparison with another 'this'"):
        compare.compare(asked, print, checkout)


def test_a_slow_case_is_measured_again_and_stays_slow(checkout) -> None:
    (checkout / "offload_jax" / "__init__.py").write_text("RATE = 1.0\n")
    said: list[str] = []
    asked = compare.Asked("HEAD", ("splits", "decode: a"), 1)
    found = compare.compare(asked, said.append, checkout)
    assert said[1] == "below 0.95, measured again: splits: one; decode: a"
    assert (len(found["rounds"]), len(found["again"])) == (1, 10)
    assert [row["ratio"] for row in found["results"]] == pytest.approx([0.5, 0.5])
    assert all(row["slower"] for row in found["results"])
    assert "0.500 to 0.500  SLOWER  (before: 0.500)" in "\n".join(table.comparison(found))


def test_interval_by_hand() -> None:
    """Ratios 1 and 4: the logs' mean is log 2, their standard error log 2, with one degree."""
    ratio, low, high = compare.ratio_interval([1.0, 4.0])
    quantile = math.tan(math.pi * (0.975 - 0.5))  # Student's t with one degree is Cauchy's
    assert ratio == pytest.approx(2)
    assert low == pytest.approx(2 * 2**-quantile)
    assert high == pytest.approx(2 * 2**quantile)
    assert compare.ratio_interval([1.5, 1.5]) == pytest.approx((1.5, 1.5, 1.5))
    assert compare.ratio_interval([1.5]) == (pytest.approx(1.5), None, None)


def test_interval_covers_as_often_as_it_says() -> None:
    draws = stats.norm(0, 0.1).rvs((2, 2000, 5), random_state=0)
    covered = 0
    for this, other in zip(*draws, strict=True):
        _, low, high = compare.ratio_interval(2 * math.e ** (this - other))
        covered += low <= 2 <= high
    assert covered / 2000 == pytest.approx(0.95, abs=0.02)


def rounds(*ratios: float) -> list[compare.Round]:
    return [{"this": {"a": 1.0, "b": 1.0}, "other": {"a": x, "b": 1.0}} for x in ratios]


def test_the_median_counts_and_of_two_measurements_the_second() -> None:
    a, b = compare.results(rounds(0.5, 0.9, 2.0), [])
    assert (a["ratio"], a["slower"], a["before"]) == (0.9, True, None)
    assert (b["ratio"], b["slower"]) == (1.0, False)
    again = [{side: {"a": one[side]["a"]} for side in one} for one in rounds(1.0, 1.1, 0.2)]
    a, b = compare.results(rounds(0.5, 0.9, 2.0), again)
    assert (a["ratio"], a["slower"], a["before"], a["ratios"]) == (1.0, False, 0.9, [1.0, 1.1, 0.2])
    assert (b["ratio"], b["before"]) == (1.0, None)


def test_a_case_that_a_side_lacks_is_named(checkout) -> None:
    with pytest.raises(compare.Failed) as failed:
        compare.compare(compare.Asked("HEAD"), print, checkout)
    assert "this has no case 'decode: old'" in str(failed.value)
    assert "other has no case 'decode: new'" in str(failed.value)
    less = {"seconds": {"decode: a": 1.0}, "errors": {"splits: *": "ImportError: older"}}
    with pytest.raises(compare.Failed, match=r"other has no case 'splits: b' \(ImportError: older"):
        compare.matched(HERE, less)
    assert compare.matched(HERE, less, ["decode"]) == ["decode: a"]
    with pytest.raises(UsageError, match="only has 'decod: a'; must begin the name of a case"):
        compare.matched(HERE, HERE, ["decod: a"])


def test_what_fails_on_both_sides_is_no_difference(checkout) -> None:
    less = {"seconds": {"decode: a": 1.0}, "errors": {"splits: b": "ValueError: gone"}}
    reasons = compare.failed({"this": less, "other": less}, list(HERE["seconds"]))
    assert reasons == {"splits: b": "both fail (ValueError: gone)"}
    with pytest.raises(compare.Failed, match="this has no case 'splits: b'"):
        compare.failed({"this": less, "other": HERE}, list(HERE["seconds"]))


def test_a_side_that_crashes_is_named(checkout) -> None:
    for name in ("splits", "decode"):
        (checkout / "benchmarks" / "speed" / f"{name}.py").write_text("raise SystemExit('crashed')")
    with pytest.raises(compare.Failed, match="this: the process ended with 1: crashed"):
        compare.compare(compare.Asked("HEAD"), print, checkout)


def test_another_lock_is_another_environment(checkout, monkeypatch) -> None:
    def made(tree: Path) -> tuple[str, str]:
        assert (tree / "requirements.lock").read_text() == "jax==1\n"
        return sides.sys.executable, "a new environment"

    monkeypatch.setattr(sides, "_environment", made)
    (checkout / "requirements.lock").write_text("jax==2\n")
    found = compare.compare(compare.Asked("HEAD", ("splits",), 1), print, checkout)
    assert found["other"]["environment"] == "a new environment"
    assert found["this"]["environment"].startswith("the interpreter ")


@pytest.mark.parametrize("ending", [KeyboardInterrupt, SystemExit, RuntimeError])
def test_the_trees_go_however_it_ends(checkout, ending) -> None:
    seen = []

    def interrupted() -> None:
        with sides.both(checkout, "HEAD") as pair:
            seen.extend(side.tree for side in pair)
            assert all((side.tree / "offload_jax").is_dir() for side in pair)
            assert len(git(checkout, "worktree", "list").splitlines()) == 2
            raise ending

    with pytest.raises(ending):
        interrupted()
    assert not any(tree.parents[1].exists() for tree in seen)
    assert len(git(checkout, "worktree", "list").splitlines()) == 1


def test_a_shadowed_package_is_refused(checkout) -> None:
    """Without a package of its own a side would import the installed one."""
    (checkout / "offload_jax" / "__init__.py").write_text("raise ImportError('broken here')\n")
    with pytest.raises(UsageError, match="offload_jax of this is not what Python imports"):
        compare.compare(compare.Asked("HEAD"), print, checkout)
    assert len(git(checkout, "worktree", "list").splitlines()) == 1


def test_a_copy_is_the_tree_as_it_stands(checkout, tmp_path) -> None:
    (checkout / ".gitignore").write_text("*.log\n")
    (checkout / "run.log").write_text("")
    trees.copy(checkout, tmp_path / "copy")
    names = {path.name for path in (tmp_path / "copy").rglob("*")}
    assert "speed" in names  # not committed yet
    assert not names & {"run.log", ".git"}
    before = trees.digest(tmp_path / "copy")
    assert before == trees.digest(tmp_path / "copy")
    (tmp_path / "copy" / "offload_jax" / "__init__.py").write_text("RATE = 3.5\n")
    assert before != trees.digest(tmp_path / "copy")


@pytest.mark.parametrize(("slower", "status"), [(False, 0), (True, 1)])
def test_the_exit_status_tells_of_slower_cases(slower, status, monkeypatch, capsys) -> None:
    side = {"commit": "abc", "uncommitted": False, "environment": "this", "rev": "HEAD"}
    row = compare.results(rounds(0.9 if slower else 1.0), [])[0]
    document = {"this": side, "other": side, "results": [row], "failed": {"b": "both fail"}}
    monkeypatch.setattr(compare, "compare", lambda asked, say: document)
    assert main(["compare", "--own", "HEAD"]) == status
    assert "b: not compared, both fail" in capsys.readouterr().out

    def lacking(asked, say):
        raise compare.Failed("other has no case 'x'")

    monkeypatch.setattr(compare, "compare", lacking)
    assert main(["compare", "--own", "HEAD"]) == 1
    assert "error: other has no case 'x'" in capsys.readouterr().err
