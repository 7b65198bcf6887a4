"""Numbers as a reader sees them. What is not known is a dash."""

from __future__ import annotations

import math

DASH = "\N{EN DASH}"


def number(value: float, digits: int = 4) -> str:
    """Return a number with so many decimals; infinity is `never`, as of a time."""
    if math.isnan(value):
        return DASH
    return "never" if math.isinf(value) else f"{value:,.{digits}f}"


def signed(value: float) -> str:
    """Return a difference with its sign and four decimals."""
    return DASH if math.isnan(value) else f"{value:+.4f}"


def percent(value: float) -> str:
    """Return a relative difference as `+1.2 %`."""
    return DASH if math.isnan(value) else f"{100 * value:+.1f} %"


def bounds(low: float, high: float) -> str:
    """Return a relative interval as `[+0.3, +2.1]`, in percent; nothing where it is not known."""
    return "" if math.isnan(low) else f"[{100 * low:+.1f}, {100 * high:+.1f}]"


def fraction(*values: float) -> str:
    """Return fractions of the data as `10, 20 and 50 %`."""
    texts = [f"{100 * value:g}" for value in values]
    head = ", ".join(texts[:-1])
    return f"{head} and {texts[-1]} %" if head else f"{texts[-1]} %"
