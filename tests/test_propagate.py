import numpy as np
import pytest
import scipy.sparse as sp
import torch
from dense import random_graph
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.nn import LGConv

from gnnrec.errors import DataError
from gnnrec.propagate import SparseOperator, propagate, to_torch_csr


def sparse(seed, rows=7, columns=5, density=0.4):
    rng = np.random.default_rng(seed)
    return sp.csr_array(
        rng.standard_normal((rows, columns)) * (rng.random((rows, columns)) < density)
    )


@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(0, 8),
    columns=st.integers(0, 8),
    width=st.integers(1, 70),
    density=st.sampled_from([0.0, 0.2, 0.7, 1.0]),
    entries=st.sampled_from([1, 3, 1000]),
)
@settings(max_examples=150, deadline=None)
def test_forward_and_backward_equal_the_dense_product(seed, rows, columns, width, density, entries):
    """Rectangular, empty rows and columns, no rows at all; cut into blocks of few entries too."""
    matrix = sparse(seed, rows, columns, density)
    torch.manual_seed(seed)
    x = torch.randn(columns, width, requires_grad=True)
    upstream = torch.randn(rows, width)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gnnrec.propagate._BLOCK_ENTRIES", entries)
        y = SparseOperator(matrix)(x)
    (got,) = torch.autograd.grad(y, x, upstream)
    double = x.detach().double().requires_grad_(True)
    expected = torch.from_numpy(matrix.toarray()) @ double
    (gradient,) = torch.autograd.grad(expected, double, upstream.double())
    assert y.dtype == got.dtype == torch.float32
    torch.testing.assert_close(y.double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(got.double(), gradient, atol=1e-5, rtol=1e-5)


def skewed(seed, rows=900, columns=700):
    """A long tail, as interaction logs have: row 0 is full and degrees fall from there."""
    rng = np.random.default_rng(seed)
    share = 1.0 / (1.0 + np.arange(rows) / 80.0)
    share[rows // 2] = 0.0
    matrix = rng.standard_normal((rows, columns)) * (rng.random((rows, columns)) < share[:, None])
    return sp.csr_array(matrix.astype(np.float32))


def test_a_matrix_of_many_blocks_equals_the_dense_product():
    matrix = skewed(0)
    operator = SparseOperator(matrix)
    dense = torch.from_numpy(matrix.toarray())
    for one, table in ((operator, dense), (operator.T, dense.T)):
        blocks = one._matrix.blocks
        assert len(blocks) > 2 and blocks[0][0].start == 0 and blocks[-1][0].stop == one.shape[0]
        assert all(a[0].stop == b[0].start for a, b in zip(blocks[:-1], blocks[1:], strict=True))
        sizes = [len(values) for *_, values in blocks]
        assert sum(sizes) == matrix.nnz and max(sizes) < 1.1 * min(sizes)
        x = torch.randn(one.shape[1], 16)
        torch.testing.assert_close(one(x), table @ x, atol=1e-3, rtol=1e-5)


def test_rows_longer_than_a_block_stay_whole(monkeypatch):
    monkeypatch.setattr("gnnrec.propagate._BLOCK_ENTRIES", 1)
    dense = torch.zeros(4, 40)
    dense[1], dense[3, 7] = torch.arange(1.0, 41.0), 2.0
    operator = SparseOperator(sp.csr_array(dense.numpy()))
    assert 1 < len(operator._matrix.blocks) <= 4
    x = torch.randn(40, 3)
    torch.testing.assert_close(operator(x), dense @ x, atol=1e-3, rtol=1e-5)


def test_the_number_of_threads_and_blocks_changes_no_bit(monkeypatch):
    matrix, x = skewed(1), torch.randn(700, 24)
    found, threads = [SparseOperator(matrix)(x)], torch.get_num_threads()
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            found.append(SparseOperator(matrix)(x))
    finally:
        torch.set_num_threads(threads)
    monkeypatch.setattr("gnnrec.propagate._MAX_BLOCKS", 1)
    found.append(SparseOperator(matrix)(x))
    assert all(torch.equal(found[0], other) for other in found[1:])


def test_strided_tables_and_strided_gradients():
    operator, dense = SparseOperator(sparse(4)), torch.from_numpy(sparse(4).toarray()).float()
    wide = torch.randn(6, 10)
    for x in (wide.T[::2], wide[:5, ::3], wide[:1, :1].expand(5, 3)):
        x = x.detach().requires_grad_(True)
        for upstream in (torch.randn(x.shape[1], 7).T, torch.ones(1, 1).expand(7, x.shape[1])):
            (got,) = torch.autograd.grad(operator(x), x, upstream)
            torch.testing.assert_close(operator(x), dense @ x, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(got, dense.T @ upstream, atol=1e-5, rtol=1e-5)


def test_the_gradient_can_be_differentiated_again():
    operator, dense = SparseOperator(sparse(5)), torch.from_numpy(sparse(5).toarray()).float()
    x = torch.randn(5, 4, requires_grad=True)

    def second(product):
        (first,) = torch.autograd.grad(product(x).pow(3).sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), x)[0]

    expected = second(lambda table: dense @ table)
    torch.testing.assert_close(second(operator), expected, atol=1e-2, rtol=1e-4)


def test_a_table_that_does_not_fit_is_refused():
    operator = SparseOperator(sparse(6))
    for wrong in (torch.ones(7, 2), torch.ones(6, 2), torch.ones(5), torch.ones(5, 2).double()):
        with pytest.raises(DataError, match=r"\(7, 5\) takes a float32 table of 5 rows; found"):
            operator(wrong)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_gives_the_same_products():
    x = torch.randn(700, 24, requires_grad=True)
    here, there = SparseOperator(skewed(2)), SparseOperator(skewed(2), "cuda")
    torch.testing.assert_close(there(x.cuda()).cpu(), here(x), atol=1e-3, rtol=1e-4)
    gradients = [
        torch.autograd.grad(y.square().sum(), x)[0] for y in (here(x), there(x.cuda()).cpu())
    ]
    torch.testing.assert_close(*gradients, atol=1e-1, rtol=1e-3)


@given(seed=st.integers(0, 10_000), entries=st.sampled_from([2, 1000]))
@settings(max_examples=40, deadline=None)
def test_renumbering_the_nodes_renumbers_the_result(seed, entries):
    """The operator, its gradient and the layers are permutation equivariant."""
    rng = np.random.default_rng(seed)
    graph = random_graph(seed)
    users, items = rng.permutation(graph.n_users), rng.permutation(graph.n_items)
    torch.manual_seed(seed)
    user_x, item_x = torch.randn(graph.n_users, 3), torch.randn(graph.n_items, 3)
    weights = torch.randn(graph.n_users, 3)

    def run(matrix, user_x, item_x, weights):
        operator = SparseOperator(sp.csr_array(matrix))
        item_x = item_x.clone().requires_grad_(True)
        user_tables, item_tables = propagate(operator, user_x, item_x, 3)
        loss = sum((table * weights).sum() for table in user_tables)
        (gradient,) = torch.autograd.grad(loss, item_x)
        return [*user_tables, *item_tables, gradient]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gnnrec.propagate._BLOCK_ENTRIES", entries)
        plain = run(graph.normalised, user_x, item_x, weights)
        moved = run(graph.normalised[users][:, items], user_x[users], item_x[items], weights[users])
    order = [users] * 4 + [items] * 5
    for before, after, permutation in zip(plain, moved, order, strict=True):
        torch.testing.assert_close(after, before[permutation], atol=1e-5, rtol=1e-5)


def test_the_gradient_passes_through_stacked_products_and_strided_upstreams():
    operator, dense = SparseOperator(sparse(0)), torch.from_numpy(sparse(0).toarray()).float()
    x = torch.randn(5, 4, requires_grad=True)
    (got,) = torch.autograd.grad(operator(operator.T(operator(x))).T.square().sum(), x)
    (expected,) = torch.autograd.grad((dense @ dense.T @ dense @ x).T.square().sum(), x)
    torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-4)


def test_the_transpose_shares_its_tables_and_undoes_itself():
    operator = SparseOperator(sparse(1))
    assert operator.shape == (7, 5) and operator.T.shape == (5, 7)
    assert operator.T._matrix is operator._transposed and operator.T._transposed is operator._matrix
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


def test_the_scipy_view_is_the_matrix_and_shares_its_memory():
    matrix = sp.random_array((5, 7), density=0.4, format="csr", rng=np.random.default_rng(0))
    operator = SparseOperator(sp.csr_array(matrix.astype(np.float32)))
    assert np.array_equal(operator.scipy().toarray(), matrix.toarray().astype(np.float32))
    assert np.array_equal(operator.T.scipy().toarray(), operator.scipy().toarray().T)
    assert operator.scipy().data.ctypes.data == operator.csr.values().data_ptr()
