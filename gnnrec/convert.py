"""Logs and item tables in other libraries' layouts, read and written."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import scipy.sparse as sp

from gnnrec.errors import ConfigError
from gnnrec.interactions import Columns, Interactions
from gnnrec.storage import whole_file
from gnnrec.tables import data_error, is_number, read_table, read_text, shown

Layout = Literal["gnnrec", "recbole", "movielens", "lenskit", "surprise", "implicit"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
_MAX_SIDE = 10**8  # users or items
# What scipy, numpy and zipfile raise on bytes that are no matrix.
_NO_MATRIX = (
    OSError,
    ValueError,
    KeyError,
    EOFError,
    TypeError,
    AttributeError,
    IndexError,
    SyntaxError,
    MemoryError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)
COLUMNS = ("user_id", "item_id", "weight", "timestamp")
_RECBOLE = {"user_id": "token", "item_id": "token", "weight": "float", "timestamp": "float"}
_RATING = {"rating": "weight", "user": "user_id", "item": "item_id"}  # other libraries' names
_TOKEN_TYPES = ("token", "token_seq", "float", "float_seq")


@dataclass(frozen=True)
class _Text:
    """A delimited layout: separator, header or not, what it may lack."""

    separator: str
    header: bool
    needs: tuple[str, ...]


_WRITTEN = {
    "movielens": _Text("::", False, ("weight", "timestamp")),
    "lenskit": _Text(",", True, ()),
    "surprise": _Text("\t", False, ("weight",)),
    "recbole": _Text("\t", True, ()),
}
_SUFFIXES = {
    "gnnrec": (".csv", ".tsv", ".parquet", ".jsonl"),
    "recbole": (".inter",),
    "implicit": (".npz",),
    "lenskit": (".csv",),
}


def convert(
    file: Path,
    out: Path,
    to: str,
    from_: str = "auto",
    *,
    items: Path | None = None,
    items_out: Path | None = None,
    columns: Columns | None = None,
) -> dict[str, Any]:
    """Read a log, and its items table if there is one, in one layout and write it in another.

    Args:
        file: The log.
        out: Where it goes.
        to: One of `LAYOUTS`.
        from_: One of `LAYOUTS`, or auto (`guess_layout`).
        items: Items table, in the layout of the log.
        items_out: Where it goes.
        columns: Column names of a file in gnnrec's own layout.

    Returns:
        The layouts, the files, the number of rows, and what the log has beside the pairs.

    Raises:
        ConfigError: An unknown layout, or one that cannot hold the log.
        DataError: A file is not usable.
    """
    for option, name in (("--to", to), ("--from", from_)):
        if name not in (*LAYOUTS, *(("auto",) if option == "--from" else ())):
            raise ConfigError(f"{option} {name}: expected one of {', '.join(LAYOUTS)}")
    if (items is None) != (items_out is None):
        raise ConfigError("--items and --items-out go together; give both or neither")
    source = guess_layout(file) if from_ == "auto" else from_
    frame = read_layout(file, source, columns)  # type: ignore[arg-type]
    done = {"from": source, "to": to, "out": str(out), "n_rows": len(frame)}
    done["columns"] = ", ".join(map(str, frame.columns))
    if items is None or items_out is None:
        write_layout(frame, out, to)  # type: ignore[arg-type]
        return done
    table = read_items_layout(items, source)  # type: ignore[arg-type]
    with whole_file(items_out) as work:  # both files or none
        _put_items(table, work, items_out, to)
        write_layout(frame, out, to)  # type: ignore[arg-type]
    return done | {"items_out": str(items_out), "n_items_in_table": len(table)}


def guess_layout(path: Path) -> Layout:
    """Return the layout that a file's name, or else its first line, speaks for.

    Raises:
        DataError: It cannot be read.
    """
    if path.suffix in (".inter", ".item"):
        return "recbole"
    if path.suffix == ".npz":
        return "implicit"
    if not path.is_file():
        raise data_error(str(path), "no such file", "a readable file", "check the path")
    if path.suffix.lower() in (".parquet", ".jsonl", ".ndjson", ".gz"):
        return "gnnrec"
    first = path.open("rb").readline(1 << 16).decode("utf-8", "replace").strip("\ufeff\r\n")
    if "::" in first:
        return "movielens"
    cells = first.replace(",", "\t").split("\t")
    if len(cells) in (3, 4) and is_number(cells[2]):
        return "surprise"
    return "gnnrec"


def read_layout(path: Path, layout: Layout, columns: Columns | None = None) -> pd.DataFrame:
    """Read a log: one row per interaction, in the file's order, repeated pairs kept.

    - gnnrec: any file of `gnnrec.tables.read_table`, with the given column names;
    - recbole: an atomic file `.inter`, a header of name:type and tabs;
    - movielens: `user::item::rating::timestamp` without a header;
    - lenskit: CSV with a header: user_id (or user), item_id (or item), rating, timestamp;
    - surprise: `user item rating [timestamp]` by tab, comma or space, without a header;
    - implicit: a scipy CSR matrix of users x items in `.npz`; ids are those in `NAME.users.csv` and
      `NAME.items.csv` beside it, or else the row and column numbers.

    Returns:
        Columns user_id, item_id and, where the file has them, weight and timestamp.

    Raises:
        DataError: The file is not usable, or not in that layout.
    """
    columns = columns or Columns()
    readers: dict[str, Callable[[Path], pd.DataFrame]] = {
        "recbole": _read_recbole,
        "movielens": _headless,
        "surprise": _headless,
        "implicit": _read_matrix,
    }
    frame = readers[layout](path) if layout in readers else read_table(path)
    names = {columns.user: "user_id", columns.item: "item_id"}
    names |= {columns.weight: "weight", columns.timestamp: "timestamp"}
    if layout in ("lenskit", "recbole"):
        names = {n: to for n, to in _RATING.items() if n in frame and to not in frame} | names
    frame = frame.rename(columns={name: to for name, to in names.items() if name in frame})
    # Says what is wrong with a value, and in which row; the rows themselves stay as they are.
    Interactions.from_frame(frame, Columns(), None, str(path))
    return frame[[name for name in COLUMNS if name in frame]]


def write_layout(frame: pd.DataFrame, path: Path, layout: Layout) -> None:
    """Write a log that `read_layout` returned, whole.

    movielens and surprise have a rating in every row and movielens a timestamp too: a log without
    weights gets ones, and one without times cannot be written so. implicit adds repeated pairs up
    and has no times. With weights of one a round trip is the same log; so it is but for that.

    Raises:
        ConfigError: The layout cannot hold the log, or the file's suffix is not the layout's.
    """
    wanted = _SUFFIXES.get(layout)
    if wanted and path.suffix not in wanted:
        raise ConfigError(
            f"--out {path}: found the suffix {path.suffix!r}, expected {' or '.join(wanted)} for "
            f"{layout}; rename it"
        )
    if layout == "implicit":
        _write_matrix(frame, path)
        return
    if layout == "gnnrec":
        _write_own(frame, path)
        return
    style = _WRITTEN[layout]
    if "timestamp" in style.needs and "timestamp" not in frame:
        raise ConfigError(
            f"--to {layout}: found no timestamps, expected one in every row of that layout; choose "
            "another layout"
        )
    if "weight" in style.needs and "weight" not in frame:
        frame = frame.assign(weight=1)
    frame = frame[[name for name in COLUMNS if name in frame]]
    lines = [style.separator.join(_header(frame, layout))] if style.header else []
    cells = [_plain(frame[name], style.separator, layout, str(name)) for name in frame]
    lines += map(style.separator.join, zip(*cells, strict=True))
    with whole_file(path) as work:
        work.write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_items_layout(path: Path, layout: Layout) -> pd.DataFrame:
    """Read an items table: recbole's `.item`, MovieLens' `item::title::genres`, or any table.

    Raises:
        DataError: The file is not usable.
    """
    if layout == "recbole":
        return _read_recbole(path)
    frame = read_table(path, ".dat" if layout == "movielens" else None)
    if layout == "movielens" and "item_id" not in frame.columns:
        first = pd.DataFrame([list(frame.columns)], columns=frame.columns)
        frame = pd.concat([first, frame], ignore_index=True)
        names = ("item_id", "title", "genres")
        frame.columns = pd.Index([*names[: frame.shape[1]], *map(str, range(3, frame.shape[1]))])
    return frame


def _put_items(frame: pd.DataFrame, work: Path, path: Path, layout: str) -> None:
    """Write an items table: recbole's `.item`, or any other by the suffix of `path`."""
    if layout != "recbole":
        _put(frame, work, path)
        return
    if path.suffix != ".item":
        raise ConfigError(
            f"--items-out {path}: found the suffix {path.suffix!r}, expected .item; rename it"
        )
    names = [f"{n}:token" if n == "item_id" else f"{n}:token_seq" for n in map(str, frame.columns)]
    cells = [_plain(frame[name], "\t", layout, str(name)) for name in frame]
    lines = ["\t".join(names), *map("\t".join, zip(*cells, strict=True))]
    work.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _read_recbole(path: Path) -> pd.DataFrame:
    frame = read_table(path, ".tsv")
    names = {}
    for name in map(str, frame.columns):
        bare, colon, kind = name.rpartition(":")
        if not colon or kind not in _TOKEN_TYPES:
            raise data_error(
                str(path),
                f"the column {shown(name)}",
                "name:type with one of the types " + ", ".join(_TOKEN_TYPES),
                "name the right --from",
                row=1,
            )
        names[name] = bare
    return frame.rename(columns=names)


