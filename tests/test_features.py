import numpy as np
import pytest
import torch
from dense import graph_input, random_graph, random_text
from hypothesis import given, settings
from hypothesis import strategies as st

from gnnrec.features import GraphInput, centre_text, text_table
from gnnrec.graph import BipartiteGraph
from gnnrec.spectrum import principal_axes


def product(spectrum):
    return spectrum.user @ torch.diag(spectrum.sigma) @ spectrum.item.T


@pytest.mark.parametrize(("n_users", "n_items"), [(9, 14), (14, 9), (6, 6), (1, 5), (5, 1)])
def test_a_full_spectrum_rebuilds_the_matrix(n_users, n_items):
    users, items = np.nonzero(np.random.default_rng(n_users).random((n_users, n_items)) < 0.6)
    x = GraphInput(
        BipartiteGraph(users, items, n_users, n_items), spectral_rank=min(n_users, n_items)
    )
    rebuilt = product(x.spectrum).numpy()
    np.testing.assert_allclose(rebuilt, x.graph.normalised.toarray(), atol=1e-4)


def test_a_truncated_spectrum_holds_the_largest_values_in_order():
    graph = random_graph(0, n_users=40, n_items=60, density=0.2)
    spectrum = GraphInput(graph, spectral_rank=5).spectrum
    exact = np.linalg.svd(graph.normalised.toarray(), compute_uv=False)
    assert spectrum.user.shape == (40, 5) and spectrum.item.shape == (60, 5)
    np.testing.assert_allclose(spectrum.sigma.numpy(), exact[:5], atol=2e-3)
    torch.testing.assert_close(spectrum.user.T @ spectrum.user, torch.eye(5), atol=1e-4, rtol=0)
    torch.testing.assert_close(spectrum.item.T @ spectrum.item, torch.eye(5), atol=1e-4, rtol=0)


def test_a_rank_above_the_matrix_is_padded_with_zeros():
    graph = random_graph(1, n_users=4, n_items=7)
    padded, full = (GraphInput(graph, spectral_rank=rank).spectrum for rank in (10, 4))
    assert padded.user.shape == (4, 10) and padded.item.shape == (7, 10)
    assert padded.sigma.shape == (10,)
    for table in (padded.user, padded.sigma[None], padded.item):
        assert (table[:, 4:] == 0).all()
    torch.testing.assert_close(product(padded), product(full), atol=1e-5, rtol=0)


def test_the_spectrum_depends_on_its_seed_and_on_nothing_else():
    graph = random_graph(2, n_users=60, n_items=80, density=0.1)
    torch.manual_seed(1)
    first = GraphInput(graph, spectral_rank=4, seed=3).spectrum
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    second = GraphInput(graph, spectral_rank=4, seed=3).spectrum
    assert torch.equal(torch.random.get_rng_state(), state)
    other = GraphInput(graph, spectral_rank=4, seed=4).spectrum
    assert torch.equal(first.user, second.user) and torch.equal(first.item, second.item)
    assert not torch.equal(first.user, other.user)


def test_singular_values_never_leave_the_unit_interval():
    for seed in range(10):
        sigma = GraphInput(random_graph(seed), spectral_rank=9).spectrum.sigma
        assert (sigma >= 0).all() and (sigma <= 1).all()


def test_no_edges_give_a_zero_spectrum_and_no_reference_users():
    none = np.array([], dtype=np.int64)
    x = GraphInput(BipartiteGraph(none, none, 3, 4), spectral_rank=2)
    assert torch.equal(product(x.spectrum), torch.zeros(3, 4))
    assert len(x.reference_users) == 0
    assert torch.equal(x.spectral_user_mean, torch.zeros(2))


