"""A self-contained HTML page: no scripts, nothing from elsewhere; for light, dark and print."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

_STYLE = """
:root { color-scheme: light dark; --text: #1b1b1b; --back: #fff; --soft: #6b6b6b; --line: #ddd; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e8e8e8; --back: #111; --soft: #a5a5a5; --line: #3a3a3a; }
}
* { box-sizing: border-box; }
body { color: var(--text); background: var(--back); max-width: 62rem; margin: 0 auto;
  padding: 1rem; font: 16px/1.5 system-ui, sans-serif; }
h1 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
nav ul { padding-left: 1.2rem; } a { color: inherit; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.9rem; }
th, td { padding: 0.25rem 0.7rem; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } th { font-weight: 600; }
figure { margin: 1rem 0; } figure svg { width: 100%; height: auto; display: block; }
figure svg text { fill: currentColor; }
figcaption, .soft { color: var(--soft); font-size: 0.9rem; }
@media print {
  :root { --text: #000; --back: #fff; --soft: #444; --line: #bbb; }
  body { max-width: none; font-size: 10pt; } nav { display: none; }
  figure, tr { break-inside: avoid; } h2 { break-after: avoid; }
}
"""


@dataclass(frozen=True)
class Table:
    """A header and rows of text; the first column names the row, the others hold numbers."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Section:
    """A heading, and what stands below it."""

    title: str
    text: Sequence[str] = field(default_factory=tuple)  # paragraphs
    table: Table | None = None
    svg: str = ""  # of `charts.svg`
    caption: str = ""


def page(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """The page as one HTML document. Everything but the SVGs is escaped."""
    links = "".join(f'<li><a href="#{_anchor(s)}">{escape(s.title)}</a></li>' for s in sections)
    body = "".join(map(_section, sections))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body><header><h1>{escape(title)}</h1>"
        f'<p class="soft">{escape(subtitle)}</p></header>\n'
        f"<nav><ul>{links}</ul></nav>\n<main>{body}</main></body></html>\n"
    )


def _section(section: Section) -> str:
    parts = [f'<section id="{_anchor(section)}"><h2>{escape(section.title)}</h2>']
    parts += [f"<p>{escape(paragraph)}</p>" for paragraph in section.text]
    if section.table is not None:
        parts.append(_table(section.table))
    if section.svg:
        caption = f"<figcaption>{escape(section.caption)}</figcaption>" if section.caption else ""
        label = escape(section.caption or section.title)
        drawn = section.svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
        parts.append(f"<figure>{drawn}{caption}</figure>")
    return "\n".join([*parts, "</section>\n"])


def _table(table: Table) -> str:
    header = "".join(f'<th scope="col">{escape(text)}</th>' for text in table.header)
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(text)}</td>" for text in row) + "</tr>\n"
        for row in table.rows
    )
    return (
        f'<div class="scroll"><table><thead><tr>{header}</tr></thead>\n'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _anchor(section: Section) -> str:
    return re.sub(r"\W+", "-", section.title.lower()).strip("-")
