"""CSV files that grow by whole lines, so that a long job can be killed and goes on where it was."""

from __future__ import annotations

import csv
import fcntl
import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gnnrec.errors import ConfigError
from gnnrec.storage import cannot_write, whole_file

Row = dict[str, str]


class Ledger:
    """The rows of one file, in memory and on disk.

    Rows are appended in one write and forced to the disk before `append` returns. What a killed
    process left of a last line, which has no newline at its end, is dropped when the file is
    opened.

    Args:
        path: A CSV file; made, with its head, where there is none.
        columns: Its columns, in order.

    Raises:
        ConfigError: The file has other columns, or cannot be read or written.
    """

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path = path
        self.columns = tuple(columns)
        self.rows: list[Row] = []
        try:
            drop_part_line(path)
            whole = path.read_bytes() if path.is_file() else b""
        except OSError as error:
            raise cannot_write(path, error) from error
        if not whole:
            write_rows(path, self.columns, [])
            return
        head, *lines = csv.reader(io.StringIO(whole.decode("utf-8"), newline=""))
        if tuple(head) != self.columns:
            strange = next(
                (name for name in (*head, *self.columns) if (name in head) != (name in columns)),
                "another order",
            )
            raise ConfigError(
                f"{path}: its columns are not those of this version ({strange!r}); name another "
                "folder, or move the file away"
            )
        self.rows = [dict(zip(self.columns, line, strict=True)) for line in lines]

    def append(self, rows: Sequence[dict[str, Any]]) -> None:
        """Add rows, each with exactly the columns; all of them, or after a kill a first part.

        Raises:
            ConfigError: They cannot be written; the file is as it was.
        """
        texts = [{name: as_text(row[name]) for name in self.columns} for row in rows]
        if not texts:
            return
        data = _lines([list(row.values()) for row in texts]).encode("utf-8")
        try:
            with self.path.open("ab", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                try:
                    while data:
                        data = data[file.write(data) :]
                    os.fsync(file.fileno())
                except BaseException:
                    os.ftruncate(file.fileno(), size)
                    raise
        except OSError as error:
            raise cannot_write(self.path, error) from error
        self.rows.extend(texts)

    def keep(self, wanted: Callable[[Row], bool]) -> None:
        """Leave out the rows that are not wanted; the file is replaced whole, if at all."""
        kept = [row for row in self.rows if wanted(row)]
        if len(kept) == len(self.rows):
            return
        with whole_file(self.path) as path:
            lines = [self.columns, *(list(row.values()) for row in kept)]
            path.write_text(_lines(lines), encoding="utf-8")
        self.rows = kept


def drop_part_line(path: Path) -> None:
    """Cut off what a killed process left of a last line, which has no newline at its end."""
    data = path.read_bytes() if path.is_file() else b""
    if not data.endswith(b"\n") and data:
        with path.open("r+b") as file:
            file.truncate(data.rfind(b"\n") + 1)


def read_rows(path: Path) -> list[Row]:
    """Return the rows of a CSV file by column, none where there is no file."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_rows(path: Path, columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    """Write a CSV file whole, beside, then renamed."""
    with whole_file(path) as work:
        lines = [[as_text(row[name]) for name in columns] for row in rows]
        work.write_text(_lines([columns, *lines]), encoding="utf-8")


def as_text(value: Any) -> str:  # noqa: ANN401
    """Return a cell: six significant digits of a float, nothing for None, no line breaks."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    return " ".join(str(value).splitlines())


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold a folder for this process.

    Raises:
        ConfigError: Another process holds it, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("w")
    except OSError as error:
        raise cannot_write(folder, error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(
                f"{folder}: another run writes there; wait for it, or name another --out"
            ) from error
        yield


def _lines(rows: Sequence[Sequence[str]]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