def _headless(path: Path) -> pd.DataFrame:
    """Read `user item rating [timestamp]` by `::`, tab, comma or space."""
    text = read_text(path)
    first = text.lstrip().split("\n", 1)[0]
    mark = next((m for m in ("::", "\t", ",", " ") if m in first), "\t")
    lines = [(n, line) for n, line in enumerate(text.split("\n"), start=1) if line.strip()]
    rows = [line.rstrip("\r").split(mark) for _, line in lines]
    if not rows:
        raise data_error(str(path), "no rows", "user item rating [timestamp]", "check the path")
    width = len(rows[0])
    if width not in (3, 4):
        found = f"{width} columns"
        raise data_error(str(path), found, "3 or 4: user item rating [timestamp]", "check it", 1)
    for (number, _), row in zip(lines, rows, strict=True):
        if len(row) != width:
            raise data_error(
                str(path),
                f"{len(row)} columns",
                f"{width} as in row {lines[0][0]}",
                "correct the row",
                number,
            )
    return pd.DataFrame(rows, columns=list(COLUMNS[:width]))


def _read_matrix(path: Path) -> pd.DataFrame:
    try:
        loaded = sp.load_npz(path)
        if max(loaded.shape) > _MAX_SIDE:
            raise ValueError(f"a side of {max(loaded.shape)}")
        if hasattr(loaded, "check_format"):  # before compiled code follows its indices
            loaded.check_format(full_check=True)
        matrix = sp.csr_array(loaded).tocoo()
    except _NO_MATRIX as error:
        raise data_error(
            str(path), f"no sparse matrix ({error})", "a scipy .npz", "save it with save_npz"
        ) from error
    ids = []
    for side, codes, count in (
        ("users", matrix.row, matrix.shape[0]),
        ("items", matrix.col, matrix.shape[1]),
    ):
        beside = _beside(path, side)
        names = np.arange(count).astype(str)
        if beside.is_file():
            table = read_table(beside)
            if "id" not in table:
                found = f"the columns {', '.join(map(str, table))}"
                raise data_error(str(beside), found, "a column 'id'", "name it so")
            names = table["id"].to_numpy()
            if len(names) != count:
                raise data_error(
                    str(beside), f"{len(names)} ids", f"{count}, one a row of {path}", "correct it"
                )
        ids.append(names[codes])
    return pd.DataFrame({"user_id": ids[0], "item_id": ids[1], "weight": matrix.data})


