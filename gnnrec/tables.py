"""Files of rows -> DataFrames, and the one-line errors that name the file, the row and the column.

CSV and TSV cells stay text, so that an id keeps its leading zeros; whoever reads a number out of a
column converts it and can then still say in which line of the file the conversion failed.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pa_parquet

from gnnrec.errors import DataError

SUFFIXES = (".csv", ".tsv", ".txt", ".dat", ".parquet", ".jsonl", ".ndjson")
IN_PYTHON = "DataFrame"  # the place of a table that is of no file
_SNIFFED = ("::", "\t", ",", ";", "|", " ")
_SOURCE = "gnnrec_source"  # key in DataFrame.attrs
_MAX_CELLS = 64  # a byte of JSON; ordinary tables have less than one
MAX_BYTES = 8 << 30  # a compressed file that grows beyond this is taken for an accident
_UNIT_SEPARATOR = b"\x1f"  # stands in for '::', since the reader knows delimiters of one byte
_MOVIELENS_HEADER = ("user_id", "item_id", "weight", "timestamp")


def data_error(
    where: str, found: str, expected: str, cure: str, row: int | None = None, column: str = ""
) -> DataError:
    """Build "WHERE, row R, column C: found ..., expected ...; cure", always one line."""
    place = where
    if row is not None:
        place += f", row {row}"
    if column:
        place += f", column {_cut(column)}"
    line = f"{place}: found {_cut(found)}, expected {_cut(expected)}; {_cut(cure)}"
    return DataError(" ".join(line.split()))


def _cut(text: str, limit: int = 400) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."


def shown(value: object, limit: int = 60) -> str:
    """Quote a value for an error message: its repr, shortened, never more than one line."""
    if isinstance(value, np.generic):
        value = value.item()  # 1.5 rather than np.float64(1.5)
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def source_name(frame: pd.DataFrame, default: str) -> str:
    """Return the file a table was read from, or `default` for a table made in memory."""
    source = frame.attrs.get(_SOURCE)
    return str(source["path"]) if source and default == IN_PYTHON else default


def row_number(frame: pd.DataFrame, position: int) -> int:
    """Return the 1-based number by which a reader finds a row again.

    Text files: the line of the file, also after blank lines and quoted line breaks, which costs one
    scan of the file. Everything else: the data row, counted from 1.

    Args:
        frame: A table, from `read_table` or not; rows may have been filtered since.
        position: 0-based position in the table as it is now.
    """
    source = frame.attrs.get(_SOURCE)
    if source is None:
        return position + 1
    label = int(frame.index[position])
    if source["kind"] == "rows":
        return label + 1
    try:
        data = _content(Path(source["path"]))
        if source["kind"] == "json":
            lines: Iterator[int] = (n for n, text in _json_lines(data) if text)
        else:
            lines = (n for n, _ in _records(data, source["delimiter"]))
            label += int(source["header"])
        return next(n for i, n in enumerate(lines) if i == label)
    except (DataError, OSError, csv.Error, UnicodeDecodeError, StopIteration):
        return label + 1  # the file has changed since; the data row is still a help


def read_table(path: str | Path, like: str | None = None) -> pd.DataFrame:
    """Read a file of rows into a DataFrame.

    Formats, by suffix: `.csv` (comma, or else semicolon or tab); `.tsv`; `.txt` and `.dat`
    (separator found from the first line: `::`, tab, comma, semicolon, `|` or space); `.parquet`;
    `.jsonl` and `.ndjson`; and any of the text formats with `.gz` after it. Text files are UTF-8, a
    byte order mark is allowed. Every cell of a delimited file stays text. A `::` file of three or
    four numeric columns needs no header: it is read as user_id, item_id, weight, timestamp, the
    layout of MovieLens' ratings.dat.

    Args:
        path: The file.
        like: A suffix to read it by instead of its own.

    Returns:
        The table. `row_number` finds the file line of each of its rows.

    Raises:
        DataError: The file is missing, empty, damaged, of an unknown format, not UTF-8, has ragged
            rows, a repeated column name, no rows, or another separator than its suffix says.
    """
    path = Path(path)
    where = str(path)
    suffix = like or table_suffix(path)
    if path.is_dir():
        raise data_error(where, "a folder", "a file", "name one file in it")
    if not path.is_file():
        raise data_error(where, "no such file", "a readable file", "check the path")
    if suffix not in SUFFIXES or (suffix == ".parquet" and path.suffix.lower() == ".gz"):
        expected = "one of " + ", ".join(SUFFIXES) + " (text also with .gz)"
        raise data_error(
            where,
            f"the suffix {path.suffix!r}",
            expected,
            "save it as CSV or Parquet, or rename it",
        )
    if suffix == ".parquet":
        frame = _read_parquet(path)
        source: dict[str, Any] = {"kind": "rows"}
    else:
        data = _content(path)
        if not data.strip():
            raise data_error(where, "an empty file", "a header and rows", "check its writer")
        if suffix in (".jsonl", ".ndjson"):
            frame, source = _read_json(where, data), {"kind": "json"}
        else:
            delimiter = separator(suffix, data)
            frame, source = _read_delimited(where, data, delimiter)
    if frame.empty:
        raise _no_rows(where)
    frame.attrs[_SOURCE] = {"path": where, **source}
    return frame


def read_text(path: Path) -> str:
    """Return a text file's content, unpacked.

    Raises:
        DataError: Missing, damaged, or not UTF-8.
    """
    if not path.is_file():
        raise data_error(str(path), "no such file", "a readable file", "check the path")
    data = _content(path)
    _check_utf8(str(path), data)
    return data.decode("utf-8")


def table_suffix(path: Path) -> str:
    """Return the suffix that tells the format, in lower case: the one before a `.gz`."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix == ".gz" else suffix


