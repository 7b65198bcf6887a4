"""What is kept of a column of a plain log, batch by batch: codes of ids, numbers, seconds, texts.

A value that is not plain raises ValueError; `gnnrec.ingest` then gives the file up.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from gnnrec.cells import dates, in_seconds, numbers
from gnnrec.columns import text_cell
from gnnrec.ids import CodeBook, text_words, words_text

_MAX_DIGITS = 18  # more may not fit 64 bits


class Encoder(Protocol):
    """What takes a column in."""

    def add(self, column: pa.Array) -> None:
        """Take the column's next rows in; ValueError where one is not plain."""

    def close(self) -> None:
        """Join what was taken in; ValueError where there was none."""


class Ids:
    """Ids as codes; what an id is, `gnnrec.ids.factorize_ids` says."""

    def __init__(self) -> None:
        self._book = CodeBook()
        self._codes: list[np.ndarray] = []
        self._texts: list[np.ndarray] = []  # stays empty for integers

    def add(self, column: pa.Array) -> None:
        """See `Encoder.add`."""
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if column.null_count or not (_is_text(column) or pa.types.is_integer(column.type)):
            raise ValueError("no id, or a type of the careful way")
        if not len(column):
            return
        if not _is_text(column):
            integers = column.cast(pa.int64()).to_numpy()
            self._codes.append(self._book.encode([integers.view(np.uint64)]))
            return
        words = text_words(column)
        if words is None:
            raise ValueError("a long id, or one with a NUL")
        n_known = len(self._book)
        self._codes.append(self._book.encode(words))
        if len(self._book) > n_known:
            texts = words_text(self._book.words(n_known))
            blank = pc.any(pc.equal(texts, "")).as_py()
            if blank or not pc.utf8_trim_whitespace(texts).equals(texts):
                raise ValueError("an id to be trimmed, or a blank one")
            self._texts.append(texts.to_numpy(zero_copy_only=False))

    def close(self) -> None:
        """See `Encoder.close`."""
        self.codes = _joined(self._codes)
        self.ids = self.vocabulary()

    def take(self) -> np.ndarray:
        """Return the (n,) codes of the last rows that were taken in, and let go of them."""
        return self._codes.pop() if self._codes else np.zeros(0, dtype=np.int32)

    def vocabulary(self) -> np.ndarray:
        """(n_ids,) raw ids by code, int64 or object of str."""
        if self._texts:
            return np.concatenate(self._texts)
        return self._book.words()[0].view(np.int64).copy()


class Weights:
    """Weights as float64; the bounds are those of `Interactions.from_frame`."""

    def __init__(self) -> None:
        self._parts: list[np.ndarray] = []

    def add(self, column: pa.Array) -> None:
        """See `Encoder.add`."""
        weights = _numbers(column)
        with np.errstate(over="ignore"):
            if not (np.isfinite(weights.astype(np.float32)) & (weights >= 0)).all():
                raise ValueError("no weight")
        self._parts.append(weights)

    def close(self) -> None:
        """See `Encoder.close`."""
        self.values = _joined(self._parts)

    def take(self) -> np.ndarray:
        """Return the (n,) weights of the last rows that were taken in, and let go of them."""
        return self._parts.pop()


class Times:
    """Times as float64 seconds: all of them numbers, or all of them dates."""

    def __init__(self) -> None:
        self._parts: list[np.ndarray] = []
        self._dates: bool | None = None
        self._per_second: float | None = None

    def add(self, column: pa.Array) -> None:
        """See `Encoder.add`."""
        if pa.types.is_boolean(column.type):
            raise ValueError("no time")
        times, as_dates = _numbers(column), False
        if not np.isfinite(times).all():
            if pa.types.is_floating(column.type) or pa.types.is_decimal(column.type):
                raise ValueError("no time")
            times, as_dates = dates(_series(column)), True
        if not np.isfinite(times).all() or self._dates not in (None, as_dates):
            raise ValueError("no time, or numbers among dates")
        self._dates = as_dates
        self._parts.append(times)

    def close(self) -> None:
        """See `Encoder.close`."""
        times = _joined(self._parts)
        self.values = times if self._dates else in_seconds(times)

    def take(self) -> np.ndarray:
        """Return the (n,) times of the last rows, and let go of them.

        In seconds; of numbers the first rows' median says what they are.
        """
        times = self._parts.pop()
        if self._per_second is None:
            scaled = times if self._dates else in_seconds(times)
            first = np.flatnonzero(times)[:1]
            self._per_second = float(times[first[0]] / scaled[first[0]]) if len(first) else 1.0
        return times / self._per_second


class Texts:
    """Texts as an array of str; what a cell is, `gnnrec.columns.text_values` says."""

    def __init__(self) -> None:
        self._parts: list[np.ndarray] = []

    def add(self, column: pa.Array) -> None:
        """See `Encoder.add`."""
        if not _is_text(column):
            raise ValueError("a type of the careful way")
        distinct = column.dictionary_encode()  # most cells of a log are empty
        texts = np.array([*map(text_cell, distinct.dictionary.to_pylist()), ""], dtype=object)
        self._parts.append(texts[distinct.indices.fill_null(-1).to_numpy(zero_copy_only=False)])

    def close(self) -> None:
        """See `Encoder.close`."""
        self.values = _joined(self._parts)


def _numbers(column: pa.Array) -> np.ndarray:
    """(n,) float64, NaN where a cell is not a number: `gnnrec.cells.numbers`, fast for text."""
    if column.null_count or pa.types.is_dictionary(column.type):
        raise ValueError("no number, or a type of the careful way")
    if not _is_text(column):
        return numbers(_series(column))
    longest = pc.max(pc.binary_length(column)).as_py() or 0
    if longest <= _MAX_DIGITS and pc.all(pc.ascii_is_decimal(column)).as_py():
        integers: np.ndarray = column.cast(pa.int64()).to_numpy()
        return integers.astype(np.float64)
    distinct = column.dictionary_encode()  # numbers that are not whole often repeat: 4.5, 3.5
    parsed: np.ndarray = numbers(_series(distinct.dictionary))[distinct.indices.to_numpy()]
    return parsed


def _series(column: pa.Array) -> pd.Series:
    """The column as `gnnrec.tables.read_table` would hand it on."""
    frame: pd.DataFrame = pa.table({"": column}).to_pandas(ignore_metadata=True)
    return frame[""]


def _is_text(column: pa.Array) -> bool:
    return bool(pa.types.is_string(column.type) or pa.types.is_large_string(column.type))


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    """Concatenate, and let go of the parts; ValueError where there is none."""
    joined = np.concatenate(parts)
    parts.clear()
    return joined
