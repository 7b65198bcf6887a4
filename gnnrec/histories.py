"""Scores for a history sent along: somebody who is not in the log, which stays as it is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from gnnrec.catalogue import Catalogue
from gnnrec.interactions import Interactions
from gnnrec.lists import as_ids
from gnnrec.model import Transferable
from gnnrec.newcomers import Newcomers
from gnnrec.scores import ScoreVectors, Similarity
from gnnrec.tower import TowerScores

_SAME = 1e-3  # of a column's length: what rounding of another machine may move


class Histories:
    """Scores histories by a model's own rule for a user's vector, the items' side as it is.

    A user's vector is a function of the user's items, and that function is exact here: the history
    of a user of the log gets that user's scores. Against `update` it is an approximation: what
    would be computed anew with one more user is not, namely the items' degrees and vectors, the
    spectrum, and means and scales over the graph. Safe for concurrent readers.

    Args:
        catalogue: What the recommender serves from.
        model: The adapted model.
        vectors: Its scores, on the processor. Their items are used where this machine computes the
            same; where its singular vectors differ in sign or rotation, its own take their place.
        rank: Of the spectrum.
        device: Where the tables are.

    Cost: one pass over the graph and a few tables of the items' size, once; then O(items of the
    history x d) a user.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        model: Transferable,
        vectors: ScoreVectors,
        rank: int,
        device: torch.device,
    ) -> None:
        x = catalogue.target().graph_input(rank=rank, device=device)
        nobody = torch.zeros(0, dtype=torch.int64, device=device)
        with torch.no_grad():
            fresh = model(x, nobody).cpu()
        self._fold = model.newcomers(x)
        self._scores = vectors if _same_items(fresh, vectors) else fresh
        self._log = catalogue.log
        self._item_degrees = x.graph.item_degrees
        self._device = device

    def scores(self, rows: sp.csr_array) -> ScoreVectors:
        """Return the scores of (n, n_items) CSR rows of ones; an empty one gets the item bias."""
        new = Newcomers(rows, self._item_degrees, self._device)
        return self._fold(new).beside(self._scores)

    def rows(self, histories: Sequence[Iterable[Any]]) -> sp.csr_array:
        """Return (n, n_items) CSR of ones; ids that the log does not know, and repetitions, go."""
        return history_rows(self._log, histories)


def history_rows(log: Interactions, histories: Sequence[Iterable[Any]]) -> sp.csr_array:
    """Code histories of raw item ids as rows; see `Histories.rows`."""
    codes = [
        np.unique(log.item_codes(as_ids(f"history {place}", history)))
        for place, history in enumerate(histories)
    ]
    codes = [row[row >= 0] for row in codes]
    starts = np.concatenate([[0], np.cumsum([len(row) for row in codes])]).astype(np.int64)
    items = np.concatenate([np.zeros(0, dtype=np.int64), *codes])
    ones = np.ones(len(items), dtype=np.float32)
    return sp.csr_array((ones, items, starts), shape=(len(codes), log.n_items))


def _same_items(fresh: ScoreVectors, saved: ScoreVectors) -> bool:
    pairs = [(fresh.items, saved.items)]
    if fresh.walk is not None and saved.walk is not None:
        pairs.append((fresh.walk.out[:, None], saved.walk.out[:, None]))
    if isinstance(fresh.part, TowerScores) and isinstance(saved.part, TowerScores):
        pairs.append((fresh.part.items, saved.part.items))
    if isinstance(fresh.part, Similarity) and isinstance(saved.part, Similarity):
        mine, theirs = fresh.part.tables(), saved.part.tables()
        if not all(torch.equal(mine[n], theirs[n]) for n in ("near_starts", "near_items")):
            return False
        pairs.append((mine["near_weights"][:, None], theirs["near_weights"][:, None]))
    return all(_close(a, b) for a, b in pairs)


def _close(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    return bool(((a - b).norm(dim=0) <= _SAME * b.norm(dim=0) + 1e-12).all())
