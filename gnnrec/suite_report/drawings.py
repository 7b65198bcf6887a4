"""The figures of a suite's report: a panel a target, the same style of an arm in all of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TypeVar

from gnnrec.document import Figure, Table
from gnnrec.figures import Bar, Line, Style, arm_style, forest_panel, legend, line_panel
from gnnrec.shown import fraction
from gnnrec.suite_report.arrival import averaged, to_twin
from gnnrec.suite_report.facts import Rows
from gnnrec.suite_report.gains import Gain
from gnnrec.suite_report.quality import (
    bucket_means,
    bucket_names,
    bucket_rows,
    learning_rows,
    twin_rows,
)
from gnnrec.suite_report.rows import (
    BASELINE,
    MAIN,
    NDCG,
    SCRATCH,
    TRANSFER,
    Cell,
    Key,
    SuiteRows,
)

T = TypeVar("T")
_BUCKETS = {
    "user-activity": "a user's kept interactions",
    "item-popularity": "an item's kept interactions",
}
_LABELLED = 64  # rows of a forest plot that still have room for their names
_LITTLE = 0.05  # fraction that single-fraction figures show, or the nearest one that is there


def encoders(rows: SuiteRows) -> list[str]:
    """Return the encoders that have a transfer arm."""
    return sorted({cell.key.encoder for cell in rows.of(MAIN) if cell.key.family == TRANSFER})


def styles(rows: SuiteRows) -> dict[str, Style]:
    """Return the style of every arm by name: a colour a family, a dash and a marker an arm.

    Encoders are shown apart, so a transfer arm looks the same in each of them; arms from scratch
    stand side by side, so those are told apart by encoder too.
    """
    places: dict[str, list[str]] = {}
    out = {}
    for key in sorted((cell.key for cell in rows.cells), key=lambda key: key.order[4:]):
        known = places.setdefault(key.family, [])
        looks = key.name if key.family == SCRATCH else key.arm
        if looks not in known:
            known.append(looks)
        out[key.name] = arm_style(key.family, known.index(looks))
    return out


def shown(rows: SuiteRows, encoder: str) -> list[Cell]:
    """Return what a figure of one encoder shows: its arms, and all that saw no source.

    Of the sources of an arm on a target the one that validated best; where that is not known, the
    one with most fractions, then with the best mean.
    """
    lines: dict[tuple[str, str], dict[str, list[Cell]]] = {}
    for cell in rows.of(MAIN):
        key = cell.key
        if not rows.counts(key) and key.source:
            continue
        if key.encoder == encoder or key.family in (BASELINE, SCRATCH):
            lines.setdefault((key.target, key.name), {}).setdefault(key.source, []).append(cell)
    out: list[Cell] = []
    for sources in lines.values():
        widest: list[Cell] = max(sources.values(), key=_weight)
        out += widest
    return sorted(out, key=lambda cell: cell.key.order)


def _weight(cells: list[Cell]) -> tuple[int, float]:
    return len(cells), sum(v for cell in cells if not math.isnan(v := cell.mean()))


def learning_figure(rows: SuiteRows, encoder: str) -> Figure | None:
    """Return NDCG@20 over the share of the target's training interactions that was kept."""
    cells = shown(rows, encoder)
    look = _looks(rows, cells)
    fractions = sorted({cell.key.fraction for cell in cells})
    panels = []
    for target, group in by_target(cells).items():
        lines = []
        for name, points in _lines(group).items():
            points = [cell for cell in points if math.isfinite(cell.mean())]
            if points:
                lines.append(
                    Line(
                        name,
                        look[name],
                        [cell.key.fraction for cell in points],
                        [cell.mean() for cell in points],
                        [cell.low() for cell in points],
                        [cell.high() for cell in points],
                    )
                )
        panels.append(
            line_panel(
                target,
                lines,
                x_label="training interactions kept",
                y_label="NDCG@20",
                ticks=[(value, fraction(value)) for value in fractions],
                log_x=True,
            )
        )
    if not panels:
        return None
    caption = f"NDCG@20 over the data kept: arms of {encoder}, and all without a source"
    note = (
        "A line is the mean over seeds, its band goes from the smallest to the largest; of several "
        "sources the best is shown. Grey: baselines; orange: from scratch; blue: transfer; purple: "
        "control."
    )
    table = Table(
        f"Learning curves, {encoder}: mean (smallest to largest seed)", learning_rows(cells)
    )
    return Figure(caption, note, panels, table, legend(list(look.items())))


