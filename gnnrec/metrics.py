"""Quality of rankings: per-user accuracy, what the lists do beyond accuracy, and both by bucket.

A ranking is `top`, (n_users, k) int64: row u holds the items recommended to user u, best first,
each at most once, and -1 where there were no more candidates. `relevant` is the CSR of the test
interactions, row by row aligned with `top`; any stored non-zero is relevant.

The accuracy metrics are those of trec_eval (ndcg_cut, recall, P, map_cut, success, and recip_rank
of a run cut to k).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp

from gnnrec.errors import ConfigError, DataError
from gnnrec.graph import gini

_HEAD_SHARE, _TAIL_SHARE = 0.2, 0.2  # of the training interactions


def per_user_metrics(
    top: np.ndarray, relevant: sp.csr_array, ks: Sequence[int] = (10, 20)
) -> dict[str, np.ndarray]:
    """Return recall, ndcg, mrr, hit, precision and map of every user at every cut.

    With r_j = 1 where the item at rank j is relevant and n relevant items:

    - recall@k = sum_j r_j / n, over all of the user's relevant items, also when n > k;
    - precision@k = sum_j r_j / k, also when fewer than k items were recommended;
    - hit@k = 1 if any r_j;
    - mrr@k = 1 / rank of the first hit, 0 without one;
    - ndcg@k = sum_j r_j / log2(j + 1), over its value for min(k, n) leading hits
      (Jarvelin and Kekalainen 2002, binary gains);
    - map@k = sum_j r_j precision@j / n.

    Args:
        top: (n_users, width) int64 item codes, best first, -1 for none. A cut beyond the width
            treats the missing places as misses.
        relevant: (n_users, n_items) CSR of the test interactions.
        ks: The cuts.

    Returns:
        By name, as recall@10, each metric's (n_users,) float64. Costs O(n_users width log nnz) time
        and O(n_users width) memory.

    Raises:
        DataError: The rows do not match, or a user has no relevant item (no metric is defined
            there, and counting it as 0 would only measure how many there are).
        ConfigError: A cut is below 1.
    """
    if min(ks, default=1) < 1:
        raise ConfigError(f"every cut k must be at least 1; found {tuple(ks)}")
    positives = _positives(relevant)
    hits = _hits(top, positives)
    n_relevant = np.diff(positives.indptr)
    n_without = int((n_relevant == 0).sum())
    if n_without:
        raise DataError(
            f"{n_without} of {len(n_relevant)} users have no test item; rank and score only the "
            "users that have one"
        )
    ranks = np.arange(1, hits.shape[1] + 1)
    discounts = 1.0 / np.log2(ranks + 1.0)
    ideal = np.cumsum(1.0 / np.log2(np.arange(2.0, max(ks, default=1) + 2.0)))
    found = np.cumsum(hits, axis=1)
    out: dict[str, np.ndarray] = {}
    for k in ks:
        cut = hits[:, :k]
        n_hits = cut.sum(axis=1).astype(np.float64)
        any_hit = n_hits > 0
        first = np.argmax(cut, axis=1) + 1 if cut.shape[1] else np.ones(len(cut))
        precisions = cut * found[:, :k] / ranks[:k]
        out[f"recall@{k}"] = n_hits / n_relevant
        out[f"ndcg@{k}"] = cut @ discounts[:k] / ideal[np.minimum(k, n_relevant) - 1]
        out[f"mrr@{k}"] = any_hit / first
        out[f"hit@{k}"] = any_hit.astype(np.float64)
        out[f"precision@{k}"] = n_hits / k
        out[f"map@{k}"] = precisions.sum(axis=1) / n_relevant
    return out


def beyond_accuracy(
    top: np.ndarray, item_degrees: np.ndarray, n_items: int, k: int
) -> dict[str, float]:
    """Describe what the first k places of all lists recommend.

    - coverage@k: share of the catalogue that is recommended to anybody;
    - novelty@k: mean over all filled places of -log2((d_i + 1) / (sum_i d_i + n_items)), the
      self-information in bits of an item under its smoothed training popularity
      (Vargas and Castells 2011);
    - average_popularity@k: mean training degree over all filled places;
    - gini@k: Gini coefficient of how often each item of the catalogue is recommended.

    Args:
        top: (n_users, width) int64 item codes, -1 for none.
        item_degrees: (n_items,) training interactions of each item.
        n_items: Size of the catalogue.
        k: The cut.

    Returns:
        The four values; all 0 when no place is filled. Costs O(n_users k + n_items log n_items).

    Raises:
        DataError: `item_degrees` does not describe `n_items` items.
    """
    if len(item_degrees) != n_items:
        raise DataError(f"expected {n_items} item degrees, one per item; found {len(item_degrees)}")
    shown = top[:, :k]
    shown = shown[shown >= 0]
    counts = np.bincount(shown, minlength=n_items)
    degrees = item_degrees.astype(np.float64)
    bits = np.log2(degrees.sum() + n_items) - np.log2(degrees + 1.0)
    n_shown = max(len(shown), 1)
    return {
        f"coverage@{k}": float((counts > 0).sum() / max(n_items, 1)),
        f"novelty@{k}": float(counts @ bits / n_shown),
        f"average_popularity@{k}": float(counts @ degrees / n_shown),
        f"gini@{k}": gini(counts),
    }


def summarise(per_user: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return the mean over users of every metric; 0 where there are no users."""
    return {name: float(v.mean()) if len(v) else 0.0 for name, v in per_user.items()}


