"""Quality as table rows: curves, the matrix of sources and targets, every difference, buckets."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gnnrec.shown import DASH, bounds, fraction, number, percent, signed
from gnnrec.suite_report.arrival import Arrival
from gnnrec.suite_report.gains import Gain, cold_items, cold_users, gain, gains, harms
from gnnrec.suite_report.rows import (
    AVERAGE,
    BEST,
    COLD_ITEMS,
    COLD_RECALL,
    COLD_USERS,
    MAIN,
    NDCG,
    RECALL,
    SCRATCH,
    TRANSFER,
    Cell,
    Key,
    SuiteRows,
    best,
    grouped,
)

Rows = list[dict[str, Any]]
_COLD = ((COLD_ITEMS, RECALL), (COLD_ITEMS, COLD_RECALL), (COLD_USERS, NDCG))
_MEASURES = {COLD_RECALL: "recall@20 among cold items alone"}
_HEADS = {"against_encoder": "its encoder", "chosen": "best source"}


def spread(cell: Cell, metric: str = NDCG) -> str:
    """Return a mean with the smallest and the largest seed, as `0.1523 (0.1510 to 0.1541)`."""
    if len(cell.values.get(metric, ())) < 2:
        return number(cell.mean(metric))
    return f"{cell.mean(metric):.4f} ({cell.low(metric):.4f} to {cell.high(metric):.4f})"


def gain_rows(found: Iterable[Gain]) -> Rows:
    """The best transfer arm beside the best opponent, per target and fraction."""
    return [
        {
            "target": g.cell.key.target,
            "kept": fraction(g.cell.key.fraction),
            "transfer": g.cell.key.name,
            "source": g.cell.key.source or DASH,
            g.metric: number(g.cell.mean(g.metric)),
            "best other": g.against.key.name,
            f"its {g.metric}": number(g.against.mean(g.metric)),
            "difference and 95 % interval": g.text,
        }
        for g in found
    ]


def all_gains(rows: SuiteRows) -> Rows:
    """`gain_rows` of the main scenario at every fraction."""
    return gain_rows(gains(rows))


def cold_rows(rows: SuiteRows) -> tuple[Rows, Rows]:
    """`gain_rows` of cold items (to raw text) and of cold users (to the best other arm)."""
    return gain_rows(cold_items(rows)), gain_rows(cold_users(rows))


def mean_rows(rows: SuiteRows) -> Rows:
    """Means over targets of one and the same arm's relative differences, with intervals."""
    frame = rows.differences
    frame = frame[(frame["target"] == AVERAGE) & (frame["metric"] == NDCG)]
    order = [BEST, SCRATCH, *sorted(set(frame["against"]))]
    scenarios = [MAIN, COLD_ITEMS, COLD_USERS, *sorted(set(frame["scenario"]))]
    lines = sorted(
        frame.to_dict("records"),
        key=lambda row: (
            scenarios.index(row["scenario"]),
            order.index(row["against"]),
            row["fraction"],
            row["arm"],
        ),
    )
    return [
        {
            "scenario": row["scenario"],
            "against": row["against"],
            "kept": fraction(row["fraction"]),
            "arm": f"{row['arm']} {row.get('encoder', '')}".strip(),
            "targets": row.get("n_targets", "") or DASH,
            "relative and interval": _relative(row),
            "p (Holm)": number(row["p_holm"]),
        }
        for row in lines
    ]


def cold_arms(rows: SuiteRows) -> Rows:
    """Every arm in the cold scenarios, in the measure of each."""
    return [
        {
            "target": cell.key.target,
            "scenario": cell.key.scenario,
            "kept": fraction(cell.key.fraction),
            "arm": cell.key.name,
            "source": cell.key.source or DASH,
            "measure": _MEASURES.get(metric, metric),
            "mean (seeds)": spread(cell, metric),
        }
        for scenario, metric in _COLD
        for cell in rows.of(scenario)
        if metric != COLD_RECALL or cell.values.get(metric)
    ]


