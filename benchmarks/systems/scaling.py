"""Training over devices, processes and populations.

`python -m benchmarks.systems.scaling --out FILE.json`

Every row is training runs of `train.py` in fresh processes. Virtual devices share the cores of one
host: spreading the same work over more of them cannot be faster, and what it costs is the price of
spreading. How it speeds up real devices has to be measured on those.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import parts
from benchmarks.common import ROOT, Row
from offload_jax.runs.tracking.metrics import read_rows

UPDATES = 16
# Rows of two updates each; the first is left out, for what happens once at the start.
_WORDS = (
    "--tracking.wandb", "off", "--run.log-every", "2", "--run.eval-every", "1000",
    "--learner.updates", str(UPDATES),
)  # fmt: skip
_COMPARED = ("score", "gain", "best_of_samples", "entropy", "grad_norm")
MEMBERS = 8


def devices() -> Iterator[Row]:
    """The same updates of `paper` (128 instances x 16 samples) over 1 to 8 virtual devices of one
    process, on the same cores. `efficiency`: the rate over that of one device. Differences are the
    largest relative ones of any metric: in the first row (updates 1 and 2), and in any row.
    """
    with tempfile.TemporaryDirectory() as folder:
        reference: list[dict[str, Any]] = []
        for count in (1, 2, 4, 8):
            rows = _run(Path(folder) / str(count), "paper", count)
            reference = reference or rows
            yield {
                "devices": count,
                "decisions_per_s": _rate(rows),
                "efficiency": _rate(rows) / _rate(reference),
                "first_difference": _difference(rows[:1], reference[:1]),
                "largest_difference": _difference(rows, reference),
                "gap": rows[-1]["gap"],
                "load": os.getloadavg()[0],
            }


def processes() -> Iterator[Row]:
    """The same updates of `paper` over 8 virtual devices on loopback, in one process and in two of
    4 devices each. Differences are the largest relative ones of any metric: in the first row
    (updates 1 and 2), and in any row.
    """
    with tempfile.TemporaryDirectory() as folder:
        reference = _run(Path(folder) / "one", "paper", 8)
        together = _run(Path(folder) / "two", "paper", 4, processes=2)
        for name, rows in (("1 x 8", reference), ("2 x 4", together)):
            yield {
                "processes_x_devices": name,
                "decisions_per_s": _rate(rows),
                "first_difference": _difference(rows[:1], reference[:1]),
                "largest_difference": _difference(rows, reference),
                "gap": rows[-1]["gap"],
                "load": os.getloadavg()[0],
            }


def population() -> Iterator[Row]:
    """One seed of `smoke` alone, and 8 in one program: decisions/s of all members together, and
    seconds of the whole command, compiling included.
    """
    with tempfile.TemporaryDirectory() as folder:
        alone = Path(folder) / "alone"
        rows = _run(alone, "smoke", 1)
        yield {"members": 1, "decisions_per_s": _rate(rows), "seconds": _seconds(alone)}
        many = Path(folder) / "many"
        _run(many, "smoke", 1, words=("--population.seeds", str(MEMBERS)))
        member = many / "seed-0"
        rate = MEMBERS * _rate(read_rows(member / "metrics.jsonl"))
        yield {"members": MEMBERS, "decisions_per_s": rate, "seconds": _seconds(member)}


def precision() -> Iterator[Row]:
    """The same updates of `paper` with the network in float32 and in bfloat16, one device."""
    with tempfile.TemporaryDirectory() as folder:
        for dtype in ("float32", "bfloat16"):
            rows = _run(Path(folder) / dtype, "paper", 1, words=("--network.dtype", dtype))
            yield {"dtype": dtype, "decisions_per_s": _rate(rows), "gap": rows[-1]["gap"]}


PARTS = {
    "devices": devices,
    "processes": processes,
    "population": population,
    "precision": precision,
}


def _run(
    folder: Path, config: str, devices: int, processes: int = 1, words: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """The rows of a run of some processes, each with so many virtual devices."""
    words = ["train.py", "--config", config, "--run", str(folder), *_WORDS, *words]
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"XLA_FLAGS": flags}
    address = f"127.0.0.1:{_free_port()}"
    started = []
    for process in range(processes):
        joined = ["--distributed.coordinator", address, "--distributed.processes", str(processes)]
        joined = [*joined, "--distributed.process", str(process)] if processes > 1 else []
        command = [sys.executable, *words, *joined]
        started.append(
            subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
        )
    try:
        for child in started:
            if child.wait() != 0:
                raise RuntimeError(f"{' '.join(words)} ended with status {child.returncode}")
    finally:
        for child in started:
            child.kill()
    return read_rows(folder / "metrics.jsonl")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _rate(rows: Sequence[dict[str, Any]]) -> float:
    return statistics.median(row["decisions_per_s"] for row in rows[1:])


def _difference(rows: Sequence[dict[str, Any]], reference: Sequence[dict[str, Any]]) -> float:
    return max(
        abs(row[name] - other[name]) / abs(other[name])
        for row, other in zip(rows, reference, strict=True)
        for name in _COMPARED
    )


def _seconds(folder: Path) -> float:
    return float(json.loads((folder / "run.json").read_text())["starts"][-1]["seconds"])


def main(words: Sequence[str] | None = None) -> int:
    """0 good, 2 refused, 130 stopped."""
    return parts.command(
        words,
        "benchmarks.systems.scaling",
        "Train over virtual devices, processes and populations; some 15 minutes.",
        PARTS,
    )


if __name__ == "__main__":
    sys.exit(main())
