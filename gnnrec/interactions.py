"""The interaction log: tables and files in, validated integer codes and a vocabulary out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from gnnrec.cells import times_of, weights_of
from gnnrec.errors import DataError
from gnnrec.ids import Vocabulary, extend_ids, factorize_ids
from gnnrec.ingest import CodedLog, stream_log
from gnnrec.items import ItemTable, read_items
from gnnrec.tables import data_error, read_table, shown, source_name

__all__ = [
    "Columns",
    "Interactions",
    "ItemTable",
    "read_interactions",
    "read_items",
    "read_table",
]

_RESERVED = ("score", "rank", "known")


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
        n_merged_ids: Raw ids that were taken for another one.
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
    n_merged_ids: int = 0

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
        _check_columns(list(df.columns), columns, where)
        if df.empty:
            raise data_error(where, "no rows", "at least one interaction", "check its source")
        users, user_ids, n_users = factorize_ids(df, columns.user, where)
        items, item_ids, n_items = factorize_ids(df, columns.item, where)
        weights = weights_of(df, columns.weight, where) if columns.weight in df.columns else None
        times = None
        if columns.timestamp in df.columns:
            times = times_of(df, columns.timestamp, where)
        log = CodedLog(users, user_ids, items, item_ids, weights, times)
        made = cls._from_codes(log, columns, min_weight, where)
        return replace(made, n_merged_ids=n_users + n_items)

    @classmethod
    def _from_codes(
        cls, log: CodedLog, columns: Columns, min_weight: float | None, where: str
    ) -> Interactions:
        """Drop the rows of a small weight, then collapse repeated pairs."""
        users, items, weights, times = log.users, log.items, log.weights, log.timestamps
        user_ids, item_ids = log.user_ids, log.item_ids
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
        shape = len(user_ids), len(item_ids)
        users, items, weights, times = _collapse(users, items, shape, weights, times)
        return cls(
            users.astype(np.int64, copy=False),
            items.astype(np.int64, copy=False),
            user_ids,
            item_ids,
            None if weights is None else weights.astype(np.float32),
            times,
            columns,
            n_rows - len(users),
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

    A plain file is read batch by batch (`gnnrec.ingest`), any other as a whole; the result is the
    same.

    Raises:
        DataError: The file or a value in it is not usable.
    """
    columns = columns or Columns()
    log = stream_log(path, columns.user, columns.item, columns.weight, columns.timestamp)
    if log is None:
        return Interactions.from_frame(read_table(path), columns, min_weight, str(path))
    _check_columns(log.names, columns, str(path))
    return Interactions._from_codes(log, columns, min_weight, str(path))


def _check_columns(given: Sequence[Any], columns: Columns, where: str) -> None:
    if columns.user == columns.item:
        found = f"one column {columns.user!r} for users and items"
        raise data_error(where, found, "two columns", "name them with --user-column, --item-column")
    for name in (columns.user, columns.item):
        if name in _RESERVED:
            cure = "rename it: a recommendation has a column of that name"
            raise data_error(where, f"ids in a column {name!r}", "another name", cure)
    names = [str(name) for name in given]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise data_error(where, f"the column {twice!r} twice", "distinct names", "rename one")
    defaults = Columns()
    for role in ("user", "item", "timestamp", "weight"):
        wanted = getattr(columns, role)
        optional = role in ("timestamp", "weight") and wanted == getattr(defaults, role)
        if wanted in given or optional:
            continue
        lowered = {name.lower(): name for name in names}
        few = list(lowered)[:200]
        near = difflib.get_close_matches(wanted.lower(), few, n=1, cutoff=0.5) or [
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


def _collapse(
    users: np.ndarray,
    items: np.ndarray,
    shape: tuple[int, int],
    weights: np.ndarray | None,
    times: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Keep the first row of each pair, with the pair's largest weight and time. O(n_rows).

    Args:
        users: (n_rows,) codes.
        items: (n_rows,) codes.
        shape: Sizes of the two vocabularies.
        weights: (n_rows,), or None.
        times: (n_rows,), or None.
    """
    # Equal pairs become neighbours in a matrix whose entries are the numbers of their rows.
    index = np.int32 if max(*shape, len(users)) < 2**31 else np.int64
    pairs = (users.astype(index, copy=False), items.astype(index, copy=False))
    matrix = sp.coo_array((np.arange(len(users), dtype=index), pairs), shape=shape)
    matrix.has_canonical_format = True  # or tocsr would add the entries of a pair up
    matrix = matrix.tocsr()
    matrix.sort_indices()
    again = np.zeros(len(users), dtype=bool)
    np.equal(matrix.indices[1:], matrix.indices[:-1], out=again[1:])
    again[matrix.indptr[:-1][matrix.indptr[:-1] < len(users)]] = False  # another user's first item
    if not again.any():
        return users, items, weights, times
    among = again.copy()
    among[:-1] |= again[1:]
    rows = matrix.data[among]
    starts = np.flatnonzero(~again[among])
    first = np.minimum.reduceat(rows, starts)
    kept = np.ones(len(users), dtype=bool)
    kept[rows] = False
    kept[first] = True

    def largest(values: np.ndarray | None) -> np.ndarray | None:
        if values is None:
            return None
        values = values.copy()  # it may be a column of the caller's table
        values[first] = np.maximum.reduceat(values[rows], starts)
        return values[kept]

    return users[kept], items[kept], largest(weights), largest(times)