def harm_rows(rows: SuiteRows) -> Rows:
    """Per transfer arm: its pairs with the from-scratch twin, won, level and lost."""
    groups: dict[str, list[Gain]] = {}
    for found in harms(rows):
        groups.setdefault(found.cell.key.name, []).append(found)
    out: Rows = []
    for name, pairs in groups.items():
        known = [p for p in pairs if p.interval is not None]
        worst = min(known, key=lambda p: p.low, default=None)
        choices = [c for p in pairs for c in p.cell.choices if c]
        out.append(
            {
                "arm": name,
                "pairs": str(len(pairs)),
                "interval above 0": str(sum(p.low > 0 for p in known)),
                "across 0": str(sum(p.low <= 0 <= p.high for p in known)),
                "below 0": str(sum(p.high < 0 for p in known)),
                "smallest lower bound": percent(worst.low) if worst else DASH,
                "where": _where(worst.cell.key) if worst else DASH,
                "guard chose": _counts(choices) or DASH,
            }
        )
    return out


def learning_rows(cells: Sequence[Cell]) -> Rows:
    """Mean and spread of NDCG@20 of each arm, a column a fraction."""
    fractions = sorted({cell.key.fraction for cell in cells})
    lines: dict[tuple[str, str, str], dict[float, Cell]] = {}
    for cell in cells:
        place = (cell.key.target, cell.key.name, cell.key.source)
        lines.setdefault(place, {})[cell.key.fraction] = cell
    return [
        {"target": target, "arm": name, "source": source or DASH}
        | {fraction(f): spread(found[f]) if f in found else DASH for f in fractions}
        for (target, name, source), found in lines.items()
    ]


def time_rows(rows: SuiteRows, found: Sequence[Arrival]) -> Rows:
    """Seconds to the twin's final validation value, with features and pretraining beside."""
    out: Rows = []
    for arrival in found:
        key, twin = arrival.cell.key, rows.twin(arrival.cell.key)
        features = arrival.cell.mean("seconds_features")
        own = twin.mean("seconds_features") if twin is not None else math.nan
        out.append(
            {
                "target": key.target,
                "kept": fraction(key.fraction),
                "arm": key.name,
                "source": key.source or DASH,
                "seconds": number(arrival.seconds, 2),
                "twin's seconds": number(arrival.twin_seconds, 2),
                "share": number(arrival.share, 3),
                "seeds that get there": f"{arrival.n_reached} of {arrival.n_seeds}",
                "with features": number(features + arrival.seconds, 1),
                "twin's with features": number(own + arrival.twin_seconds, 1),
                "pretraining s": number(arrival.cell.mean("seconds_pretrain"), 1),
            }
        )
    return out


def matrix(rows: SuiteRows, encoder: str, kept: float) -> tuple[Rows, dict[tuple[int, str], str]]:
    """Sources by targets: the best transfer arm to the from-scratch twin, with shades."""
    cells = [
        cell
        for cell in rows.of(MAIN)
        if (cell.key.family, cell.key.encoder, cell.key.fraction) == (TRANSFER, encoder, kept)
    ]
    sources = sorted({cell.key.source for cell in cells})
    targets = sorted({cell.key.target for cell in cells})
    out: Rows = []
    shades: dict[tuple[int, str], str] = {}
    for place, source in enumerate(sources):
        row = {"source": source or DASH}
        for target in targets:
            one = best(c for c in cells if (c.key.source, c.key.target) == (source, target))
            twin = rows.twin(one.key) if one is not None else None
            text = DASH
            if one is not None and twin is not None:
                found = gain(rows, one, twin)
                text = f"{found.text}, {one.key.arm}"
                shades[place, f"to {target}"] = shade(found.relative)
            elif one is not None:
                text = f"{number(one.mean())}, {one.key.arm}, no twin"
            row[f"to {target}"] = text
        out.append(row)
    return out, {place: colour for place, colour in shades.items() if colour}


def shade(relative: float) -> str:
    """Return a background for a relative difference: blue above, orange below, full at 20 %."""
    if math.isnan(relative):
        return ""
    strength = min(abs(relative) / 0.2, 1.0) ** 0.5 * 0.45
    return f"rgba({'0,114,178' if relative > 0 else '213,94,0'},{strength:.2f})"


