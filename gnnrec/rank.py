"""Full ranking in chunks of users: every candidate is scored, seen ones never appear.

Nothing of size users x items exists: a chunk of scores stays in the processor's cache, is reduced
to k items a user, and is gone. The order is total: higher score first, then lower item code, also
where equal scores straddle place k, so a ranking does not depend on the device, the chunk or the
library.

Scores are laid out items x users: MKL is more than half as fast again at this narrow product that
way round, and the largest scores of a block of items are then a pass over whole rows.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from gnnrec.errors import ConfigError, DataError, GnnrecError

_CHUNK_BYTES = {"cpu": 16 * 2**20, "cuda": 64 * 2**20}  # the scores of one chunk
_MIN_ROWS = 16  # BLAS takes another kernel, with other rounding, for fewer
_BLOCK = 32  # items whose scores are first reduced to their largest
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
        chunk_users: Users per chunk; chosen from the memory target when None. It changes nothing
            in the result where BLAS rounds a product of 16 rows and of more alike, as MKL does.

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

    def score(start: int, stop: int) -> Tensor:
        users = user_vectors[start:stop]
        if stop - start < _MIN_ROWS:
            users = torch.nn.functional.pad(users, (0, 0, 0, _MIN_ROWS - (stop - start)))
        return (candidates @ users.T)[:, : stop - start]

    if chunk_users is None:
        chunk_users = _chunk(len(candidates), user_vectors.device.type)
    return _rank(score, n_users, n_items, k, seen, columns, mask, chunk_users)


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

    def score(start: int, stop: int) -> Tensor:
        scores = score_chunk(np.arange(start, stop))
        if scores.shape != (stop - start, n_items):
            raise DataError(
                f"expected scores of shape {(stop - start, n_items)}; found {tuple(scores.shape)}"
            )
        if columns is not None:
            return scores.T[torch.from_numpy(columns).to(scores.device)]
        # Masked in place later, and the scorer may own this tensor.
        return scores.T.clone(memory_format=torch.contiguous_format)

    if chunk_users is None:
        chunk_users = _chunk(n_items, "cpu")
    return _rank(score, n_users, n_items, k, seen, columns, mask, chunk_users)


def rank_scores(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k best columns of each row: higher score first, then lower column.

    Wide rows are first cut down to the k best blocks of columns, ordered by their largest score,
    then by place. These hold the k best columns: each block before another one has a column that
    comes before all columns of the other, so whatever lies beyond k blocks has k columns before it.

    Args:
        scores: (n, n_columns) float; -inf marks what may not be chosen. Fastest as the transpose
            of a contiguous (n_columns, n) tensor.
        k: At most n_columns.

    Returns:
        (values, columns): (n, k) float and int64; a column under a value of -inf has no meaning.
        Costs O(n n_columns).

    Raises:
        GnnrecError: A score is not a number.
    """
    n_columns = scores.shape[1]
    n_blocks = n_columns // _BLOCK
    columns = None
    if n_blocks >= 2 * k:
        whole = n_blocks * _BLOCK
        by_block = scores.T[:whole].view(n_blocks, _BLOCK, len(scores))
        maxima = by_block.amax(dim=1)  # (n_blocks, n)
        blocks = _best(maxima.T, k).sort(dim=1).values
        inside = torch.arange(_BLOCK, device=scores.device)
        columns = (blocks[:, :, None] * _BLOCK + inside).flatten(1)  # (n, k x block), ascending
        rest = torch.arange(whole, n_columns, device=scores.device)
        columns = torch.cat([columns, rest.expand(len(scores), -1)], dim=1)
        scores = scores.gather(1, columns)
    places = _best(scores, k).sort(dim=1).values
    values = scores.gather(1, places) + 0.0  # -0.0 becomes 0.0: they are equal scores
    values, order = values.sort(dim=1, descending=True, stable=True)
    places = places.gather(1, order)
    return values, places if columns is None else columns.gather(1, places)


def _best(scores: Tensor, k: int) -> Tensor:
    """(n, k) int64: each row's k best columns, the lower ones of equal scores, in no order.

    `torch.topk` leaves open which of several equal scores it takes. One column more than asked
    shows the rows where a tie straddles place k, and only these are selected again.
    """
    values, columns = torch.topk(scores, min(k + 1, scores.shape[1]), dim=1)
    if torch.isnan(values).any():  # topk and amax put NaN above every number, so none is missed
        raise GnnrecError("a score is not a number; the model has diverged: train it again")
    if scores.shape[1] > k:
        last = values[:, k - 1]
        tied = (last == values[:, k]) & (last > -torch.inf)
        columns = columns[:, :k]
        rows = tied.nonzero().squeeze(1)
        if len(rows):
            columns[rows] = _lowest_of_ties(scores[rows], last[rows], k)
    return columns


def _lowest_of_ties(scores: Tensor, last: Tensor, k: int) -> Tensor:
    """(n, k) int64: every column above the k-th score, then the lowest columns equal to it."""
    above = scores > last[:, None]
    equal = scores == last[:, None]
    wanted = k - above.sum(dim=1, keepdim=True)  # (n, 1) places left for the equal ones
    chosen = above | (equal & (equal.cumsum(dim=1, dtype=torch.int32) <= wanted))
    return chosen.nonzero()[:, 1].view(-1, k)


def _chunk(n_columns: int, device: str) -> int:
    """Users whose scores take the memory target, in steps of 64: what vector units reduce whole.

    At least 64, whose scores take no more than the items' own vectors of 64 dimensions.
    """
    users = _CHUNK_BYTES.get(device, _CHUNK_BYTES["cpu"]) // (4 * max(n_columns, 1))
    return max(64, users - users % 64)


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
    score: Callable[[int, int], Tensor],
    n_users: int,
    n_items: int,
    k: int,
    seen: sp.csr_array | None,
    columns: np.ndarray | None,
    mask: np.ndarray | None,
    chunk_users: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Score, mask and select chunk by chunk.

    `score(start, stop)` returns (n_candidates, stop - start) scores that may be overwritten.
    """
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
            scores = score(start, stop).float()  # (n_candidates, c)
            if mask is not None:
                scores[torch.from_numpy(~mask).to(scores.device)] = -torch.inf
            if seen is not None:
                rows, cells = _seen_cells(seen, start, stop, place)
                scores[cells.to(scores.device), rows.to(scores.device)] = -torch.inf
            values, chosen = rank_scores(scores.T, n_filled)
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