@given(seed=st.integers(0, 10_000), n=st.integers(2, 12), n_empty=st.integers(0, 4))
@settings(max_examples=50, deadline=None)
def test_centred_text_has_unit_rows_and_keeps_zero_rows(seed, n, n_empty):
    rng = np.random.default_rng(seed)
    vectors = np.concatenate([rng.standard_normal((n, 5)) + 3.0, np.zeros((n_empty, 5))])
    order = rng.permutation(len(vectors))
    text = torch.from_numpy(vectors[order].astype(np.float32))
    before = text.clone()
    centred = centre_text(text)
    assert torch.equal(text, before)
    empty = torch.from_numpy(order >= n)
    assert (centred[empty] == 0).all()
    torch.testing.assert_close(centred[~empty].norm(dim=1), torch.ones(n), atol=1e-5, rtol=0)
    # Undoing the rescaling, what is left of the mean is nothing.
    double = text[~empty].double()
    lengths = (double - double.mean(dim=0)).norm(dim=1, keepdim=True)
    assert (centred[~empty] * lengths).mean(dim=0).abs().max() < 1e-4


def test_a_part_that_all_texts_share_changes_nothing():
    text = random_text(0)
    shared = torch.full((6,), 5.0) * (text != 0).any(dim=1, keepdim=True)
    torch.testing.assert_close(centre_text(text + shared), centre_text(text), atol=1e-4, rtol=0)


def test_one_text_is_left_alone_and_none_too():
    one = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]])
    assert torch.equal(centre_text(one), one)
    assert torch.equal(centre_text(torch.zeros(3, 2)), torch.zeros(3, 2))


def test_equal_texts_stay_finite():
    assert torch.isfinite(centre_text(torch.ones(4, 3))).all()


@pytest.mark.parametrize("n_layers", [1, 2, 3])
def test_propagated_text_equals_products_by_hand(n_layers):
    x = graph_input(3)
    matrix = torch.from_numpy(x.graph.normalised.toarray())
    users, items, means = x.propagated_text(n_layers)
    assert len(users) == len(items) == len(means) == n_layers + 1
    user, item = torch.zeros(x.graph.n_users, 6), centre_text(random_text(3))
    weights = x.user_degrees / x.user_degrees.sum()
    for layer in range(n_layers + 1):
        for found, expected in (
            (users[layer], user),
            (items[layer], item),
            (means[layer], weights @ user),
        ):
            found = torch.zeros_like(expected) if found is None else found
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        user, item = matrix @ item, matrix.T @ user
    assert x.propagated_text(n_layers)[0] is users  # computed once


def test_means_and_degrees_are_those_of_the_graph():
    x = graph_input(4)
    dense = torch.from_numpy(x.graph.user_items.toarray())
    torch.testing.assert_close(x.user_degrees, dense.sum(dim=1))
    torch.testing.assert_close(x.item_degrees, dense.sum(dim=0))
    expected = ((x.user_degrees / dense.sum()) * x.user_degrees.sqrt()) @ x.spectrum.user
    torch.testing.assert_close(x.spectral_user_mean, expected)
    logs = np.log([1 + x.graph.n_edges / 9, 1 + x.graph.n_edges / 14, 14]) / 5
    np.testing.assert_allclose(x.context.numpy(), logs, rtol=1e-6)


def test_reference_users_are_active_distinct_and_bounded():
    few = graph_input(5)
    assert few.reference_users.tolist() == list(range(8))  # the ninth user is isolated
    rng = np.random.default_rng(0)
    users = np.repeat(rng.permutation(2000)[:900], 2)
    graph = BipartiteGraph(users, rng.integers(0, 50, len(users)), 2000, 50)
    many = [GraphInput(graph, seed=seed).reference_users.numpy() for seed in (0, 0, 1)]
    assert len(many[0]) == len(np.unique(many[0])) == 256
    assert np.isin(many[0], users).all()
    np.testing.assert_array_equal(many[0], many[1])
    assert not np.array_equal(many[0], many[2])