def difference_table(
    rows: SuiteRows, *, buckets: bool = False
) -> tuple[Rows, dict[tuple[int, str], str]]:
    """Every paired difference, worst first, with shades; nothing left out.

    Over all users, or with `buckets` the rows that are of a bucket of users.
    """
    frame = rows.differences
    frame = frame[
        ~frame["bucket"].isin(["", "all"]) if buckets else frame["bucket"].isin(["", "all"])
    ]
    names = ["relative", "scenario", "target", "fraction", "arm", "source", "against", "metric"]
    frame = frame.sort_values(names, kind="stable", na_position="last")
    extra = [name for name in ("encoder", "against_encoder", "chosen") if name in frame]
    extra += ["bucket"] if buckets else []
    out: Rows = []
    shades: dict[tuple[int, str], str] = {}
    for place, row in enumerate(frame.to_dict("records")):
        low, high = row["relative_low"], row["relative_high"]
        absolute = f"{signed(row['mean_difference'])} [{signed(row['low'])}, {signed(row['high'])}]"
        out.append(
            {
                "target": row["target"],
                "scenario": row["scenario"],
                "kept": fraction(row["fraction"]),
                "arm": row["arm"],
                "source": row["source"] or DASH,
                "against": row["against"],
                **{_HEADS.get(name, name): row[name] or DASH for name in extra},
                "measure": row["metric"],
                "relative and interval": _relative(row),
                "difference and interval": absolute,
                "p (Holm)": number(row["p_holm"]),
                "Holm family": row["family"] or DASH,
            }
        )
        if high < 0 or low > 0:
            shades[place, "relative and interval"] = "bad" if high < 0 else "good"
    return out, shades


def twin_rows(found: Sequence[Gain]) -> Rows:
    """Differences to the from-scratch twin, in the order given."""
    return [
        {
            "target": g.cell.key.target,
            "kept": fraction(g.cell.key.fraction),
            "arm": g.cell.key.name,
            "source": g.cell.key.source or DASH,
            "NDCG@20": number(g.cell.mean()),
            "the twin's": number(g.against.mean()),
            "relative and interval": g.text,
            "p (Holm)": number(g.interval.p_holm if g.interval else math.nan),
        }
        for g in found
    ]


def bucket_means(rows: SuiteRows, by: str, metric: str) -> dict[Key, dict[str, float]]:
    """Return arm -> bucket -> mean over seeds of the metric, in the main scenario."""
    frame = rows.buckets
    frame = frame[(frame["by"] == by) & (frame["scenario"] == MAIN)].dropna(subset=[metric])
    out: dict[Key, dict[str, float]] = {}
    for key, part in grouped(frame):
        means = part.groupby("bucket")[metric].mean()
        out[key] = {str(name): float(value) for name, value in means.items()}
    return out


def bucket_rows(means: Mapping[Key, Mapping[str, float]], names: Sequence[str]) -> Rows:
    """An arm a row, a bucket a column."""
    return [
        {
            "target": key.target,
            "kept": fraction(key.fraction),
            "arm": key.name,
            "source": key.source or DASH,
            **{name: number(found.get(name, math.nan)) for name in names},
        }
        for key, found in means.items()
    ]


def bucket_names(found: Iterable[str]) -> list[str]:
    """Return the buckets, least active or popular first."""
    named = ("unseen", "tail", "middle", "head")

    def place(name: str) -> tuple[float, str]:
        digits = "".join(c if c.isdecimal() else " " for c in name).split()
        known = float(named.index(name)) if name in named else math.inf
        return (float(digits[0]) if digits else known, name)

    return sorted(set(found), key=place)


def _relative(row: Mapping[Any, Any]) -> str:
    limits = bounds(row["relative_low"], row["relative_high"])
    return f"{percent(row['relative'])} {limits}".rstrip()


def _counts(choices: Sequence[str]) -> str:
    return ", ".join(f"{name} {choices.count(name)}" for name in sorted(set(choices)))


def _where(key: Key) -> str:
    return ", ".join(filter(None, (key.target, key.source, fraction(key.fraction))))
