"""A report as plain blocks, shown as one HTML page or as Markdown with the same tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gnnrec.console import cell
from gnnrec.report import contents, figure, folded, heading, page, paragraph, table


@dataclass(frozen=True)
class Table:
    """Rows with the same keys each; `shades` as in `gnnrec.report.table`; folded: on demand."""

    caption: str
    rows: Sequence[Mapping[str, Any]]
    shades: Mapping[tuple[int, str], str] = field(default_factory=dict)
    folded: bool = False


@dataclass(frozen=True)
class Figure:
    """Drawings with the table that says the same; Markdown shows the table alone."""

    caption: str
    note: str
    panels: Sequence[str]
    table: Table
    legend: str = ""


Block = str | Table | Figure


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it; a text is a paragraph."""

    title: str
    blocks: Sequence[Block]


def as_html(title: str, sections: Sequence[Section]) -> str:
    """Return a self-contained HTML page."""
    parts = [contents([section.title for section in sections])]
    for place, section in enumerate(sections, start=1):
        parts.append(heading(place, section.title))
        parts.extend(_html(block) for block in section.blocks)
    return page(title, parts)


def as_markdown(title: str, sections: Sequence[Section]) -> str:
    """Return the same texts and tables as Markdown, with a figure's table in its place."""
    parts = [f"# {_escape(title)}"]
    for section in sections:
        parts.append(f"## {_escape(section.title)}")
        for block in section.blocks:
            if isinstance(block, str):
                parts.append(_escape(block))
                continue
            shown = block.table if isinstance(block, Figure) else block
            if shown.rows:
                parts += [f"**{_escape(shown.caption)}**", markdown_table(shown.rows)]
    return "\n\n".join(parts) + "\n"


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as a Markdown table, every cell escaped; none give an empty text."""
    if not rows:
        return ""
    names = list(rows[0])
    lines = [names, ["---"] * len(names)]
    lines += [[cell(row[name]) for name in names] for row in rows]
    return "\n".join(
        "| " + " | ".join(text if place == 1 else _escape(text) for text in line) + " |"
        for place, line in enumerate(lines)
    )


def _html(block: Block) -> str:
    if isinstance(block, str):
        return paragraph(block)
    if isinstance(block, Figure):
        data = table(block.table.caption, block.table.rows, block.table.shades)
        return figure(block.caption, block.note, block.panels, legend=block.legend, data=data)
    shown = table(block.caption, block.rows, block.shades)
    return folded(block.caption, shown) if block.folded else shown


def _escape(text: str) -> str:
    """Return a text that Markdown, and HTML within it, shows as it is."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for mark in ("\\", "`", "*", "|", "_", "~"):
        text = text.replace(mark, "\\" + mark)
    return " ".join(text.replace("](", "]\\(").split())