def time_figure(rows: SuiteRows, encoder: str, arrival_rows: Rows) -> Figure | None:
    """Return the best validation value so far over training seconds, less the twin's last."""
    drawn = to_twin(rows)
    cells = [cell for cell in shown(rows, encoder) if cell.key in drawn]
    cells = [cell for cell in cells if cell.key.encoder == encoder]
    kept = nearest({cell.key.fraction for cell in cells})
    cells = [cell for cell in cells if cell.key.fraction == kept]
    if not cells:
        return None
    look = _looks(rows, cells)
    # A logarithmic axis has no place for the evaluation before the first step.
    second = [run.seconds[1] for c in cells for run in drawn[c.key] if len(run.seconds) > 1]
    first = max(min(second, default=1.0) / 2, 1e-3)
    panels = []
    for target, group in by_target(cells).items():
        lines = []
        for cell in group:
            times, means, low, high = averaged(drawn[cell.key])
            times = times.clip(min=first)
            points = [array.tolist() for array in (times, means, low, high)]
            lines.append(Line(cell.key.name, look[cell.key.name], *points))
        panels.append(
            line_panel(
                target,
                lines,
                x_label="training seconds after features",
                y_label="validation, to the twin's last",
                log_x=True,
                steps=True,
                level=0.0,
            )
        )
    caption = f"Validation over training seconds: {encoder}, {fraction(kept)} of the data kept"
    note = (
        "The best value so far less what the twin from scratch ends with on the same seed; up is "
        "better, and 0 is the twin's last. Mean over seeds, with a band from the smallest to the "
        "largest; what an arm starts from is at its line's left end."
    )
    table = Table(f"Time to the twin's final validation value, {encoder}", arrival_rows)
    return Figure(caption, note, panels, table, legend(list(look.items())))


def forest_figure(found: Sequence[Gain], encoder: str) -> Figure | None:
    """Return all differences to the from-scratch twin with intervals, worst first."""
    known = [g for g in found if g.cell.key.encoder == encoder]
    known = sorted(known, key=lambda g: (g.relative, g.cell.key.order))
    bars = [g for g in known if math.isfinite(g.low) and math.isfinite(g.high)]
    panels = []
    for target, group in sorted(_grouped((g.cell.key.target, g) for g in bars).items()):
        panels.append(
            forest_panel(
                target,
                [
                    Bar(_label(g.cell.key), 100 * g.relative, 100 * g.low, 100 * g.high)
                    for g in group
                ],
                "relative difference of NDCG@20, %",
                labelled=len(group) <= _LABELLED,
            )
        )
    if not panels:
        return None
    note = (
        "With 95 % intervals. Orange, pointing down: the interval is below zero; blue, pointing "
        "up: above; grey: across."
    )
    table = Table(f"To the twin from scratch, {encoder}", twin_rows(known))
    caption = f"Every transfer arm of {encoder} to its twin from scratch, worst first"
    return Figure(caption, note, panels, table)


def bucket_figure(rows: SuiteRows, encoder: str, by: str, metric: str) -> Figure | None:
    """Return quality by bucket of users or items, at little data."""
    wanted = {cell.key for cell in shown(rows, encoder)}
    means = {key: value for key, value in bucket_means(rows, by, metric).items() if key in wanted}
    kept = nearest({key.fraction for key in means})
    means = {key: value for key, value in means.items() if key.fraction == kept}
    if not means:
        return None
    names = bucket_names({name for found in means.values() for name in found})
    look = _looks(rows, [cell for cell in shown(rows, encoder) if cell.key in means])
    panels = []
    for target, keys in _grouped((key.target, key) for key in means).items():
        lines = []
        for key in keys:
            places = [place for place, name in enumerate(names) if name in means[key]]
            values = [means[key][names[place]] for place in places]
            lines.append(Line(key.name, look[key.name], places, values))
        panels.append(
            line_panel(
                target,
                lines,
                x_label=_BUCKETS.get(by, by),
                y_label=metric.upper() if metric == NDCG else metric.capitalize(),
                ticks=list(enumerate(names)),
            )
        )
    caption = f"By {by.replace('-', ' ')}, arms of {encoder}, {fraction(kept)} of the data kept"
    note = "A point is the mean over seeds; lines only join the points of an arm."
    table = Table(caption, bucket_rows(means, names))
    return Figure(caption, note, panels, table, legend(list(look.items())))


def nearest(fractions: set[float]) -> float:
    """Return the fraction nearest to little data; NaN where there is none."""
    ratio = {value: abs(math.log(value / _LITTLE)) for value in sorted(fractions) if value > 0}
    return min(ratio, key=lambda value: ratio[value], default=math.nan)


def by_target(cells: Iterable[Cell]) -> dict[str, list[Cell]]:
    """Return cells by target, targets sorted."""
    return dict(sorted(_grouped((cell.key.target, cell) for cell in cells).items()))


def _lines(cells: Iterable[Cell]) -> dict[str, list[Cell]]:
    return _grouped((cell.key.name, cell) for cell in cells)


def _looks(rows: SuiteRows, cells: Iterable[Cell]) -> dict[str, Style]:
    """The styles of what a figure shows, in the order of its legend."""
    look = styles(rows)
    ordered = sorted(cells, key=lambda cell: cell.key.order[4:])
    return {cell.key.name: look[cell.key.name] for cell in ordered}


def _grouped(pairs: Iterable[tuple[str, T]]) -> dict[str, list[T]]:
    out: dict[str, list[T]] = {}
    for key, value in pairs:
        out.setdefault(key, []).append(value)
    return out


def _label(key: Key) -> str:
    return f"{fraction(key.fraction)} {key.arm} {key.source}".rstrip()
