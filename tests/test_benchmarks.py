"""The benchmarks run and say what they measured; how fast anything is, no test judges."""

from __future__ import annotations

import json
import math
import os
import subprocess
from pathlib import Path

import pytest
from scipy import stats

from benchmarks import compare, suite, table
from benchmarks.__main__ import main
from benchmarks.suite import ALL, UsageError

NUMBERS = ("median_s", "p10_s", "p90_s", "best_s", "compile_s", "rate")
# A package and benchmarks of it that take no time: what is fast is written in the package.
STUB = """
import json, sys
import offload_jax
rows = [{"benchmark": "splits", "case": "one", "rate": offload_jax.RATE, "unit": "problems/s"}]
document = {"results": rows, "provenance": {"cpu": "stub", "commit": None}}
open(sys.argv[sys.argv.index("--out") + 1], "w").write(json.dumps(document))
"""


@pytest.mark.usefixtures("quick_compiler")
@pytest.mark.parametrize("name", suite.NAMES)
def test_every_benchmark_runs(name, tmp_path, capsys):
    out = tmp_path / "speed.json"
    assert main([name, "--quick", "--repeats", "2", "--out", str(out)]) == 0
    document = json.loads(out.read_text())
    assert {"device", "versions", "commit", "cpu", "cores"} <= set(document["provenance"])
    assert document["date"]
    assert document["quick"] is True
    printed = capsys.readouterr().out
    assert document["results"]
    for row in document["results"]:
        assert row["benchmark"] == name
        assert row["case"] in printed
        assert row["repeats"] == 2
        assert row["unit"].endswith("/s")
        assert "target" in row
        assert all(math.isfinite(row[key]) and row[key] > 0 for key in NUMBERS)
        assert row["best_s"] <= row["p10_s"] <= row["median_s"] <= row["p90_s"]


@pytest.mark.fast
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["splitz"], "NAMES has 'splitz'; must be among training, environment, splits, decode"),
        (["compare", "--against", "HEAD", "env"], "NAMES has 'env'; must be among training"),
        (["splits", "--repeats", "0"], "repeats is 0; must be at least 1"),
        (["compare", "--against", "HEAD", "--rounds", "0"], "rounds is 0; must be at least 1"),
        (["compare", "--against", "no-such-rev"], "against is 'no-such-rev'; must be a commit"),
        (["splits", "--out", "/no/such/folder/x.json"], "its folder must exist"),
    ],
)
def test_wrong_arguments_are_refused(words, message, capsys):
    assert main(words) == 2
    assert message in capsys.readouterr().err


@pytest.mark.fast
def test_a_failing_benchmark_is_a_row(monkeypatch, capsys):
    def broken(name: str):
        raise ImportError(f"no {name} in this tree")

    monkeypatch.setattr(suite, "import_module", broken)
    assert main(["decode"]) == 1
    assert "FAILED ImportError: no benchmarks.decode in this tree" in capsys.readouterr().out


@pytest.mark.fast
def test_targets_are_judged():
    row = {"case": "one", "rate": 1e6, "unit": "problems/s", "target": 1.5e6, "compile_s": 1.0}
    row |= {"median_s": 0.002, "p10_s": 0.001, "p90_s": 2.0}
    assert "target 1,500,000: short by 1.50x" in table.measurement(row)
    assert "1,000,000 problems/s" in table.measurement(row)
    assert "2 ms" in table.measurement(row)
    assert "target 1,000,000: reached" in table.measurement(row | {"target": 1e6})
    assert "target" not in table.measurement(row | {"target": None})


@pytest.mark.fast
def test_interval_by_hand():
    """Ratios 1 and 4: the logs' mean is log 2, their standard error log 2, with one degree."""
    ratio, low, high = compare.ratio_interval([3.0, 8.0], [3.0, 2.0])
    quantile = math.tan(math.pi * (0.975 - 0.5))  # Student's t with one degree is Cauchy's
    assert ratio == pytest.approx(2)
    assert low == pytest.approx(2 * 2**-quantile)
    assert high == pytest.approx(2 * 2**quantile)
    assert compare.ratio_interval([3.0, 3.0], [2.0, 2.0]) == pytest.approx((1.5, 1.5, 1.5))
    assert compare.ratio_interval([3.0], [2.0]) == (pytest.approx(1.5), None, None)


@pytest.mark.fast
def test_interval_covers_as_often_as_it_says():
    draws = stats.norm(0, 0.1).rvs((2, 2000, 5), random_state=0)
    covered = 0
    for this, other in zip(*draws, strict=True):
        _, low, high = compare.ratio_interval(2 * math.e**this, math.e**other)
        covered += low <= 2 <= high
    assert covered / 2000 == pytest.approx(0.95, abs=0.02)


