"""What a suite is and what it costs, as table rows: sizes, machine, seconds, overlap, settings."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pandas as pd

from gnnrec.shown import DASH, fraction, number
from gnnrec.suite_report.gains import trained_share
from gnnrec.suite_report.rows import MAIN, Cell, SuiteRows, grouped

Rows = list[dict[str, Any]]


def measured(rows: SuiteRows) -> Rows:
    """What the runs are: sizes, sources, seeds, machine, and the digests of the rows."""
    runs = rows.runs
    facts = {
        "suite": _names(runs["suite"]),
        "runs": f"{len(runs):,}",
        "scenarios": _names(runs["scenario"]),
        "targets": _names(runs["target"]),
        "sources": _names(runs["source"]),
        "encoders": _names(runs["encoder"]),
        "arms": ", ".join(dict.fromkeys(c.key.arm for c in sorted(rows.cells, key=_arm_order))),
        "fractions kept": ", ".join(fraction(f) for f in sorted(set(runs["fraction"].dropna()))),
        "seeds": ", ".join(f"{seed:g}" for seed in sorted(set(runs["seed"].dropna()))),
        "device": _names(runs["device"]),
        "hardware": _names(runs["hardware"], "; "),
        "versions": _names(runs["versions"], "; "),
        "dates": _names(runs["date"]) if "date" in runs else "",
    }
    facts |= {f"sha256 of {name}": digest for name, digest in rows.sha256.items()}
    return [{"what": name, "found": value or DASH} for name, value in facts.items()]


def target_sizes(rows: SuiteRows) -> Rows:
    """Users, items and interactions of every target, and how many splits were used."""
    out: Rows = []
    places = list(dict.fromkeys((cell.key.scenario, cell.key.target) for cell in rows.cells))
    groups = dict(list(rows.runs.groupby(["scenario", "target"])))
    for scenario, target in places:
        part = groups[scenario, target]
        splits = sorted(set(part["split_sha256"]) - {""})
        out.append(
            {
                "target": target,
                "scenario": scenario,
                "users": _range(part["n_users"]),
                "items": _range(part["n_items"]),
                "kept": _range(part["n_kept"]),
                "test": _range(part["n_test"]),
                "test users": _range(part["n_test_users"]),
                "without history": _range(part["n_test_users_without_history"]),
                "split sha256": ", ".join(digest[:8] for digest in splits[:2]) or DASH,
                "splits": str(len(splits)),
            }
        )
    return out


def holes(rows: SuiteRows) -> Rows:
    """Arms with fewer seeds than the others on the same target."""
    most = max((len(cell.seeds) for cell in rows.cells), default=0)
    return [
        {
            "target": cell.key.target,
            "scenario": cell.key.scenario,
            "arm": cell.key.name,
            "source": cell.key.source or DASH,
            "kept": fraction(cell.key.fraction),
            "seeds": f"{len(cell.seeds)} of {most}",
        }
        for cell in rows.cells
        if len(cell.seeds) < most
    ]


def cost_rows(rows: SuiteRows) -> Rows:
    """What each arm costs, the median over the targets' and fractions' means; memory's largest."""
    groups: dict[str, list[Cell]] = {}
    for cell in sorted(rows.of(MAIN), key=_arm_order):
        groups.setdefault(cell.key.name, []).append(cell)
    return [_cost({"arm": name}, cells) for name, cells in groups.items()]


def cost_details(rows: SuiteRows) -> Rows:
    """`cost_rows` per target and fraction."""
    return [
        _cost(
            {
                "target": cell.key.target,
                "kept": fraction(cell.key.fraction),
                "arm": cell.key.name,
                "source": cell.key.source or DASH,
            },
            [cell],
        )
        for cell in rows.of(MAIN)
    ]


