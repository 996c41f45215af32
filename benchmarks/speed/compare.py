"""This tree against another commit: alternating rounds in fresh processes, ratios with intervals.

Both sides run a copy of *this* tree's benchmarks. This tree is copied too, so that edits during
the comparison do not count; the other commit is checked out in a worktree, gone afterwards.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.common import ROOT, Row, UsageError
from benchmarks.speed.suite import ALL

SIDES = ("this", "other")
_ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def compare(
    against: str,
    names: Sequence[str],
    rounds: int,
    repeats: int,
    quick: bool,
    say: Callable[[str], None],
    root: Path = ROOT,
) -> dict[str, Any]:
    """Measures both sides in turn and returns the JSON document of the comparison."""
    commit = _commit(root, against)
    here = {"commit": _commit(root, "HEAD"), "uncommitted": bool(_git(root, "status", "-s"))}
    words = [*names, "--repeats", str(repeats), *(["--quick"] if quick else [])]
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    with trees(root, commit) as scratch:
        for number in range(rounds):
            for side in SIDES if number % 2 == 0 else SIDES[::-1]:
                start = time.perf_counter()
                runs[side].append(_run_side(scratch, side, words))
                seconds = time.perf_counter() - start
                say(f"round {number + 1}/{rounds} {side}: {seconds:.0f} s")
    found = [run["provenance"] for run in runs["this"] if "provenance" in run]
    host = found[0] if found else {}
    return {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "this": here,
        "other": {"rev": against, "commit": commit},
        "host": {k: v for k, v in host.items() if k not in ("commit", "uncommitted")},
        "rounds": rounds,
        "repeats": repeats,
        "quick": quick,
        **summarize(runs["this"], runs["other"]),
    }


def ratio_interval(
    this: Sequence[float], other: Sequence[float], level: float = 0.95
) -> tuple[float, float | None, float | None]:
    """Geometric mean of the paired ratios this/other, with a t-interval over their logarithms.

    No interval (None) from a single pair.
    """
    logs = np.log(np.asarray(this, float) / np.asarray(other, float))
    mean = float(np.mean(logs))
    if len(logs) < 2:
        return math.exp(mean), None, None
    error = float(np.std(logs, ddof=1)) / math.sqrt(len(logs))
    half = float(stats.t.ppf((1 + level) / 2, len(logs) - 1)) * error
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half)


def summarize(this: list[dict[str, Any]], other: list[dict[str, Any]]) -> dict[str, list[Row]]:
    """Rows with ratios for cases that both sides have, and reasons for the others."""
    results, missing = [], []
    for benchmark, case in _cases([*this, *other]):
        rounds = [
            (_row(mine, benchmark, case), _row(theirs, benchmark, case))
            for mine, theirs in zip(this, other, strict=True)
        ]
        name = {"benchmark": benchmark, "case": case}
        pairs = [(a, b) for a, b in rounds if "rate" in a and "rate" in b]
        if pairs:
            results.append({**name, **_ratio_row(pairs)})
        else:
            missing.append({**name, "reason": _reason(rounds)})
    return {"results": results, "missing": missing}


def _ratio_row(pairs: Sequence[tuple[Row, Row]]) -> Row:
    this = [float(a["rate"]) for a, _ in pairs]
    other = [float(b["rate"]) for _, b in pairs]
    ratio, low, high = ratio_interval(this, other)
    return {
        "unit": pairs[0][0]["unit"],
        "rate_this": float(np.median(this)),
        "rate_other": float(np.median(other)),
        "ratio": ratio,
        "low": low,
        "high": high,
        "ratios": [a / b for a, b in zip(this, other, strict=True)],
    }


def _reason(rounds: Sequence[tuple[Row, Row]]) -> str:
    """The first error of each side that has one."""
    texts = []
    for side, rows in zip(SIDES, zip(*rounds, strict=True), strict=True):
        errors = [row["error"] for row in rows if "error" in row]
        texts += [f"{side}: {error}" for error in errors[:1]]
    return "; ".join(texts)


def _cases(runs: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Every (benchmark, case) that some run has; ALL only where no run has the cases themselves."""
    keys = dict.fromkeys((row["benchmark"], row["case"]) for run in runs for row in run["results"])
    listed = {benchmark for benchmark, case in keys if case != ALL}
    return [key for key in keys if key[1] != ALL or key[0] not in listed]


