"""What users wrote of items, as vectors on the edges of a graph."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from gnnrec.graph import BipartiteGraph
from gnnrec.propagate import SparseOperator

# Of the mean of what users wrote of an item against its own text; chosen on validation rows of
# ml-latest-small (`benchmarks/user_texts.py --choose`).
WEIGHT = 0.25


@dataclass(frozen=True, eq=False)
class EdgeTexts:
    """Text vectors of some edges.

    Attributes:
        rows: (n_users, n_items) canonical CSR, int64: one more than the row of `vectors` of each
            edge that has a text.
        vectors: (n_texts, text_dim) float32 unit vectors; not every one need be in use.
    """

    rows: sp.csr_array
    vectors: Tensor

    @classmethod
    def of(
        cls,
        users: np.ndarray,
        items: np.ndarray,
        codes: np.ndarray,
        vectors: Tensor,
        shape: tuple[int, int],
    ) -> EdgeTexts:
        """Lay texts over a log's pairs; of a repeated pair the first text counts.

        Args:
            users: (n,) int64 codes.
            items: (n,) int64 codes.
            codes: (n,) int64 rows of `vectors`, -1 where a pair has no text.
            vectors: (n_texts, text_dim).
            shape: n_users, n_items.
        """
        there = codes >= 0
        users, items, codes = users[there], items[there], codes[there]
        first = np.unique(users * shape[1] + items, return_index=True)[1]
        pairs = users[first], items[first]
        return cls(sp.csr_array((codes[first].astype(np.int64) + 1, pairs), shape=shape), vectors)

    def within(self, graph: BipartiteGraph) -> EdgeTexts | None:
        """Return the texts of the edges that a graph has; None where there is none.

        O(n_edges). What was written on an edge that is hidden is hidden with it.
        """
        matrix = graph.user_items
        edges = sp.csr_array(
            (np.ones(matrix.nnz, dtype=np.int64), matrix.indices, matrix.indptr), shape=matrix.shape
        )
        rows = sp.csr_array(self.rows.multiply(edges))
        rows.sort_indices()
        return EdgeTexts(rows, self.vectors) if rows.nnz else None

    def part(self, users: np.ndarray, items: np.ndarray) -> EdgeTexts:
        """Return the texts among some nodes, which get the codes 0, 1, ... in the order given."""
        rows = sp.csr_array(self.rows[users][:, items])
        rows.sort_indices()
        return EdgeTexts(rows, self.vectors)

    def to(self, device: torch.device) -> EdgeTexts:
        """Return the texts with their vectors on a device."""
        return EdgeTexts(self.rows, self.vectors.to(device))

    def centred(self) -> EdgeTexts:
        """Subtract the mean over the edges from every vector and rescale to length one.

        What all that users write shares says nothing of an item, as with the items' own texts (see
        `gnnrec.features.centre_text`). A single edge keeps its vector.
        """
        if self.rows.nnz < 2:
            return self
        counts = np.bincount(self.rows.data - 1, minlength=len(self.vectors))
        weights = torch.from_numpy(counts).to(self.vectors)
        centred = self.vectors - weights @ self.vectors / weights.sum()
        return EdgeTexts(self.rows, torch.nn.functional.normalize(centred, dim=1))

    def user_sums(self, weights: sp.csr_array) -> Tensor:
        """Sum weights_ui e_ui over a user's texts: (n_users, text_dim) float32.

        Args:
            weights: (n_users, n_items) CSR, not zero where there is a text.
        """
        pattern = sp.csr_array(
            (np.ones(self.rows.nnz, dtype=np.float32), self.rows.indices, self.rows.indptr),
            shape=self.rows.shape,
        )
        found = sp.csr_array(pattern.multiply(weights))
        found.sort_indices()
        assert found.nnz == self.rows.nnz, "an edge with a text has no weight"
        return self._sums(found.data, self.rows.indptr)

    def item_means(self) -> Tensor:
        """Mean of the texts of each item's edges: (n_items, text_dim) float32, zero without."""
        by_item = sp.csr_array(self.rows.T.tocsr())
        n_each = np.diff(by_item.indptr)
        shares = np.repeat(1.0 / np.maximum(n_each, 1), n_each).astype(np.float32)
        return EdgeTexts(by_item, self.vectors)._sums(shares, by_item.indptr)

    def _sums(self, weights: np.ndarray, starts: np.ndarray) -> Tensor:
        shape = (len(starts) - 1, len(self.vectors))
        matrix = sp.csr_array((weights, self.rows.data - 1, starts.copy()), shape=shape)
        matrix.sum_duplicates()  # the same text may be there twice; in place, hence the copy
        return SparseOperator(matrix, self.vectors.device)(self.vectors)