def _content(path: Path) -> bytes:
    """Return the bytes of a text file, unpacked, without a byte order mark; NUL is refused."""
    where = str(path)
    try:
        if path.suffix.lower() == ".gz":
            with gzip.open(path) as stream:
                data = stream.read(MAX_BYTES + 1)
        else:
            data = path.read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise data_error(where, f"damaged gzip data ({error})", "gzip", "write it again") from None
    except OSError as error:
        found = str(error.strerror)
        raise data_error(where, found, "a readable file", "check its rights") from None
    if len(data) > MAX_BYTES:
        raise data_error(where, "more than 8 GiB of text", "less", "convert it to Parquet")
    data = data.removeprefix(b"\xef\xbb\xbf")
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise data_error(where, "UTF-16 text", "UTF-8", "save it as UTF-8", row=1)
    nul = data.find(b"\0")
    if nul >= 0:
        row = data.count(b"\n", 0, nul) + 1
        raise data_error(where, "a NUL byte", "text", "save the file as UTF-8 text", row=row)
    return data


def _check_utf8(where: str, data: bytes) -> None:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        row = data.count(b"\n", 0, error.start) + 1
        found = f"the byte 0x{data[error.start]:02x}"
        raise data_error(where, found, "UTF-8 text", "save the file as UTF-8", row=row) from None


def separator(suffix: str, data: bytes) -> str:
    """Return the suffix's separator, or else the first known one that the first line contains.

    A .csv without a comma in its first line may have a semicolon, as spreadsheets of many countries
    write it, or a tab.
    """
    if suffix == ".tsv":
        return "\t"
    first = data.lstrip(b"\r\n").split(b"\n", 1)[0].decode("utf-8", "replace")
    if suffix == ".csv":
        return next((mark for mark in (",", ";", "\t") if mark in first), ",")
    return next((mark for mark in _SNIFFED if mark in first), ",")


def _records(data: bytes, delimiter: str, strict: bool = False) -> Iterator[tuple[int, list[str]]]:
    """Yield (file line, cells) of each record that is not blank. Python speed: errors only."""
    stream = io.TextIOWrapper(io.BytesIO(data), "utf-8", "replace", newline="")
    if delimiter == "::":
        for number, line in enumerate(stream, start=1):
            if line.strip("\r\n"):
                yield number, line.rstrip("\r\n").split("::")
        return
    csv.field_size_limit(max(csv.field_size_limit(), len(data)))  # or a long cell takes the blame
    reader = csv.reader(stream, delimiter=delimiter, strict=strict)
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise csv.Error(str(error), number) from None
        if cells is None:
            return
        if cells:
            yield number, cells


def _read_delimited(where: str, data: bytes, delimiter: str) -> tuple[pd.DataFrame, dict[str, Any]]:
    source: dict[str, Any] = {"kind": "text", "delimiter": delimiter, "header": True}
    try:
        line, cells = next(_records(data, delimiter))
    except csv.Error as error:
        raise data_error(where, error.args[0], "a header", "check the quotes", row=1) from None
    names = [cell.strip() for cell in cells]
    _check_utf8(where, "\n".join(names).encode() if "\ufffd" not in "".join(names) else data)
    if all(is_number(name) for name in names):
        if delimiter != "::" or len(names) not in (3, 4):
            found = f"numbers ({shown(', '.join(names))}) in the first line"
            raise data_error(where, found, "column names", "add a header line", row=line)
        names = list(_MOVIELENS_HEADER[: len(names)])
        data = "::".join(names).encode() + b"\n" + data
        source["header"] = False
    _check_names(where, names, delimiter, line)
    mark = delimiter
    content = data
    if delimiter == "::":
        stray = data.find(_UNIT_SEPARATOR)
        if stray >= 0:  # it would split a cell
            row = data.count(b"\n", 0, stray) + int(source["header"])
            raise data_error(where, "the byte 0x1f", "text", "take it out", row=row)
        mark, content = _UNIT_SEPARATOR.decode(), data.replace(b"::", _UNIT_SEPARATOR)
    try:
        table = pa_csv.read_csv(
            pa.BufferReader(content),
            read_options=pa_csv.ReadOptions(block_size=8 << 20),
            parse_options=pa_csv.ParseOptions(
                delimiter=mark,
                quote_char=False if delimiter == "::" else '"',
                newlines_in_values=delimiter != "::",
            ),
            convert_options=pa_csv.ConvertOptions(
                column_types={cell: pa.string() for cell in (*cells, *names)},
                strings_can_be_null=False,
            ),
        )
        if table.num_columns != len(names):  # two readers, two opinions of the first line
            raise pa.ArrowInvalid(f"{table.num_columns} columns below {len(names)} names")
    except pa.ArrowException as error:
        raise _located(where, data, delimiter, len(names), source["header"], error) from None
    if delimiter != "::" and data.count(b'"') % 2:
        _check_closed(where, data, delimiter)
    frame = table.rename_columns(names).to_pandas()
    return frame, source