def overlap_rows(rows: SuiteRows) -> Rows:
    """What source and target share."""
    out: Rows = []
    for row in rows.overlap.sort_values(["target", "source"], kind="stable").to_dict("records"):
        out.append(
            {
                "target": row["target"],
                "source": row["source"],
                "target's items": number(row["n_target_items"], 0),
                "shared item ids": _part(row["items"], row["n_target_items"]),
                "of them no bare numbers": number(row["named_items"], 0),
                "same texts": _part(row["texts"], row["n_target_items"]),
                "near texts": _part(row["near_texts"], row["n_target_items"]),
                "target's users": number(row["n_target_users"], 0),
                "shared user ids": _part(row["users"], row["n_target_users"]),
                "of these no bare numbers": number(row["named_users"], 0),
            }
        )
    return out


def setting_rows(rows: SuiteRows) -> Rows:
    """The settings that the runs used, with what the trials of the same arm measured."""
    by = ["target", "arm", *(["encoder"] if "encoder" in rows.trials else [])]
    tried = dict(list(rows.trials.groupby(by))) if len(rows.trials) else {}
    places: dict[tuple[str, str, str], dict[str, list[float]]] = {}
    for key, part in grouped(rows.runs[rows.runs["scenario"] == MAIN]):
        for text in dict.fromkeys(part["settings"]):
            used = places.setdefault((key.target, key.arm, key.encoder), {})
            kept = used.setdefault(_settings(text), [])
            kept += [] if key.fraction in kept else [key.fraction]
    out: Rows = []
    for place, used in places.items():
        trials = tried.get(place[: len(by)], rows.trials[:0])
        if not len(trials) and not any(used):
            continue
        out.append(
            {
                "target": place[0],
                "arm": f"{place[1]} {place[2]}".strip(),
                "settings": "; ".join(
                    f"{fraction(*sorted(kept))}: {text or 'the defaults'}"
                    for text, kept in used.items()
                ),
                "trials": str(len(trials)),
                "their values": _limits(trials["value"]),
                "tuning s": number(float(trials["seconds"].sum()), 1) if len(trials) else DASH,
            }
        )
    return out


def _cost(head: dict[str, str], cells: list[Cell]) -> dict[str, str]:
    def middle(name: str, digits: int) -> str:
        found = [v for cell in cells if not math.isnan(v := cell.mean(name))]
        return number(float(np.median(found)) if found else math.nan, digits)

    shares = [v for cell in cells if not math.isnan(v := trained_share(cell))]
    memory = [v for cell in cells if not math.isnan(v := cell.high("peak_memory_mb"))]
    return head | {
        "features s": middle("seconds_features", 2),
        "pretraining s": middle("seconds_pretrain", 1),
        "training s": middle("seconds_train", 2),
        "first list s": middle("seconds_first", 2),
        "evaluation s": middle("seconds_evaluate", 2),
        "peak memory MB": number(max(memory, default=math.nan), 0),
        "energy Wh": middle("energy_wh", 3),
        "parameters": middle("parameters_total", 0),
        "trained": middle("parameters_trained", 0),
        "share": number(float(np.median(shares)) if shares else math.nan, 3),
        "in id tables": middle("parameters_ids", 0),
        "in biases": middle("parameters_biases", 0),
        "steps": middle("steps", 0),
    }


def _arm_order(cell: Cell) -> tuple[Any, ...]:
    return cell.key.order[4:]


def _names(column: pd.Series, between: str = ", ") -> str:
    return between.join(sorted(set(column) - {""}))


def _range(column: pd.Series) -> str:
    found = sorted(set(column.dropna()))
    if not found:
        return DASH
    low, high = f"{found[0]:,.0f}", f"{found[-1]:,.0f}"
    return low if low == high else f"{low} to {high}"


def _limits(column: pd.Series) -> str:
    found = column.dropna()
    if not len(found):
        return DASH
    low, high = f"{found.min():.4f}", f"{found.max():.4f}"
    return low if low == high else f"{low} to {high}"


def _part(count: float, whole: float) -> str:
    if math.isnan(count):
        return DASH
    share = f" ({100 * count / whole:.1f} %)" if whole > 0 else ""
    return f"{count:,.0f}{share}"


def _settings(text: str) -> str:
    """Settings as `name=value, ...` where they are a JSON object, as they stand otherwise."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    if not isinstance(value, dict):
        return text
    return ", ".join(f"{name}={json.dumps(value[name])}" for name in sorted(value))
