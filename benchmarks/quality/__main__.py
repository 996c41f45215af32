"""How good and how fast the methods are: `python -m benchmarks.quality --out FILE.json`.

Beside `python -m benchmarks`, which times single functions: here whole methods are run on the edge
scenario, and what they find is compared, in the parts of `methods`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from benchmarks import parts
from benchmarks.quality.methods import NEEDS, PARTS


def main(words: Sequence[str] | None = None) -> int:
    """0 good, 2 refused, 130 stopped."""
    return parts.command(
        words,
        "benchmarks.quality",
        "Run whole methods on sampled instances and compare what they find; some 25 minutes.",
        PARTS,
        NEEDS,
    )


if __name__ == "__main__":
    sys.exit(main())
