"""Raw ids of users and items -> codes, and back: what counts as one id, and how it is looked up."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from gnnrec.errors import DataError
from gnnrec.tables import data_error, row_number, shown

_EXACT = 2**53  # beyond this, neighbouring integers share one float
_NESTED = (list, dict, set, tuple, bytes, np.ndarray)


def factorize_ids(frame: pd.DataFrame, column: str, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Turn a column of raw ids into codes and a vocabulary. O(n_rows).

    Integers stay integers. Floats that are all whole become integers, because pandas makes floats
    of integers as soon as one is missing. Everything else becomes text without surrounding white
    space, so that ids which differ only in that white space, or only in being 1 or "1" in a mixed
    column, are one id.

    Args:
        frame: The table.
        column: Name of its id column.
        where: File or description for messages.

    Returns:
        codes (n_rows,) int64 and ids (n_ids,) int64 or object of str, by first appearance.

    Raises:
        DataError: An id is missing, empty, a boolean, a nested value or not finite.
    """
    values = frame[column]
    if isinstance(values.dtype, pd.CategoricalDtype):
        values = values.astype(values.cat.categories.dtype)
    expected, cure = "an id (text or integer)", "fill it in or drop the row"

    def bad(position: int, found: str) -> DataError:
        row = row_number(frame, position)
        return data_error(where, found, expected, cure, row=row, column=column)

    if pd.api.types.is_bool_dtype(values.dtype):
        raise bad(0, f"a boolean {shown(values.iloc[0])}")
    if values.dtype == object:
        for kind in values.map(type).unique():
            if issubclass(kind, (bool, np.bool_, *_NESTED)):
                position = int((values.map(type) == kind).to_numpy().argmax())
                raise bad(position, f"a {kind.__name__} {shown(values.iloc[position])}")
    try:
        codes, uniques = pd.factorize(values)
    except TypeError:  # an unhashable type not named above, or a nested Arrow type
        raise bad(0, f"a nested value {shown(values.iloc[0])}") from None
    codes = np.asarray(codes, dtype=np.int64)
    if (codes < 0).any():
        raise bad(int((codes < 0).argmax()), "no id")
    ids, problem = normalise_ids(uniques)
    if problem is not None:
        raise bad(int((codes == problem).argmax()), f"{shown(uniques[problem])}")
    merged, distinct = pd.factorize(ids)
    if len(distinct) < len(ids):
        codes, ids = np.asarray(merged, dtype=np.int64)[codes], np.asarray(distinct, dtype=object)
    return codes, ids


def normalise_ids(raw: Any) -> tuple[np.ndarray, int | None]:  # noqa: ANN401
    """Bring raw ids into their stored form.

    Returns:
        (n,) int64 or object of str, and the position of the first id that is empty, missing or not
        finite, or None where all are usable.
    """
    if not hasattr(raw, "dtype"):  # np.array would make text of [1, "a"] and floats of [1, None]
        raw = pd.Series(list(raw), dtype=object).infer_objects()
    dtype: Any = raw.dtype
    missing = np.asarray(pd.isna(raw), dtype=bool)
    if missing.any():
        return np.asarray(raw, dtype=object), int(missing.argmax())
    values = np.asarray(raw)
    if pd.api.types.is_integer_dtype(dtype):
        if values.dtype != np.uint64 or not len(values) or values.max() < 2**63:
            return values.astype(np.int64), None
    elif pd.api.types.is_float_dtype(dtype):
        values = values.astype(np.float64)
        if not np.isfinite(values).all():
            return values.astype(object), int((~np.isfinite(values)).argmax())
        if (values == np.floor(values)).all() and (np.abs(values) <= _EXACT).all():
            return values.astype(np.int64), None
        if (np.abs(values) > _EXACT).any():
            return values.astype(object), int((np.abs(values) > _EXACT).argmax())
    elif values.dtype.kind == "O" and _all_integers(values):
        return np.array([int(value) for value in values], dtype=np.int64), None
    texts = np.empty(len(values), dtype=object)
    texts[:] = [_text(value) for value in values.tolist()]
    empty = texts == ""
    return texts, int(empty.argmax()) if empty.any() else None


def _all_integers(values: np.ndarray) -> bool:
    return len(values) > 0 and all(
        isinstance(v, (int, np.integer)) and not isinstance(v, bool) and -(2**63) <= v < 2**63
        for v in values
    )


def _text(value: object) -> str:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


class Vocabulary:
    """Looks raw ids up among known ones, by their typed form and by their text.

    Args:
        ids: (n_ids,) distinct ids, int64 or object of str; the position is the code.
    """

    def __init__(self, ids: np.ndarray) -> None:
        self._typed = pd.Index(ids)
        self._texts: pd.Index | None = None

    def codes(self, raw: Iterable[Any]) -> np.ndarray:
        """Return the code of each raw id, (n,) int64, -1 where unknown. O(n) after the first call.

        42 and "42" find the integer 42 as well as the text "42"; "042" finds only the text "042".
        """
        values = raw if hasattr(raw, "dtype") else list(raw)
        wanted, problem = normalise_ids(values)
        if problem is None and wanted.dtype == np.int64 and self._typed.dtype == np.int64:
            return np.asarray(self._typed.get_indexer(pd.Index(wanted)), dtype=np.int64)
        if self._texts is None:
            self._texts = pd.Index([str(v) for v in self._typed], dtype=object)
        texts = pd.Index([_text(v) for v in wanted.tolist()], dtype=object)
        codes = np.array(self._texts.get_indexer(texts), dtype=np.int64)
        codes[np.asarray(pd.isna(wanted), dtype=bool)] = -1  # no id is not the id "nan"
        return codes


def extend_ids(ids: np.ndarray, more: Iterable[Any], where: str) -> np.ndarray:
    """Append the ids of `more` that `ids` lacks; what was there keeps its code.

    Where one side is text and the other integers, the result is text.

    Raises:
        DataError: An id of `more` is missing or empty.
    """
    values = more if hasattr(more, "dtype") else list(more)
    new, problem = normalise_ids(values)
    if problem is not None:
        raise data_error(where, shown(new[problem]), "an id", "drop it", row=problem + 1)
    new = new[Vocabulary(ids).codes(new) < 0]
    if not len(new):
        return ids
    if new.dtype != ids.dtype:
        new, ids = (np.array([str(v) for v in side], dtype=object) for side in (new, ids))
    return np.concatenate([ids, np.asarray(pd.unique(new), dtype=ids.dtype)])
