import networkx as nx
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from gnnrec.errors import DataError
from gnnrec.graph import BipartiteGraph, gini


@st.composite
def graphs(draw):
    """Random graphs with repeated edges and isolated nodes."""
    n_users, n_items = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    pair = st.tuples(st.integers(0, n_users - 1), st.integers(0, n_items - 1))
    pairs = np.array(draw(st.lists(pair, max_size=40)), dtype=np.int64).reshape(-1, 2)
    return BipartiteGraph(pairs[:, 0], pairs[:, 1], n_users, n_items), pairs


@pytest.mark.parametrize(
    ("users", "items"), [([0, 3], [0, 0]), ([0, 1], [0, 4]), ([-1, 1], [0, 0]), ([0, 1], [0, -2])]
)
def test_codes_out_of_range_are_refused(users, items):
    with pytest.raises(DataError, match=r"\[0, 3\) x \[0, 4\)"):
        BipartiteGraph(np.array(users), np.array(items), 3, 4)


def test_the_largest_codes_are_accepted():
    graph = BipartiteGraph(np.array([2]), np.array([3]), 3, 4)
    assert graph.user_items.toarray()[2, 3] == 1.0


@given(graphs())
@settings(max_examples=60, deadline=None)
def test_edges_are_the_distinct_pairs(case):
    graph, pairs = case
    dense = np.zeros((graph.n_users, graph.n_items))
    dense[pairs[:, 0], pairs[:, 1]] = 1.0
    np.testing.assert_array_equal(graph.user_items.toarray(), dense)
    users, items = graph.edges()
    assert users.dtype == items.dtype == np.int64
    distinct = sorted({(u, i) for u, i in pairs.tolist()})
    assert list(zip(users.tolist(), items.tolist(), strict=True)) == distinct
    assert graph.n_edges == len(distinct)
    np.testing.assert_array_equal(graph.user_degrees, dense.sum(axis=1))
    np.testing.assert_array_equal(graph.item_degrees, dense.sum(axis=0))


@given(graphs())
@settings(max_examples=60, deadline=None)
def test_normalisations_equal_dense_ones(case):
    graph, _ = case
    dense = graph.user_items.toarray().astype(np.float64)
    by_user = np.diag([d**-0.5 if d else 0.0 for d in dense.sum(axis=1)])
    by_item = np.diag([d**-0.5 if d else 0.0 for d in dense.sum(axis=0)])
    assert graph.normalised.dtype == np.float32
    np.testing.assert_allclose(graph.normalised.toarray(), by_user @ dense @ by_item, atol=1e-6)
    np.testing.assert_allclose(graph.user_mean.toarray(), by_user**2 @ dense, atol=1e-6)
    np.testing.assert_allclose(graph.item_mean.toarray(), by_item**2 @ dense.T, atol=1e-6)
    assert (graph.user_items.data == 1.0).all()  # untouched by the scaled copies


@given(graphs())
@settings(max_examples=60, deadline=None)
def test_singular_values_lie_between_zero_and_one(case):
    graph, _ = case
    sigma = np.linalg.svd(graph.normalised.toarray().astype(np.float64), compute_uv=False)
    assert sigma.min() >= 0.0 and sigma.max() <= 1.0 + 1e-6
    assert graph.n_edges == 0 or sigma.max() >= 1.0 - 1e-6  # every component reaches one


def test_every_connected_component_has_one_singular_value_of_one():
    blocks = sp.block_diag([np.ones((2, 3)), np.ones((4, 1)), np.ones((1, 2))]).tocoo()
    graph = BipartiteGraph(*blocks.coords, 7, 6)
    sigma = np.linalg.svd(graph.normalised.toarray(), compute_uv=False)
    assert (sigma > 1 - 1e-5).sum() == 3 == graph.statistics()["n_components"]


@given(graphs())
@settings(max_examples=30, deadline=None)
def test_pyg_view_holds_the_same_edges(case):
    graph, _ = case
    data = graph.to_pyg()
    forth = data["user", "interacts", "item"].edge_index.numpy()
    back = data["item", "rev_interacts", "user"].edge_index.numpy()
    again = BipartiteGraph(forth[0], forth[1], data["user"].num_nodes, data["item"].num_nodes)
    assert (again.user_items != graph.user_items).nnz == 0
    np.testing.assert_array_equal(back, forth[::-1])
    data.validate()


@given(graphs())
@settings(max_examples=30, deadline=None)
def test_networkx_view_agrees_with_the_statistics(case):
    graph, _ = case
    view, statistics = graph.to_networkx(), graph.statistics()
    sides = nx.get_node_attributes(view, "bipartite")
    assert nx.is_bipartite(view)
    assert nx.algorithms.bipartite.is_bipartite_node_set(view, [n for n in view if not sides[n]])
    assert sum(sides.values()) == graph.n_items == statistics["n_items"]
    assert view.number_of_nodes() == graph.n_users + graph.n_items
    assert view.number_of_edges() == graph.n_edges == statistics["n_interactions"]
    components = list(nx.connected_components(view))
    assert statistics["n_components"] == len(components)
    assert statistics["largest_component_share"] == pytest.approx(
        max(map(len, components)) / view.number_of_nodes()
    )
    assert statistics["isolated_users"] + statistics["isolated_items"] == nx.number_of_isolates(
        view
    )
    assert statistics["density"] == pytest.approx(graph.n_edges / (graph.n_users * graph.n_items))
    degrees = [d for (side, _), d in view.degree() if side == "item"]
    assert statistics["item_degree"]["max"] == max(degrees)
    assert statistics["item_degree"]["mean"] == pytest.approx(np.mean(degrees))


@given(st.lists(st.integers(0, 50), min_size=1, max_size=30))
@settings(max_examples=80, deadline=None)
def test_gini_equals_the_mean_absolute_difference(counts):
    counts = np.array(counts)
    if counts.sum():
        differences = np.abs(counts[:, None] - counts[None, :]).sum()
        expected = differences / (2 * len(counts) * counts.sum())
    else:
        expected = 0.0
    assert gini(counts) == pytest.approx(expected, abs=1e-12)


def test_gini_at_its_ends():
    assert gini(np.array([3, 3, 3])) == pytest.approx(0.0)
    assert gini(np.array([0, 0, 0, 8])) == pytest.approx(0.75)
    assert gini(np.array([], dtype=np.int64)) == 0.0


def test_top_share_and_degree_summary():
    items = np.repeat(np.arange(100), np.r_[50, np.ones(99, dtype=np.int64)])
    users = np.r_[np.arange(50), np.zeros(99, dtype=np.int64)]
    statistics = BipartiteGraph(users, items, 50, 100).statistics()
    assert statistics["top_1_percent_item_share"] == pytest.approx(50 / 149)
    assert statistics["user_degree"] == {
        "min": 1.0,
        "median": 1.0,
        "mean": pytest.approx(2.98),
        "p90": 1.0,
        "max": 100.0,
    }


def test_a_graph_without_edges_has_statistics():
    none = np.array([], dtype=np.int64)
    statistics = BipartiteGraph(none, none, 2, 3).statistics()
    assert statistics["n_components"] == 5 and statistics["density"] == 0.0
    assert statistics["item_gini"] == statistics["top_1_percent_item_share"] == 0.0
