"""Raw ids of users and items -> codes, and back: what counts as one id, and how it is looked up."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from gnnrec.errors import DataError
from gnnrec.tables import data_error, row_number, shown

_EXACT = 2**53  # beyond this, neighbouring integers share one float
_BUILDING = threading.Lock()
_NESTED = (list, dict, set, tuple, bytes, np.ndarray)
# Odd constants, with as many ones as zeros, of the mixing function (multiply, shift, multiply).
_MIX, _STEP = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)
_HALF = np.uint64(32)
_FIRST_BYTES = np.array([(1 << 8 * n) - 1 for n in range(9)], dtype=np.uint64)


def factorize_ids(
    frame: pd.DataFrame, column: str, where: str
) -> tuple[np.ndarray, np.ndarray, int]:
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
        codes (n_rows,) int64 and ids (n_ids,) int64 or object of str, by first appearance; and how
        many raw ids were taken for another one.

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
    n_merged = len(ids) - len(distinct)
    if n_merged:
        codes, ids = np.asarray(merged, dtype=np.int64)[codes], np.asarray(distinct, dtype=object)
    return codes, ids, n_merged


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
        self._hashed = False

    def _ready(self, wants_text: bool) -> None:
        """Build the tables before the first look-up.

        pandas fills them while it answers, which two threads must not do at once.
        """
        if self._hashed if not wants_text else self._texts is not None:
            return
        with _BUILDING:
            if wants_text:
                texts = pd.Index([str(v) for v in self._typed], dtype=object)
                texts.get_indexer(texts[:1])
                self._texts = texts
            else:
                self._typed.get_indexer(self._typed[:1])
                self._hashed = True

    def codes(self, raw: Iterable[Any]) -> np.ndarray:
        """Return the code of each raw id, (n,) int64, -1 where unknown. O(n) after the first call.

        42 and "42" find the integer 42 as well as the text "42"; "042" finds only the text "042".
        """
        values = raw if hasattr(raw, "dtype") else list(raw)
        if isinstance(values, list) and values and all(type(value) is str for value in values):
            # What a request sends: as below, without the tenfold cost of finding out the type.
            return self._by_text([value.strip() for value in values])
        wanted, problem = normalise_ids(values)
        if problem is None and wanted.dtype == np.int64 and self._typed.dtype == np.int64:
            self._ready(wants_text=False)
            return np.asarray(self._typed.get_indexer(pd.Index(wanted)), dtype=np.int64)
        codes = self._by_text([_text(v) for v in wanted.tolist()])
        codes[np.asarray(pd.isna(wanted), dtype=bool)] = -1  # no id is not the id "nan"
        return codes

    def _by_text(self, texts: list[str]) -> np.ndarray:
        self._ready(wants_text=True)
        assert self._texts is not None
        return np.array(self._texts.get_indexer(pd.Index(texts, dtype=object)), dtype=np.int64)


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


class CodeBook:
    """Codes for ids that come in batches: 0, 1, 2, ... by first appearance.

    An id is a row of 64-bit words: an integer is one word, for text see `text_words`. The words
    are kept and compared, so that codes are exact whatever the hash does. Each step of a probe of
    the hash table is one array operation over the whole batch: the cache misses of many rows then
    overlap, and other threads run meanwhile. A word that all ids have in common, such as the
    beginning of user_0001, is checked and otherwise left out.

    Memory: 8 bytes a word and 16 to 64 bytes of table for each distinct id, of which there may be
    2^31 - 1.
    """

    def __init__(self) -> None:
        self._common: list[np.uint64 | None] = [None]  # by word: what all ids have, or None
        self._stored = [0]  # the words that differ
        self._words = [np.zeros(2**10, dtype=np.uint64)]  # of the stored words, by code
        self._size = 0
        self._table = np.full(2**12, -1, dtype=np.int32)  # slot -> code, -1 where free

    def __len__(self) -> int:
        """Return the number of distinct ids so far."""
        return self._size

    def words(self, start: int = 0) -> list[np.ndarray]:
        """Return the words of the ids of code `start` and above, each (n_ids - start,) uint64."""
        columns = [np.full(self._size - start, value or 0, np.uint64) for value in self._common]
        for word, column in zip(self._stored, self._words, strict=True):
            columns[word] = column[start : self._size]
        return columns

    def encode(self, words: list[np.ndarray]) -> np.ndarray:
        """Return the code of each row, (n,) int32; ids not seen before get the next codes. O(n).

        Args:
            words: Arrays (n,) uint64, n > 0. Words that one batch has and another lacks are zero.
        """
        lacking = len(self._common) - len(words)
        words = words + [np.zeros(len(words[0]), dtype=np.uint64)] * lacking
        for column in words[len(self._common) :]:
            self._common.append(np.uint64(0) if self._size else column[0])
        for word, (value, column) in enumerate(zip(self._common, words, strict=True)):
            if value is not None and (column != value).any():
                self._store(word)
        words = [words[word] for word in self._stored]
        slots = self._slots(words)
        codes: np.ndarray = self._table.take(slots, mode="clip")
        rows = np.flatnonzero(~self._equal(codes, words))
        if len(rows):
            words = [column[rows] for column in words]
            codes[rows] = self._probe(codes[rows], slots[rows], words)
        return codes

    def _store(self, word: int) -> None:
        """Tell ids apart by a word that had been common to all."""
        self._words.append(np.full_like(self._words[0], self._common[word]))
        self._stored.append(word)
        self._common[word] = None
        self._table.fill(-1)
        self._place(0)

    def _slots(self, words: list[np.ndarray]) -> np.ndarray:
        hashes = _hashes(words)
        hashes >>= np.uint64(65 - len(self._table).bit_length())
        return hashes.view(np.int64)

    def _equal(self, codes: np.ndarray, words: list[np.ndarray]) -> np.ndarray:
        equal = codes >= 0
        for mine, theirs in zip(self._words, words, strict=True):
            equal &= mine.take(codes, mode="clip") == theirs
        return equal

    def _probe(self, codes: np.ndarray, slots: np.ndarray, words: list[np.ndarray]) -> np.ndarray:
        """Finish the rows whose first slot is free (code -1) or holds another id."""
        rows = np.flatnonzero(codes >= 0)
        while len(rows):
            slots[rows] = (slots[rows] + 1) & (len(self._table) - 1)
            found = self._table[slots[rows]]
            codes[rows] = found
            equal = self._equal(found, [column[rows] for column in words])
            rows = rows[~equal & (found >= 0)]
        rows = np.flatnonzero(codes < 0)
        if len(rows):
            groups, first = _groups([column[rows] for column in words])
            codes[rows] = groups + self._size
            self._add([column[rows[first]] for column in words])
        return codes

    def _add(self, words: list[np.ndarray]) -> None:
        start, self._size = self._size, self._size + len(words[0])
        if self._size > len(self._words[0]):
            room = np.zeros(max(self._size, 2 * start) - start, dtype=np.uint64)
            self._words = [np.concatenate([column[:start], room]) for column in self._words]
        for mine, new in zip(self._words, words, strict=True):
            mine[start : self._size] = new
        if 4 * self._size > len(self._table):  # short probes matter more than a small table
            self._table = np.full(2 ** (8 * self._size).bit_length(), -1, dtype=np.int32)
            start = 0
        self._place(start)

    def _place(self, start: int) -> None:
        """Enter the ids of code `start` and above into the table."""
        codes = np.arange(start, self._size, dtype=np.int32)
        slots = self._slots([column[start : self._size] for column in self._words])
        while len(codes):
            free = self._table[slots] < 0
            # Of several codes for one slot the last written stays: the lowest, as early ids recur.
            self._table[slots[free][::-1]] = codes[free][::-1]
            left = self._table[slots] != codes
            codes, slots = codes[left], (slots[left] + 1) & (len(self._table) - 1)


def _hashes(words: list[np.ndarray]) -> np.ndarray:
    """(n,) uint64."""
    factors = np.cumprod(np.full(len(words), _MIX))
    hashes: np.ndarray = words[0] * factors[0]
    for column, factor in zip(words[1:], factors[1:], strict=True):
        hashes += column * factor
    hashes ^= hashes >> _HALF
    hashes *= _STEP
    return hashes


def _groups(words: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Group equal rows: (n,) group numbers and (n_groups,) first rows, by first appearance."""
    groups, first = _by_first(words[0] if len(words) == 1 else _hashes(words))
    if not all((column[first][groups] == column).all() for column in words):
        return _by_first(pd.MultiIndex.from_arrays(words))  # two ids share a hash
    return groups, first


