"""What a model makes of a graph: the scores of all its users and items, in factored form."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from gnnrec.propagate import SparseOperator
from gnnrec.rank import top_k, top_k_from

_FEW = 8  # users whose walks are found by sparse products


def rows_of(matrix: sp.csr_array, codes: np.ndarray) -> sp.csr_array:
    """Return rows of a CSR matrix: (n,) int64 codes, an empty row for -1. O(entries returned)."""
    if (codes >= 0).all():
        return sp.csr_array(matrix[codes])
    rows = sp.csr_array(matrix[codes[codes >= 0]])
    lengths = np.zeros(len(codes), dtype=rows.indptr.dtype)
    lengths[codes >= 0] = np.diff(rows.indptr)
    starts = np.concatenate([rows.indptr[:1], np.cumsum(lengths, dtype=rows.indptr.dtype)])
    return sp.csr_array((rows.data, rows.indices, starts), shape=(len(codes), matrix.shape[1]))


@dataclass(frozen=True)
class Walk:
    """The scores of a walk user -> item -> user -> item that no short vectors can hold.

    score(u, .) = out * (A^T A start_u): LightGCN's second layer on one-hot inputs. It is computed
    for the users asked for, by propagating their rows; nothing of size items x items exists.

    Attributes:
        start: (n, n_items) CSR float32, the weights that each user's walk starts with.
        operator: A, over all users of the graph, whoever is asked for.
        out: (n_items,) float32, the weight of arriving at an item.
    """

    start: sp.csr_array
    operator: SparseOperator
    out: Tensor

    def columns(self, begin: int, end: int) -> Tensor:
        """Return (n_items, end - begin) scores. Cost: O(n_edges (end - begin)).

        A few users reach a small part of the graph, which sparse times sparse finds at once; the
        two ways agree to rounding.
        """
        rows = self.start[begin:end]
        if end - begin < _FEW and self.out.device.type == "cpu":
            reached = rows @ self.operator.T.scipy() @ self.operator.scipy()
            return self.out[:, None] * torch.from_numpy(reached.T.toarray())
        table = torch.from_numpy(rows.T.toarray()).to(self.out.device)
        return self.out[:, None] * self.operator.T(self.operator(table))


@dataclass(frozen=True)
class ScoreVectors:
    """score(u, i) = users[u] . items[i] + walk(u, i); (n_users, d) and (n_items, d) float32.

    The last column of `items` is the item bias and that of `users` is one.
    """

    users: Tensor
    items: Tensor
    walk: Walk | None = None

    def score(self, users: Tensor, items: Tensor) -> Tensor:
        """Return (len(users), len(items)) scores of all pairs."""
        return self.of(users.cpu().numpy()).rows(0, len(users))[:, items]

    def of(self, users: np.ndarray) -> ScoreVectors:
        """Return the scores of some users: (n,) int64 codes, -1 for somebody unknown.

        Nothing personal is known of an unknown user, who gets the item bias alone.
        """
        known = users >= 0
        codes = np.where(known, users, 0)
        rows = self.users[torch.from_numpy(codes).to(self.users.device)]
        walk = self.walk
        if walk is not None:
            walk = replace(walk, start=rows_of(walk.start, users))
        if not known.all():
            nobody = torch.zeros_like(rows[0])
            nobody[-1] = 1.0
            rows[torch.from_numpy(~known)] = nobody
        return ScoreVectors(rows, self.items, walk)

    def cpu(self) -> ScoreVectors:
        """Return the same scores on the processor."""
        walk = self.walk
        if walk is not None:
            walk = replace(walk, operator=walk.operator.to("cpu"), out=walk.out.cpu())
        return ScoreVectors(self.users.cpu(), self.items.cpu(), walk)

    def rows(self, begin: int, end: int) -> Tensor:
        """Return (end - begin, n_items) scores of consecutive users.

        Laid out items x users, as `gnnrec.rank` wants them.
        """
        scores = self.items @ self.users[begin:end].T
        if self.walk is not None:
            scores = scores.add_(self.walk.columns(begin, end))
        return scores.T

    def top_k(
        self, k: int, seen: sp.csr_array | None = None, allowed: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rank the catalogue for every user; see `gnnrec.rank.top_k`."""
        if self.walk is None:
            return top_k(self.users, self.items, k, seen=seen, allowed=allowed)
        n_users, n_items = len(self.users), len(self.items)

        def score(users: np.ndarray) -> Tensor:
            return self.rows(int(users[0]), int(users[-1]) + 1) if len(users) else self.rows(0, 0)

        return top_k_from(score, n_users, n_items, k, seen=seen, allowed=allowed)
