"""Full ranking in chunks of users: every candidate is scored, seen ones never appear.

Nothing of size users x items exists: a chunk of scores takes about 64 MB, is reduced to k items a
user, and is gone. The order is total: higher score first, then lower item code, also where equal
scores straddle place k, so a ranking does not depend on the device, the chunk or the library.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from gnnrec.errors import ConfigError, DataError, GnnrecError

_CHUNK_BYTES = 64 * 2**20
_GATHER_BELOW = 0.5  # share of allowed items under which their columns are copied out


def top_k(
    user_vectors: Tensor,
    item_vectors: Tensor,
    k: int,
    seen: sp.csr_array | None = None,
    allowed: np.ndarray | None = None,
    chunk_users: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Rank items by inner product.

    Args:
        user_vectors: (n_users, dim) tensor, on the device that is to do the work.
        item_vectors: (n_items, dim) tensor on the same device.
        k: Length of a list.
        seen: (n_users, n_items) CSR aligned with `user_vectors`; no stored entry is recommended.
        allowed: (n_items,) bool; only these items are recommended.
        chunk_users: Users per chunk; chosen from the memory target when None.

    Returns:
        (scores, items): (n_users, k) float32 and int64 arrays, best first; -inf and -1 where
        fewer than k candidates remain. Costs O(n_users n_candidates dim) time; beside the result,
        a few chunks of memory.

    Raises:
        ConfigError: k or the chunk is below 1.
        DataError: `seen` or `allowed` has another shape.
        GnnrecError: A score is not a number.
    """
    n_users, n_items = len(user_vectors), len(item_vectors)
    columns, mask = _candidates(allowed, n_items)
    candidates = item_vectors
    if columns is not None:
        candidates = item_vectors[torch.from_numpy(columns).to(item_vectors.device)]

    def score(rows: np.ndarray) -> Tensor:
        if not len(rows):
            return user_vectors[:0] @ candidates.T
        return user_vectors[int(rows[0]) : int(rows[-1]) + 1] @ candidates.T

    return _rank(score, n_users, n_items, k, seen, columns, mask, chunk_users, len(candidates))


