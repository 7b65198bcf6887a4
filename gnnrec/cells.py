"""Cells of a column -> weights and times, or the error that names the cell."""

from __future__ import annotations

import numpy as np
import pandas as pd

from gnnrec.tables import data_error, row_number, shown

# A median timestamp above the bound is in that many units per second; as seconds, 1e11 is the
# year 5138, so nothing recorded in seconds is mistaken.
_TIME_UNITS = ((1e17, 1e9), (1e14, 1e6), (1e11, 1e3))


def weights_of(df: pd.DataFrame, column: str, where: str) -> np.ndarray:
    """Return the weights of a column: (n_rows,) float64, not negative, within float32. O(n_rows).

    Raises:
        DataError: A cell is something else.
    """
    with np.errstate(over="ignore"):
        weights = numbers(df[column])
        good = np.isfinite(weights.astype(np.float32)) & (weights >= 0)
    if not good.all():
        position = int((~good).argmax())
        raise data_error(
            where,
            shown(df[column].iloc[position]),
            "a number from 0 to 3.4e38, as 1.5",
            "correct it or drop the row",
            row=row_number(df, position),
            column=column,
        )
    return weights


def times_of(df: pd.DataFrame, column: str, where: str) -> np.ndarray:
    """Return the times of a column: (n_rows,) float64 seconds since 1970 UTC. O(n_rows).

    Raises:
        DataError: A cell is no time, or not of the kind that most of the column is.
    """
    values, expected = df[column], "seconds since 1970 or an ISO 8601 date, 2026-11-28T09:30"
    seconds = np.full(len(values), np.nan)
    if not pd.api.types.is_bool_dtype(values.dtype):
        seconds = numbers(values)
        if np.isnan(seconds).any() and not pd.api.types.is_numeric_dtype(values.dtype):
            from_dates = dates(values)
            if np.isfinite(from_dates).sum() > np.isfinite(seconds).sum():
                seconds = from_dates
            elif np.isfinite(seconds).any():
                seconds, expected = in_seconds(seconds), "a number, as most of the column is"
        else:
            seconds = in_seconds(seconds)
    good = np.isfinite(seconds)
    if not good.all():
        position = int((~good).argmax())
        value = values.iloc[position]
        raise data_error(
            where,
            "no time" if pd.api.types.is_scalar(value) and pd.isna(value) else shown(value),
            expected,
            "correct it, drop the row, or leave the whole column out",
            row=row_number(df, position),
            column=column,
        )
    return seconds


def numbers(values: pd.Series) -> np.ndarray:
    """(n,) float64 with NaN where a value is missing or is not a number."""
    if pd.api.types.is_datetime64_any_dtype(values.dtype):
        return np.full(len(values), np.nan)
    if values.dtype == object:
        # Only plain values: to_numeric fails on nested ones even where it is told to coerce.
        values = values.where(values.map(_is_plain))
    parsed = pd.to_numeric(values, errors="coerce")
    return np.asarray(parsed.to_numpy(dtype=np.float64, na_value=np.nan))


def _is_plain(value: object) -> bool:
    if isinstance(value, int):  # one of JSON may be beyond every float
        return abs(value) < 1 << 1000
    return isinstance(value, (str, float, np.number))


def in_seconds(times: np.ndarray) -> np.ndarray:
    """Scale times to seconds from milli-, micro- or nanoseconds where their median says so."""
    finite = np.abs(times[np.isfinite(times)])
    median = float(np.median(finite)) if len(finite) else 0.0
    return times / next((per for bound, per in _TIME_UNITS if median > bound), 1.0)


def _as_written(value: object) -> object:
    """A cell as text where it is a number: 20261128 in JSON is the date it is in CSV."""
    if isinstance(value, (int, float)) and value == value:
        return str(value)
    return value.strip() if isinstance(value, str) else value


def dates(values: pd.Series) -> np.ndarray:
    """(n,) float64 seconds with NaN where a value is not a date."""
    if not pd.api.types.is_datetime64_any_dtype(values.dtype):
        values = values.map(_as_written)
    parsed = pd.to_datetime(values, errors="coerce", utc=True, format="ISO8601")
    micro = parsed.dt.tz_localize(None).to_numpy().astype("datetime64[us]")
    seconds = micro.astype(np.int64) / 1e6
    seconds[np.isnat(micro)] = np.nan
    return np.asarray(seconds)
