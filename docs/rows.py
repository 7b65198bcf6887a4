"""The committed rows of the benchmarks as tables for the pages: nothing here is typed by hand."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd

RESULTS = Path(os.environ["GNNREC_ROOT"]) / "benchmarks" / "results"
NO_SOURCE = ("popularity", "itemknn", "rp3beta", "ease", "ials", "gf-cf", "raw-text", "scratch")
MEASURE = "ndcg@20"


def read(name: str) -> pd.DataFrame:
    """The rows of one file, fractions as percent."""
    frame = pd.read_csv(RESULTS / name)
    if "fraction" in frame and "kept" not in frame:
        frame["kept"] = (frame["fraction"] * 100).round().astype(int).astype(str) + " %"
    return frame


def percent(frame: pd.DataFrame) -> pd.Series:
    """Relative differences with their intervals, as text."""
    low, high = frame["relative_low"] * 100, frame["relative_high"] * 100
    parts = zip(frame["relative"] * 100, low, high, strict=True)
    return pd.Series([f"{a:+.1f} % [{b:+.1f}, {c:+.1f}]" for a, b, c in parts], frame.index)


def differences(suite: str, arm: str, against: str, **where: str) -> pd.DataFrame:
    """A suite's differences of an arm to another, over all users, with the chosen source.

    Args:
        suite: transfer or families.
        arm: The arm.
        against: popularity, scratch, or `the best without a source`.
        where: Further columns and the values they must have.
    """
    frame = read(f"{suite}/differences.csv")
    frame = frame[(frame["arm"] == arm) & (frame["metric"] == MEASURE) & (frame["bucket"] == "all")]
    frame = frame[frame["family"].str.contains(f": against {against},", regex=False)]
    frame = frame[(frame["chosen"] == "yes") & (frame["target"] != "all")]
    for name, value in ({"scenario": "main"} | where).items():
        frame = frame[frame[name] == value]
    return frame.assign(difference=percent(frame))


def means(suite: str, **where: str) -> pd.DataFrame:
    """Mean NDCG@20 over seeds: a row per arm, a column per target and share kept."""
    frame = read(f"{suite}/runs.csv")
    for name, value in ({"scenario": "main"} | where).items():
        frame = frame[frame[name] == value]
    best = frame.groupby(["arm", "target", "fraction", "source"], dropna=False)[MEASURE].mean()
    return best.groupby(["arm", "target", "fraction"]).max().unstack(["target", "fraction"])


def best_without_source(target: str) -> pd.DataFrame:
    """Of each share kept: the best arm that saw no source and its NDCG@20, beside `final:1`."""
    found = means("transfer")
    rows = []
    for fraction in sorted(f for t, f in found.columns if t == target):
        column = found[(target, fraction)]
        plain = column[[arm for arm in NO_SOURCE if arm in column.index]].dropna()
        if plain.empty or pd.isna(column.get("final:1")):
            continue
        rows.append(
            {
                "kept": f"{fraction:.0%}",
                "best without a source": plain.idxmax(),
                "its NDCG@20": round(plain.max(), 4),
                "zero-shot": round(column["zero-shot"], 4),
                "final:1": round(column["final:1"], 4),
            }
        )
    return pd.DataFrame(rows).set_index("kept")
