"""EASE: the ridge regression of each item on all others, in closed form."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from gnnrec.baselines.base import check_number, with_popularity
from gnnrec.errors import ConfigError
from gnnrec.features import GraphInput
from gnnrec.propagate import SparseOperator
from gnnrec.scores import ScoreVectors, Similarity, rows_of

MAX_SIDE = 20_000  # of a dense square matrix: 1.6 GB in float32, and three of them are held
_BLOCK_ITEMS = 2048


def ease(x: GraphInput, *, ridge: float = 200.0, popularity: float = 0.3) -> ScoreVectors:
    """score(u, .) = r_u B + popularity, B = I - P diag(P)^-1, P = (R^T R + ridge I)^-1.

    Source: Steck 2019 (arXiv 1905.03375, equation 8). Where fewer users than items have
    interactions, the same scores come from the users x users matrix M = (R R^T + ridge I)^-1:
    R P = M R and P = (I - R^T M R) / ridge, so that nothing of items x items exists.

    Args:
        x: The graph.
        ridge: L2 weight.
        popularity: Weight of log popularity; see `gnnrec.baselines.base.with_popularity`.

    Raises:
        ConfigError: A setting is out of range, or both sides of the graph are too large.

    Cost: O(m^3) time and O(m^2) memory, m the smaller number of users or items with interactions;
    O(n_items^2) memory where that is the items.
    """
    check_number("ease: ridge", ridge, above=True)
    check_number("ease: popularity", popularity)
    users, items = np.flatnonzero(x.graph.user_degrees), np.flatnonzero(x.graph.item_degrees)
    by_users = len(users) < len(items)
    side = len(users) if by_users else x.graph.n_items
    if side > MAX_SIDE:
        raise ConfigError(
            f"ease: found {len(users)} users with interactions and {x.graph.n_items} items, "
            f"expected at most {MAX_SIDE} of either (it inverts a dense matrix of that width); "
            "use rp3beta or gf-cf"
        )
    part = _from_users(x, users, ridge) if by_users else _from_items(x, items, ridge)
    return with_popularity(x, part=part, weight=popularity)


def _from_items(x: GraphInput, items: np.ndarray, ridge: float) -> Similarity:
    rows = sp.csr_array(x.graph.user_items[:, items])
    weights = _inverse(sp.csr_array(rows.T @ rows), ridge, x.device)
    weights /= -weights.diagonal().clone()
    weights.fill_diagonal_(0.0)
    if len(items) < x.graph.n_items:  # an item without users says nothing and is not spoken for
        every = weights.new_zeros(x.graph.n_items, x.graph.n_items)
        codes = torch.from_numpy(items).to(x.device)
        every[codes[:, None], codes] = weights
        weights = every
    return Similarity(x.graph.user_items, weights)


def _from_users(x: GraphInput, users: np.ndarray, ridge: float) -> _Mixture:
    rows = sp.csr_array(x.graph.user_items[users])
    inverse = _inverse(sp.csr_array(rows @ rows.T), ridge, x.device)
    operator = SparseOperator(rows, x.device)
    explained = torch.zeros(x.graph.n_items, device=x.device)
    by_item = sp.csr_array(rows.T.tocsr())
    for begin in range(0, len(explained), _BLOCK_ITEMS):
        block = by_item[begin : begin + _BLOCK_ITEMS]
        mixed = SparseOperator(block, x.device)(inverse)  # (items of the block, users)
        item = np.repeat(np.arange(block.shape[0]), np.diff(block.indptr))
        picked = mixed[
            torch.from_numpy(item).to(x.device), torch.from_numpy(block.indices).to(x.device)
        ]
        explained.index_add_(0, torch.from_numpy(begin + item).to(x.device), picked)
    mixing = torch.zeros(x.graph.n_users, len(users), device=x.device)
    mixing[torch.from_numpy(users).to(x.device)] = inverse
    return _Mixture(x.graph.user_items, mixing, operator, ridge / (1.0 - explained))


@dataclass(frozen=True)
class _Mixture:
    """EASE from the users' side: score(u, .) = r_u - out * (mixing_u R).

    Attributes:
        start: (n, n_items) CSR float32, the users' own rows.
        mixing: (n, m) float32, how the rows of the m users with interactions are mixed.
        operator: R, (m, n_items).
        out: (n_items,) float32, 1 / diag(P).
    """

    start: sp.csr_array
    mixing: Tensor
    operator: SparseOperator
    out: Tensor

    def columns(self, begin: int, end: int) -> Tensor:
        """Return (n_items, end - begin) scores. Cost: O(n_edges (end - begin))."""
        own = torch.from_numpy(self.start[begin:end].T.toarray()).to(self.out.device)
        return own.sub_(self.operator.T(self.mixing[begin:end].T).mul_(self.out[:, None]))

    def of(self, users: np.ndarray) -> _Mixture:
        """Return the part of some users; see `FullRank.of`."""
        known = torch.from_numpy(users >= 0).to(self.mixing.device)
        codes = torch.from_numpy(np.maximum(users, 0)).to(self.mixing.device)
        mixing = self.mixing[codes] * known[:, None]
        return replace(self, start=rows_of(self.start, users), mixing=mixing)

    def cpu(self) -> _Mixture:
        """Return the same part on the processor."""
        return _Mixture(self.start, self.mixing.cpu(), self.operator.to("cpu"), self.out.cpu())


def _inverse(gram: sp.csr_array, ridge: float, device: torch.device) -> Tensor:
    """(gram + ridge I)^-1, float32, by Cholesky."""
    dense = torch.from_numpy(gram.toarray()).to(device)
    dense.diagonal().add_(ridge)
    factor, failed = torch.linalg.cholesky_ex(dense)
    if failed:
        raise ConfigError(
            f"ease: ridge is {ridge:g}, too small to invert the co-occurrences in float32; "
            "expected 1 or more"
        )
    del dense
    return torch.cholesky_inverse(factor)
