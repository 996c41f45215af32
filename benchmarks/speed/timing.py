"""Timing one case: compiled apart, warmed up, repeated; medians with their spread."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

# Work of a repeat below this is repeated within it: clocks, dispatch and short stalls are noise.
MIN_REPEAT_S = 0.05
# A case whose repeats would last longer than this gets fewer, but at least three.
MAX_CASE_S = 40.0


@dataclass(frozen=True)
class Work:
    """What a case does: a pure function and different inputs of the same shapes."""

    function: Callable[..., Any]  # jitted here
    inputs: Sequence[tuple[Any, ...]]  # argument tuples, taken in turn
    amount: float  # units of work in one call
    # Further numbers of the case, from one call's output per input and the seconds of a call.
    notes: Callable[[Sequence[Any], float], dict[str, float]]


@dataclass(frozen=True)
class Case:
    """One line of the table. The name says everything about the workload."""

    name: str
    unit: str  # what the amount counts
    prepare: Callable[[], Work]
    target: float | None = None  # units per second


def measure(case: Case, repeats: int) -> dict[str, Any]:
    """Compiles, warms up and times a case; a row of the JSON file without its benchmark.

    Seconds are those of one call, a repeat's mean; quantiles are over the repeats. Raises
    FloatingPointError where an output is not finite.
    """
    work = case.prepare()
    start = time.perf_counter()
    compiled = jax.jit(work.function).lower(*work.inputs[0]).compile()
    compile_s = time.perf_counter() - start
    outputs = [jax.block_until_ready(compiled(*args)) for args in work.inputs]
    _check_finite(outputs)
    warm = _seconds(compiled, work.inputs, 1)
    passes = math.ceil(MIN_REPEAT_S / warm)
    affordable = int(MAX_CASE_S / (warm * passes))
    repeats = min(repeats, max(3, affordable))
    calls = passes * len(work.inputs)
    seconds = np.array([_seconds(compiled, work.inputs, passes) for _ in range(repeats)]) / calls
    low, median, high = np.quantile(seconds, (0.1, 0.5, 0.9))
    return {
        "case": case.name,
        "median_s": float(median),
        "p10_s": float(low),
        "p90_s": float(high),
        "best_s": float(seconds.min()),
        "repeats": repeats,
        "calls_per_repeat": calls,
        "compile_s": compile_s,
        "rate": work.amount / float(median),
        "unit": f"{case.unit}/s",
        "target": case.target,
        **_program_memory(compiled),
        **work.notes(outputs, float(median)),
    }


def _seconds(compiled: Callable[..., Any], inputs: Sequence[tuple[Any, ...]], passes: int) -> float:
    """Seconds of `passes` times all inputs, each call awaited."""
    start = time.perf_counter()
    for _ in range(passes):
        for args in inputs:
            jax.block_until_ready(compiled(*args))
    return time.perf_counter() - start


def _check_finite(outputs: Any) -> None:
    for leaf in jax.tree.leaves(outputs):
        numeric = jax.numpy.issubdtype(leaf.dtype, jax.numpy.floating)
        if numeric and not bool(jax.numpy.all(jax.numpy.isfinite(leaf))):
            raise FloatingPointError("an output is not finite: what was timed is no solution")


def _program_memory(compiled: Any) -> dict[str, float]:
    """MB that the compiled program holds at once: arguments, outputs and buffers in between."""
    stats = compiled.memory_analysis()
    if stats is None:
        return {}
    size = stats.argument_size_in_bytes + stats.output_size_in_bytes + stats.temp_size_in_bytes
    return {"program_mb": size / 1e6}
