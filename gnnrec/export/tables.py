"""A recommender as Parquet tables under raw ids, written in groups of rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pa_parquet
import scipy.sparse as sp
from torch import Tensor

from gnnrec.scores import Differentiable, Similarity

if TYPE_CHECKING:
    from gnnrec.recommender import Recommender

_CELLS = 4 * 2**20  # numbers of a group of rows
_ROWS = 2**16


def write_tables(
    recommender: Recommender, folder: Path, lists: int | None = None
) -> dict[str, int]:
    """Write users, items, seen pairs and, where asked for, the lists of all users.

    - users.parquet: user_id, vector;
    - items.parquet: item_id, vector, bias;
    - seen.parquet: user_id, item_id, a row per pair of the log, by user;
    - lists.parquet: user_id, item_id, score, rank, best first.

    A row's number in users and items is its code. Scores that walk over the graph have three more
    columns: `start` and `step` of a pair and `arrive` of an item, as `gnnrec.scores.Walk` takes
    them. Where near texts count, a pair has `near` and a table of its own has what each item says
    for others (`gnnrec.scores.Similarity`): near.parquet with item_id, near_item_id, weight. Those
    of a tower have its first layer's halves in `tower`. A vector of no length has no column.

    Args:
        recommender: A fitted one.
        folder: Where to.
        lists: Length of the lists; None for none.

    Returns:
        File name -> number of rows. Memory: some groups of rows.
    """
    log, vectors = recommender.log, recommender.vectors
    users = {"vector": vectors.users[:, :-1]}
    items = {"vector": vectors.items[:, :-1], "bias": vectors.items[:, -1]}
    if isinstance(vectors.part, Differentiable):
        users["tower"], items["tower"] = vectors.part.users[:, :-1], vectors.part.items
    if vectors.walk is not None:
        items["arrive"] = vectors.walk.out
    rows = {
        "users.parquet": _write(folder / "users.parquet", _nodes("user_id", log.user_ids, users)),
        "items.parquet": _write(folder / "items.parquet", _nodes("item_id", log.item_ids, items)),
        "seen.parquet": _write(folder / "seen.parquet", _pairs(recommender)),
    }
    if isinstance(vectors.part, Similarity):
        rows["near.parquet"] = _write(folder / "near.parquet", _near(recommender, vectors.part))
    if lists is not None:
        rows["lists.parquet"] = _write(folder / "lists.parquet", _lists(recommender, lists))
    return rows


def _write(path: Path, groups: Iterator[pa.Table]) -> int:
    """Write tables of one schema, at least one, as groups of rows; return the number of rows."""
    first = next(groups)
    with pa_parquet.ParquetWriter(path, first.schema, compression="zstd") as file:
        file.write_table(first)
        n_rows = len(first)
        for table in groups:
            file.write_table(table)
            n_rows += len(table)
    return n_rows


def _nodes(name: str, ids: np.ndarray, columns: dict[str, Tensor]) -> Iterator[pa.Table]:
    columns = {column: table for column, table in columns.items() if table.shape[1:].numel()}
    width = max((table.shape[1:].numel() for table in columns.values()), default=1)
    for part in _parts(len(ids), min(_ROWS, max(1, _CELLS // width))):
        cells = {column: _array(table[part].numpy()) for column, table in columns.items()}
        yield pa.table({name: _ids(ids[part]), **cells})


def _array(values: np.ndarray) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    if values.ndim == 1:
        return flat
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def _pairs(recommender: Recommender) -> Iterator[pa.Table]:
    log, walk, seen = recommender.log, recommender.vectors.walk, _sorted(recommender.seen)
    weights = {}
    if walk is not None:
        weights = {"start": _at(seen, walk.start), "step": _at(seen, walk.operator.scipy())}
    if isinstance(recommender.vectors.part, Similarity):
        weights["near"] = _at(seen, recommender.vectors.part.start)
    for part in _parts(seen.nnz, _ROWS):
        users = np.searchsorted(seen.indptr, np.arange(part.start, part.stop), side="right") - 1
        columns = {"user_id": log.user_ids[users], "item_id": log.item_ids[seen.indices[part]]}
        yield pa.table(
            {name: _ids(ids) for name, ids in columns.items()}
            | {name: pa.array(values[part]) for name, values in weights.items()}
        )


def _near(recommender: Recommender, part: Similarity) -> Iterator[pa.Table]:
    ids, table = recommender.log.item_ids, sp.csr_array(part.weights)
    for some in _parts(table.nnz, _ROWS):
        items = np.searchsorted(table.indptr, np.arange(some.start, some.stop), side="right") - 1
        yield pa.table(
            {
                "item_id": _ids(ids[items]),
                "near_item_id": _ids(ids[table.indices[some]]),
                "weight": pa.array(table.data[some]),
            }
        )


def _at(pairs: sp.csr_array, matrix: sp.csr_array) -> np.ndarray:
    """Return what a matrix has at the entries of `pairs`, (n,); it has no others. O(n log n)."""
    values = np.zeros(pairs.nnz, dtype=np.float32)
    matrix = _sorted(matrix)
    values[np.searchsorted(_places(pairs), _places(matrix))] = matrix.data
    return values


def _places(matrix: sp.csr_array) -> np.ndarray:
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    places: np.ndarray = rows * matrix.shape[1] + matrix.indices
    return places


def _sorted(matrix: sp.csr_array) -> sp.csr_array:
    return matrix if matrix.has_sorted_indices else matrix.sorted_indices()


def _lists(recommender: Recommender, k: int) -> Iterator[pa.Table]:
    log = recommender.log
    k = min(k, log.n_items)
    for part in _parts(log.n_users, max(1, _CELLS // (8 * k))):
        users = np.arange(log.n_users)[part]
        scores, items = recommender.vectors.of(users).top_k(k, seen=recommender.seen[users])
        row, column = np.nonzero(items >= 0)
        yield pa.table(
            {
                "user_id": _ids(log.user_ids[users[row]]),
                "item_id": _ids(log.item_ids[items[row, column]]),
                "score": pa.array(scores[row, column]),
                "rank": pa.array(column + 1),
            }
        )


def _ids(ids: np.ndarray) -> pa.Array:
    return pa.array(ids, type=pa.int64() if ids.dtype == np.int64 else pa.string())


def _parts(n_rows: int, at_once: int) -> Iterator[slice]:
    """Consecutive parts, one of no rows where there are none."""
    for first in range(0, max(n_rows, 1), at_once):
        yield slice(first, min(first + at_once, n_rows))
