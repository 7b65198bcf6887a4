"""Users who are not in a graph, by their items: what a model reads of them, and gives them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from gnnrec.propagate import to_torch_csr
from gnnrec.scores import ScoreVectors, Similarity
from gnnrec.tower import TowerScores


@dataclass(frozen=True)
class Newcomers:
    """Users beside a graph that stays as it is: its items' degrees and vectors do not count them.

    Attributes:
        rows: (n, n_items) CSR of ones, the items that each of them has.
        item_degrees: (n_items,) int64, of the graph.
        device: Where the tables are that they read.
    """

    rows: sp.csr_array
    item_degrees: np.ndarray
    device: torch.device

    @cached_property
    def degrees(self) -> Tensor:
        """(n,) float32: items per user."""
        return torch.from_numpy(np.diff(self.rows.indptr)).float().to(self.device)

    def by_degree(self, user_exponent: float, item_exponent: float) -> sp.csr_array:
        """D_u^user_exponent R D_i^item_exponent, (n, n_items) float32, as `BipartiteGraph` has it.

        An item without interactions counts one: this user's.
        """
        lengths = np.diff(self.rows.indptr)
        degrees = np.maximum(self.item_degrees[self.rows.indices], 1).astype(np.float64)
        data = (degrees**item_exponent).astype(np.float32)
        own = np.maximum(lengths, 1).astype(np.float64) ** user_exponent
        data *= np.repeat(own.astype(np.float32), lengths)
        return sp.csr_array((data, self.rows.indices, self.rows.indptr), shape=self.rows.shape)

    def sums(self, table: Tensor, user_exponent: float, item_exponent: float) -> Tensor:
        """Return (n, width): `by_degree` times a table of the items. O(their items x width)."""
        return to_torch_csr(self.by_degree(user_exponent, item_exponent), self.device) @ table


@dataclass(frozen=True)
class Arrived:
    """Newcomers as a model scores them: the user side of `ScoreVectors`.

    Attributes:
        users: (n, d) float32; the last column is one.
        start: (n, n_items) CSR, where their walks start, for a model that has one.
        tower: (n, width + 1) float32, for a model with a tower; see `TowerScores.users`.
        near: (n, n_items) CSR, for a model with a part of the kind `Similarity`; see its `start`.
    """

    users: Tensor
    start: sp.csr_array | None = None
    tower: Tensor | None = None
    near: sp.csr_array | None = None

    def beside(self, scores: ScoreVectors) -> ScoreVectors:
        """Return their scores with the items of others': on the processor."""
        walk, part = scores.walk, scores.part
        if walk is not None and self.start is not None:
            walk = replace(walk, start=self.start)
        if isinstance(part, TowerScores) and self.tower is not None:
            part = replace(part, users=self.tower.cpu())
        if isinstance(part, Similarity) and self.near is not None:
            part = replace(part, start=self.near)
        return ScoreVectors(self.users.cpu(), scores.items, walk, part)


Rows = Callable[[Newcomers], Tensor]  # one channel's user rows
FoldIn = Callable[[Newcomers], Arrived]
