"""How good and how fast the methods are: `python -m benchmarks.quality --out FILE.json`.

Beside `python -m benchmarks`, which times single functions: here whole methods are run on the edge
scenario, and what they find is compared, in the parts of `methods`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from benchmarks import parts
from benchmarks.quality.methods import NEEDS, PARTS


@dataclass(frozen=True)
class Arguments:
    """Run whole methods on sampled instances and compare what they find; some 25 minutes."""

    parts: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Parts to run: enumeration, heuristics, searches, bounds, proofs, pymoo, advice.
    Default: all."""
    out: Path | None = None
    """JSON file to write, with its tables beside it (.md). Parts that it has already, and that are
    not run, stay in it."""


def main(words: Sequence[str] | None = None) -> int:
    """0 good, 2 refused."""
    parsed = tyro.cli(Arguments, args=words, prog="python -m benchmarks.quality")
    return parts.main(parsed.parts, parsed.out, PARTS, NEEDS)


if __name__ == "__main__":
    sys.exit(main())
