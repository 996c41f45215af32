"""Lists or times the cases of the tree that is first on the path, whatever commit it is of.

Run as a file by `benchmarks.speed.sides`, in the environment of that tree, so it imports nothing
of ours but what it finds there. Its argument is JSON: "quick", "repeats" and "cases" (names, or
null where only those are wanted). So is its last line of output: "seconds" of a call by case,
"errors" by case that has none, and "about".
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib import import_module
from typing import Any

PLACES = ("benchmarks.speed", "benchmarks")  # where the suite is, and was before there were rooms


def main(asked: dict[str, Any]) -> dict[str, Any]:
    """The answer to what is asked."""
    place, suite = _suite()
    seconds: dict[str, float | None] = {}
    errors: dict[str, str] = {}
    for benchmark in suite.NAMES:
        try:
            for name, case in _cases(place, benchmark, asked["quick"]):
                if asked["cases"] is None:
                    seconds[name] = None
                elif name in asked["cases"]:
                    _measure(place, name, case, asked["repeats"], seconds, errors)
        except Exception as error:  # it cannot even list its cases
            errors[f"{benchmark}: *"] = _text(error)
    return {"seconds": seconds, "errors": errors, "about": suite.provenance()}


def _suite() -> tuple[str, Any]:
    for place in PLACES:
        try:
            return place, import_module(f"{place}.suite")
        except ModuleNotFoundError as error:
            if error.name not in (place, f"{place}.suite"):
                raise
    raise ModuleNotFoundError(f"no suite of benchmarks in {', '.join(PLACES)}")


def _cases(place: str, benchmark: str, quick: bool) -> Iterator[tuple[str, Any]]:
    for case in import_module(f"{place}.{benchmark}").cases(quick):
        yield f"{benchmark}: {case.name}", case


def _measure(
    place: str,
    name: str,
    case: Any,
    repeats: int,
    seconds: dict[str, float | None],
    errors: dict[str, str],
) -> None:
    try:
        seconds[name] = import_module(f"{place}.timing").measure(case, repeats)["median_s"]
    except Exception as error:
        errors[name] = _text(error)


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
