"""The columns of a log: their names, and the values in them, read cell by cell."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from gnnrec.tables import IN_PYTHON, data_error, row_number, shown

_RESERVED = ("score", "rank", "known")


@dataclass(frozen=True)
class Columns:
    """Names of the columns of a log; only user and item must be there.

    `text` is what the user wrote of the item: a review, a query, a tag, a note.
    """

    user: str = "user_id"
    item: str = "item_id"
    timestamp: str = "timestamp"
    weight: str = "weight"
    text: str = "text"

    @property
    def written(self) -> str | None:
        """The text column, or None where another role has taken the column of that name."""
        taken = (self.user, self.item, self.timestamp, self.weight)
        return None if self.text in taken else self.text


def check_columns(
    given: Sequence[Any], columns: Columns, where: str, *, may_lack: bool = False
) -> None:
    """Refuse a log whose columns are not those named.

    Args:
        given: The names of its columns.
        columns: The names wanted. A missing weight, timestamp or text column is allowed under its
            default name; under a name of your own it is an error.
        where: File or description for messages.
        may_lack: Allow those to be missing under any name.

    Raises:
        DataError: A column is missing, twice there, or wanted for two things.
    """
    if columns.user == columns.item:
        found = f"one column {columns.user!r} for users and items"
        raise data_error(where, found, "two columns", "name them with --user-column, --item-column")
    defaults = Columns()
    if columns.written is None and columns.text != defaults.text:
        found = f"the column {columns.text!r} for texts and for something else"
        raise data_error(where, found, "two columns", "name another with --text-column")
    for name in (columns.user, columns.item):
        if name in _RESERVED:
            cure = "rename it: a recommendation has a column of that name"
            raise data_error(where, f"ids in a column {name!r}", "another name", cure)
    names = [str(name) for name in given]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise data_error(where, f"the column {twice!r} twice", "distinct names", "rename one")
    missing = {
        role: wanted
        for role in ("user", "item", "timestamp", "weight", "text")
        if (wanted := getattr(columns, role)) not in given
        and (role in ("user", "item") or not (may_lack or wanted == getattr(defaults, role)))
    }
    if missing:
        expected = " and ".join(
            f"a{'n' if role == 'item' else ''} {role} column {wanted!r}"
            for role, wanted in missing.items()
        )
        near = {role: _near(role, wanted, names) for role, wanted in missing.items()}
        if where == IN_PYTHON:
            named = ", ".join(f"{role}={name or 'NAME'!r}" for role, name in near.items())
            cure = f"name it with columns=gnnrec.Columns({named})"
        else:
            options = " ".join(f"--{role}-column {name or 'NAME'}" for role, name in near.items())
            cure = f"name {'it' if len(missing) == 1 else 'them'} with {options}"
        raise data_error(where, "the columns " + ", ".join(names), expected, cure)


def _near(role: str, wanted: str, names: list[str]) -> str:
    """Return the column that a misspelt name may have meant, or nothing."""
    lowered = {name.lower(): name for name in names}
    few = list(lowered)[:200]  # of a hundred thousand columns none is near
    near = difflib.get_close_matches(wanted.lower(), few, n=1, cutoff=0.5)
    near = near or [low for low in lowered if role in low]
    return lowered[near[0]] if near else ""


def text_values(df: pd.DataFrame, column: str, where: str) -> np.ndarray:
    """Return what users wrote, (n_rows,) object of str, "" where a cell is missing or blank.

    White space is collapsed; a number is the text of it.

    Raises:
        DataError: A value is nested; the row is named.
    """
    values = df[column]
    try:
        codes, distinct = pd.factorize(values)
        nested = [isinstance(value, (tuple, bytes)) for value in distinct.tolist()]
        position = int(np.isin(codes, np.flatnonzero(nested)).argmax()) if any(nested) else None
    except TypeError:  # lists and objects cannot be told apart by their hash
        kinds = [isinstance(value, (list, dict, set, np.ndarray)) for value in values.tolist()]
        position = kinds.index(True) if True in kinds else 0
    if position is not None:
        value = values.iloc[position]
        raise data_error(
            where,
            f"a {type(value).__name__} {shown(value)}",
            "a text",
            "write it as one text or leave the column out",
            row=row_number(df, position),
            column=column,
        )
    texts = np.array([*map(text_cell, distinct.tolist()), ""], dtype=object)
    return np.asarray(texts[codes])  # a missing cell has the code -1


def text_cell(value: object) -> str:
    """Return a cell as text with single spaces."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return " ".join(str(value).split())


def join_texts(texts: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Join the distinct texts of each pair with a space, in the order of the rows. O(n_rows).

    Args:
        texts: (n_rows,) object of str.
        first: (n_rows,) the row at which the pair of each row comes first.

    Returns:
        (n_rows,) object of str, the joined text at the pair's first row.
    """
    joined = texts.copy()
    parts: dict[int, dict[str, None]] = {}
    again = (first != np.arange(len(first))) & texts.astype(bool)
    for row in np.flatnonzero(again).tolist():
        start = int(first[row])
        known = {texts[start]: None} if texts[start] else {}
        parts.setdefault(start, known)[texts[row]] = None
    for start, distinct in parts.items():
        joined[start] = " ".join(distinct)
    return joined
