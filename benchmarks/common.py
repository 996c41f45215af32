"""What all benchmarks share: rows, refusals, provenance, and where the repository is."""

from __future__ import annotations

import json
import os
import platform
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
Row = dict[str, Any]


class UsageError(ValueError):
    """An argument that is wrong; the message names it and what is allowed."""


def checked_out(path: Path | None) -> None:
    """Refuses an output file that cannot be written before anything is measured."""
    if path is None:
        return
    if path.is_dir():
        raise UsageError(f"out is {str(path)!r}, a folder; must be a file")
    if not path.parent.is_dir():
        raise UsageError(f"out is {str(path)!r}; its folder must exist")


def read(path: Path) -> dict[str, Any]:
    """What a benchmark wrote before. Raises UsageError where that cannot be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"out is {str(path)!r}; must be a benchmark's JSON file ({error})"
        ) from None
    if not isinstance(found, dict):
        raise UsageError(f"out is {str(path)!r}; must be a benchmark's JSON file")
    return found


def in_one_line(error: Exception) -> str:
    """An error's type and message, no longer than a table bears."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def provenance() -> dict[str, Any]:
    """What `run_folder.provenance` tells (device, versions, commit), and the processor."""
    found = import_module("offload_jax.runs.run_folder").provenance()  # late: it takes a second
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    return {**found, "cpu": _cpu(), "cores": os.cpu_count(), "usable_cores": usable}


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