def test_text_table_is_float32_and_of_the_right_height():
    assert text_table(None, 3) is None
    table = text_table(np.asfortranarray(np.ones((3, 2))), 3)
    assert table.dtype == torch.float32 and table.shape == (3, 2)
    with pytest.raises(AssertionError, match="3 text vectors for 4 items"):
        text_table(np.ones((3, 2)), 4)


def test_another_graph_of_the_same_nodes_has_the_same_texts_and_keeps_nothing():
    x = GraphInput(random_graph(1), random_text(1), spectral_rank=5, seed=3)
    x.kept["model"] = 1
    other = x.on(random_graph(2))
    assert torch.equal(x.item_text, random_text(1))  # as they came, beside the centred ones
    assert torch.equal(other.text, x.text) and not torch.equal(x.text, x.item_text)
    assert (other.spectral_rank, other.seed, other.kept) == (5, 3, {})
    expected = GraphInput(random_graph(2), random_text(1), spectral_rank=5, seed=3)
    assert torch.equal(other.item_degrees, expected.item_degrees)
    assert torch.equal(other.spectrum.sigma, expected.spectrum.sigma)


def test_principal_components_of_texts_have_the_texts_inner_products():
    graph, text = random_graph(3, n_items=30), torch.randn(30, 200)
    text[20:] = text[:10]  # 20 directions: none of them is left out
    x = GraphInput(graph, text)
    for table, whole in zip(x.propagated_components(2)[1], x.propagated_text(2)[1], strict=True):
        assert (table is None) == (whole is None)
        if table is not None:
            assert table.shape == (30, 128)
            torch.testing.assert_close(table @ table.T, whole @ whole.T, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("compact", [False, True])
def test_the_users_of_a_truncated_spectrum_are_sums_over_their_items(compact):
    graph = random_graph(3, n_users=40, n_items=50, density=0.15)
    x = GraphInput(graph, spectral_rank=6, compact=compact)
    found = x.decompose(x.adjacency)
    reached = x.adjacency(x.user_map(x.adjacency))
    torch.testing.assert_close(reached, found.user, rtol=1e-4, atol=1e-5)
    near = x.adjacency(found.item) / found.sigma  # what it is only in the limit
    assert float((near - found.user).abs().max()) > 1e-4


def test_a_graph_of_many_equal_components_has_a_spectrum(monkeypatch):
    """Every singular value is one: where divide and conquer gives up on some processors."""

    def refuse(*_, **__):
        raise torch.linalg.LinAlgError("failed to converge")

    monkeypatch.setattr(torch.linalg, "svd", refuse)
    pairs = np.arange(300)
    x = GraphInput(BipartiteGraph(pairs, pairs, 300, 300), spectral_rank=64, compact=True)
    spectrum = x.spectrum
    torch.testing.assert_close(spectrum.sigma, torch.ones(64), rtol=0, atol=1e-5)
    torch.testing.assert_close(spectrum.user, spectrum.item, rtol=0, atol=1e-5)
    turned = spectrum.user.T @ spectrum.user
    torch.testing.assert_close(turned, torch.eye(64), rtol=0, atol=1e-5)


def test_principal_axes_of_rows_that_are_all_alike(monkeypatch):
    row = torch.nn.functional.normalize(torch.arange(1.0, 41.0)[None], dim=1)
    solve, seen = torch.linalg.eigh, []

    def spy(matrix):
        seen.append(matrix.dtype)
        return solve(matrix)

    monkeypatch.setattr(torch.linalg, "eigh", spy)
    axes = principal_axes(row.repeat(3, 1))
    # In single precision the solver fails on some such matrices, as of three items with one title.
    assert seen == [torch.float64] and axes.dtype == torch.float32
    torch.testing.assert_close(axes.T @ axes, torch.eye(40), atol=1e-5, rtol=0)
    assert float(axes[:, -1] @ row[0]) ** 2 == pytest.approx(1.0, abs=1e-5)