def top_k_from(
    score_chunk: Callable[[np.ndarray], Tensor],
    n_users: int,
    n_items: int,
    k: int,
    seen: sp.csr_array | None = None,
    allowed: np.ndarray | None = None,
    chunk_users: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Rank items by any scorer.

    Args:
        score_chunk: Takes (c,) int64 consecutive rows in [0, n_users), returns their (c, n_items)
            scores. The tensor is not written to.
        n_users: Number of rows to rank.
        n_items: Size of the catalogue.
        k: Length of a list.
        seen: (n_users, n_items) CSR; no stored entry is recommended.
        allowed: (n_items,) bool; only these items are recommended.
        chunk_users: Users per chunk; chosen from the memory target when None.

    Returns:
        (scores, items) as `top_k`.

    Raises:
        ConfigError: k or the chunk is below 1.
        DataError: `seen`, `allowed` or the scores have another shape.
        GnnrecError: A score is not a number.
    """
    columns, mask = _candidates(allowed, n_items)

    def score(rows: np.ndarray) -> Tensor:
        scores = score_chunk(rows)
        if scores.shape != (len(rows), n_items):
            raise DataError(
                f"expected scores of shape {(len(rows), n_items)}; found {tuple(scores.shape)}"
            )
        if columns is not None:
            return scores[:, torch.from_numpy(columns).to(scores.device)]
        return scores.clone()  # masked in place later; the scorer may own this tensor

    return _rank(score, n_users, n_items, k, seen, columns, mask, chunk_users, n_items)


def rank_scores(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k best columns of each row: higher score first, then lower column.

    `torch.topk` leaves open which of several equal scores it takes. One column more than asked
    shows the rows where a tie straddles place k, and only these are selected again.

    Args:
        scores: (n, n_columns) float; -inf marks what may not be chosen.
        k: At most n_columns.

    Returns:
        (values, columns): (n, k) float and int64; a column under a value of -inf has no meaning.
        Costs O(n n_columns).

    Raises:
        GnnrecError: A score is not a number.
    """
    n_columns = scores.shape[1]
    values, columns = torch.topk(scores, min(k + 1, n_columns), dim=1)  # (n, k + 1)
    if torch.isnan(values).any():  # topk puts NaN above every number, so none is missed
        raise GnnrecError("a score is not a number; the model has diverged: train it again")
    if n_columns > k:
        last = values[:, k - 1]
        tied = (last == values[:, k]) & (last > -torch.inf)
        values, columns = values[:, :k], columns[:, :k]
        rows = tied.nonzero().squeeze(1)
        if len(rows):
            columns[rows] = _lowest_of_ties(scores[rows], last[rows], k)
            values[rows] = scores[rows[:, None], columns[rows]]
    columns, order = columns.sort(dim=1)
    values = values.gather(1, order) + 0.0  # -0.0 becomes 0.0: they are equal scores
    values, order = values.sort(dim=1, descending=True, stable=True)
    return values, columns.gather(1, order)


def _lowest_of_ties(scores: Tensor, last: Tensor, k: int) -> Tensor:
    """(n, k) int64: every column above the k-th score, then the lowest columns equal to it."""
    above = scores > last[:, None]
    equal = scores == last[:, None]
    wanted = k - above.sum(dim=1, keepdim=True)  # (n, 1) places left for the equal ones
    chosen = above | (equal & (equal.cumsum(dim=1, dtype=torch.int32) <= wanted))
    return chosen.nonzero()[:, 1].view(-1, k)


def _candidates(
    allowed: np.ndarray | None, n_items: int
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Return (columns to copy out, mask to apply): at most one of them, None for no restriction."""
    if allowed is None:
        return None, None
    if allowed.shape != (n_items,) or allowed.dtype != bool:
        raise DataError(
            f"allowed must be a bool array of shape ({n_items},); found {allowed.dtype} "
            f"of shape {allowed.shape}"
        )
    if allowed.mean() < _GATHER_BELOW:
        return np.flatnonzero(allowed), None
    return None, allowed


def _rank(
    score: Callable[[np.ndarray], Tensor],
    n_users: int,
    n_items: int,
    k: int,
    seen: sp.csr_array | None,
    columns: np.ndarray | None,
    mask: np.ndarray | None,
    chunk_users: int | None,
    width: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Score, mask and select chunk by chunk; `score` returns a tensor that may be overwritten."""
    if chunk_users is None:
        chunk_users = max(1, _CHUNK_BYTES // (4 * max(width, 1)))
    if k < 1 or chunk_users < 1:
        raise ConfigError(f"k and chunk_users must be at least 1; found {k} and {chunk_users}")
    if seen is not None and seen.shape != (n_users, n_items):
        raise DataError(f"seen must have shape {(n_users, n_items)}; found {seen.shape}")
    place = None
    if columns is not None:
        place = np.full(n_items, -1, dtype=np.int64)
        place[columns] = np.arange(len(columns))
    n_candidates = n_items if columns is None else len(columns)
    n_filled = min(k, n_candidates)
    out_scores = np.full((n_users, k), -np.inf, dtype=np.float32)
    out_items = np.full((n_users, k), -1, dtype=np.int64)
    if not n_filled:
        return out_scores, out_items
    for start in range(0, n_users, chunk_users):
        stop = min(start + chunk_users, n_users)
        with torch.no_grad():
            scores = score(np.arange(start, stop)).float()  # (c, n_candidates)
            if mask is not None:
                scores[:, torch.from_numpy(~mask).to(scores.device)] = -torch.inf
            if seen is not None:
                rows, cells = _seen_cells(seen, start, stop, place)
                scores[rows.to(scores.device), cells.to(scores.device)] = -torch.inf
            values, chosen = rank_scores(scores, n_filled)
        best, codes = values.cpu().numpy(), chosen.cpu().numpy()
        if columns is not None:
            codes = columns[codes]
        out_scores[start:stop, :n_filled] = best
        out_items[start:stop, :n_filled] = np.where(best > -np.inf, codes, -1)
    return out_scores, out_items


def _seen_cells(
    seen: sp.csr_array, start: int, stop: int, place: np.ndarray | None
) -> tuple[Tensor, Tensor]:
    """Return the (rows, columns) of a chunk's stored entries, columns as the chunk counts them."""
    pointers = seen.indptr[start : stop + 1]
    rows = np.repeat(np.arange(stop - start), np.diff(pointers))
    cells = seen.indices[pointers[0] : pointers[-1]].astype(np.int64)
    if place is not None:
        cells = place[cells]
        rows, cells = rows[cells >= 0], cells[cells >= 0]
    return torch.from_numpy(rows), torch.from_numpy(cells)
