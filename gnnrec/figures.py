"""Plots as inline SVG: nothing from outside, and the same bytes for the same rows."""

from __future__ import annotations

import hashlib
import html
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from gnnrec.errors import ConfigError

# Okabe and Ito's palette, told apart with every common colour blindness; one colour a family.
FAMILY_COLOURS = {
    "baseline": "#808080",
    "scratch": "#d55e00",
    "transfer": "#0072b2",
    "control": "#b0568c",
}
GAIN, LOSS, LEVEL = "#0072b2", "#d55e00", "#6b6b6b"
# Within a family arms differ by dash and marker. Dashes are in points.
_DASHES = ("", "5 1.5", "1.5 1.5", "6 1.5 1.5 1.5", "3 1.5", "8 2")
_MARKERS = ("o", "s", "^", "D", "v", "x", "P")
_PANEL = (4.2, 3.1)  # inches; a page shows a panel at about 1.2 times this
_SETTINGS: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # what matplotlib ships: the layout does not depend on the system
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "svg.fonttype": "none",
    "svg.hashsalt": "gnnrec",
    "text.parse_math": False,  # a dollar sign in an id is a dollar sign
}


@dataclass(frozen=True)
class Style:
    """How an arm is drawn: colour, dash pattern in points (empty: solid), marker, line width."""

    colour: str
    dash: str = ""
    marker: str = "o"
    width: float = 1.5


@dataclass(frozen=True)
class Line:
    """One line of a panel; `low` and `high` are a band around it, or empty."""

    label: str
    style: Style
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@dataclass(frozen=True)
class Bar:
    """One row of a forest plot: a value with its interval."""

    label: str
    value: float
    low: float
    high: float


def arm_style(family: str, place: int) -> Style:
    """Return the style of a family's arm number `place`, from 0."""
    colour = FAMILY_COLOURS.get(family, "#1a1a1a")
    width = 1.0 if family == "baseline" else 1.5  # what was there before stays in the background
    return Style(colour, _DASHES[place % len(_DASHES)], _MARKERS[place % len(_MARKERS)], width)


def legend(entries: Sequence[tuple[str, Style]]) -> str:
    """Return a list of names beside a piece of their line; it wraps where the page is narrow."""
    shapes = {
        "o": '<circle cx="18" cy="6" r="3.2"/>',
        "s": '<path d="M15 3h6v6h-6z"/>',
        "^": '<path d="M18 2l4 7h-8z"/>',
        "v": '<path d="M18 10l4-7h-8z"/>',
        "D": '<path d="M18 2l4 4-4 4-4-4z"/>',
        "x": '<path d="M15 3l6 6m0-6l-6 6" stroke-width="1.6"/>',
        "P": '<path d="M16.8 2h2.4v2.8H22v2.4h-2.8V10h-2.4V7.2H14V4.8h2.8z"/>',
    }
    items = "".join(
        f'<li><svg width="36" height="12" aria-hidden="true" stroke="{s.colour}" '
        f'fill="{s.colour}"><path d="M0 6h36" stroke-width="{s.width * 1.2:g}" '
        f'stroke-dasharray="{s.dash}"/>'
        f"{shapes.get(s.marker, '')}</svg> {html.escape(label)}</li>"
        for label, s in entries
    )
    return f'<ul class="legend">{items}</ul>'


def line_panel(
    title: str,
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    ticks: Sequence[tuple[float, str]] = (),
    log_x: bool = False,
    steps: bool = False,
    level: float | None = None,
) -> str:
    """Return one panel of lines with bands.

    Args:
        title: Above the panel, and what a screen reader says.
        lines: Drawn in their order; points that are not finite are left out.
        x_label: Under the axis.
        y_label: Beside the axis.
        ticks: Places of the x axis with their text; the scale's own where there are none.
        log_x: Logarithmic x axis.
        steps: A value holds until the next point; no markers.
        level: Of a horizontal line.

    Raises:
        ConfigError: matplotlib, of the `[report]` extra, is not installed.
    """
    with _drawing(_PANEL) as figure:
        axes = figure.add_axes((0.2, 0.155, 0.775, 0.755))
        for line in lines:
            style = line.style
            if len(line.low):
                axes.fill_between(
                    line.x,
                    line.low,
                    line.high,
                    step="post" if steps else None,
                    color=style.colour,
                    alpha=0.10,
                    linewidth=0,
                )
            axes.plot(
                line.x,
                line.y,
                color=style.colour,
                linestyle=_linestyle(style),
                linewidth=style.width,
                drawstyle="steps-post" if steps else "default",
                marker="" if steps and len(line.x) > 1 else style.marker,
                markersize=2.4 + style.width,
            )
        if level is not None:
            axes.axhline(level, color="#1a1a1a", linewidth=0.8)
        if log_x:
            axes.set_xscale("log")
            low, high = axes.get_xlim()
            if not ticks and high < 100 * low:  # too few powers of ten to read a scale from
                axes.xaxis.get_major_locator().set_params(subs=(1.0, 2.0, 5.0))
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.xaxis.set_minor_formatter("")
        if ticks:
            axes.set_xticks([place for place, _ in ticks], [clip(text, 12) for _, text in ticks])
            axes.minorticks_off()
            if not log_x:
                axes.set_xlim(ticks[0][0] - 0.2, ticks[-1][0] + 0.2)
        axes.set_title(clip(title, 48), loc="left")
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        return _svg(figure, f"{title}: {y_label} over {x_label}, {len(lines)} lines")


