"""Puts results into the pages: `python -m benchmarks.fill`, after any results file has changed.

Pages mark where: <!-- results: FILE.md -->, what stood there before, <!-- end -->. A test compares.
A page may show a part of a table: <!-- results: FILE.md | rows: A; B | columns: X; Y -->.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from benchmarks.common import ROOT

MARKED = re.compile(
    r"(<!-- results: (\S+)(?: \| rows: (.+?) \| columns: (.+?))? -->\n).*?(<!-- end -->)",
    re.DOTALL,
)


def filled(page: str) -> str:
    """The text of a page with every marked place as its file has it."""

    def content(found: re.Match[str]) -> str:
        text = (ROOT / found[2]).read_text(encoding="utf-8").strip()
        if found[3]:
            text = part(text, found[3].split("; "), found[4].split("; "))
        return f"{found[1]}\n{text}\n\n{found[5]}"

    return MARKED.sub(content, page)


def part(text: str, rows: list[str], columns: list[str]) -> str:
    """A page of one table with these rows and columns only, and the table's first column.

    Raises KeyError for a row or a column that is not there.
    """
    before, bar, table = text.partition("|")
    head, rule, *body = ([*_cells(line)] for line in (bar + table).splitlines())
    by_name = {cells[0]: cells for cells in body}
    places = [0, *({name: i for i, name in enumerate(head)}[name] for name in columns)]
    shown = [head, rule, *(by_name[name] for name in rows)]
    return before + "\n".join(f"| {' | '.join(cells[i] for i in places)} |" for cells in shown)


def _cells(line: str) -> Iterator[str]:
    return (cell.strip() for cell in line.strip().strip("|").split("|"))


def pages() -> list[Path]:
    """Those that may show results."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


if __name__ == "__main__":
    for path in pages():
        before = path.read_text(encoding="utf-8")
        if (after := filled(before)) != before:
            path.write_text(after, encoding="utf-8")
            print(f"filled: {path.relative_to(ROOT)}")
