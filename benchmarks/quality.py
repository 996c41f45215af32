"""How good and how fast the methods are: `python -m benchmarks.quality --out FILE.json`.

Beside `python -m benchmarks`, which times single functions: here whole methods are run on the edge
scenario, and what they find is compared, in the parts of `quality_parts`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import tyro

from benchmarks import suite
from benchmarks.quality_parts import NEEDS, PARTS
from benchmarks.suite import Row
from offload_jax.documents import replace_file


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
    try:
        _check(parsed)
    except suite.UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    found: dict[str, Any] = {}
    if parsed.out is not None and parsed.out.exists():
        found = json.loads(parsed.out.read_text(encoding="utf-8"))
    for name in parsed.parts or PARTS:
        rows = []
        for row in PARTS[name]():
            print(
                f"{name}:",
                ", ".join(f"{_spoken(k)} {_short(k, v)}" for k, v in row.items()),
                flush=True,
            )
            rows.append(row)
        found[name] = {"provenance": suite.provenance(), "rows": rows}
        if parsed.out is not None:
            replace_file(parsed.out, json.dumps(found, indent=1) + "\n")
            replace_file(parsed.out.with_suffix(".md"), markdown(found))
    return 0


def _check(parsed: Arguments) -> None:
    """Refuses before anything is run."""
    for name in parsed.parts:
        if name not in PARTS:
            raise suite.UsageError(f"parts has {name!r}; must be among {', '.join(PARTS)}")
    for name, (module, extra) in NEEDS.items():
        if name in (parsed.parts or PARTS) and find_spec(module) is None:
            raise suite.UsageError(
                f"parts has {name!r}, which needs {module}: pip install 'offload-jax[{extra}]'"
            )
    suite.checked_out(parsed.out)


def markdown(found: Mapping[str, Any]) -> str:
    """A table for each part."""
    texts = []
    for name, part in PARTS.items():
        if name not in found:
            continue
        rows = found[name]["rows"]
        about = " ".join((part.__doc__ or "").split())
        texts.append(f"**{name}.** {about}\n\n{_table(rows)}")
    return "\n\n".join(texts) + "\n"


def _table(rows: Sequence[Row]) -> str:
    """A line for each row; of a single row, for each of its numbers."""
    if len(rows) == 1:
        lines = [["", ""], *([_spoken(key), _short(key, value)] for key, value in rows[0].items())]
    else:
        lines = [[_spoken(key) for key in rows[0]]]
        lines += [[_short(key, value) for key, value in row.items()] for row in rows]
    lines.insert(1, ["---", *["---:"] * (len(lines[0]) - 1)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _spoken(key: str) -> str:
    return key.replace("_", " ") + (" %" if key.startswith("gap_") else "")


def _short(key: str, value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    return f"{100 * value:.3g}" if key.startswith("gap_") else f"{value:.3g}"


if __name__ == "__main__":
    sys.exit(main())