def _write_matrix(frame: pd.DataFrame, path: Path) -> None:
    users, user_ids = pd.factorize(frame["user_id"])
    items, item_ids = pd.factorize(frame["item_id"])
    weights = np.ones(len(frame))
    if "weight" in frame:
        weights = pd.to_numeric(frame["weight"]).to_numpy(dtype=np.float64)
    matrix = sp.csr_array((weights, (users, items)), shape=(len(user_ids), len(item_ids)))
    for side, ids in (("users", user_ids), ("items", item_ids)):
        _write_own(pd.DataFrame({"id": ids}), _beside(path, side))
    with whole_file(path) as work, work.open("wb") as file:
        sp.save_npz(file, matrix)


def _write_own(frame: pd.DataFrame, path: Path) -> None:
    with whole_file(path) as work:
        _put(frame, work, path)


def _put(frame: pd.DataFrame, work: Path, path: Path) -> None:
    """Write a table in gnnrec's own layout, by the suffix of `path`."""
    if path.suffix == ".parquet":
        frame.to_parquet(work, index=False)
    elif path.suffix == ".jsonl":
        frame.to_json(work, orient="records", lines=True, force_ascii=False)
    elif path.suffix in (".csv", ".tsv"):
        frame.to_csv(work, index=False, sep="," if path.suffix == ".csv" else "\t")
    else:
        raise ConfigError(
            f"{path}: found the suffix {path.suffix!r}, expected .csv, .tsv, .parquet or "
            ".jsonl; rename it"
        )


def _beside(path: Path, side: str) -> Path:
    return path.with_name(f"{path.stem}.{side}.csv")


def _header(frame: pd.DataFrame, layout: str) -> list[str]:
    names = ["rating" if name == "weight" else str(name) for name in frame]
    if layout == "recbole":
        kinds = [_RECBOLE[str(name)] for name in frame]
        return [f"{name}:{kind}" for name, kind in zip(names, kinds, strict=True)]
    return names


def _plain(values: pd.Series, separator: str, layout: str, name: str) -> list[str]:
    """Cells as text; a layout without quotes cannot hold its own separator in one."""
    cells = ["" if cell is None else str(cell) for cell in values.tolist()]
    if layout == "recbole" and name not in COLUMNS:
        return [" ".join(cell.split()) for cell in cells]
    for row, cell in enumerate(cells, start=1):
        if separator in cell or "\n" in cell or "\r" in cell:
            raise ConfigError(
                f"--to {layout}: found {shown(cell)} in row {row}, column {name}, expected no "
                f"{separator!r} and no line break in a cell of that layout; choose another layout"
            )
    return cells
