"""The interaction log: tables and files in, validated integer codes and a vocabulary out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gnnrec.errors import DataError
from gnnrec.ids import Vocabulary, extend_ids, factorize_ids
from gnnrec.items import ItemTable, read_items
from gnnrec.tables import data_error, read_table, row_number, shown, source_name

__all__ = [
    "Columns",
    "Interactions",
    "ItemTable",
    "read_interactions",
    "read_items",
    "read_table",
]

_RESERVED = ("score", "rank", "known")
# A median timestamp above the bound is in that many units per second; as seconds, 1e11 is the
# year 5138, so nothing recorded in seconds is mistaken.
_TIME_UNITS = ((1e17, 1e9), (1e14, 1e6), (1e11, 1e3))


@dataclass(frozen=True)
class Columns:
    """Names of the columns of a log; weight and timestamp may be absent, text is for items."""

    user: str = "user_id"
    item: str = "item_id"
    timestamp: str = "timestamp"
    weight: str = "weight"
    text: str = "text"


@dataclass(frozen=True, eq=False)
class Interactions:
    """Distinct (user, item) pairs as codes, with the raw ids the codes stand for.

    Attributes:
        users: (n,) int64 user codes.
        items: (n,) int64 item codes.
        user_ids: (n_users,) raw ids by code, int64 or object of str.
        item_ids: (n_items,) raw ids by code, int64 or object of str.
        weights: (n,) float32, or None where the log has none.
        timestamps: (n,) float64 seconds since 1970 UTC, or None where the log has none.
        columns: The column names the log came with.
        n_dropped_duplicates: Rows that repeated a pair.
        n_below_min_weight: Rows that `min_weight` removed.
    """

    users: np.ndarray
    items: np.ndarray
    user_ids: np.ndarray
    item_ids: np.ndarray
    weights: np.ndarray | None = None
    timestamps: np.ndarray | None = None
    columns: Columns = Columns()
    n_dropped_duplicates: int = 0
    n_below_min_weight: int = 0

    @property
    def n_users(self) -> int:
        """Size of the user vocabulary."""
        return len(self.user_ids)

    @property
    def n_items(self) -> int:
        """Size of the item vocabulary."""
        return len(self.item_ids)

    @property
    def n_interactions(self) -> int:
        """Number of distinct pairs."""
        return len(self.users)

    @classmethod
    def from_frame(
        cls,
        df: pd.DataFrame,
        columns: Columns | None = None,
        min_weight: float | None = None,
        where: str = "DataFrame",
    ) -> Interactions:
        """Validate a table and encode it. O(n_rows), vectorised.

        Ids: see `gnnrec.ids.factorize_ids`; ids that differ only in surrounding white space are one
        id. Vocabularies are in order of first appearance. Timestamps: numbers are seconds, or
        milli-, micro- or nanoseconds when their median says so; dates and ISO 8601 text are read as
        UTC where they name no zone. A repeated pair becomes one interaction with the latest
        timestamp and the largest weight, in the place of its first row.

        Args:
            df: One row per interaction.
            columns: Names of its columns. A missing weight or timestamp column is allowed under its
                default name; under a name of your own it is an error.
            min_weight: Rows of a smaller weight are left out, before pairs are collapsed.
            where: File or description for messages.

        Raises:
            DataError: A column is missing, a value is not usable (the row is named), or no row is
                left.
        """
        columns = columns or Columns()
        where = source_name(df, where)
        _check_columns(df, columns, where)
        if df.empty:
            raise data_error(where, "no rows", "at least one interaction", "check its source")
        users, user_ids = factorize_ids(df, columns.user, where)
        items, item_ids = factorize_ids(df, columns.item, where)
        weights = _weights(df, columns.weight, where) if columns.weight in df.columns else None
        times = None
        if columns.timestamp in df.columns:
            times = _timestamps(df, columns.timestamp, where)
        n_below = 0
        if min_weight is not None:
            if weights is None:
                found = f"a minimum weight of {min_weight} and no column {columns.weight!r}"
                cure = "name it with --weight-column or leave --min-weight out"
                raise data_error(where, found, "a weight column", cure)
            keep = weights >= min_weight
            n_below = int(len(keep) - keep.sum())
            if n_below == len(keep):
                found = f"no weight of at least {min_weight} (largest: {weights.max():g})"
                raise data_error(where, found, "some", "lower --min-weight", column=columns.weight)
            if n_below:
                users, user_ids = _compact(users[keep], user_ids)
                items, item_ids = _compact(items[keep], item_ids)
                weights = weights[keep]
                times = None if times is None else times[keep]
        n_rows = len(users)
        pair, distinct = pd.factorize(users * len(item_ids) + items)
        if len(distinct) < n_rows:
            users, items = np.divmod(np.asarray(distinct), len(item_ids))
            weights = None if weights is None else _largest(weights, pair, len(distinct))
            times = None if times is None else _largest(times, pair, len(distinct))
        return cls(
            users,
            items,
            user_ids,
            item_ids,
            None if weights is None else weights.astype(np.float32),
            times,
            columns,
            n_rows - len(distinct),
            n_below,
        )

    def select(self, index: np.ndarray) -> Interactions:
        """Return the rows of an integer or boolean index, under the same vocabulary."""
        return replace(
            self,
            users=self.users[index],
            items=self.items[index],
            weights=None if self.weights is None else self.weights[index],
            timestamps=None if self.timestamps is None else self.timestamps[index],
        )

    def with_users(self, user_ids: Iterable[Any]) -> Interactions:
        """Append user ids that are not known yet; known codes stay.

        Raises:
            DataError: An id is missing or empty.
        """
        return replace(self, user_ids=extend_ids(self.user_ids, user_ids, "user ids"))

    def with_items(self, item_ids: Iterable[Any]) -> Interactions:
        """Append item ids that are not known yet; known codes stay.

        Raises:
            DataError: An id is missing or empty.
        """
        return replace(self, item_ids=extend_ids(self.item_ids, item_ids, "item ids"))

    def recoded(self, like: Interactions) -> Interactions:
        """Express the same pairs in the codes of another log, for example a test set in training's.

        Raises:
            DataError: The other log does not know an id (`with_users` and `with_items` add ids).
        """
        sides = []
        for codes, mine, theirs in (
            (self.users, self.user_ids, like.user_codes(self.user_ids)),
            (self.items, self.item_ids, like.item_codes(self.item_ids)),
        ):
            recoded = theirs[codes]
            if (recoded < 0).any():
                unknown = mine[codes[int((recoded < 0).argmax())]]
                raise DataError(
                    f"the id {shown(unknown)} is not in the vocabulary; expected only known ids; "
                    "add it with with_users or with_items first"
                )
            sides.append(recoded)
        return replace(
            self, users=sides[0], items=sides[1], user_ids=like.user_ids, item_ids=like.item_ids
        )

    def user_codes(self, raw: Iterable[Any]) -> np.ndarray:
        """Return (n,) int64 codes of raw user ids, typed or as text; -1 where unknown."""
        return self._user_vocabulary.codes(raw)

    def item_codes(self, raw: Iterable[Any]) -> np.ndarray:
        """Return (n,) int64 codes of raw item ids, typed or as text; -1 where unknown."""
        return self._item_vocabulary.codes(raw)

    @cached_property
    def _user_vocabulary(self) -> Vocabulary:
        return Vocabulary(self.user_ids)

    @cached_property
    def _item_vocabulary(self) -> Vocabulary:
        return Vocabulary(self.item_ids)

    def to_frame(self) -> pd.DataFrame:
        """Return the log with raw ids under its own column names; timestamps are seconds."""
        data: dict[str, np.ndarray] = {
            self.columns.user: self.user_ids[self.users],
            self.columns.item: self.item_ids[self.items],
        }
        if self.weights is not None:
            data[self.columns.weight] = self.weights
        if self.timestamps is not None:
            data[self.columns.timestamp] = self.timestamps
        return pd.DataFrame(data)


def read_interactions(
    path: str | Path, columns: Columns | None = None, min_weight: float | None = None
) -> Interactions:
    """Read a log in any format of `read_table`; see `Interactions.from_frame`.

    Raises:
        DataError: The file or a value in it is not usable.
    """
    return Interactions.from_frame(read_table(path), columns, min_weight, str(path))


def _check_columns(df: pd.DataFrame, columns: Columns, where: str) -> None:
    if columns.user == columns.item:
        found = f"one column {columns.user!r} for users and items"
        raise data_error(where, found, "two columns", "name them with --user-column, --item-column")
    for name in (columns.user, columns.item):
        if name in _RESERVED:
            cure = "rename it: a recommendation has a column of that name"
            raise data_error(where, f"ids in a column {name!r}", "another name", cure)
    names = [str(name) for name in df.columns]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise data_error(where, f"the column {twice!r} twice", "distinct names", "rename one")
    defaults = Columns()
    for role in ("user", "item", "timestamp", "weight"):
        wanted = getattr(columns, role)
        optional = role in ("timestamp", "weight") and wanted == getattr(defaults, role)
        if wanted in df.columns or optional:
            continue
        lowered = {name.lower(): name for name in names}
        near = difflib.get_close_matches(wanted.lower(), lowered, n=1, cutoff=0.5) or [
            low for low in lowered if role in low
        ]
        name = lowered[near[0]] if near else "NAME"
        cure = f"name it with --{role}-column {name}"
        found = "the columns " + ", ".join(names)
        raise data_error(where, found, f"a {role} column {wanted!r}", cure)


def _compact(codes: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Renumber codes by first appearance, dropping the ids that no row uses any more."""
    fresh, used = pd.factorize(codes)
    return np.asarray(fresh, dtype=np.int64), ids[np.asarray(used)]


