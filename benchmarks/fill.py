"""Puts results into the pages: `python -m benchmarks.fill`, after any results file has changed.

Pages mark where: <!-- results: FILE.md -->, what stood there before, <!-- end -->. A test compares.
"""

from __future__ import annotations

import re

from benchmarks.common import ROOT

MARKED = re.compile(r"(<!-- results: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(page: str) -> str:
    """The text of a page with every marked place as its file has it."""

    def content(found: re.Match[str]) -> str:
        text = (ROOT / found[2]).read_text(encoding="utf-8").strip()
        return f"{found[1]}\n{text}\n\n{found[3]}"

    return MARKED.sub(content, page)


if __name__ == "__main__":
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        before = path.read_text(encoding="utf-8")
        if (after := filled(before)) != before:
            path.write_text(after, encoding="utf-8")
            print(f"filled: {path.relative_to(ROOT)}")
