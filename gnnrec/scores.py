"""What a model makes of a graph: the scores of all its users and items, in factored form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol, Self, runtime_checkable

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from gnnrec.propagate import SparseOperator, to_torch_csr
from gnnrec.rank import top_k, top_k_from

_FEW = 4  # users whose walks are found one by one


def rows_of(matrix: sp.csr_array, codes: np.ndarray) -> sp.csr_array:
    """Return rows of a CSR matrix: (n,) int64 codes, an empty row for -1. O(entries returned)."""
    if (codes >= 0).all():
        return sp.csr_array(matrix[codes])
    rows = sp.csr_array(matrix[codes[codes >= 0]])
    lengths = np.zeros(len(codes), dtype=rows.indptr.dtype)
    lengths[codes >= 0] = np.diff(rows.indptr)
    starts = np.concatenate([rows.indptr[:1], np.cumsum(lengths, dtype=rows.indptr.dtype)])
    return sp.csr_array((rows.data, rows.indices, starts), shape=(len(codes), matrix.shape[1]))


def _arrive(matrix: sp.csr_array, codes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """One step from some rows, weights @ matrix[codes]. O(entries there + columns)."""
    step: np.ndarray = matrix[codes].T @ weights
    return step


class FullRank(Protocol):
    """A part of the scores that no short vectors can hold: it is found for the users asked for."""

    def columns(self, begin: int, end: int) -> Tensor:
        """Return (n_items, end - begin) float32 scores of consecutive users."""
        ...

    def of(self, users: np.ndarray) -> Self:
        """Return the part of some users: (n,) int64 codes, -1 for somebody who gets zeros."""
        ...

    def cpu(self) -> Self:
        """Return the same part on the processor."""
        ...


@runtime_checkable
class Differentiable(FullRank, Protocol):
    """A part of full rank that a model is trained through; `items` has a row per item."""

    users: Tensor
    items: Tensor

    def pairs(self, items: Tensor) -> Tensor:
        """Return (n,) scores of each user with the item of the same place: (n,) int64 codes."""
        ...

    def table(self, items: Tensor) -> Tensor:
        """Return (n, m) scores of each user with each of m items: (m,) int64 codes."""
        ...


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

        A user reaches a small part of the graph, and only the edges there are read for a few users;
        the two ways agree to rounding.
        """
        rows = self.start[begin:end]
        if end - begin <= _FEW and self.out.device.type == "cpu":
            to_users, to_items = self.operator.T.scipy(), self.operator.scipy()
            reached = np.empty((len(self.out), end - begin), dtype=np.float32)
            for column, (first, last) in enumerate(pairwise(rows.indptr)):
                users = _arrive(to_users, rows.indices[first:last], rows.data[first:last])
                between = np.flatnonzero(users)
                reached[:, column] = _arrive(to_items, between, users[between])
            return self.out[:, None] * torch.from_numpy(reached)
        table = torch.from_numpy(rows.T.toarray()).to(self.out.device)
        return self.out[:, None] * self.operator.T(self.operator(table))

    def of(self, users: np.ndarray) -> Walk:
        """Return the walks of some users; see `FullRank.of`."""
        return replace(self, start=rows_of(self.start, users))

    def cpu(self) -> Walk:
        """Return the same walks on the processor."""
        return replace(self, operator=self.operator.to("cpu"), out=self.out.cpu())


