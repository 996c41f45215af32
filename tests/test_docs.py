"""Pages hold together: every link, every anchor and every file that is named leads somewhere."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from paths import ROOT

pytestmark = pytest.mark.fast
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)|<img[^>]* src=\"([^\"]+)\"")
# What is looked at for names of pages: everything that a person reads, code included.
READ = (".py", ".md", ".yaml", ".toml", ".cff", ".svg")


@cache
def tracked() -> tuple[Path, ...]:
    """The project's own files; all below its folders where there is no git."""
    done = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    names = done.stdout.splitlines() if done.returncode == 0 else []
    found = [ROOT / name for name in names] or [
        path
        for folder in ("docs", "offload_jax", "benchmarks", "configs", "tests")
        for path in (ROOT / folder).rglob("*")
    ]
    return tuple(path for path in found if path.is_file())


def pages() -> list[Path]:
    return [path for path in tracked() if path.suffix == ".md"]


@cache
def anchors(page: Path) -> frozenset[str]:
    """Of a page's headings, as GitHub makes them."""
    text = FENCED.sub("", page.read_text("utf-8"))
    found: list[str] = []
    for heading in re.findall(r"^#+ +(.*?)\s*$", text, re.MULTILINE):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        found.append(f"{name}-{found.count(name)}" if name in found else name)
    return frozenset(found)


def links(page: Path) -> Iterator[str]:
    for pair in LINK.findall(FENCED.sub("", page.read_text("utf-8"))):
        link = "".join(pair)
        if not re.match(r"[a-z]+:", link):
            yield link


def test_links_and_anchors_lead_somewhere() -> None:
    wrong = []
    for page in pages():
        for link in links(page):
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            there = target.exists() and target.is_relative_to(ROOT)
            if there and anchor and target.suffix == ".md":
                there = anchor in anchors(target)
            if not there:
                wrong.append(f"{page.relative_to(ROOT)}: {link}")
    assert not wrong, "\n".join(wrong)


def test_pages_named_in_files_exist() -> None:
    """`docs/...` in code, messages, configurations and pages, as a path from the root."""
    wrong, seen = [], 0
    for path in tracked():
        if path.suffix not in READ:
            continue
        for name in re.findall(r"(?<![\w./-])docs/[\w./-]*\w", path.read_text("utf-8")):
            seen += 1
            if not (ROOT / name).exists():
                wrong.append(f"{path.relative_to(ROOT)}: {name}")
    assert seen > 20
    assert not wrong, "\n".join(wrong)


def test_the_map_shows_every_page() -> None:
    """docs/README.md leads to each page, or to the map of the folder it lies in."""
    top = ROOT / "docs" / "README.md"
    shown = {(top.parent / link.partition("#")[0]).resolve() for link in links(top)}
    for page in top.parent.rglob("*.md"):
        assert page == top or shown & {page, page.parent / "README.md"}, page.relative_to(ROOT)
