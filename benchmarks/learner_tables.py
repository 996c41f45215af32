"""Tables and pictures of `benchmarks.learners`."""

from pathlib import Path
from typing import Any


def write_pages(document: dict[str, Any], out: Path) -> None:
    """Later."""
