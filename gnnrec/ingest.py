"""A plain log file -> codes, batch by batch: the fast way in, for files that need no explaining.

Only the columns asked for are held, as codes and numbers. Whatever is not plain (a missing or blank
cell, an id to be trimmed, a number that is none, a damaged file, an unknown type) ends this way
without a word: `gnnrec.tables.read_table` then reads the file from its start, and accepts or
explains it.
"""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pa_parquet

from gnnrec.columns import Columns, check_columns
from gnnrec.encode_columns import Encoder, Ids, Texts, Times, Weights
from gnnrec.errors import DataError
from gnnrec.tables import MAX_BYTES, SUFFIXES, is_number, separator, table_suffix

_BATCH_ROWS = 2**17  # enough for array operations, and the arrays still fit the processor's cache
_BATCH_BYTES = 2**21
_AHEAD = 3  # batches that may wait for a column's thread

# Given the names of the columns wanted, yields their arrays, batch by batch, in that order.
_Batches = Callable[[list[str]], Iterator[list[pa.Array]]]


@dataclass(frozen=True, eq=False)
class CodedLog:
    """The rows of a log as codes, in the order of the file, repeated pairs included.

    Attributes:
        users: (n_rows,) integer codes, by first appearance.
        user_ids: (n_users,) raw ids by code, int64 or object of str.
        items: (n_rows,) integer codes, by first appearance.
        item_ids: (n_items,) raw ids by code, int64 or object of str.
        weights: (n_rows,) float64, or None where the log has none.
        timestamps: (n_rows,) float64 seconds since 1970 UTC, or None where the log has none.
        texts: (n_rows,) object of str, "" without, or None where the log has no such column.
        names: The names of all columns of the file.
    """

    users: np.ndarray
    user_ids: np.ndarray
    items: np.ndarray
    item_ids: np.ndarray
    weights: np.ndarray | None = None
    timestamps: np.ndarray | None = None
    texts: np.ndarray | None = None
    names: tuple[str, ...] = ()


def stream_log(
    path: str | Path,
    user: str,
    item: str,
    weight: str | None = None,
    timestamp: str | None = None,
    text: str | None = None,
) -> CodedLog | None:
    """Read a plain log without ever holding its table; codes are int32. O(n_rows).

    Parquet, and text with a separator of one byte, also packed by gzip. One thread reads, and each
    column is encoded in a thread of its own. Memory: 4 bytes per row for a column of ids and 8 for
    another, twice that for a moment at the end, the distinct ids, and the texts.

    Args:
        path: The file.
        user: Name of the column of user ids.
        item: Name of the column of item ids.
        weight: Name of the column of weights; the file may lack it.
        timestamp: Name of the column of times; the file may lack it.
        text: Name of the column of texts; the file may lack it.

    Returns:
        What validation of `read_table(path)` would come to, or None where the file is not plain.
    """
    roles = [name for name in (user, item, weight, timestamp, text) if name is not None]
    if len(set(roles)) < len(roles):
        return None
    users, items, weights, times, texts = Ids(), Ids(), Weights(), Times(), Texts()
    encoders: dict[str | None, Encoder] = {
        user: users,
        item: items,
        weight: weights,
        timestamp: times,
        text: texts,
    }
    try:
        with ExitStack() as stack:
            names, batches = _open(Path(path), stack)
            wanted = [name for name in roles if name in names or name in (user, item)]
            _feed(batches(wanted), [encoders[name] for name in wanted])
    except (ValueError, KeyError, OSError, EOFError, zlib.error, pa.ArrowException):
        return None  # not plain
    return CodedLog(
        users.codes,
        users.ids,
        items.codes,
        items.ids,
        weights.values if weight in wanted else None,
        times.values if timestamp in wanted else None,
        texts.values if text in wanted else None,
        tuple(names),
    )


class LogReader:
    """Reads plain logs of the same columns one after the other, and keeps the distinct ids alone.

    Args:
        user: Name of the column of user ids.
        item: Name of the column of item ids.
        weight: Name of the column of weights, which then has to be there; None reads none.
        timestamp: Name of the column of times; a file may lack it.
    """

    def __init__(self, user: str, item: str, weight: str | None, timestamp: str) -> None:
        self.names = (user, item, weight, timestamp)
        self.users, self.items, self.weights, self.times = Ids(), Ids(), Weights(), Times()

    def read(
        self, path: Path
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None]]:
        """Yield (users, items, weights, times) of the next rows: int32 codes, float64, or None.

        Raises:
            DataError: The file is not plain, or lacks a column.
        """
        user, item, weight, timestamp = self.names
        try:
            with ExitStack() as stack:
                names, batches = _open(path, stack)
                columns = Columns(user, item, timestamp, weight or Columns.weight)
                check_columns(names, columns, str(path))
                if weight is not None and weight not in names:
                    raise DataError(
                        f"{path}: found a minimum weight and no column {weight!r}, expected one; "
                        "name it with --weight-column or leave --min-weight out"
                    )
                encoders: dict[str | None, Ids | Weights | Times] = {
                    user: self.users,
                    item: self.items,
                    weight: self.weights,
                    timestamp: self.times,
                }
                wanted = [name for name in self.names if name is not None and name in names]
                pool = stack.enter_context(ThreadPoolExecutor(len(wanted)))
                for batch in batches(wanted):
                    chosen = [encoders[name] for name in wanted]
                    list(pool.map(lambda pair: pair[0].add(pair[1]), zip(chosen, batch)))  # noqa: B905
                    found = dict(zip(wanted, (e.take() for e in chosen), strict=True))
                    yield found[user], found[item], found.get(str(weight)), found.get(timestamp)
        except (ValueError, KeyError, OSError, EOFError, zlib.error, pa.ArrowException) as error:
            raise DataError(
                f"{path}: found a file that cannot be read batch by batch ({error}), expected a "
                "plain one; gnnrec data check says what is wrong with it"
            ) from error


