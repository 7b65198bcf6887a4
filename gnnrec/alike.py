"""What items' own texts say beyond cosines of sums: near neighbours, and what users follow."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from gnnrec.features import GraphInput

MAX_NEAR_ITEMS = 60_000  # beyond that the products of all pairs take minutes
NEAR_EXPONENT = 0.5
TASTE_EXPONENT = 0.5
_N_NEAR = 20
_SHARPNESS = 10.0
_SPARE = 8  # further ones of which the exact product may be larger
_CHUNK = 256
_TASTE_RANK = 64
_TASTE_RIDGE = 3.0  # of the mean variance of the texts' coordinates


@dataclass
class _Found:
    """The neighbours found so far among one table of texts: (n_items, k) each, and whose."""

    items: np.ndarray
    weights: np.ndarray
    done: np.ndarray


_found: WeakIdKeyDictionary = WeakIdKeyDictionary()  # the graphs of one catalogue share theirs


def near_items(text: Tensor, rows: np.ndarray) -> sp.csr_array:
    """Return what some items say for the 20 whose texts are nearest, (n_items, n_items) CSR.

    exp(10 (cosine - 1)): one for the same words, next to nothing for what only shares a subject. A
    sum of vectors forgets that a user has the red mug where the blue one is for sale, and no short
    vectors hold these weights: their kernel has nearly full rank.

    Args:
        text: (n_items, text_dim) float32, zero rows where an item has no text.
        rows: (n_items,) bool, the items that say something: those that somebody has.

    Cost: O(n_rows n_items text_dim) once a table and row, a chunk of similarities in memory.
    """
    n = len(text)
    k = min(_N_NEAR, max(n - 1, 0))
    if text not in _found:
        _found[text] = _Found(
            np.zeros((n, k), dtype=np.int64), np.zeros((n, k), dtype=np.float32), np.zeros(n, bool)
        )
    found = _found[text]
    missing = np.flatnonzero(rows & ~found.done) if k else np.zeros(0, dtype=np.int64)
    unit = torch.nn.functional.normalize(text, dim=1) if len(missing) else text
    for begin in range(0, len(missing), _CHUNK):
        some = missing[begin : begin + _CHUNK]
        codes = torch.from_numpy(some).to(text.device)
        cosines = unit[codes] @ unit.T
        cosines[torch.arange(len(some), device=text.device), codes] = -2.0
        place = torch.topk(cosines, min(k + _SPARE, n - 1), dim=1).indices.sort(dim=1).values
        # Once more in double precision: how a product is rounded depends on its other rows, and
        # which rows come together depends on what was asked for before.
        exact = torch.einsum("nkd,nd->nk", unit[place].double(), unit[codes].double())
        best, order = exact.sort(dim=1, descending=True, stable=True)
        best, place = best[:, :k], place.gather(1, order[:, :k])
        weights = torch.where(best > 0, torch.exp(_SHARPNESS * (best - 1.0)), 0.0).float()
        found.items[some], found.weights[some] = place.cpu().numpy(), weights.cpu().numpy()
    found.done[missing] = True
    kept = rows[:, None] & (found.weights > 0)
    starts = np.concatenate([[0], np.cumsum(kept.sum(axis=1))])
    table = sp.csr_array((found.weights[kept], found.items[kept], starts), shape=(n, n))
    table.sort_indices()
    return table


def taste(x: GraphInput) -> Tensor:
    """Return (n_items, r) vectors whose inner products say whose texts go together here.

    A ridge regression of the co-occurrences of items on their texts: with T the texts,
    A = D_u^-1/2 R D_i^-1/2 and D the diagonal of A^T A, the metric is

        M = W (T^T (A^T A - D) T) W,   W = (T^T D T + lambda I)^-1,

    and the vectors are T M^1/2 in its 64 leading directions. It is what EASE (Steck 2019) is to
    items: which texts are chosen together, whichever items they stand on; an item does not explain
    itself. Without the ridge's inverse the direction that all texts share decides.

    Cost: O(n_edges text_dim + n_items text_dim^2 + text_dim^3).
    """
    assert x.item_text is not None, "the caller checks that there is text"
    text = x.item_text
    matrix = x.adjacency.scipy()
    own = torch.from_numpy(np.asarray(matrix.multiply(matrix).sum(axis=0)).reshape(-1)).to(text)
    profiles = x.adjacency(text)
    variance = (text.T * own) @ text
    together = profiles.T @ profiles - variance
    ridge = _TASTE_RIDGE * variance.diagonal().mean().clamp_min(1e-12)
    eye = torch.eye(text.shape[1], dtype=torch.float64, device=text.device)
    inverse = torch.linalg.inv(variance.double() + ridge.double() * eye)
    metric = inverse @ together.double() @ inverse
    values, vectors = torch.linalg.eigh((metric + metric.T) / 2)
    rank = min(_TASTE_RANK, len(values))
    leading = vectors[:, -rank:] * values[-rank:].clamp_min(0.0).sqrt()
    # One scale for all graphs; a channel's own is taken out anyway.
    leading = leading / leading.abs().max().clamp_min(1e-12)
    items: Tensor = text @ leading.to(text)
    return items