def by_bucket(
    per_user: Mapping[str, np.ndarray],
    user_degrees: np.ndarray,
    edges: Sequence[int] = (0, 1, 5, 20, 100),
) -> list[dict[str, Any]]:
    """Return the means by user activity, least active first.

    Args:
        per_user: Metrics, each (n_users,).
        user_degrees: (n_users,) interactions of each user in the kept training rows.
        edges: Ascending lower bounds of the buckets; the first pair sets users without a kept
            interaction apart. Users below the first bound are left out.

    Returns:
        One row per bucket that holds a user: `bucket` ("0", "1-4", ..., "100+"), `n_users` and
        the mean of every metric.

    Raises:
        ConfigError: The bounds are not ascending.
    """
    bounds = list(edges)
    if bounds != sorted(set(bounds)):
        raise ConfigError(f"bucket edges must ascend; found {tuple(edges)}")
    place = np.searchsorted(bounds, user_degrees, side="right") - 1
    rows: list[dict[str, Any]] = []
    for index, low in enumerate(bounds):
        inside = place == index
        if inside.any():
            means = summarise({name: values[inside] for name, values in per_user.items()})
            label = _label(low, bounds[index + 1] if index + 1 < len(bounds) else None)
            rows.append({"bucket": label, "n_users": int(inside.sum()), **means})
    return rows


def item_bucket_recall(
    top: np.ndarray, relevant: sp.csr_array, item_degrees: np.ndarray, k: int
) -> list[dict[str, Any]]:
    """Return which share of the test interactions the first k places find, by item popularity.

    Items stand in order of training degree. Head: the most popular items, up to the first 20 % of
    all training interactions; tail: the least popular, within the last 20 %; middle: the others;
    unseen: items without a training interaction. Items of equal degree share a bucket, which is
    decided by the share of the interactions that lies with strictly more popular items.

    Args:
        top: (n_users, width) int64 item codes, -1 for none.
        relevant: (n_users, n_items) CSR of the test interactions.
        item_degrees: (n_items,) training interactions of each item.
        k: The cut.

    Returns:
        Rows unseen, tail, middle, head, where the bucket holds a test interaction: `bucket`,
        `n_items` (of the catalogue), `n_interactions` (test) and `recall@k` over these
        interactions, not over users. Costs O(n_users k log nnz + nnz + n_items log n_items).

    Raises:
        DataError: The shapes do not match.
    """
    positives = _positives(relevant)
    if len(item_degrees) != positives.shape[1]:
        raise DataError(
            f"expected {positives.shape[1]} item degrees, one per item; found {len(item_degrees)}"
        )
    names = ("unseen", "tail", "middle", "head")
    bucket = _popularity_bucket(item_degrees)
    shown = top[:, :k]
    found = np.bincount(bucket[shown[_hits(shown, positives)]], minlength=len(names))
    present = np.bincount(bucket[positives.indices], minlength=len(names))
    sizes = np.bincount(bucket, minlength=len(names))
    return [
        {
            "bucket": name,
            "n_items": int(sizes[index]),
            "n_interactions": int(present[index]),
            f"recall@{k}": float(found[index] / present[index]),
        }
        for index, name in enumerate(names)
        if present[index]
    ]


def _positives(relevant: sp.csr_array) -> sp.csr_array:
    """Return the CSR with one stored entry per relevant pair, columns sorted."""
    positives = sp.csr_array(relevant, copy=True)
    positives.sum_duplicates()
    positives.eliminate_zeros()
    return positives


def _hits(top: np.ndarray, positives: sp.csr_array) -> np.ndarray:
    """(n_users, width) bool: whether each place holds a relevant item."""
    n_users, n_items = positives.shape
    if top.ndim != 2 or len(top) != n_users:
        raise DataError(
            f"expected one ranking for each of {n_users} users; found shape {top.shape}"
        )
    if not positives.nnz or not top.size:
        return np.zeros(top.shape, dtype=bool)
    if top.max() >= n_items:
        raise DataError(f"recommended codes must lie below {n_items}; found {top.max()}")
    # One key per cell: sorted because rows ascend and columns ascend within a row.
    rows = np.arange(n_users, dtype=np.int64)
    keys = np.repeat(rows, np.diff(positives.indptr)) * n_items + positives.indices
    wanted = rows[:, None] * n_items + top
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    # The key of a -1 belongs to the last item of the row above, hence the second condition.
    hits: np.ndarray = (keys[place] == wanted) & (top >= 0)
    return hits


def _popularity_bucket(item_degrees: np.ndarray) -> np.ndarray:
    """(n_items,) int64: 0 unseen, 1 tail, 2 middle, 3 head."""
    levels, level, counts = np.unique(item_degrees, return_inverse=True, return_counts=True)
    mass = levels.astype(np.float64) * counts
    total = max(float(mass.sum()), 1.0)
    above = (mass.sum() - np.cumsum(mass)) / total  # share of strictly more popular items
    bucket = np.where(above < _HEAD_SHARE, 3, np.where(above < 1.0 - _TAIL_SHARE, 2, 1))
    bucket[levels == 0] = 0
    out: np.ndarray = bucket[level]
    return out


def _label(low: int, next_low: int | None) -> str:
    if next_low is None:
        return f"{low}+"
    return str(low) if next_low == low + 1 else f"{low}-{next_low - 1}"
