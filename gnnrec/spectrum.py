"""Leading singular triplets of an operator, also of one whose rows are spread over ranks.

Randomised subspace iteration (Halko et al. 2011, algorithms 4.4 and 5.1), as `torch.svd_lowrank`,
through our own product: twice as fast on Gowalla.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import svd
from torch import Tensor
from torch.nn.functional import pad

from gnnrec.device import torch_generator
from gnnrec.propagate import SparseOperator
from gnnrec.ranks import Ranks

_STEPS = 3
_NULL = 1e-6  # of the largest singular value: below, nothing can be inverted
_EXTRA = 16  # directions beside those asked for


@dataclass(frozen=True)
class Spectrum:
    """Truncated SVD of a user-item matrix: user (n_users, r), sigma (r,), item (n_items, r)."""

    user: Tensor
    sigma: Tensor
    item: Tensor


@dataclass(frozen=True)
class TruncatedSVD:
    """The `rank` leading triplets of (n_users, n_items) operators, padded with zeros.

    Attributes:
        rank: How many.
        seed: Of the random start.
        ranks: Who has the other users.
    """

    rank: int
    seed: int
    ranks: Ranks

    def __call__(self, operator: SparseOperator) -> Spectrum:
        """Decompose. Cost: O((n_edges + (n_users + n_items) r) r)."""
        users = self._user_basis(operator)[0]
        items, small = torch.linalg.qr(operator.T(users))  # A^T users = items small
        items, small = self.ranks.same(items), self.ranks.same(small)
        left, sigma, right = (self.ranks.same(part) for part in small_svd(small.T))
        rank = self._rank(operator)
        wide = (0, self.rank - rank)
        return Spectrum(
            pad((users @ left)[:, :rank], wide),
            pad(sigma[:rank], wide),
            pad((items @ right.T)[:, :rank], wide),
        )

    def user_map(self, operator: SparseOperator) -> Tensor:
        """(n_items, r) W with A W = U; see `GraphInput.user_map`. Only with all users here."""
        assert self.ranks.alone
        users, before, triangle = self._user_basis(operator)  # A before = users triangle
        left = small_svd(torch.linalg.qr(operator.T(users))[1].T)[0]
        rows, sigma, columns = small_svd(triangle.double())
        kept = sigma > _NULL * sigma.max()
        inverse = ((columns.T * (kept / torch.where(kept, sigma, 1.0))) @ rows.T).to(left)
        rank = self._rank(operator)
        return pad((before @ (inverse @ left))[:, :rank], (0, self.rank - rank))

    def _rank(self, operator: SparseOperator) -> int:
        return min(self.rank, sum(self.ranks.counts(operator.shape[0])), operator.shape[1])

    def _user_basis(self, operator: SparseOperator) -> tuple[Tensor, Tensor, Tensor]:
        """Return (users, items, R) of the last iteration, A items = users R, users orthonormal."""
        n_users, n_items = sum(self.ranks.counts(operator.shape[0])), operator.shape[1]
        width = min(self._rank(operator) + _EXTRA, n_users, n_items)
        # Drawn on the processor whatever the device, so that the seed decides.
        start = torch.randn(n_items, width, generator=torch_generator(self.seed, "svd"))
        items = start.to(operator.csr.device)
        users, triangle = self._orthonormal(operator(items))
        for _ in range(_STEPS):
            items = self.ranks.same(torch.linalg.qr(operator.T(users))[0])
            users, triangle = self._orthonormal(operator(items))
        return users, items, triangle

    def _orthonormal(self, users: Tensor) -> tuple[Tensor, Tensor]:
        """QR of a table of all users: this rank's rows of Q, and R.

        Each rank's own R is stacked and decomposed again (TSQR, Demmel et al. 2012).
        """
        basis, triangle = torch.linalg.qr(users)
        if self.ranks.alone:
            return basis, triangle
        missing = users.shape[1] - len(triangle)  # of a rank with fewer users than columns
        stacked = self.ranks.stacked(pad(triangle, (0, 0, 0, missing)))
        turn, triangle = torch.linalg.qr(stacked.flatten(0, 1))
        turn, triangle = self.ranks.same(turn), self.ranks.same(triangle)
        mine = torch.split(turn, users.shape[1])[self.ranks.rank]
        return basis @ mine[: basis.shape[1]], triangle


def small_svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The thin SVD U diag(s) V^T of a small matrix: U (m, k), s (k,), V^T (k, n), k = min(m, n).

    By QR iteration in double precision. The faster divide and conquer, which is what torch has,
    gives up on some processors where singular values are equal, as those of many small components
    are; here it would not be noticed beside the products.
    """
    parts = svd(matrix.double().cpu().numpy(), full_matrices=False, lapack_driver="gesvd")
    left, sigma, right = (torch.from_numpy(np.ascontiguousarray(part)).to(matrix) for part in parts)
    return left, sigma, right


def principal_axes(rows: Tensor) -> Tensor:
    """Return (d, d) principal axes of (n, d) rows about zero as columns, the leading one last.

    Found in double precision: in single precision the solver gives up on rows that are all alike.
    """
    axes: Tensor = torch.linalg.eigh((rows.T @ rows).double())[1]
    return axes.to(rows)
