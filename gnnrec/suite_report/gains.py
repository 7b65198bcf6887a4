"""Which arms are set side by side: the best transfer arm and what it has to beat."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gnnrec.shown import bounds, percent
from gnnrec.suite_report.arrival import Arrival, arrivals
from gnnrec.suite_report.rows import (
    COLD_ITEMS,
    COLD_USERS,
    MAIN,
    NDCG,
    RECALL,
    TRANSFER,
    Cell,
    Interval,
    SuiteRows,
    best,
)


@dataclass(frozen=True)
class Gain:
    """The best transfer arm beside the best opponent, on one target at one fraction."""

    cell: Cell
    against: Cell
    metric: str
    relative: float
    interval: Interval | None

    @property
    def low(self) -> float:
        """Lower bound of the relative difference, NaN where it is not known."""
        return self.interval.relative_low if self.interval else math.nan

    @property
    def high(self) -> float:
        """Upper bound, NaN where it is not known."""
        return self.interval.relative_high if self.interval else math.nan

    @property
    def text(self) -> str:
        """The relative difference with its interval, as `+1.2 % [+0.3, +2.1]`."""
        return f"{percent(self.relative)} {bounds(self.low, self.high)}".rstrip()


def gains(
    rows: SuiteRows,
    scenario: str = MAIN,
    metric: str = NDCG,
    fractions: Sequence[float] | None = None,
    opponent: Callable[[Cell], bool] = lambda cell: not cell.key.source,
    arm: str | None = None,
) -> list[Gain]:
    """Return the best transfer arm against the best opponent, for each target and fraction.

    Of several sources only the one that validated best counts, where the rows say which.

    Args:
        rows: The suite.
        scenario: One of them.
        metric: Of the runs.
        fractions: Those wanted; None for all.
        opponent: Which arms without transfer it has to beat; those without a source by default.
        arm: Only this transfer arm, by `Key.name`.
    """
    groups: dict[tuple[str, float], list[Cell]] = {}
    for cell in rows.of(scenario):
        if fractions is None or cell.key.fraction in fractions:
            groups.setdefault((cell.key.target, cell.key.fraction), []).append(cell)
    out = []
    for cells in groups.values():
        transfers = [
            c
            for c in cells
            if c.key.family == TRANSFER and arm in (None, c.key.name) and rows.counts(c.key)
        ]
        one = best(transfers, metric)
        other = best((c for c in cells if c.key.family != TRANSFER and opponent(c)), metric)
        if one is not None and other is not None:
            out.append(gain(rows, one, other, metric))
    return out


def gain(rows: SuiteRows, one: Cell, other: Cell, metric: str = NDCG) -> Gain:
    """Return one arm beside another, with the interval where the rows have it."""
    base = other.mean(metric)
    relative = one.mean(metric) / base - 1.0 if base > 0 else math.nan
    interval = rows.interval(one.key, other.key, metric)
    return Gain(one, other, metric, interval.relative if interval else relative, interval)


def to_twins(rows: SuiteRows) -> list[Gain]:
    """Return every transfer arm beside its from-scratch twin, in the main scenario."""
    out = []
    for cell in rows.of(MAIN):
        twin = rows.twin(cell.key) if cell.key.family == TRANSFER else None
        if twin is not None and math.isfinite(cell.mean()) and math.isfinite(twin.mean()):
            out.append(gain(rows, cell, twin))
    return out


def harms(rows: SuiteRows) -> list[Gain]:
    """Return the pairs of `to_twins` that harm is judged by: those with a guard.

    Without a guard anywhere all are judged, zero-shot included.
    """
    pairs = to_twins(rows)
    return [pair for pair in pairs if any(pair.cell.choices)] or pairs


def cold_items(rows: SuiteRows, metric: str = RECALL) -> list[Gain]:
    """Return recall@20 of the best transfer arm to raw text, on items without interactions.

    In the full ranking, or with `COLD_RECALL` where they are ranked among themselves.
    """
    return gains(rows, COLD_ITEMS, metric, opponent=lambda cell: cell.key.arm == "raw-text")


def cold_users(rows: SuiteRows) -> list[Gain]:
    """Return NDCG@20 of the best transfer arm to the best other one, on users never trained on."""
    return gains(rows, COLD_USERS, NDCG)


def chosen_arrivals(rows: SuiteRows) -> list[Arrival]:
    """Return the time to quality of the best transfer arm with a curve, per target and fraction."""
    groups: dict[tuple[str, float], list[Arrival]] = {}
    for arrival in arrivals(rows):
        key = arrival.cell.key
        groups.setdefault((key.target, key.fraction), []).append(arrival)
    out = []
    for group in groups.values():
        top = best(arrival.cell for arrival in group)
        out += [arrival for arrival in group if arrival.cell is top]
    return out


def trained_share(cell: Cell) -> float:
    """Trained parameters over all, without id tables and biases; NaN for a model without any."""
    total = cell.mean("parameters_total")
    return cell.mean("parameters_trained") / total if total else math.nan
