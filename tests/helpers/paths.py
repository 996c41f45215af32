"""Where things are in the repository."""

from __future__ import annotations

from pathlib import Path

HELPERS = Path(__file__).resolve().parent
ROOT = HELPERS.parents[1]
GOLDEN = ROOT / "tests" / "golden"
