"""Message passing on a bipartite graph: the sparse product and its k-fold application."""

from __future__ import annotations

import warnings
from typing import Any

import scipy.sparse as sp
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from gnnrec.errors import DataError
from gnnrec.ranks import ALONE, Ranks

# torch announces CSR support as beta once per process; the operations used here are stable.
warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")

_MAX_BLOCKS = 8
_BLOCK_ENTRIES = 2**15


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


class _Matrix:
    """A torch CSR matrix, ready to multiply tables with one algorithm per kind of device.

    A row of A x is a weighted sum of rows of x, which is what `embedding_bag` computes. On the CPU
    its kernel asks for rows ahead of time: at widths from 16 up it takes about half the time of
    torch's own CSR product (`benchmarks/propagation.py`), which stays for every other device.
    """

    def __init__(self, csr: Tensor) -> None:
        self.csr = csr
        self.blocks = _row_blocks(csr) if csr.device.type == "cpu" else []

    def __matmul__(self, x: Tensor) -> Tensor:
        """Multiply: (n_cols, dim) float32 -> (n_rows, dim), each row summed in the CSR's order."""
        # Detached, or embedding_bag prepares a backward of its own; contiguous once, not per block.
        x = x.detach().contiguous()
        if self.csr.device.type != "cpu":
            return self.csr @ x
        y = x.new_empty(self.csr.shape[0], x.shape[1])
        for rows, columns, starts, values in self.blocks:
            y[rows] = embedding_bag(
                columns, x, starts, mode="sum", per_sample_weights=values, include_last_offset=True
            )
        return y


def _row_blocks(csr: Tensor) -> list[tuple[slice, Tensor, Tensor, Tensor]]:
    """Cut a CSR into runs of rows with about equally many entries; columns and values are views.

    `embedding_bag` gives every thread as many rows, not as many entries. Ids often go from
    popular to rare, and the first thread would then do most of the work; within a run of rows
    the degrees differ less.
    """
    starts, columns, values = csr.crow_indices(), csr.col_indices(), csr.values()
    n_blocks = max(1, min(_MAX_BLOCKS, len(values) // _BLOCK_ENTRIES))
    even = torch.arange(1, n_blocks, dtype=starts.dtype) * (len(values) // n_blocks)
    cuts = [0, *torch.searchsorted(starts, even).tolist(), csr.shape[0]]
    blocks = []
    for first, last in zip(cuts[:-1], cuts[1:], strict=True):
        if first < last:  # a row longer than a block leaves empty runs
            entries = slice(int(starts[first]), int(starts[last]))
            local = starts[first : last + 1] - starts[first]
            blocks.append((slice(first, last), columns[entries], local, values[entries]))
    return blocks


class _SparseProduct(torch.autograd.Function):
    """y = A x with backward A^T dy, the transpose made beforehand; differentiable again."""

    @staticmethod
    def forward(ctx: Any, matrix: _Matrix, transposed: _Matrix, x: Tensor) -> Tensor:  # noqa: ANN401
        ctx.matrices = transposed, matrix
        return matrix @ x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, Tensor]:  # noqa: ANN401
        grad: Tensor = _SparseProduct.apply(*ctx.matrices, grads[0])  # type: ignore[no-untyped-call]
        return None, None, grad


class SparseOperator:
    """A constant sparse matrix that dense tables are multiplied by, forwards and backwards.

    Args:
        matrix: scipy CSR of shape (n_rows, n_cols).
        device: Where the products run.
        rows_over: Over whom the transposed product is added up: those who have the other rows.
        columns_over: Over whom the product itself is: those who have the other columns.
    """

    def __init__(
        self,
        matrix: sp.csr_array,
        device: torch.device | str = "cpu",
        *,
        rows_over: Ranks = ALONE,
        columns_over: Ranks = ALONE,
    ) -> None:
        matrix = sp.csr_array(matrix)
        self._rows_over, self._columns_over = rows_over, columns_over
        self.shape: tuple[int, int] = matrix.shape
        self._matrix = _Matrix(to_torch_csr(matrix, device))
        self._transposed = _Matrix(to_torch_csr(sp.csr_array(matrix.T.tocsr()), device))

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply: (n_cols, dim) float32 -> (n_rows, dim). O(nnz x dim).

        On the CPU the result does not depend on the number of threads.

        Raises:
            DataError: The table has another shape or dtype.
        """
        if x.ndim != 2 or len(x) != self.shape[1] or x.dtype != torch.float32:
            raise DataError(
                f"an operator of shape {self.shape} takes a float32 table of {self.shape[1]} rows; "
                f"found {tuple(x.shape)} of {x.dtype}: convert it, or use `operator.T`"
            )
        product: Tensor = _SparseProduct.apply(self._matrix, self._transposed, x)  # type: ignore[no-untyped-call]
        return self._columns_over.sum(product)

    @property
    def T(self) -> SparseOperator:
        """The transposed operator; shares memory with this one."""
        other = object.__new__(SparseOperator)
        other.shape = (self.shape[1], self.shape[0])
        other._matrix, other._transposed = self._transposed, self._matrix
        other._rows_over, other._columns_over = self._columns_over, self._rows_over
        return other

    def scipy(self) -> sp.csr_array:
        """The matrix as scipy CSR; on the processor it shares the operator's memory."""
        csr = self.csr.cpu()
        parts = (csr.values(), csr.col_indices(), csr.crow_indices())
        return sp.csr_array(tuple(part.numpy() for part in parts), shape=self.shape)

    def to(self, device: torch.device | str) -> SparseOperator:
        """Return the operator on a device, itself where it is there already."""
        if self._matrix.csr.device == torch.device(device):
            return self
        other = object.__new__(SparseOperator)
        other.shape = self.shape
        other._rows_over, other._columns_over = self._rows_over, self._columns_over
        other._matrix = _Matrix(self._matrix.csr.to(device))
        other._transposed = _Matrix(self._transposed.csr.to(device))
        return other

    @property
    def csr(self) -> Tensor:
        """The matrix itself, a torch CSR tensor."""
        return self._matrix.csr


def propagate(
    operator: SparseOperator, user_x: Tensor | None, item_x: Tensor | None, n_layers: int
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """Apply the symmetric bipartite adjacency 1..n_layers times.

    One layer maps (users, items) to (R x_items, R^T x_users), LightGCN's rule (He et al. 2020,
    equation 3) for the normalised matrix R held by `operator`.

    Args:
        operator: R, of shape (n_users, n_items).
        user_x: (n_users, dim), or None when users have no input of their own. None stands for a
            zero table, and half of all products is then skipped.
        item_x: (n_items, dim), or None likewise.
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
