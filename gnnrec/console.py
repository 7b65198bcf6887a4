"""Plain-text tables for a terminal."""

from __future__ import annotations

from typing import Any

_WIDEST = 200  # characters of a cell


def metric_rows(arms: dict[str, dict[str, float] | None]) -> list[dict[str, Any]]:
    """One row per arm that has metrics, with the ranking metrics only."""
    wanted = ("recall@", "ndcg@", "hit@", "mrr@")
    return [
        {"arm": arm, **{k: v for k, v in metrics.items() if k.startswith(wanted)}}
        for arm, metrics in arms.items()
        if metrics
    ]


def text_table(rows: list[dict[str, Any]]) -> str:
    """Return rows as aligned plain text; a long cell is cut."""
    if not rows:
        return ""
    names = [str(name) for name in rows[0]]
    lines = [names, *([_cut(cell(value)) for value in row.values()] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(names))]
    return "\n".join(
        "  ".join(
            text.ljust(width) if column == 0 else text.rjust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _cut(text: str) -> str:
    return printable(text if len(text) <= _WIDEST else text[: _WIDEST - 3] + "...")


def cell(value: Any) -> str:  # noqa: ANN401
    """Return a value as text; floats with four decimals."""
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def listed(value: Any) -> str:  # noqa: ANN401
    """Return a value as text, and those of a list one after the other."""
    return printable(", ".join(map(str, value)) if isinstance(value, list) else str(value))


def rounded(value: Any) -> str:  # noqa: ANN401
    """Return a figure with four significant digits, and those of a dict one after the other."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {rounded(part)}" for name, part in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def printable(text: str) -> str:
    """Replace what could move the cursor, colour the terminal or turn the writing round."""
    return "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in text)
