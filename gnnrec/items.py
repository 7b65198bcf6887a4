"""The items file: which text describes each item, and the title people know it by."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gnnrec.frames import Frame, as_pandas
from gnnrec.ids import Vocabulary, factorize_ids
from gnnrec.tables import IN_PYTHON, data_error, read_table, source_name

_TITLES = ("title", "name")
_ALWAYS_TEXT = (*_TITLES, "text")  # a catalogue of books named 1984 and 2666 has numeric titles


@dataclass(frozen=True, eq=False)
class ItemTable:
    """Texts and titles of items, one row per distinct id.

    Attributes:
        item_ids: (n_items,) int64 or object of str.
        texts: n_items texts, "" where an item has none.
        titles: n_items titles, "" where an item has none.
        n_duplicates: Rows left out because their id had come before.
        columns: Names of those that the texts were made of.
    """

    item_ids: np.ndarray
    texts: list[str]
    titles: list[str]
    n_duplicates: int = 0
    columns: tuple[str, ...] = ()

    @classmethod
    def from_frame(
        cls, df: Frame, item_column: str = "item_id", where: str = IN_PYTHON
    ) -> ItemTable:
        """Make an item table of every text column, in the order of the columns. O(cells).

        Columns that hold only numbers, dates, addresses (http...) or the id again are left out. `|`
        counts as white space, and white space is collapsed. The title is the column named title or
        name, else the first text column. Of rows that share an id the first is kept.

        Raises:
            DataError: The id column is missing, or an id is missing or empty.
        """
        df = as_pandas(df, where)
        where = source_name(df, where)
        if item_column not in df.columns:
            found = "the columns " + ", ".join(map(str, df.columns))
            raise data_error(
                where,
                found,
                f"the log's item column {item_column!r}",
                "rename it, as --item-column names that of both files",
            )
        codes, ids, _ = factorize_ids(df, item_column, where)
        first = np.unique(codes, return_index=True)[1]
        kept = df.iloc[first]
        columns: dict[str, list[str]] = {}
        for name in df.columns:
            texts = None if name == item_column else _texts(kept[name], str(name).lower(), ids)
            if texts is not None:
                columns[str(name)] = texts
        empty = [""] * len(ids)
        named = [n for want in _TITLES for n in columns if n.lower() == want]
        titles = columns[named[0]] if named else next(iter(columns.values()), empty)
        rows = zip(*columns.values(), strict=True)
        joined = [" ".join(filter(None, row)) for row in rows] if columns else empty
        return cls(ids, joined, list(titles), len(df) - len(ids), tuple(columns))

    def align(self, item_ids: Iterable[Any]) -> tuple[list[str], list[str]]:
        """Return (texts, titles) in the order of `item_ids`, "" where this table lacks one.

        Ids match by their typed form or by their text: 42 finds "42" and the other way round.
        """
        codes = Vocabulary(self.item_ids).codes(item_ids).tolist()
        return (
            [self.texts[code] if code >= 0 else "" for code in codes],
            [self.titles[code] if code >= 0 else "" for code in codes],
        )


def read_items(path: str | Path, item_column: str = "item_id") -> ItemTable:
    """Read an items file in any format of `read_table`; see `ItemTable.from_frame`.

    Raises:
        DataError: The file or an id in it is not usable.
    """
    return ItemTable.from_frame(read_table(path), item_column, str(path))


def _texts(values: pd.Series, name: str, ids: np.ndarray) -> list[str] | None:
    """Return the column as text with "" for missing cells, or None where it is no text column."""
    kinds = pd.api.types
    if (kinds.is_bool_dtype(values.dtype) or kinds.is_datetime64_any_dtype(values.dtype)) or (
        kinds.is_numeric_dtype(values.dtype) and name not in _ALWAYS_TEXT
    ):
        return None
    texts = [_cell(value) for value in values.tolist()]
    filled = [text for text in texts if text]
    if not filled or all(text.startswith("http") for text in filled):
        return None
    if texts == [str(i) for i in ids.tolist()]:
        return None
    if name not in _ALWAYS_TEXT and pd.to_numeric(pd.Series(filled), errors="coerce").notna().all():
        return None
    return texts


def _cell(value: object) -> str:
    if isinstance(value, (list, tuple, np.ndarray)):  # a list of genres, from Parquet or JSON
        return " ".join(filter(None, map(_cell, value)))
    if value is None or isinstance(value, dict) or value is pd.NA or value != value:
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return " ".join(str(value).replace("|", " ").split())
