"""A sweep under fire: `python -m benchmarks.systems.sweep --out FILE.json`.

`offload-jax sweep smoke` with two workers, of which one is killed (kill -9) every minute; every
third time it is the sweep itself, whose trainings are left alone, and the command is given again.
"""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import tyro

from benchmarks import parts
from benchmarks.common import ROOT, checked_out, provenance
from offload_jax.files.disk import replace_file
from offload_jax.runs.sweep.reading import load_sweep
from offload_jax.runs.tracking.metrics import read_rows


@dataclass(frozen=True)
class Arguments:
    """Run a sweep of short trials and keep killing its workers; some minutes."""

    sweep: str = "smoke"
    """A shipped sweep or a sweep file."""
    trials: int = 16
    """Trials of it."""
    workers: int = 2
    """Trainings at a time."""
    every_s: float = 60.0
    """Seconds between two kills."""
    out: Path | None = None
    """JSON file to write."""


def main(words: Sequence[str] | None = None) -> int:
    """0 where every trial ended well and no row was lost, 1 where not, 2 refused, 130 stopped."""
    parsed = tyro.cli(Arguments, args=words, prog="python -m benchmarks.systems.sweep")
    return parts.status_of(partial(_main, parsed), "nothing is kept")


def _main(parsed: Arguments) -> int:
    checked_out(parsed.out)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # a child may still end
        found = _measured(parsed, Path(folder))
    document = {"provenance": provenance(), **found}
    print(json.dumps(found["summary"], indent=1))
    if parsed.out is not None:
        replace_file(parsed.out, json.dumps(document, indent=1) + "\n")
    good = found["summary"]
    ended = good["finished"] + good["pruned"] == parsed.trials
    return 0 if ended and good["rows_once"] and good["same_as_undisturbed"] else 1


def _measured(parsed: Arguments, folder: Path) -> dict[str, Any]:
    out, began, load = folder / "sweep", time.monotonic(), os.getloadavg()[0]
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # short trials: compiling is most of one
    kills = _until_done(parsed, out)
    seconds = time.monotonic() - began
    sweep = json.loads((out / "sweep.json").read_text())
    trials = sweep["trials"]
    states = [trial["state"] for trial in trials]
    alone = [trial["seconds"] for trial in trials if trial["starts"] == 1]
    summary = {
        "trials": len(trials),
        **{state: states.count(state) for state in ("finished", "pruned", "failed", "running")},
        "kills_of_a_training": sum(kill["what"] == "training" for kill in kills),
        "kills_of_the_sweep": sum(kill["what"] == "sweep" for kill in kills),
        "starts": sum(trial["starts"] for trial in trials),
        "trial_s_undisturbed_median": statistics.median(alone) if alone else None,
        "trial_s_undisturbed_longest": max(alone) if alone else None,
        "rows_once": all(_rows_once(out / "trials" / str(trial["number"])) for trial in trials),
        "same_as_undisturbed": _same_again(parsed, trials, out, folder / "again"),
        "seconds": seconds,
    }
    load = {"load_before": load, "load_after": os.getloadavg()[0]}
    kept = load | {"sweep": parsed.sweep, "workers": parsed.workers, "every_s": parsed.every_s}
    return {**kept, "summary": summary, "kills": kills, "result": sweep}


def _until_done(parsed: Arguments, out: Path) -> list[dict[str, Any]]:
    """Gives the command, kills by the clock, gives it again; returns what was killed when."""
    words = ["sweep", parsed.sweep, "--trials", str(parsed.trials), "--out", str(out)]
    words = [sys.executable, "-m", "offload_jax", *words, "--workers", str(parsed.workers)]
    began, kills = time.monotonic(), []
    process = subprocess.Popen(words, cwd=ROOT)
    while True:
        with suppress(subprocess.TimeoutExpired):
            status = process.wait(timeout=parsed.every_s)
            if status == 0:
                return kills
            raise RuntimeError(f"the sweep ended with status {status}")
        what = "sweep" if len(kills) % 3 == 2 else "training"
        victims = [process.pid] if what == "sweep" else _children(process.pid)
        if not victims:
            continue
        os.kill(random.choice(victims), signal.SIGKILL)
        kills.append({"what": what, "at_s": time.monotonic() - began})
        print(f"killed: {what}", flush=True)
        if what == "sweep":
            process.wait()
            process = subprocess.Popen(words, cwd=ROOT)


def _children(pid: int) -> list[int]:
    done = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    return [int(word) for word in done.stdout.split()]


def _rows_once(run: Path) -> bool:
    steps = [row["step"] for row in read_rows(run / "metrics.jsonl")]
    return bool(steps) and steps == list(range(steps[0], steps[-1] + 1, steps[0]))


def _same_again(
    parsed: Arguments, trials: list[dict[str, Any]], out: Path, again: Path
) -> bool | None:
    """Whether the finished trial with most starts has the rows of one that nobody disturbs.

    Bit for bit, but for how long they took; None where every finished trial was started once.
    """
    finished = [trial for trial in trials if trial["state"] == "finished"]
    most = max(finished, key=lambda trial: trial["starts"])
    if most["starts"] == 1:
        return None
    sweep = load_sweep(parsed.sweep)
    words = sweep.command_line([*sweep.words(most["parameters"]), f"--run={again}"])
    cores = sorted(os.sched_getaffinity(0))[:: parsed.workers]  # as many as a worker has
    done = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL)
    os.sched_setaffinity(done.pid, cores)
    done.wait()
    mine, theirs = (
        [{k: v for k, v in row.items() if k not in ("seconds", "decisions_per_s")} for row in rows]
        for rows in (
            read_rows(again / "metrics.jsonl"),
            read_rows(out / "trials" / str(most["number"]) / "metrics.jsonl"),
        )
    )
    return mine == theirs


if __name__ == "__main__":
    sys.exit(main())
