"""The interaction log: tables and files in, validated integer codes and a vocabulary out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from gnnrec.cells import times_of, weights_of
from gnnrec.columns import Columns, check_columns, join_texts, text_values
from gnnrec.errors import DataError
from gnnrec.frames import Frame, as_pandas
from gnnrec.ids import Vocabulary, extend_ids, factorize_ids
from gnnrec.ingest import CodedLog, stream_log
from gnnrec.items import ItemTable, read_items
from gnnrec.tables import IN_PYTHON, data_error, read_table, shown, source_name

__all__ = [
    "Columns",
    "Interactions",
    "ItemTable",
    "read_interactions",
    "read_items",
    "read_table",
]


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
        texts: (n,) object of str, what the user wrote of the item, "" where nothing; None where
            nobody wrote anything.
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
    texts: np.ndarray | None = None
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
        df: Frame,
        columns: Columns | None = None,
        min_weight: float | None = None,
        where: str = IN_PYTHON,
        *,
        may_lack: bool = False,
    ) -> Interactions:
        """Validate a table and encode it. O(n_rows), vectorised.

        Ids: see `gnnrec.ids.factorize_ids`; ids that differ only in surrounding white space are one
        id. Vocabularies are in order of first appearance. Timestamps: numbers are seconds, or
        milli-, micro- or nanoseconds when their median says so; dates and ISO 8601 text are read as
        UTC where they name no zone. A repeated pair becomes one interaction with the latest
        timestamp and the largest weight, in the place of its first row; its distinct texts are
        joined with a space in the order of their rows.

        Args:
            df: One row per interaction; see `gnnrec.frames.as_pandas` for what is taken.
            columns: Names of its columns; see `gnnrec.columns.check_columns`.
            min_weight: Rows of a smaller weight are left out, before pairs are collapsed.
            where: File or description for messages.
            may_lack: Take it without weights, times and texts also where `columns` names them.

        Raises:
            DataError: A column is missing, a value is not usable (the row is named), or no row is
                left.
        """
        columns = columns or Columns()
        df = as_pandas(df, where, (columns.user, columns.item, columns.weight))
        where = source_name(df, where)
        check_columns(list(df.columns), columns, where, may_lack=may_lack)
        if df.empty:
            raise data_error(where, "no rows", "at least one interaction", "check its source")
        users, user_ids, n_users = factorize_ids(df, columns.user, where)
        items, item_ids, n_items = factorize_ids(df, columns.item, where)
        weights = weights_of(df, columns.weight, where) if columns.weight in df.columns else None
        times = None
        if columns.timestamp in df.columns:
            times = times_of(df, columns.timestamp, where)
        texts = None
        if columns.written in df.columns:
            texts = text_values(df, columns.text, where)
        log = CodedLog(users, user_ids, items, item_ids, weights, times, texts)
        made = cls._from_codes(log, columns, min_weight, where)
        return replace(made, n_merged_ids=n_users + n_items)

    @classmethod
    def _from_codes(
        cls, log: CodedLog, columns: Columns, min_weight: float | None, where: str
    ) -> Interactions:
        """Drop the rows of a small weight, then collapse repeated pairs."""
        users, items, weights, times = log.users, log.items, log.weights, log.timestamps
        user_ids, item_ids, texts = log.user_ids, log.item_ids, log.texts
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
                texts = None if texts is None else texts[keep]
        n_rows = len(users)
        if texts is not None and not texts.any():
            texts = None
        shape = len(user_ids), len(item_ids)
        users, items, weights, times, texts = _collapse(users, items, shape, weights, times, texts)
        return cls(
            users.astype(np.int64, copy=False),
            items.astype(np.int64, copy=False),
            user_ids,
            item_ids,
            None if weights is None else weights.astype(np.float32),
            times,
            texts,
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
            texts=None if self.texts is None else self.texts[index],
        )

    def merged(self, added: Interactions) -> Interactions:
        """Append the pairs of a log in the same codes, which may be new to this one.

        Of a pair that both have, this log's row stays; its text and the other's are joined.
        """
        users = np.concatenate([self.users, added.users])
        items = np.concatenate([self.items, added.items])
        texts = None
        pairs = users * self.n_items + items
        at, place = np.unique(pairs, return_index=True, return_inverse=True)[1:]
        if self.texts is not None or added.texts is not None:
            texts = join_texts(np.concatenate([self._all_texts, added._all_texts]), at[place])
        both = replace(
            self,
            users=users,
            items=items,
            weights=_joined(self.weights, added.weights),
            timestamps=_joined(self.timestamps, added.timestamps),
            texts=texts,
        )
        return both.select(np.sort(at))

    @property
    def n_texts(self) -> int:
        """Interactions that have a text."""
        return 0 if self.texts is None else int(self.texts.astype(bool).sum())

    @property
    def _all_texts(self) -> np.ndarray:
        return np.full(self.n_interactions, "", dtype=object) if self.texts is None else self.texts

    @cached_property
    def text_codes(self) -> tuple[np.ndarray, list[str]]:
        """(n,) int64, the number of each interaction's text or -1, and the distinct texts.

        The texts are numbered by first appearance.
        """
        texts = self._all_texts.copy()
        texts[~texts.astype(bool)] = None  # what `factorize` counts as missing
        codes, distinct = pd.factorize(texts)
        return np.asarray(codes, dtype=np.int64), distinct.tolist()

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
        if self.texts is not None or self.columns.text != Columns.text:
            data[self.columns.text] = self._all_texts  # a name of your own must be found again
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
    log = stream_log(
        path, columns.user, columns.item, columns.weight, columns.timestamp, columns.written
    )
    if log is None:
        return Interactions.from_frame(read_table(path), columns, min_weight, str(path))
    check_columns(log.names, columns, str(path))
    return Interactions._from_codes(log, columns, min_weight, str(path))


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
    texts: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None, np.ndarray | None]:
    """Keep the first row of each pair, with the pair's largest weight and time, and all its texts.

    O(n_rows).

    Args:
        users: (n_rows,) codes.
        items: (n_rows,) codes.
        shape: Sizes of the two vocabularies.
        weights: (n_rows,), or None.
        times: (n_rows,), or None.
        texts: (n_rows,) object of str, or None.
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
        return users, items, weights, times, texts
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

    if texts is not None:
        first_rows = np.arange(len(users))
        first_rows[rows] = np.repeat(first, np.diff(starts, append=len(rows)))
        texts = join_texts(texts, first_rows)[kept]
    return users[kept], items[kept], largest(weights), largest(times), texts


def _joined(first: np.ndarray | None, second: np.ndarray | None) -> np.ndarray | None:
    """Concatenate, or None where either log lacks the column."""
    return None if first is None or second is None else np.concatenate([first, second])
