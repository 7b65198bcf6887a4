import numpy as np
import pytest
import scipy.sparse as sp
import torch
from dense import random_graph
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.nn import LGConv

from gnnrec.propagate import SparseOperator, propagate, to_torch_csr


def sparse(seed, rows=7, columns=5, density=0.4):
    rng = np.random.default_rng(seed)
    return sp.csr_array(
        rng.standard_normal((rows, columns)) * (rng.random((rows, columns)) < density)
    )


@given(seed=st.integers(0, 10_000), rows=st.integers(1, 8), columns=st.integers(1, 8))
@settings(max_examples=40, deadline=None)
def test_forward_and_backward_equal_the_dense_product(seed, rows, columns):
    matrix = sparse(seed, rows, columns)
    torch.manual_seed(seed)
    x = torch.randn(columns, 3, requires_grad=True)
    upstream = torch.randn(rows, 3)
    y = SparseOperator(matrix)(x)
    (got,) = torch.autograd.grad(y, x, upstream)
    double = x.detach().double().requires_grad_(True)
    expected = torch.from_numpy(matrix.toarray()) @ double
    (gradient,) = torch.autograd.grad(expected, double, upstream.double())
    torch.testing.assert_close(y.double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got.double(), gradient, atol=1e-5, rtol=1e-5)


def test_the_gradient_passes_through_stacked_products_and_strided_upstreams():
    operator, dense = SparseOperator(sparse(0)), torch.from_numpy(sparse(0).toarray()).float()
    x = torch.randn(5, 4, requires_grad=True)
    (got,) = torch.autograd.grad(operator(operator.T(operator(x))).T.square().sum(), x)
    (expected,) = torch.autograd.grad((dense @ dense.T @ dense @ x).T.square().sum(), x)
    torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-4)


def test_the_transpose_shares_its_tables_and_undoes_itself():
    operator = SparseOperator(sparse(1))
    assert operator.shape == (7, 5) and operator.T.shape == (5, 7)
    assert operator.T._forward is operator._backward
    x = torch.randn(7, 2, requires_grad=True)
    dense = torch.from_numpy(sparse(1).toarray()).float()
    torch.testing.assert_close(operator.T(x), dense.T @ x, atol=1e-5, rtol=1e-5)
    (got,) = torch.autograd.grad(operator.T(x).sum(), x)
    torch.testing.assert_close(got, dense.sum(dim=1, keepdim=True).expand(7, 2))
    torch.testing.assert_close(operator.T.T(torch.eye(5)), dense)


def test_indices_are_int32_and_values_float32():
    csr = to_torch_csr(sparse(2))
    assert csr.crow_indices().dtype == csr.col_indices().dtype == torch.int32
    assert csr.values().dtype == torch.float32 and csr.shape == (7, 5)
    np.testing.assert_allclose(csr.to_dense().numpy(), sparse(2).toarray(), rtol=1e-6)


def test_the_matrix_is_a_constant():
    y = SparseOperator(sparse(3))(torch.ones(5, 1))
    assert not y.requires_grad


def both_directions(graph):
    users, items = (torch.from_numpy(codes) for codes in graph.edges())
    items = items + graph.n_users
    return torch.stack([torch.cat([users, items]), torch.cat([items, users])])


@pytest.mark.parametrize("n_layers", [1, 2, 4])
@pytest.mark.parametrize("seed", [0, 1])
def test_layers_equal_stacked_lgconv(seed, n_layers):
    graph = random_graph(seed)
    torch.manual_seed(seed)
    user_x, item_x = torch.randn(graph.n_users, 3), torch.randn(graph.n_items, 3)
    users, items = propagate(SparseOperator(graph.normalised), user_x, item_x, n_layers)
    assert len(users) == len(items) == n_layers + 1
    x = torch.cat([user_x, item_x])
    for layer in range(n_layers + 1):
        found = torch.cat([users[layer], items[layer]])
        torch.testing.assert_close(found, x, atol=1e-5, rtol=1e-5)
        x = LGConv()(x, both_directions(graph))


def test_no_user_input_equals_a_zero_table():
    graph = random_graph(2)
    operator, item_x = SparseOperator(graph.normalised), torch.randn(graph.n_items, 3)
    given_zero = propagate(operator, torch.zeros(graph.n_users, 3), item_x, 3)
    given_none = propagate(operator, None, item_x, 3)
    sizes = (graph.n_users, graph.n_items)
    for zero, none, size in zip(given_zero, given_none, sizes, strict=True):
        for left, right in zip(zero, none, strict=True):
            torch.testing.assert_close(torch.zeros(size, 3) if right is None else right, left)
    # Half of the tables are known to be zero and are not computed.
    assert [table is None for table in given_none[0]] == [True, False, True, False]
    assert [table is None for table in given_none[1]] == [False, True, False, True]
