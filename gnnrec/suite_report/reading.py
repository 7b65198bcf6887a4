"""Reading a suite's results folder.

A folder may be partial: what is not there is said in a sentence and is empty, never an error.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gnnrec.errors import DataError
from gnnrec.storage import file_sha256
from gnnrec.suite_report.rows import (
    AVERAGE,
    COLD_RECALL,
    LIMITS,
    MAIN,
    NDCG,
    RECALL,
    RUN_NUMBERS,
    SCRATCH,
    Cell,
    SuiteRows,
    grouped,
)

_KEYS = ("suite", "scenario", "target", "source", "arm", "family", "encoder")
_COUNTS = ("n_users", "n_items", "n_kept", "n_test", "n_test_users")
# File -> (text columns, number columns); others are kept as text.
_FILES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "runs.csv": (
        (*_KEYS, "split_sha256", "settings", "choice", "device", "hardware", "versions"),
        ("fraction", "seed", *RUN_NUMBERS, *_COUNTS, "n_test_users_without_history"),
    ),
    "curves.csv": ((*_KEYS, "stage"), ("fraction", "seed", "step", "seconds", "value")),
    "buckets.csv": ((*_KEYS, "by", "bucket"), ("fraction", "seed", "n", NDCG, RECALL)),
    "differences.csv": (
        ("scenario", "target", "source", "arm", "against", "metric", "family", "bucket"),
        ("fraction", "n_users", *LIMITS, "p", "p_holm"),
    ),
    "trials.csv": (
        ("target", "arm", "source", "trial", "settings"),
        ("fraction", "value", "seconds"),
    ),
    "overlap.csv": (
        ("source", "target"),
        (
            *("users", "items", "texts", "near_texts", "n_target_items", "n_target_users"),
            *("named_users", "named_items"),
        ),
    ),
}
_OPTIONAL = {COLD_RECALL, "energy_wh", "named_users", "named_items"}
_WITHOUT = {
    "runs.csv": "no quality, cost or settings",
    "curves.csv": "no time to quality",
    "buckets.csv": "nothing by user activity or item popularity",
    "differences.csv": "no intervals",
    "trials.csv": "no record of the tuning",
    "overlap.csv": "no overlap of sources and targets",
}
# Characters that cannot be in a page, or that turn the direction of the text after them.
_REFUSED = {
    code: "\N{REPLACEMENT CHARACTER}"
    for code in (*range(9), *range(11, 32), *range(127, 160), *range(0x202A, 0x202F))
    + (*range(0x2066, 0x206A), *range(0xD800, 0xE000), 0xFFFE, 0xFFFF)
}


def read_suite_rows(folder: Path) -> SuiteRows:
    """Read a results folder.

    Raises:
        DataError: Not a folder, a folder with none of a suite's files, or a file that is no CSV.
    """
    present = [name for name in _FILES if (folder / name).is_file()]
    if not present:
        found = "no such folder" if not folder.is_dir() else "none of these files"
        raise DataError(
            f"{folder}: found {found}, expected a results folder of gnnrec bench with "
            f"{', '.join(_FILES)}; check the path"
        )
    missing: list[str] = []
    frames = {name: _read(folder / name, missing) for name in _FILES}
    cells = tuple(_cells(frames["runs.csv"]))
    twins: dict[tuple[str, str, str, float], list[Cell]] = {}
    for cell in cells:
        key = cell.key
        if key.family == SCRATCH:
            place = (key.scenario, key.target, key.encoder, key.fraction)
            twins.setdefault(place, []).append(cell)
    return SuiteRows(
        frames["runs.csv"],
        frames["curves.csv"],
        frames["buckets.csv"],
        frames["differences.csv"],
        frames["trials.csv"],
        frames["overlap.csv"],
        cells,
        {name: file_sha256(folder / name) for name in present},
        tuple(missing),
        _chosen(frames["differences.csv"]),
        _settings(folder / "suite.toml"),
        _pairs(frames["differences.csv"]),
        twins,
    )


def _read(path: Path, missing: list[str]) -> pd.DataFrame:
    texts, numbers = _FILES[path.name]
    if not path.is_file():
        missing.append(f"{path.name} is not in the folder: {_WITHOUT[path.name]}.")
        return pd.DataFrame(
            {name: pd.Series(dtype=object) for name in texts}
            | {name: pd.Series(dtype=np.float64) for name in numbers}
        )
    try:
        frame = pd.read_csv(
            path, dtype=str, keep_default_na=False, na_filter=False, encoding_errors="replace"
        )
    except (ValueError, OSError) as error:  # pandas' own errors are ValueErrors
        raise DataError(
            f"{path}: found no readable CSV ({error}), expected a head line and rows of as many "
            "cells; mend the file or take it out of the folder"
        ) from error
    lacking = [name for name in (*texts, *numbers) if name not in frame.columns]
    if set(lacking) - _OPTIONAL:
        lacking = [name for name in lacking if name not in _OPTIONAL]
        missing.append(f"{path.name} has no column {', '.join(lacking)}.")
    columns = {
        str(name): [str(value).translate(_REFUSED) for value in frame[name]] for name in frame
    }
    n_rows = len(frame)
    out = pd.DataFrame(
        {name: columns.get(name, [""] * n_rows) for name in (*columns, *texts)}, dtype=object
    )
    for name in numbers:
        out[name] = pd.to_numeric(out[name], errors="coerce") if name in columns else math.nan
        out[name] = out[name].astype(np.float64)
    if "scenario" in texts and "scenario" in lacking:
        out["scenario"] = MAIN
    if "fraction" in out:
        out["fraction"] = out["fraction"].round(6)
    if not n_rows:
        missing.append(f"{path.name} has no rows: {_WITHOUT[path.name]}.")
    return out


def _cells(runs: pd.DataFrame) -> Iterable[Cell]:
    for key, part in grouped(runs):
        # A run that was made again is its last row.
        rows = part.drop_duplicates("seed", keep="last").sort_values("seed", kind="stable")
        numbers = {name: rows[name].to_numpy(dtype=np.float64) for name in RUN_NUMBERS}
        yield Cell(
            key,
            tuple(int(seed) for seed in rows["seed"] if math.isfinite(seed)),
            {name: tuple(v[np.isfinite(v)].tolist()) for name, v in numbers.items()},
            tuple(str(choice) for choice in rows["choice"]),
        )


def _pairs(frame: pd.DataFrame) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    out: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    names = ("scenario", "target", "fraction", "metric", "arm", "against")
    for row in frame.to_dict("records"):
        if row["bucket"] in ("", "all"):
            place = tuple(row[name] for name in names)
            out.setdefault(place, []).append({str(name): value for name, value in row.items()})
    return out


def _chosen(frame: pd.DataFrame) -> dict[tuple[str, str], str]:
    if not {"chosen", "encoder"} <= set(frame.columns):
        return {}
    rows = frame[(frame["chosen"] == "yes") & (frame["target"] != AVERAGE)]
    columns = (rows[name] for name in ("target", "encoder", "source"))
    return {(target, encoder): source for target, encoder, source in zip(*columns, strict=True)}


def _settings(path: Path) -> dict[str, str]:
    """The suite's settings as gnnrec bench leaves them in the folder; empty where it did not."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    out: dict[str, str] = {}

    def walk(value: Any, name: str) -> None:  # noqa: ANN401 (any TOML value)
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                walk(inner, f"{name}.{key}" if name else key)
        else:
            out[name.translate(_REFUSED)] = str(value).translate(_REFUSED)

    walk(data, "")
    return out
