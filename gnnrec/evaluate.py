"""Full-ranking evaluation of scores on held-out interactions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch

from gnnrec.metrics import (
    beyond_accuracy,
    by_bucket,
    item_bucket_recall,
    per_user_metrics,
    summarise,
)
from gnnrec.ranks import current
from gnnrec.scores import ScoreVectors


@dataclass(frozen=True)
class Results:
    """What one arm reached on one test part.

    Attributes:
        metrics: Means over all test users, and catalogue-level measures.
        per_user: Metric name -> (n_test_users,) float64, aligned with `users`.
        users: (n_test_users,) int64 codes of the users with a test interaction.
        by_user_activity: The same means by number of visible interactions; users without any are
            a row of their own.
        by_item_popularity: Recall of test interactions by the item's visible interactions.
    """

    metrics: dict[str, float]
    per_user: dict[str, np.ndarray]
    users: np.ndarray
    by_user_activity: list[dict[str, Any]]
    by_item_popularity: list[dict[str, Any]]


def evaluate_scores(
    scores: ScoreVectors,
    seen: sp.csr_array,
    test_users: np.ndarray,
    test_items: np.ndarray,
    ks: tuple[int, ...] = (10, 20),
) -> Results:
    """Rank the whole catalogue for every test user and measure.

    Args:
        scores: Of all n_users users.
        seen: (n_users, n_items) CSR of the interactions the model could see; they are not ranked.
        test_users: (n_test,) int64 codes below n_users.
        test_items: (n_test,) int64 codes; codes of n_items or above are items outside the
            catalogue, which no list can hold and recall still counts.
        ks: Cut-offs.

    Returns:
        See `Results`. Cost: O(test users x n_items x d) time, a chunk of scores in memory. Several
        ranks share the users among them.
    """
    n_users, n_items = seen.shape
    users = np.unique(test_users)
    width = max(n_items, int(test_items.max()) + 1)
    row = np.searchsorted(users, test_users)
    relevant = sp.csr_array(
        (np.ones(len(row), dtype=np.float32), (row, test_items)), shape=(len(users), width)
    )
    relevant.sum_duplicates()
    index = np.asarray(users)
    ranks = current()
    mine = index[ranks.block(len(index))]
    _, top = scores.of(mine).top_k(max(ks), seen=sp.csr_array(seen[mine]))
    top = ranks.gathered(torch.from_numpy(top), len(index)).numpy()
    per_user = per_user_metrics(top, relevant, ks)
    item_degrees = np.bincount(seen.indices, minlength=width).astype(np.int64)
    user_degrees = np.diff(seen.indptr)[index]
    metrics = summarise(per_user)
    for k in ks:
        metrics |= beyond_accuracy(top[:, :k], item_degrees[:n_items], n_items, k)
    return Results(
        metrics={name: float(value) for name, value in metrics.items()},
        per_user=per_user,
        users=users,
        by_user_activity=by_bucket(per_user, user_degrees),
        by_item_popularity=item_bucket_recall(top, relevant, item_degrees, max(ks)),
    )


def plain(value: Any) -> Any:  # noqa: ANN401 (walks any JSON-like value)
    """Turn NumPy scalars and arrays into JSON values; NaN and infinity become null."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
