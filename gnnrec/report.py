"""Building blocks of a self-contained HTML page. Every id and text on it is escaped."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

from gnnrec.console import cell
from gnnrec.figures import bar_panel

_STYLE = """
:root{color-scheme:light}
body{font:16px/1.5 system-ui,sans-serif;max-width:76rem;margin:2rem auto;padding:0 1rem;
color:#1a1a1a;background:#fff;overflow-wrap:break-word}
h1{font-size:1.8rem;line-height:1.2}h2{margin-top:3rem;border-top:1px solid #ccc;
padding-top:1rem}p,li{max-width:46rem}a{color:#00558c}
:focus-visible{outline:3px solid #00558c;outline-offset:2px}
.skip{position:absolute;left:-99rem}.skip:focus{left:1rem;top:.5rem;background:#fff;padding:.5rem}
nav ul{columns:2 14rem;padding-left:1.2rem}
.scroll{overflow-x:auto;margin:1rem 0}.tall{max-height:36rem;overflow-y:auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.92rem}
caption{text-align:left;font-weight:600;padding-bottom:.25rem;
max-width:min(46rem,calc(100vw - 3rem))}
th,td{padding:.25rem .7rem;border-bottom:1px solid #ccc;text-align:left;vertical-align:top;
overflow-wrap:break-word;max-width:26rem}.n{text-align:right}.n,.t{white-space:nowrap}.w{min-width:11rem;overflow-wrap:anywhere}
thead th{vertical-align:bottom;background:#fff}thead .n,thead .t{white-space:normal}
.tall thead th{position:sticky;top:0;border-bottom:2px solid #999}
tbody th{font-weight:400}
td.good{background:#dcecf7}td.bad{background:#fbe3d3}
figure{margin:1.5rem 0}figcaption{max-width:46rem;margin-bottom:.5rem}
figcaption strong{display:block}
.panels{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,21rem),1fr));
gap:1rem;align-items:start}
svg{max-width:100%;height:auto}.panels>svg{width:100%}
svg *{stroke-linejoin:round;stroke-linecap:butt}
svg text{font-family:"DejaVu Sans",Verdana,system-ui,sans-serif!important}
.legend{list-style:none;padding:0;margin:.5rem 0;display:flex;flex-wrap:wrap;gap:.1rem 1.2rem;
font-size:.9rem;max-width:none}.legend svg{vertical-align:middle;overflow:visible}
details{margin:.5rem 0 1rem}summary{cursor:pointer;color:#00558c;padding:.3rem 0}
@media(max-width:40rem){table{font-size:.82rem}th,td{padding:.25rem .45rem}}
@media print{.scroll,.tall{overflow:visible;max-height:none}}
"""
_PRIMARY = "ndcg@20"
_NUMBER = re.compile(r"(?:[-+\d.,%\[\]() \N{EN DASH}]|inf|nan|never|of|to|s)+")
_SHORT = 28  # characters: a column of nothing longer is not broken into lines


def page(title: str, parts: Sequence[str]) -> str:
    """Return a whole HTML document; `parts` are made by the functions below."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>"
        '<a class="skip" href="#content">Skip to the content</a>'
        f'<main id="content" tabindex="-1"><h1>{html.escape(title)}</h1>{"".join(parts)}</main>'
        "</body></html>\n"
    )


def paragraph(text: str) -> str:
    """Return an escaped paragraph."""
    return f"<p>{_text(text)}</p>"


def contents(titles: Sequence[str]) -> str:
    """Return links to the headings that `heading` makes of the same titles, in the same order."""
    links = "".join(
        f'<li><a href="#part-{place}">{html.escape(title)}</a></li>'
        for place, title in enumerate(titles, start=1)
    )
    return f'<nav aria-label="Contents"><ul>{links}</ul></nav>'


def heading(place: int, title: str) -> str:
    """Return the heading of part number `place`, from 1."""
    return f'<h2 id="part-{place}">{html.escape(title)}</h2>'


def table(
    caption: str,
    rows: Sequence[Mapping[str, Any]],
    shades: Mapping[tuple[int, str], str] | None = None,
) -> str:
    """Return a table with the first row's keys as its head and first cells as row heads.

    Columns of numbers are set to the right. A wide table scrolls by itself, with the keyboard too.

    Args:
        caption: Above the table.
        rows: With the same keys each; none give an empty text.
        shades: (row number, key) -> a CSS colour behind the cell, or the class good or bad.
    """
    if not rows:
        return ""
    names = list(rows[0])
    texts = [[cell(row[name]) for name in names] for row in rows]
    kinds = [_kind([line[place] for line in texts], place) for place in range(len(names))]
    head = "".join(
        f'<th scope="col"{_class(kind)}>{html.escape(str(name))}</th>'
        for name, kind in zip(names, kinds, strict=True)
    )
    body = []
    for number, line in enumerate(texts):
        cells = [f'<th scope="row"{_class(kinds[0])}>{_text(line[0])}</th>']
        for name, text, kind in list(zip(names, line, kinds, strict=True))[1:]:
            shade = (shades or {}).get((number, name), "")
            known = shade in ("good", "bad")
            style = f' style="background:{html.escape(shade)}"' if shade and not known else ""
            classes = " ".join(filter(None, (kind, shade if known else "")))
            cells.append(f"<td{_class(classes)}{style}>{_text(text)}</td>")
        body.append(f"<tr>{''.join(cells)}</tr>")
    tall = " tall" if len(rows) > 40 else ""
    return (
        f'<div class="scroll{tall}" role="region" tabindex="0" '
        f'aria-label="{html.escape(caption)}"><table><caption>{_text(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def folded(summary: str, content: str) -> str:
    """Return content that opens on demand; nothing where there is no content."""
    if not content:
        return ""
    return f"<details><summary>{_text(summary)}</summary>{content}</details>"


def figure(
    caption: str, note: str, panels: Sequence[str], *, legend: str = "", data: str = ""
) -> str:
    """Return drawings side by side, as many as fit, with a caption and the same as a table.

    Args:
        caption: Above the drawings.
        note: How to read them.
        panels: SVG of `gnnrec.figures`.
        legend: HTML of `gnnrec.figures.legend`.
        data: HTML of `table`, shown on demand.
    """
    return (
        f"<figure><figcaption><strong>{_text(caption)}</strong> {_text(note)}</figcaption>{legend}"
        f'<div class="panels">{"".join(panels)}</div>'
        f"{folded('The same as a table', data)}</figure>"
    )


def arm_plot(rows: list[dict[str, Any]]) -> str:
    """Return an inline SVG: NDCG@20 of every arm, one dot per seed.

    Raises:
        ConfigError: matplotlib, of the `[report]` extra, is not installed.
    """
    described = "; ".join(f"{row['arm']} {row['metrics'][_PRIMARY]:.4f}" for row in rows)
    drawing = bar_panel(
        [(row["arm"], row["metrics"][_PRIMARY], row["per_seed"]) for row in rows],
        "NDCG@20 on the test part, full ranking; a dot is a seed",
        described,
    )
    return f"<figure>{drawing}</figure>"


def arm_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the table rows of a comparison: quality, spread over seeds, cost."""
    out = []
    for row in rows:
        p = row["parameters"]
        out.append(
            {
                "arm": row["arm"],
                "ndcg@20": row["metrics"]["ndcg@20"],
                "sd over seeds": row["seed_sd"],
                "recall@20": row["metrics"]["recall@20"],
                "hit@20": row["metrics"]["hit@20"],
                "coverage@20": row["metrics"]["coverage@20"],
                "train s": round(row["seconds"]["train"], 1),
                "trained parameters": "0" if p is None else f"{p['trained']:,} of {p['total']:,}",
            }
        )
    return out


def difference_rows(differences: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the table rows of paired differences, with their 95 % intervals."""
    return [
        {
            "arm": f"{d['arm']} - {d['against']}",
            "ndcg@20": f"{d['mean_difference']:+.4f}",
            "95 % interval": f"[{d['low']:+.4f}, {d['high']:+.4f}]",
            "relative": f"{100 * d['relative']:+.1f} %",
            "interval": f"[{100 * d['relative_low']:+.1f}, {100 * d['relative_high']:+.1f}] %",
        }
        for d in differences
    ]


def _text(text: str) -> str:
    """Return an escaped text whose numbers keep their percent sign on the line."""
    return re.sub(r"(\d) %", r"\1&nbsp;%", html.escape(text))


def _kind(texts: Sequence[str], place: int) -> str:
    """Class of a column: n, numbers at the right; t, short texts; w, texts that wrap."""
    if place > 0 and all(_NUMBER.fullmatch(text) for text in texts):
        return "n"
    return "t" if all(len(text) <= _SHORT for text in texts) else "w"


def _class(names: str) -> str:
    return f' class="{names}"' if names else ""
