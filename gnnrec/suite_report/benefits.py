"""What transfer was to gain on a suite, and whether it did: the thresholds and the verdicts.

The thresholds stand in `REACH` and nowhere else. Each benefit is judged against opponents picked
on the test part itself, which favours the opponent; the transfer arm is the best one there too,
which favours transfer, so the means are given for one and the same arm on all targets as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from gnnrec.shown import DASH, fraction, percent
from gnnrec.suite_report.gains import (
    Gain,
    chosen_arrivals,
    cold_items,
    cold_users,
    gains,
    harms,
    trained_share,
)
from gnnrec.suite_report.rows import COLD_RECALL, MAIN, RECALL, SCRATCH, TRANSFER, SuiteRows


@dataclass(frozen=True)
class Reach:
    """The thresholds, all chosen before the suite was run.

    Attributes:
        little: Fractions of the target's training interactions that are little data, with the
            relative gain in NDCG@20 over the best arm without a source that counts as less data
            needed: the mean over targets and fractions.
        more: The same for more data.
        all_data: With everything kept, transfer may not be below the best arm: gain at least 0.
        lowest: No target's lower 95 % bound may be below this. A loss of one percent is within
            what the choice of a split changes; more is harm.
        time: Share of the seconds that the from-scratch twin trains for, after which the
            transferred model has the twin's final validation value. A tenth is what makes
            transfer worth the trouble of a checkpoint.
        parameters: Share of the model's parameters that is trained, id tables and biases apart.
        first_seconds: Until the first recommendations, after features, without training.
        cold_items: Recall@20 on items without an interaction, as a multiple of raw text.
        cold_users: NDCG@20 of users with few interactions: gain over every other arm above this.
        guard: The guard falls back on scratch in less than this share of the runs: the exception.
    """

    little: tuple[tuple[float, ...], float] = ((0.02, 0.05), 0.10)
    more: tuple[tuple[float, ...], float] = ((0.1, 0.2, 0.5), 0.05)
    all_data: tuple[tuple[float, ...], float] = ((1.0,), 0.0)
    lowest: float = -0.01
    time: float = 0.1
    parameters: float = 0.1
    first_seconds: float = 1.0
    cold_items: float = 1.3
    cold_users: float = 0.0
    guard: float = 0.5


REACH = Reach()
REACHED, MISSED, PARTLY, OPEN = "reached", "missed", "partly measured", "not measured"


@dataclass(frozen=True)
class Verdict:
    """One line of the table of benefits."""

    benefit: str
    measure: str
    reach: str
    measured: str
    outcome: str

    def row(self) -> dict[str, str]:
        """As a table row."""
        return {
            "benefit": self.benefit,
            "measure": self.measure,
            "to reach": self.reach,
            "measured": self.measured,
            "outcome": self.outcome,
        }


def verdicts(rows: SuiteRows) -> list[Verdict]:
    """Return the table of benefits, each line judged against `REACH`."""
    out = [
        *_quality(rows, "less data", *REACH.little),
        *_quality(rows, "better results", *REACH.more),
        _full_data(rows),
        _time(rows),
        *_cost(rows),
        *_cold(rows),
        *_harm(rows),
    ]
    return out


def _quality(
    rows: SuiteRows, benefit: str, fractions: tuple[float, ...], reach: float
) -> list[Verdict]:
    found = gains(rows, fractions=fractions)
    wanted = len(fractions) * _n_targets(rows)
    at = fraction(*fractions)
    value = mean(g.relative for g in found)
    out = [
        Verdict(
            benefit,
            f"NDCG@20 at {at}, best transfer arm to the best arm without a source: mean over "
            "targets",
            percent(reach),
            percent(value) + _so_far(len(found), wanted),
            _whole(judge([value], lambda v: v[0] >= reach), len(found), wanted),
        ),
        _smallest(benefit, found, wanted),
    ]
    everywhere = []
    for name in sorted({c.key.name for c in rows.of(MAIN) if c.key.family == TRANSFER}):
        one = gains(rows, fractions=fractions, arm=name)
        if one and len(one) == len(found):
            everywhere.append((mean(g.relative for g in one), name))
    if everywhere:
        value, name = max(everywhere)
        out.append(
            Verdict(
                benefit,
                f"the mean with one arm for all targets ({name})",
                percent(reach),
                percent(value) + _so_far(len(found), wanted),
                _whole(judge([value], lambda v: v[0] >= reach), len(found), wanted),
            )
        )
    return out


def _smallest(benefit: str, found: list[Gain], wanted: int, what: str = "the same") -> Verdict:
    """Judge the smallest lower bound: one below is a miss, whatever else is still unknown."""
    lows = [(g.low, g) for g in found if math.isfinite(g.low)]
    low, worst = min(lows, key=lambda pair: pair[0], default=(math.nan, None))
    measured = percent(low)
    if worst is not None:
        measured += f" ({worst.cell.key.target}, {fraction(worst.cell.key.fraction)})"
    outcome = judge([v for v, _ in lows], lambda v: min(v) > REACH.lowest)
    return Verdict(
        benefit,
        f"{what}: smallest lower 95 % bound",
        f"above {_share(REACH.lowest)}",
        measured + _so_far(len(lows), wanted),
        outcome if outcome == MISSED else _whole(outcome, len(lows), wanted),
    )


def _full_data(rows: SuiteRows) -> Verdict:
    fractions, reach = REACH.all_data
    found = gains(rows, fractions=fractions)
    wanted = len(fractions) * _n_targets(rows)
    worst = min(found, key=lambda g: g.relative, default=None)
    shown = DASH
    if worst is not None:
        shown = f"{worst.text} ({worst.cell.key.target})"
    outcome = judge([g.relative for g in found], lambda v: min(v) >= reach)
    return Verdict(
        "better results",
        f"NDCG@20 at {fraction(*fractions)}, the same: the smallest of the targets",
        f"not below {_share(reach)}",
        shown + _so_far(len(found), wanted),
        outcome if outcome == MISSED else _whole(outcome, len(found), wanted),
    )


def _time(rows: SuiteRows) -> Verdict:
    found = [a for a in chosen_arrivals(rows) if math.isfinite(a.share) or a.share == math.inf]
    shares = [a.share for a in found]
    within = sum(share <= REACH.time for share in shares)
    middle = float(np.median(shares)) if shares else math.nan
    measured = DASH
    if shares:
        shown = "never" if math.isinf(middle) else f"{middle:.2f}"
        measured = f"{shown}; within a tenth in {within} of {len(shares)}"
    return Verdict(
        "less time",
        "seconds after features to the twin's final validation value, as a share of the twin's: "
        "median over targets and fractions",
        f"{REACH.time:g}",
        measured,
        judge(shares, lambda v: float(np.median(v)) <= REACH.time),
    )


def _cost(rows: SuiteRows) -> list[Verdict]:
    used = gains(rows, fractions=(*REACH.little[0], *REACH.more[0], *REACH.all_data[0]))
    shares = [(trained_share(g.cell), g.cell) for g in used if math.isfinite(trained_share(g.cell))]
    share, most = max(shares, key=lambda pair: pair[0], default=(math.nan, None))
    shown = DASH if most is None else f"{share:.3f} ({most.key.name})"
    instant = [c for c in rows.of(MAIN) if c.key.arm == "zero-shot" and c.key.family == TRANSFER]
    seconds = [(c.mean("seconds_first"), c.key.target) for c in instant]
    seconds = [pair for pair in seconds if math.isfinite(pair[0])]
    slowest, target = max(seconds, default=(math.nan, ""))
    return [
        Verdict(
            "lower cost",
            "trained share of the parameters, id tables and biases apart: the largest of the arms "
            "that the gains above are of",
            f"{REACH.parameters:g}",
            shown,
            judge([s for s, _ in shares], lambda v: max(v) <= REACH.parameters),
        ),
        Verdict(
            "lower cost",
            "zero-shot: seconds after features until the first list, the slowest target",
            f"{REACH.first_seconds:g} s",
            f"{slowest:.2f} s ({target})" if seconds else DASH,
            judge([s for s, _ in seconds], lambda v: max(v) <= REACH.first_seconds),
        ),
    ]


def _cold(rows: SuiteRows) -> list[Verdict]:
    users = cold_users(rows)
    worst = min(users, key=lambda g: g.relative, default=None)
    shown = DASH
    if worst is not None:
        shown = f"{worst.text} to {worst.against.key.name} ({worst.cell.key.target})"
    return [
        _cold_items(rows, RECALL, "in the full ranking"),
        _cold_items(rows, COLD_RECALL, "ranked among themselves"),
        Verdict(
            "the cold",
            "NDCG@20 of users served from a few interactions and never trained on, to the best "
            f"arm without a source: the smallest of {len(users)}",
            f"above {_share(REACH.cold_users)}",
            shown,
            judge([g.relative for g in users], lambda v: min(v) > REACH.cold_users),
        ),
    ]


def _cold_items(rows: SuiteRows, metric: str, how: str) -> Verdict:
    found = cold_items(rows, metric)
    ratios = [1.0 + g.relative for g in found if not math.isnan(g.relative)]
    return Verdict(
        "the cold",
        f"recall@20 on items without interactions, {how}, to raw text: mean of {len(ratios)}",
        f"{REACH.cold_items:g} times",
        f"{np.mean(ratios):.2f} times" if ratios else DASH,
        judge(ratios, lambda v: float(np.mean(v)) >= REACH.cold_items),
    )


def _harm(rows: SuiteRows) -> list[Verdict]:
    found = harms(rows)
    below = sum(g.low <= REACH.lowest for g in found)
    what = (
        f"every transfer arm to its from-scratch twin, {len(found)} pairs, {below} of them not "
        "above that"
    )
    transfers = [cell for cell in rows.cells if cell.key.family == TRANSFER]
    choices = [choice for cell in transfers for choice in cell.choices if choice]
    fell_back = sum(SCRATCH in choice for choice in choices)
    share = fell_back / len(choices) if choices else math.nan
    return [
        _smallest("no harm", found, len(found), what),
        Verdict(
            "no harm",
            "how often the guard chose scratch",
            f"less than {100 * REACH.guard:g} %",
            f"{fell_back} of {len(choices)} runs" if choices else "no guard in these rows",
            judge([share] if choices else [], lambda v: v[0] < REACH.guard),
        ),
    ]


def judge(values: Sequence[float], reached: Callable[[list[float]], bool]) -> str:
    """Return reached, missed, or not measured where there are no numbers."""
    found = [value for value in values if not math.isnan(value)]
    if not found:
        return OPEN
    return REACHED if reached(found) else MISSED


def mean(values: Iterable[float]) -> float:
    """Mean of the values that are numbers, NaN where there are none."""
    found = [value for value in values if not math.isnan(value)]
    return float(np.mean(found)) if found else math.nan


def _share(value: float) -> str:
    return percent(value) if value else "0"


def _n_targets(rows: SuiteRows) -> int:
    return len({cell.key.target for cell in rows.of(MAIN)})


def _so_far(n: int, wanted: int) -> str:
    return f"; {n} of {wanted} measured" if 0 < n < wanted else ""


def _whole(outcome: str, n: int, wanted: int) -> str:
    """Nothing is reached or missed before all of it is measured."""
    return PARTLY if outcome != OPEN and n < wanted else outcome