def _largest(values: np.ndarray, group: np.ndarray, n_groups: int) -> np.ndarray:
    out = np.full(n_groups, -np.inf)
    np.maximum.at(out, group, values)
    return out


def _weights(df: pd.DataFrame, column: str, where: str) -> np.ndarray:
    """(n_rows,) float64, finite, not negative, within the range of float32."""
    with np.errstate(over="ignore"):
        numbers = _numbers(df[column])
        good = np.isfinite(numbers.astype(np.float32)) & (numbers >= 0)
    if not good.all():
        position = int((~good).argmax())
        raise data_error(
            where,
            shown(df[column].iloc[position]),
            "a finite number that is not negative",
            "correct it or drop the row",
            row=row_number(df, position),
            column=column,
        )
    return numbers


def _numbers(values: pd.Series) -> np.ndarray:
    """(n,) float64 with NaN where a value is missing or is not a number."""
    if pd.api.types.is_datetime64_any_dtype(values.dtype):
        return np.full(len(values), np.nan)
    if values.dtype == object:
        # Only plain values: to_numeric fails on nested ones even where it is told to coerce.
        values = values.where(values.map(lambda v: isinstance(v, (str, int, float, np.number))))
    numbers = pd.to_numeric(values, errors="coerce")
    return np.asarray(numbers.to_numpy(dtype=np.float64, na_value=np.nan))