def _row(run: dict[str, Any], benchmark: str, case: str) -> Row:
    """The run's row of a case, or one that says why there is none."""
    if "error" in run:
        return {"error": run["error"]}
    rows = {row["case"]: row for row in run["results"] if row["benchmark"] == benchmark}
    return rows.get(case) or rows.get(ALL) or {"error": "no such case"}


def _run_side(scratch: Path, side: str, words: Sequence[str]) -> dict[str, Any]:
    """One process of the copied benchmarks on one tree; a run without rows where it crashed."""
    out = scratch / "out.json"
    out.unlink(missing_ok=True)
    done = _python(scratch, side, "-m", "benchmarks", *words, "--out", str(out))
    if out.exists():
        return json.loads(out.read_text(encoding="utf-8"))
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return {"results": [], "error": f"the process ended with {done.returncode}: {last}"}


def _python(scratch: Path, side: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Python in an empty folder, with this tree's benchmarks and the side's package."""
    path = [str(scratch / "harness"), str(scratch / side), os.environ.get("PYTHONPATH", "")]
    return subprocess.run(
        [sys.executable, *words],
        cwd=scratch / "empty",
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))},
        capture_output=True,
        text=True,
    )


@contextmanager
def trees(root: Path, commit: str) -> Iterator[Path]:
    """A folder with `harness`, `this`, `other` and `empty`; removed however the block ends."""
    scratch = Path(tempfile.mkdtemp(prefix="benchmarks-"))
    before = {number: signal.signal(number, _leave) for number in _ENDINGS[1:]}
    try:
        _git(root, "worktree", "add", "--detach", str(scratch / "other"), commit)
        skip = shutil.ignore_patterns("__pycache__")
        shutil.copytree(root / "benchmarks", scratch / "harness" / "benchmarks", ignore=skip)
        for name in ("offload_jax", "configs"):
            shutil.copytree(root / name, scratch / "this" / name, ignore=skip)
        (scratch / "empty").mkdir()
        for side in SIDES:
            _check_import(scratch, side)
        yield scratch
    finally:
        # A second Ctrl-C must not stop the cleaning; processes started here ignore it likewise.
        for number in _ENDINGS:
            before.setdefault(number, signal.getsignal(number))
            signal.signal(number, signal.SIG_IGN)
        words = ("worktree", "remove", "--force", "--force", str(scratch / "other"))
        subprocess.run(["git", *words], cwd=root, capture_output=True)
        shutil.rmtree(scratch, ignore_errors=True)
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def _check_import(scratch: Path, side: str) -> None:
    """An installed copy in front of PYTHONPATH would make both sides the same."""
    done = _python(scratch, side, "-c", "import offload_jax; print(offload_jax.__file__)")
    if done.returncode or not Path(done.stdout.strip()).is_relative_to(scratch / side):
        found = done.stdout.strip() or done.stderr.strip()
        raise UsageError(f"offload_jax of {side} is not what Python imports, but {found}")


def _commit(root: Path, rev: str) -> str:
    try:
        return _git(root, "rev-parse", "--verify", "--end-of-options", f"{rev}^{{commit}}")
    except (subprocess.CalledProcessError, OSError):
        raise UsageError(
            f"against is {rev!r}; must be a commit of the git checkout {root}"
        ) from None


def _git(root: Path, *words: str) -> str:
    # Without hooks: checking out must run nothing of the repository.
    command = ["git", "-c", "core.hooksPath=/dev/null", *words]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    return done.stdout.strip()
