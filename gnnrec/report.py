"""A self-contained HTML page of a comparison. Every id and text on it is escaped."""

from __future__ import annotations

import html
import io
from typing import Any

from gnnrec.compare import PRIMARY
from gnnrec.console import cell
from gnnrec.errors import ConfigError

_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;
color:#1a1a1a;background:#fff}
table{border-collapse:collapse;margin:1rem 0}caption{text-align:left;font-weight:600}
th,td{padding:.25rem .75rem;border-bottom:1px solid #ccc;text-align:right}
th:first-child,td:first-child{text-align:left}svg{max-width:100%;height:auto}
"""


def page(title: str, parts: list[str]) -> str:
    """Return a whole HTML document; `parts` are made by the functions below."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{html.escape(title)}</h1>{''.join(parts)}</body></html>\n"
    )


def paragraph(text: str) -> str:
    """Return an escaped paragraph."""
    return f"<p>{html.escape(text)}</p>"


def table(caption: str, rows: list[dict[str, Any]]) -> str:
    """Return a table with the first row's keys as its head."""
    if not rows:
        return ""
    head = "".join(f'<th scope="col">{html.escape(str(name))}</th>' for name in rows[0])
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell(v))}</td>" for v in row.values()) + "</tr>"
        for row in rows
    )
    return (
        f"<table><caption>{html.escape(caption)}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table>"
    )


def arm_plot(rows: list[dict[str, Any]]) -> str:
    """Return an inline SVG: NDCG@20 of every arm, one dot per seed.

    Raises:
        ConfigError: matplotlib, of the `[report]` extra, is not installed.
    """
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise ConfigError("plots need an extra: pip install 'gnnrec[report]'") from error
    mpl.use("svg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 0.6 * len(rows) + 1.2))
    places = range(len(rows))
    axes.barh(places, [row["metrics"][PRIMARY] for row in rows], color="#9db8d2", height=0.6)
    for place, row in zip(places, rows, strict=True):
        axes.plot(row["per_seed"], [place] * len(row["per_seed"]), "o", ms=4, color="#1f3d5a")
    axes.set_yticks(list(places), [row["arm"] for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("NDCG@20 on the test part, full ranking; a dot is a seed")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.tight_layout()
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    plt.close(figure)
    drawing = buffer.getvalue()
    described = "; ".join(f"{row['arm']} {row['metrics'][PRIMARY]:.4f}" for row in rows)
    return (
        f'<figure role="img" aria-label="{html.escape(described, quote=True)}">'
        f"{drawing[drawing.index('<svg') :]}</figure>"
    )


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