def run_of(*rows: tuple, **extra) -> dict:
    names = ("benchmark", "case", "rate", "error")
    found = [{k: v for k, v in zip(names, row, strict=False) if v is not None} for row in rows]
    return {"results": [row | {"unit": "plans/s"} for row in found], **extra}


@pytest.mark.fast
def test_rounds_are_paired_and_gaps_reported():
    this = [run_of(("splits", "a", 4.0), ("splits", "b", 1.0), ("decode", "c", 1.0))] * 3
    older = run_of(("splits", "a", 2.0), ("decode", ALL, None, "ImportError: older"))
    crashed = run_of(error="the process ended with -9: killed")
    found = compare.summarize(this, [older, crashed, older])
    [row] = found["results"]
    assert (row["case"], row["ratio"], row["ratios"]) == ("a", pytest.approx(2), [2.0, 2.0])
    assert (row["rate_this"], row["rate_other"]) == (4.0, 2.0)
    missing = {row["case"]: row["reason"] for row in found["missing"]}
    assert missing == {"b": "other: no such case", "c": "other: ImportError: older"}


@pytest.mark.fast
def test_two_sides_that_both_fail_are_reported():
    both = [run_of(("decode", ALL, None, "ImportError: gone"))]
    found = compare.summarize(both, both)
    assert found["results"] == []
    reason = "this: ImportError: gone; other: ImportError: gone"
    assert found["missing"] == [{"benchmark": "decode", "case": ALL, "reason": reason}]


def git(root: Path, *words: str) -> str:
    who = ("-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "commit.gpgsign=false")
    plain = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    done = subprocess.run(
        ["git", *who, *words],
        cwd=root,
        env=plain | {"GIT_CONFIG_GLOBAL": os.devnull},
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A commit with rate 2, then uncommitted changes that make it 3."""
    for folder in ("offload_jax", "benchmarks", "configs"):
        (tmp_path / folder).mkdir()
    (tmp_path / "configs" / "paper.yaml").write_text("")
    (tmp_path / "benchmarks" / "__init__.py").write_text("")
    (tmp_path / "offload_jax" / "__init__.py").write_text("RATE = 2.0\n")
    (tmp_path / "benchmarks" / "__main__.py").write_text("raise SystemExit('the old harness')\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "slow")
    (tmp_path / "offload_jax" / "__init__.py").write_text("RATE = 3.0\n")
    (tmp_path / "benchmarks" / "__main__.py").write_text(STUB)
    return tmp_path


@pytest.mark.fast
def test_compare_runs_both_trees(checkout):
    said: list[str] = []
    found = compare.compare("HEAD", ["splits"], 3, 1, True, said.append, checkout)
    [row] = found["results"]
    assert (row["ratio"], row["low"], row["high"]) == pytest.approx((1.5, 1.5, 1.5))
    order = ["this:", "other:", "other:", "this:", "this:", "other:"]
    assert [line.split()[2] for line in said] == order
    assert found["this"] == {"commit": found["other"]["commit"], "uncommitted": True}
    assert found["host"] == {"cpu": "stub"}
    assert any("this is faster" in line for line in table.comparison(found))
    assert len(git(checkout, "worktree", "list").splitlines()) == 1


@pytest.mark.fast
@pytest.mark.parametrize("ending", [KeyboardInterrupt, SystemExit, RuntimeError])
def test_the_worktree_goes_however_it_ends(checkout, ending):
    seen = []

    def interrupted() -> None:
        with compare.trees(checkout, "HEAD") as scratch:
            seen.append(scratch)
            assert (scratch / "other" / "offload_jax").is_dir()
            assert len(git(checkout, "worktree", "list").splitlines()) == 2
            raise ending

    with pytest.raises(ending):
        interrupted()
    assert not seen[0].exists()
    assert len(git(checkout, "worktree", "list").splitlines()) == 1


@pytest.mark.fast
def test_a_shadowed_package_is_refused(checkout):
    """Without a package of its own a side would import the installed one."""
    (checkout / "offload_jax" / "__init__.py").write_text("raise ImportError('broken here')\n")
    with pytest.raises(UsageError, match="offload_jax of this is not what Python imports"):
        compare.compare("HEAD", ["splits"], 1, 1, True, print, checkout)
    assert len(git(checkout, "worktree", "list").splitlines()) == 1
