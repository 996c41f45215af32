"""A self-contained HTML page: no scripts, nothing from elsewhere; for light, dark and print."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
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
.scroll, figure { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.9rem; }
th, td { padding: 0.25rem 0.6rem; border-bottom: 1px solid var(--line); text-align: right;
  vertical-align: bottom; }
td { white-space: nowrap; }
.words { text-align: left; } td.words { white-space: normal; } th { font-weight: 600; }
tbody th { font-weight: 400; white-space: nowrap; } td strong { color: var(--text); }
figure { margin: 1rem 0; }
figure svg { width: 100%; min-width: 36rem; height: auto; display: block; }
figure svg text { fill: currentColor; }
figcaption, .soft { color: var(--soft); font-size: 0.9rem; }
@media print {
  :root { color-scheme: light; --text: #000; --back: #fff; --soft: #444; --line: #bbb; }
  body { max-width: none; padding: 0; font-size: 10pt; } nav { display: none; }
  table { font-size: 8pt; } th, td { padding: 0.15rem 0.3rem; }
  .scroll, figure { overflow: visible; } figure svg { min-width: 0; max-height: 21cm; }
  section, figure, p, tr { break-inside: avoid; } h2, p { break-after: avoid; }
}
"""


@dataclass(frozen=True)
class Table:
    """A header and rows of text; the first column names the row.

    Columns of numbers alone stand to the right; in those named in `least` the smallest number is
    set off, as the best.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    least: Collection[str] = ()


@dataclass(frozen=True)
class Section:
    """A heading, and what stands below it."""

    title: str
    text: Sequence[str] = field(default_factory=tuple)  # paragraphs
    table: Table | None = None
    svg: str = ""  # of `figures.svg`
    caption: str = ""


def page(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """The page as one HTML document. Everything but the SVGs is escaped."""
    anchors = [f"{i}-{_anchor(section)}" for i, section in enumerate(sections, 1)]
    named = list(zip(anchors, sections, strict=True))
    links = "".join(f'<li><a href="#{to}">{escape(s.title)}</a></li>' for to, s in named)
    body = "".join(_section(section, anchor) for anchor, section in named)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body><header><h1>{escape(title)}</h1>"
        f'<p class="soft">{escape(subtitle)}</p></header>\n'
        f'<nav aria-label="Contents"><ul>{links}</ul></nav>\n<main>{body}</main></body></html>\n'
    )


def _section(section: Section, anchor: str) -> str:
    parts = [f'<section id="{anchor}"><h2>{escape(section.title)}</h2>']
    parts += [f"<p>{escape(paragraph)}</p>" for paragraph in section.text]
    if section.table is not None:
        parts.append(_table(section.table))
    if section.svg:
        caption = f"<figcaption>{escape(section.caption)}</figcaption>" if section.caption else ""
        label = escape(": ".join(filter(None, (section.title, section.caption))))
        drawn = section.svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
        parts.append(f"<figure>{drawn}{caption}</figure>")
    return "\n".join([*parts, "</section>\n"])


def _table(table: Table) -> str:
    columns = [[_number(row[j]) for row in table.rows] for j in range(len(table.header))]
    looks = []
    for name, column in zip(table.header, columns, strict=True):
        numbers = [number for number in column if number is not None]
        is_words = not column or len(numbers) < len(column)
        looks.append((is_words, min(numbers) if name in table.least and not is_words else None))
    header = "".join(
        _cell(text.replace(" %", "\u00a0%"), 'th scope="col"', is_words)
        for text, (is_words, _) in zip(table.header, looks, strict=True)
    )
    lines = []
    for row in table.rows:
        lines.append("<tr>")
        for j, (text, (is_words, best)) in enumerate(zip(row, looks, strict=True)):
            bold = best is not None and _number(text) == best
            lines.append(_cell(text, "td" if j else 'th scope="row"', is_words, bold))
        lines.append("</tr>\n")
    return (
        f'<div class="scroll"><table><thead><tr>{header}</tr></thead>\n'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _cell(text: str, tag: str, is_words: bool, bold: bool = False) -> str:
    inner = f"<strong>{escape(text)}</strong>" if bold else escape(text)
    words = ' class="words"' if is_words else ""
    return f"<{tag}{words}>{inner}</{tag.split()[0]}>"


def _number(text: str) -> float | None:
    """The number that a cell holds alone, '±0.1' and '1,000' included."""
    try:
        return float(text.lstrip("±").replace(",", ""))
    except ValueError:
        return None


def _anchor(section: Section) -> str:
    return re.sub(r"\W+", "-", section.title.lower()).strip("-")