def _feed(batches: Iterator[list[pa.Array]], encoders: list[Encoder]) -> None:
    """Give each encoder its column of every batch, in order and in a thread of its own."""
    waiting: deque[list[Future[None]]] = deque()

    def finish() -> None:
        for part in waiting.popleft():
            part.result()

    with ExitStack() as stack:
        threads = [stack.enter_context(ThreadPoolExecutor(1)) for _ in encoders]
        for batch in batches:
            parts = zip(threads, encoders, batch, strict=True)
            waiting.append([thread.submit(each.add, column) for thread, each, column in parts])
            if len(waiting) > _AHEAD:
                finish()
        ends = zip(threads, encoders, strict=True)
        waiting.append([thread.submit(each.close) for thread, each in ends])
        while waiting:
            finish()


# Sources: the names of a file's columns, and their arrays batch by batch.


def _open(path: Path, stack: ExitStack) -> tuple[list[str], _Batches]:
    suffix, packed = table_suffix(path), path.suffix.lower() == ".gz"
    if suffix not in SUFFIXES or suffix in (".jsonl", ".ndjson"):
        raise ValueError("a format of the careful way")
    if suffix == ".parquet":
        return _open_parquet(path, stack)
    streams = [
        cast(BinaryIO, stack.enter_context(gzip.open(path) if packed else path.open("rb")))
        for _ in range(2)
    ]
    names, cells, mark = _header(streams[0].read(_BATCH_BYTES), suffix)
    text = _Text(streams[1], MAX_BYTES if packed else None)

    def batches(wanted: list[str]) -> Iterator[list[pa.Array]]:
        chosen = [cells[names.index(name)] for name in wanted]
        reader = pa_csv.open_csv(
            text,
            read_options=pa_csv.ReadOptions(block_size=_BATCH_BYTES),
            parse_options=pa_csv.ParseOptions(delimiter=mark, newlines_in_values=True),
            convert_options=pa_csv.ConvertOptions(
                include_columns=chosen,
                column_types=dict.fromkeys(chosen, pa.string()),
                strings_can_be_null=False,
            ),
        )
        for batch in stack.enter_context(reader):
            yield batch.columns
        text.finish()

    return names, batches


def _open_parquet(path: Path, stack: ExitStack) -> tuple[list[str], _Batches]:
    file = stack.enter_context(pa_parquet.ParquetFile(path, memory_map=True))
    names = list(file.schema_arrow.names)
    if len(set(names)) < len(names):
        raise ValueError("a repeated column name")

    def batches(wanted: list[str]) -> Iterator[list[pa.Array]]:
        for batch in file.iter_batches(_BATCH_ROWS, columns=wanted):
            yield [batch.column(name) for name in wanted]

    return names, batches


def _header(first: bytes, suffix: str) -> tuple[list[str], list[str], str]:
    """Return the names of the columns, as they stand in the file too, and the separator."""
    head, line_break, _ = first.removeprefix(codecs.BOM_UTF8).partition(b"\n")
    mark = separator(suffix, head)
    cells = head.decode("utf-8").removesuffix("\r").split(mark)
    names = [cell.strip() for cell in cells]
    if (
        not line_break
        or len(mark) > 1
        or len(set(names)) < len(names)
        or any(sign in cell for sign in '"\r' for cell in cells)
        or all(is_number(name) for name in names)
    ):
        raise ValueError("not a plain header")
    return names, cells, mark


class _Text(io.RawIOBase):
    """A stream that ends with ValueError at a NUL, at bytes that are not UTF-8, at an open quote.

    Args:
        stream: The file.
        limit: Bytes after which it is given up.
    """

    def __init__(self, stream: BinaryIO, limit: int | None) -> None:
        self._stream = stream
        self._left = limit
        self._quotes = 0
        self._utf8 = codecs.getincrementaldecoder("utf-8")()

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        if b'"' in data:  # much faster than to count what is not there
            self._quotes += data.count(b'"')
        if not data.isascii() or self._utf8.getstate()[0]:
            self._utf8.decode(data)
        if self._left is not None:
            self._left -= len(data)
        if b"\0" in data or (self._left is not None and self._left < 0):
            raise ValueError("a NUL, or too much")
        return data

    def finish(self) -> None:
        """Check what can be known only at the end of the file."""
        self._utf8.decode(b"", final=True)
        if self._quotes % 2:
            raise ValueError("an open quote, or one inside a cell")
