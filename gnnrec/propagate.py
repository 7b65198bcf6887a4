"""Message passing on a bipartite graph: the sparse product and its k-fold application."""

from __future__ import annotations

import warnings
from typing import Any

import scipy.sparse as sp
import torch
from torch import Tensor

# torch announces CSR support as beta once per process; the operations used here are stable.
warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")


def to_torch_csr(matrix: sp.csr_array, device: torch.device | str = "cpu") -> Tensor:
    """Copy a scipy CSR matrix into a float32 torch CSR tensor.

    Index arrays are int32 whenever the matrix has fewer than 2^31 entries: half the index
    traffic of int64, which a memory-bound product feels.
    """
    index = torch.int32 if matrix.nnz < 2**31 else torch.int64
    return torch.sparse_csr_tensor(
        torch.as_tensor(matrix.indptr, dtype=index),
        torch.as_tensor(matrix.indices, dtype=index),
        torch.as_tensor(matrix.data, dtype=torch.float32),
        size=matrix.shape,
        check_invariants=False,
    ).to(device)


class _SparseProduct(torch.autograd.Function):
    """y = A x with backward A^T dy, both as CSR products (autograd would build A^T each time)."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, transposed: Tensor, x: Tensor) -> Tensor:  # noqa: ANN401
        ctx.transposed = transposed
        return matrix @ x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, Tensor]:  # noqa: ANN401
        return None, None, ctx.transposed @ grads[0].contiguous()


class SparseOperator:
    """A constant sparse matrix that dense tables are multiplied by, forwards and backwards.

    Args:
        matrix: scipy CSR of shape (n_rows, n_cols).
        device: Where the products run.
    """

    def __init__(self, matrix: sp.csr_array, device: torch.device | str = "cpu") -> None:
        matrix = sp.csr_array(matrix)
        self.shape: tuple[int, int] = matrix.shape
        self._forward = to_torch_csr(matrix, device)
        self._backward = to_torch_csr(sp.csr_array(matrix.T.tocsr()), device)

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply: (n_cols, dim) float32 -> (n_rows, dim). O(nnz x dim)."""
        product: Tensor = _SparseProduct.apply(self._forward, self._backward, x)  # type: ignore[no-untyped-call]
        return product

    @property
    def T(self) -> SparseOperator:
        """The transposed operator; shares memory with this one."""
        other = object.__new__(SparseOperator)
        other.shape = (self.shape[1], self.shape[0])
        other._forward, other._backward = self._backward, self._forward
        return other


def propagate(
    operator: SparseOperator, user_x: Tensor | None, item_x: Tensor, n_layers: int
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """Apply the symmetric bipartite adjacency 1..n_layers times.

    One layer maps (users, items) to (R x_items, R^T x_users), LightGCN's rule (He et al. 2020,
    equation 3) for the normalised matrix R held by `operator`.

    Args:
        operator: R, of shape (n_users, n_items).
        user_x: (n_users, dim), or None when users have no input of their own. None stands for a
            zero table, and half of all products is then skipped.
        item_x: (n_items, dim).
        n_layers: How many layers.

    Returns:
        Two lists of n_layers + 1 tables, layer 0 being the input; None stands for zero.
        Cost: O(n_layers x nnz x dim).
    """
    users: list[Tensor | None] = [user_x]
    items: list[Tensor | None] = [item_x]
    transposed = operator.T
    for _ in range(n_layers):
        last_user, last_item = users[-1], items[-1]
        users.append(None if last_item is None else operator(last_item))
        items.append(None if last_user is None else transposed(last_user))
    return users, items
