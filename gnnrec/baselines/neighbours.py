"""Item-to-item models: an item is scored by what the user has that is like it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.sparse as sp
import torch

from gnnrec.baselines.base import check_count, check_number, with_popularity
from gnnrec.features import GraphInput
from gnnrec.rank import rank_scores
from gnnrec.scores import ScoreVectors, Similarity

_BLOCK_BYTES = 64 * 2**20  # dense similarities of one block of items


def itemknn(x: GraphInput, *, k: int = 100, shrink: float = 10.0) -> ScoreVectors:
    """score(u, j) = sum over i in u and N(j) of s_ij, s_ij = c_ij / (sqrt(d_i d_j) + shrink).

    c_ij counts the users of both items; N(j) holds the k items with the largest s_ij. Sources:
    Sarwar et al. 2001 (WWW, sections 3.1.1 and 3.2.1); the shrinkage is that of Bell and Koren
    2007. Kept the other way round, as the k items that each i speaks for, it ranked worse.

    Args:
        x: The graph.
        k: Size of N(j).
        shrink: Pulls similarities that few users support towards zero.

    Raises:
        ConfigError: A setting is out of range.

    Cost: O(sum of d_u^2 + n_items^2) time, O(n_items k) memory.
    """
    check_count("itemknn: k", k)
    check_number("itemknn: shrink", shrink)
    counts = x.graph.user_items
    lengths = np.sqrt(x.graph.item_degrees).astype(np.float32)

    def shrunk(count: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        cosines: np.ndarray = count / (lengths[i] * lengths[j] + np.float32(shrink))
        return cosines

    by_item = nearest(sp.csr_array(counts.T.tocsr()), counts, k, shrunk)  # j, i: s is symmetric
    return with_popularity(x, part=Similarity(counts, sp.csr_array(by_item.T.tocsr())))


def rp3beta(x: GraphInput, *, alpha: float = 0.5, beta: float = 0.3, k: int = 100) -> ScoreVectors:
    """Random walks user -> item -> user -> item, popular ends held down.

    score(u, j) = sum over i in u of w_ij, w_ij = d_j^-beta sum over v of (p_iv p_vj)^alpha, where
    p_iv = 1 / d_i and p_vj = 1 / d_v are the steps' probabilities; an item i keeps its k largest
    w_ij. The walk's first step is the same for all items of a user and moves no ranking.

    Source: Paudel, Christoffel, Newell and Bernstein 2017 (ACM TiiS 7(1)).

    Args:
        x: The graph.
        alpha: Power of the steps' probabilities.
        beta: Power of the popularity that scores are divided by.
        k: Neighbours an item keeps.

    Raises:
        ConfigError: A setting is out of range.

    Cost: as `itemknn`.
    """
    check_number("rp3beta: alpha", alpha)
    check_number("rp3beta: beta", beta)
    check_count("rp3beta: k", k)
    back = sp.csr_array(x.graph.by_degree(0.0, -alpha).T.tocsr())  # (n_items, n_users): item, user
    onwards = x.graph.by_degree(-alpha, -beta)  # user, item; the end's popularity with it
    return with_popularity(x, part=Similarity(x.graph.user_items, nearest(back, onwards, k)))


def nearest(
    left: sp.csr_array,
    right: sp.csr_array,
    k: int,
    change: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray] | None = None,
) -> sp.csr_array:
    """Return the k largest positive entries of each row of left @ right, its diagonal left out.

    Of equal entries those further left are kept. A block of rows of the product exists at a time.

    Args:
        left: (n_items, n_users) CSR float32.
        right: (n_users, n_items) CSR float32; a column is empty where that row of `left` is.
        k: Entries a row keeps.
        change: Turns (values, rows, columns) of the product into the values to compare.

    Returns:
        (n_items, n_items) CSR float32 with sorted columns.
    """
    n_items = right.shape[1]
    items = np.flatnonzero(np.diff(left.indptr))
    left, right = sp.csr_array(left[items]), sp.csr_array(right[:, items])
    empty = np.zeros(0, dtype=np.int64)
    values, rows, columns = [empty.astype(np.float32)], [empty], [empty]
    step = max(1, _BLOCK_BYTES // (4 * max(len(items), 1)))
    for begin in range(0, len(items), step):
        block = sp.csr_array(left[begin : begin + step] @ right)
        if change is not None:
            row = np.repeat(items[begin : begin + step], np.diff(block.indptr))
            block.data = change(block.data, row, items[block.indices])
        table = block.T.toarray()  # items x rows of the block, as `rank_scores` wants it
        diagonal = np.arange(table.shape[1])
        table[begin + diagonal, diagonal] = 0.0
        best, places = (
            found.numpy() for found in rank_scores(torch.from_numpy(table).T, min(k, len(items)))
        )
        row, rank = np.nonzero(best > 0)
        values.append(best[row, rank])
        rows.append(items[begin + row])
        columns.append(items[places[row, rank]])
    cells = np.concatenate(rows), np.concatenate(columns)
    return sp.csr_array((np.concatenate(values), cells), shape=(n_items, n_items))