def _timestamps(df: pd.DataFrame, column: str, where: str) -> np.ndarray:
    """(n_rows,) float64 seconds since 1970 UTC."""
    values = df[column]
    seconds = np.full(len(values), np.nan)
    if not pd.api.types.is_bool_dtype(values.dtype):
        seconds = _numbers(values)
        if np.isnan(seconds).any() and not pd.api.types.is_numeric_dtype(values.dtype):
            dates = _dates(values)
            if np.isfinite(dates).sum() > np.isfinite(seconds).sum():
                seconds = dates
            elif np.isfinite(seconds).any():
                seconds = _scaled(seconds)
        else:
            seconds = _scaled(seconds)
    good = np.isfinite(seconds)
    if not good.all():
        position = int((~good).argmax())
        value = values.iloc[position]
        raise data_error(
            where,
            "no time" if pd.api.types.is_scalar(value) and pd.isna(value) else shown(value),
            "seconds since 1970, a date or ISO 8601 text",
            "correct it, drop the row, or leave the whole column out",
            row=row_number(df, position),
            column=column,
        )
    return seconds


def _scaled(numbers: np.ndarray) -> np.ndarray:
    finite = np.abs(numbers[np.isfinite(numbers)])
    median = float(np.median(finite)) if len(finite) else 0.0
    return numbers / next((per for bound, per in _TIME_UNITS if median > bound), 1.0)


def _dates(values: pd.Series) -> np.ndarray:
    """(n,) float64 seconds with NaN where a value is not a date."""
    if not pd.api.types.is_datetime64_any_dtype(values.dtype):
        values = values.map(lambda v: v.strip() if isinstance(v, str) else v)
    dates = pd.to_datetime(values, errors="coerce", utc=True, format="ISO8601")
    micro = dates.dt.tz_localize(None).to_numpy().astype("datetime64[us]")
    seconds = micro.astype(np.int64) / 1e6
    seconds[np.isnat(micro)] = np.nan
    return np.asarray(seconds)