def _by_first(keys: np.ndarray | pd.MultiIndex) -> tuple[np.ndarray, np.ndarray]:
    groups, distinct = pd.factorize(keys)
    first = np.empty(len(distinct), dtype=np.int64)
    first[groups[::-1]] = np.arange(len(groups))[::-1]  # the last write is the first row
    return groups, first


def text_words(texts: pa.Array, max_bytes: int = 128) -> list[np.ndarray] | None:
    """Cut each text into words of eight UTF-8 bytes, beginning at its end.

    What is before its first byte is zero. From the end, since ids that count up or carry a
    beginning in common then differ in few words.

    Args:
        texts: (n,) string or large_string without nulls, n > 0.
        max_bytes: Length up to which this is done.

    Returns:
        Arrays (n,) uint64, at least one; or None where a text is longer, or has a NUL, which could
        not be told from the filling.
    """
    kind = np.int64 if pa.types.is_large_string(texts.type) else np.int32
    _, offsets, data = texts.buffers()
    ends = np.frombuffer(offsets, dtype=kind)[texts.offset : texts.offset + len(texts) + 1]
    lengths = np.diff(ends)
    longest = int(lengths.max())
    if longest > max_bytes:
        return None
    used = np.frombuffer(data or b"", dtype=np.uint8)[int(ends[0]) : int(ends[-1])]
    if np.count_nonzero(used) < len(used):
        return None
    padded = np.concatenate([used, np.zeros(8, dtype=np.uint8)])
    # At every byte a word starts: a view, eight times the size of what it looks at.
    at = np.ndarray((len(padded) - 7,), "<u8", padded, strides=(1,))
    words = []
    if longest and longest * len(texts) == len(used):  # all of one length: no need to gather
        for end in range(longest, 0, -8):
            words.append(at[max(0, end - 8) :: longest][: len(texts)].astype(np.uint64))
            words[-1] &= _FIRST_BYTES[min(8, end)]
        return words
    starts = (ends[:-1] - ends[0]).astype(np.int64)
    for after in range(0, max(1, longest), 8):
        left = np.maximum(lengths - after, 0)
        words.append(at[starts + np.maximum(left - 8, 0)].astype(np.uint64))
        words[-1] &= _FIRST_BYTES[np.minimum(left, 8)]
    return words


def words_text(words: list[np.ndarray]) -> pa.Array:
    """Put the texts of `text_words` together again: (n,) string.

    Raises:
        pyarrow.ArrowInvalid: One is not UTF-8.
    """
    table = np.stack(words[::-1], axis=1).astype("<u8").view(np.uint8)
    filled = table != 0
    offsets = np.concatenate([[0], np.cumsum(filled.sum(axis=1))]).astype(np.int32)
    buffers = pa.py_buffer(offsets), pa.py_buffer(table[filled])
    texts = pa.StringArray.from_buffers(len(table), *buffers)
    texts.validate(full=True)
    return texts