def forest_panel(title: str, bars: Sequence[Bar], x_label: str, *, labelled: bool) -> str:
    """Return a forest plot: a row a difference, coloured by where its interval lies about zero.

    Args:
        title: Above the panel.
        bars: From top to bottom; values in the axis's unit.
        x_label: Under the axis.
        labelled: False draws thin rows without their names, for a long list.

    Raises:
        ConfigError: matplotlib, of the `[report]` extra, is not installed.
    """
    height = 0.17 if labelled else 0.05
    inches = max(height * len(bars) + 0.85, 1.3)
    left = 0.46 if labelled else 0.06
    losses = sum(bar.high < 0 for bar in bars)
    gains = sum(bar.low > 0 for bar in bars)
    with _drawing((4.4, inches)) as figure:
        axes = figure.add_axes((left, 0.5 / inches, 0.97 - left, 1 - 0.8 / inches))
        for place, bar in enumerate(bars):
            colour = GAIN if bar.low > 0 else LOSS if bar.high < 0 else LEVEL
            axes.plot([bar.low, bar.high], [place, place], color=colour, linewidth=1.1)
            shape = "^" if bar.low > 0 else "v" if bar.high < 0 else "o"
            axes.plot([bar.value], [place], shape, color=colour, ms=3.4 if labelled else 2.2)
        axes.axvline(0, color="#1a1a1a", linewidth=0.8)
        axes.set_ylim(len(bars) - 0.5, -0.5)
        axes.grid(False, axis="y")
        axes.locator_params(axis="x", nbins=5)
        names = [clip(bar.label, 29) for bar in bars] if labelled else []
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.tick_params(axis="y", length=0)
        axes.set_title(clip(title, 48), loc="left", x=-left / (0.97 - left) if labelled else 0)
        axes.set_xlabel(x_label)
        said = f"{title}: {len(bars)} differences, {losses} below zero, {gains} above zero"
        return _svg(figure, said)


def bar_panel(rows: Sequence[tuple[str, float, Sequence[float]]], x_label: str, said: str) -> str:
    """Return horizontal bars with a dot for every single value.

    Raises:
        ConfigError: matplotlib, of the `[report]` extra, is not installed.
    """
    inches = 0.6 * len(rows) + 1.2
    with _drawing((8.0, inches)) as figure:
        axes = figure.add_axes((0.2, 0.55 / inches, 0.77, 1 - 0.75 / inches))
        axes.barh(range(len(rows)), [row[1] for row in rows], color="#9db8d2", height=0.6)
        for place, (_, _, values) in enumerate(rows):
            axes.plot(values, [place] * len(values), "o", ms=4, color="#1f3d5a")
        axes.grid(False, axis="y")
        axes.set_yticks(range(len(rows)), [clip(row[0], 24) for row in rows])
        axes.invert_yaxis()
        axes.set_xlabel(x_label)
        return _svg(figure, said)


def clip(text: str, width: int) -> str:
    """Return a text cut to so many characters: a plot has no room for a long id."""
    return text if len(text) <= width else text[: width - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _linestyle(style: Style) -> Any:  # noqa: ANN401
    if not style.dash:
        return "-"
    # matplotlib counts in line widths.
    return (0, tuple(float(length) / style.width for length in style.dash.split()))


@contextmanager
def _drawing(size: tuple[float, float]) -> Iterator[Any]:
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("plots need an extra: pip install 'gnnrec[report]'") from error
    with mpl.rc_context():
        mpl.rcdefaults()  # a user's matplotlibrc changes nothing
        mpl.rcParams.update(_SETTINGS)
        yield Figure(figsize=size)


def _svg(figure: Any, label: str) -> str:  # noqa: ANN401
    """Return a drawing for inside a page: named, no metadata, ids that no other drawing has."""
    import warnings

    buffer = io.StringIO()
    with warnings.catch_warnings():
        # Text stays text, so a letter that the layout's font lacks is the reader's font's task.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    drawing = buffer.getvalue()
    root = ElementTree.fromstring(drawing[drawing.index("<svg") :])
    unique = "g" + hashlib.sha256((label + drawing).encode()).hexdigest()[:10] + "-"
    used = set(re.findall(r'url\(#([^)"]+)\)|href="#([^"]+)"', drawing))
    names = {name for pair in used for name in pair if name}
    for element in list(root.iter()):
        element.tag = element.tag.rsplit("}", 1)[-1]
        for name, value in list(element.attrib.items()):
            del element.attrib[name]
            short = name.rsplit("}", 1)[-1]
            if short == "id":
                if value not in names:
                    continue
                value = unique + value
            elif short == "href":
                value = "#" + unique + value.removeprefix("#")
            element.attrib[short] = re.sub(r"url\(#", f"url(#{unique}", value)
        for child in list(element):
            if child.tag.rsplit("}", 1)[-1] in ("metadata", "style"):
                element.remove(child)
    root.attrib |= {"role": "img", "aria-label": label}
    return re.sub(r"\n\s*", "\n", ElementTree.tostring(root, encoding="unicode"))