def _check_closed(where: str, data: bytes, delimiter: str) -> None:
    """Refuse a quote that is open at the end: it would swallow the rows after it without a word."""
    try:
        for _ in _records(data, delimiter, strict=True):
            pass
    except csv.Error as error:
        if "end of data" in error.args[0]:
            found, cure = "a quote that is never closed", "close it, or write it twice in quotes"
            raise data_error(where, found, "closed quotes", cure, row=error.args[1]) from None


def _located(
    where: str, data: bytes, delimiter: str, width: int, header: bool, error: Exception
) -> DataError:
    """Find the row at which the fast reader gave up."""
    _check_utf8(where, data)
    cure = f"separate the cells by {shown(delimiter)} and quote a cell that contains it"
    open_quote = "look for a quote left open"
    offset = 0 if header else 1  # without a header, one was put in front
    line, first = 1, True
    try:
        for line, cells in _records(data, delimiter):
            if len(cells) != width:
                found, expected = f"{len(cells)} cells", f"{width} cells"
                return data_error(where, found, expected, cure, row=line - offset)
            first = first and line == 1
    except csv.Error as problem:
        found, row = problem.args[0], problem.args[1]
        return data_error(where, found, "rows of cells", open_quote, row=row - offset)
    if first:
        return _no_rows(where)
    return data_error(where, str(error), "rows of cells", open_quote, row=line - offset)


def _no_rows(where: str) -> DataError:
    return data_error(where, "no rows", "a header and at least one row", "check its writer")


def _check_names(where: str, names: list[str], delimiter: str, line: int) -> None:
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        found = f"the column name {shown(twice)} twice"
        raise data_error(where, found, "distinct column names", "rename one", row=line)
    other = next((mark for mark in (";", "\t", ",", "|") if mark in names[0]), None)
    if len(names) == 1 and other is not None:
        found = f"one column {shown(names[0])}"
        cure = "save it with that separator, or name the file .txt to have the separator found"
        raise data_error(where, found, f"columns separated by {shown(delimiter)}", cure, row=line)


def is_number(text: str) -> bool:
    """Whether Python reads the text as a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def _read_parquet(path: Path) -> pd.DataFrame:
    where = str(path)
    try:
        with pa_parquet.ParquetFile(path) as file:
            table = file.read().replace_schema_metadata(None)  # pandas' may not even be text
        names: list[str] = table.column_names or [""]
        if len(set(names)) == len(names):
            frame: pd.DataFrame = table.to_pandas()
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        found = f"damaged Parquet ({shown(str(error), 100)})"
        raise data_error(where, found, "a Parquet file", "write it again") from None
    _check_names(where, names, "", 1)
    return frame


def _json_lines(data: bytes) -> Iterator[tuple[int, bytes]]:
    return ((n, line.strip()) for n, line in enumerate(data.split(b"\n"), start=1))


def _read_json(where: str, data: bytes) -> pd.DataFrame:
    _check_utf8(where, data)
    records = []
    for number, text in _json_lines(data):
        if not text:
            continue
        try:
            record = json.loads(text)
            if b"\\u" in text:  # half of a surrogate pair is no text
                json.dumps(record, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:
            cure = "write one JSON object on each line"
            raise data_error(where, f"bad JSON ({error})", "JSON", cure, row=number) from None
        if not isinstance(record, dict):
            found = f"a JSON {type(record).__name__}"
            raise data_error(where, found, "a JSON object", "write one on each line", row=number)
        records.append(record)
    n_names = len({name for record in records for name in record})
    if n_names * len(records) > _MAX_CELLS * len(data):  # they would fill the memory
        found, cure = f"{n_names} different names", "leave out what is not needed"
        raise data_error(where, found, "about the same names on every line", cure)
    return pd.DataFrame.from_records(records)
