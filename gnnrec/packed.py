"""A log that need not fit in memory: packed once into a folder of codes, then mapped.

Files are read batch by batch (`gnnrec.ingest`); pairs go to parts on the disk, each of some
consecutive users, and one part after the other is sorted and written without repeats. In memory are
the distinct ids, one batch and one part. Processes on one machine that open the folder share its
pages.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pa_parquet

from gnnrec.columns import Columns
from gnnrec.errors import CheckpointError, DataError
from gnnrec.ingest import LogReader
from gnnrec.interactions import Interactions
from gnnrec.storage import read_json, verify, whole_folder, write_json

_KIND = "packed log"
ABOUT = "packed.json"
_PART_USERS = 2**18  # of a part: with a hundred pairs each it takes half a gigabyte
_ROW = np.dtype([("user", "<i4"), ("item", "<i4"), ("time", "<f8")])


def pack(
    files: Sequence[Path],
    out: Path,
    columns: Columns | None = None,
    min_weight: float | None = None,
    *,
    part_users: int = _PART_USERS,
) -> dict[str, Any]:
    """Pack logs of the same columns into one folder, which `open_packed` opens.

    As `read_interactions` of all rows in the files' order: ids are coded by first appearance, a
    repeated pair is one, with its latest time. Pairs are then in order of user and item; weights
    only decide what is left out, and texts that users wrote are not taken in.

    Args:
        files: Plain files: Parquet, or text with a separator of one byte, also packed by gzip.
        out: Folder to write, whole or not at all; 24 bytes a pair, while it is written 40.
        columns: Names of the columns.
        min_weight: Rows of a smaller weight are left out.
        part_users: Users of a part.

    Returns:
        Counts, as they are kept in the folder.

    Raises:
        DataError: A file is not plain (the message says how to find out why), lacks a column, or
            no row is left.
        ConfigError: The folder cannot be written.
    """
    columns = columns or Columns()
    weight = None if min_weight is None else columns.weight
    reader = LogReader(columns.user, columns.item, weight, columns.timestamp)
    n_rows = n_below = 0
    timed: bool | None = None
    with whole_folder(out) as folder:
        parts = folder / "parts"
        parts.mkdir()
        for file in files:
            for users, items, weights, times in reader.read(file):
                if timed not in (None, times is not None):
                    raise DataError(
                        f"{file}: found {'no' if times is None else 'a'} column "
                        f"{columns.timestamp!r}, unlike the files before; expected it in all of "
                        "them or in none"
                    )
                timed = times is not None
                rows = np.zeros(len(users), dtype=_ROW)
                rows["user"], rows["item"] = users, items
                if times is not None:
                    rows["time"] = times
                if weights is not None:
                    kept = weights >= min_weight
                    n_below += int(len(kept) - kept.sum())
                    rows = rows[kept]
                n_rows += len(rows)
                _deal(rows, parts, part_users)
        if not n_rows:
            raise DataError(f"{files[0]}: found no row to keep, expected some; lower --min-weight")
        ids = {"user": reader.users.vocabulary(), "item": reader.items.vocabulary()}
        n_pairs, n_unused = _join(parts, folder, bool(timed), len(ids["item"]))
        shutil.rmtree(parts)
        for name, vocabulary in ids.items():
            table = pa.table({"id": pa.array(vocabulary)})
            pa_parquet.write_table(table, folder / f"{name}_ids.parquet")
        about = {
            "kind": _KIND,
            "n_pairs": n_pairs,
            "n_dropped_duplicates": n_rows - n_pairs,
            "n_below_min_weight": n_below,
            "n_items_without_pairs": n_unused,
            "has_timestamps": bool(timed),
            "columns": vars(columns),
        }
        write_json(folder / ABOUT, about)
    return about | {f"n_{name}s": len(vocabulary) for name, vocabulary in ids.items()}


def open_packed(folder: Path) -> Interactions:
    """Open a packed log; its codes and times are read when they are used, from shared pages.

    Raises:
        CheckpointError: It is not what `pack` wrote, or was changed since.
    """
    verify(folder, (ABOUT, "users.i64", "items.i64", "user_ids.parquet", "item_ids.parquet"))
    about = read_json(folder / ABOUT)
    try:
        if about["kind"] != _KIND:
            raise ValueError(f"its kind is {about['kind']!r}")
        shape = (int(about["n_pairs"]),)
        names = ["users.i64", "items.i64", *(["times.f64"] if about["has_timestamps"] else [])]
        users, items, *times = (
            np.memmap(folder / name, dtype=f"<{name[-3]}8", mode="r", shape=shape) for name in names
        )
        user_ids, item_ids = (
            pa_parquet.read_table(folder / f"{name}_ids.parquet")["id"].to_numpy()
            for name in ("user", "item")
        )
        for codes, vocabulary in ((users, user_ids), (items, item_ids)):
            if not 0 <= int(codes.min()) <= int(codes.max()) < len(vocabulary):
                raise ValueError("a code that no id has")
        columns = Columns(**about["columns"])
        n_dropped = int(about["n_dropped_duplicates"])
        n_below = int(about["n_below_min_weight"])
    except (KeyError, TypeError, ValueError, OSError, pa.ArrowException) as error:
        raise CheckpointError(f"{folder}: not a packed log ({error}); pack it again") from error
    return Interactions(
        users,
        items,
        user_ids,
        item_ids,
        timestamps=times[0] if times else None,
        columns=columns,
        n_dropped_duplicates=n_dropped,
        n_below_min_weight=n_below,
    )


def _deal(rows: np.ndarray, parts: Path, part_users: int) -> None:
    """Append rows to the files of their users' parts."""
    if not len(rows):
        return
    part = rows["user"] // part_users
    order = np.argsort(part, kind="stable")
    numbers, starts = np.unique(part[order], return_index=True)
    for number, some in zip(numbers, np.split(rows[order], starts[1:]), strict=True):
        with (parts / f"{number:06d}").open("ab") as file:
            file.write(some.tobytes())


def _join(parts: Path, folder: Path, timed: bool, n_items: int) -> tuple[int, int]:
    """Write the pairs of all parts in order, each once; (pairs, items without any)."""
    n_pairs, used = 0, np.zeros(n_items, dtype=bool)
    names = ["users.i64", "items.i64", *(["times.f64"] if timed else [])]
    with ExitStack() as stack:
        files = [stack.enter_context((folder / name).open("wb")) for name in names]
        for part in sorted(parts.iterdir()):
            rows = np.fromfile(part, dtype=_ROW)
            pairs = (rows["user"].astype(np.int64) << 32) | rows["item"]
            order = np.argsort(pairs, kind="stable")
            starts = np.flatnonzero(np.diff(pairs[order], prepend=-1))
            first = rows[order[starts]]
            used[first["item"]] = True
            columns = [first["user"].astype("<i8"), first["item"].astype("<i8")]
            if timed:
                columns.append(np.maximum.reduceat(rows["time"][order], starts))
            for file, column in zip(files, columns, strict=True):
                file.write(column.tobytes())
            n_pairs += len(first)
            part.unlink()
    return n_pairs, int((~used).sum())