@dataclass(frozen=True)
class Similarity:
    """score(u, .) = start_u @ weights: each item that a user has speaks for the items like it.

    Attributes:
        start: (n, n_items) CSR float32, the users' rows.
        weights: (n_items, n_items) float32, what item i says for item j: a dense tensor, on the
            device that is to do the work, or scipy CSR, which the processor multiplies.
    """

    start: sp.csr_array
    weights: Tensor | sp.csr_array

    def columns(self, begin: int, end: int) -> Tensor:
        """Return (n_items, end - begin) scores.

        Costs what the rows of `weights` hold, summed over the users' items.
        """
        rows = sp.csr_array(self.start[begin:end])
        if isinstance(self.weights, Tensor):
            return (to_torch_csr(rows, self.weights.device) @ self.weights).T
        return torch.from_numpy((rows @ self.weights).T.toarray())

    def tables(self) -> dict[str, Tensor]:
        """Return what a recommender keeps of sparse weights: a CSR matrix as three tensors."""
        assert not isinstance(self.weights, Tensor), "dense weights are nobody's to keep"
        return {
            "near_starts": torch.from_numpy(self.weights.indptr.astype(np.int64)),
            "near_items": torch.from_numpy(self.weights.indices.astype(np.int64)),
            "near_weights": torch.from_numpy(self.weights.data),
        }

    @staticmethod
    def weights_from(tables: Mapping[str, Tensor], n_items: int) -> sp.csr_array:
        """Put the weights together again from `tables`, checked: compiled code follows indices.

        Raises:
            ValueError: They make no matrix.
        """
        parts = [tables.get(f"near_{name}", torch.empty(0)) for name in ("starts", "items")]
        starts, items = (part.numpy() for part in parts)
        weights = tables.get("near_weights", torch.empty(0)).numpy()
        if not all(part.dtype == torch.int64 and part.ndim == 1 for part in parts) or (
            weights.dtype != np.float32 or not np.isfinite(weights).all()
        ):
            raise ValueError("near texts are not int64 places and finite float32 weights")
        if (
            len(starts) != n_items + 1
            or items.shape != weights.shape
            or starts[0] != 0
            or (starts[-1] != len(items) or (np.diff(starts) < 0).any())
        ):
            raise ValueError(f"near texts do not fit {n_items} items")
        if len(items) and not 0 <= items.min() <= items.max() < n_items:
            raise ValueError("near texts name items beyond the catalogue")
        return sp.csr_array((weights, items, starts), shape=(n_items, n_items))

    def of(self, users: np.ndarray) -> Similarity:
        """Return the part of some users; see `FullRank.of`."""
        return replace(self, start=rows_of(self.start, users))

    def cpu(self) -> Similarity:
        """Return the same part on the processor."""
        on_cpu = self.weights.cpu() if isinstance(self.weights, Tensor) else self.weights
        return replace(self, weights=on_cpu)


@dataclass(frozen=True)
class ScoreVectors:
    """score(u, i) = users[u] . items[i] + walk(u, i) + part(u, i).

    `users` is (n_users, d) and `items` (n_items, d) float32. The last column of `items` is the
    item bias and that of `users` is one. `walk` is what a saved recommender puts together again
    from its graph; `part` is any other kind of full rank, and both are treated alike.
    """

    users: Tensor
    items: Tensor
    walk: Walk | None = None
    part: FullRank | None = None

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
        if not known.all():
            nobody = torch.zeros_like(rows[0])
            nobody[-1] = 1.0
            rows[torch.from_numpy(~known)] = nobody
        walk = self.walk and self.walk.of(users)
        part = self.part and self.part.of(users)
        return ScoreVectors(rows, self.items, walk, part)

    @property
    def item_vectors(self) -> Tensor:
        """What is known of each item but its bias, (n_items, d): near rows are alike."""
        rows = self.items[:, :-1]
        if isinstance(self.part, Differentiable):
            rows = torch.cat([rows, self.part.items], dim=1)
        return rows

    def cpu(self) -> ScoreVectors:
        """Return the same scores on the processor."""
        walk, part = self.walk and self.walk.cpu(), self.part and self.part.cpu()
        return ScoreVectors(self.users.cpu(), self.items.cpu(), walk, part)

    def rows(self, begin: int, end: int) -> Tensor:
        """Return (end - begin, n_items) scores of consecutive users.

        Laid out items x users, as `gnnrec.rank` wants them.
        """
        users = self.users[begin:end]
        if len(users) == 1:
            # MKL reads a table larger than the cache twice as fast for two vectors as for one.
            users = torch.cat([users, users])
        scores = (self.items @ users.T)[:, : end - begin]
        for part in self.full_rank():
            scores = scores.add_(part.columns(begin, end).to(scores.device))
        return scores.T

    def top_k(
        self, k: int, seen: sp.csr_array | None = None, allowed: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rank the catalogue for every user; see `gnnrec.rank.top_k`."""
        if not self.full_rank():
            return top_k(self.users, self.items, k, seen=seen, allowed=allowed)
        n_users, n_items = len(self.users), len(self.items)

        def score(users: np.ndarray) -> Tensor:
            return self.rows(int(users[0]), int(users[-1]) + 1) if len(users) else self.rows(0, 0)

        return top_k_from(score, n_users, n_items, k, seen=seen, allowed=allowed)

    def full_rank(self) -> list[FullRank]:
        """Return the parts that no short vectors hold."""
        return [part for part in (self.walk, self.part) if part is not None]
