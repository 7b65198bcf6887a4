import numpy as np
import pytest
import torch
from dense import random_graph, random_text
from hypothesis import given, settings
from hypothesis import strategies as st

from gnnrec.features import GraphInput
from gnnrec.graph import BipartiteGraph
from gnnrec.sampling import Episode, collisions, folds


def edge_set(users, items):
    return set(zip(np.asarray(users).tolist(), np.asarray(items).tolist(), strict=True))


def episode_of(seed=0, n_users=9, n_items=14, share=0.5):
    graph = random_graph(seed, n_users=n_users, n_items=n_items)
    users, items = graph.edges()
    hidden = np.random.default_rng(seed).random(len(users)) < share
    visible = BipartiteGraph(users[~hidden], items[~hidden], n_users, n_items)
    return Episode(
        GraphInput(visible, random_text(0, n_items)), users[hidden], items[hidden]
    ), graph.user_items.toarray().astype(bool)


@given(seed=st.integers(0, 10_000), n_folds=st.integers(2, 9), n_edges=st.integers(2, 40))
@settings(max_examples=60, deadline=None)
def test_folds_partition_the_edges_and_hide_them(seed, n_folds, n_edges):
    rng = np.random.default_rng(seed)
    cells = rng.choice(10 * 12, n_edges, replace=False)
    users, items = cells // 12, cells % 12
    parts = folds(users, items, 10, 12, n_folds, rng)
    every = edge_set(users, items)
    assert len(parts) == min(n_folds, n_edges)
    hidden = [edge_set(u, i) for _, u, i in parts]
    assert set.union(*hidden) == every and sum(map(len, hidden)) == n_edges
    assert max(map(len, hidden)) - min(map(len, hidden)) <= 1
    for (graph, fold_users, _), away in zip(parts, hidden, strict=True):
        assert len(fold_users) == len(away) > 0
        assert edge_set(*graph.edges()) == every - away
        assert (graph.n_users, graph.n_items) == (10, 12)


def test_folds_follow_their_generator():
    users, items = random_graph(0).edges()

    def hidden(seed):
        parts = folds(users, items, 9, 14, 3, np.random.default_rng(seed))
        return [edge_set(u, i) for _, u, i in parts]

    assert hidden(1) == hidden(1) != hidden(2)


@pytest.mark.parametrize("n_edges", [0, 1])
def test_a_single_edge_has_no_fold(n_edges):
    codes = np.zeros(n_edges, dtype=np.int64)
    assert folds(codes, codes, 1, 1, 5, np.random.default_rng(0)) == []


@given(seed=st.integers(0, 10_000), size=st.integers(1, 60), n_negatives=st.integers(1, 20))
@settings(max_examples=60, deadline=None)
def test_a_batch_holds_hidden_edges_and_knows_every_positive(seed, size, n_negatives):
    episode, positives = episode_of(seed)
    if not len(episode.users):
        return
    batch = episode.batch(size, n_negatives, 0.5, np.random.default_rng(seed))
    hidden = edge_set(episode.users, episode.items)
    assert edge_set(batch.users, batch.items) <= hidden
    assert len(batch.users) == len(batch.items) == min(size, len(hidden))
    negatives = batch.negatives.numpy()
    assert len(np.unique(negatives)) == len(negatives) == min(n_negatives, 14)
    assert negatives.min() >= 0 and negatives.max() < 14
    # Visible and hidden edges both count: neither may be learned as a negative.
    expected = positives[batch.users.numpy()][:, negatives]
    np.testing.assert_array_equal(batch.known.numpy(), expected)
    assert batch.known.dtype == torch.bool


@given(seed=st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_collisions_equal_a_dense_lookup(seed):
    rng = np.random.default_rng(seed)
    graph = random_graph(seed)
    users = rng.integers(0, 9, rng.integers(0, 20))  # repeats, isolated users, none at all
    negatives = rng.permutation(14)[: rng.integers(0, 15)]
    found = collisions(graph.user_items, users, negatives)
    dense = graph.user_items.toarray().astype(bool)
    np.testing.assert_array_equal(found, dense[users][:, negatives])


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
def test_edges_are_drawn_by_inverse_user_degree(balance):
    degrees = np.array([1, 4, 16])
    users, items = np.repeat(np.arange(3), degrees), np.concatenate([np.arange(d) for d in degrees])
    none = np.array([], dtype=np.int64)
    episode = Episode(GraphInput(BipartiteGraph(none, none, 3, 16)), users, items)
    drawn = episode.draw_edges(60_000, balance, np.random.default_rng(0))
    weights = (1.0 / degrees[users]) ** balance
    expected = 60_000 * weights / weights.sum()
    found = np.bincount(drawn, minlength=len(users))
    # 21 cells; chi-square with 20 degrees of freedom is below 45 with probability 0.999.
    assert ((found - expected) ** 2 / expected).sum() < 45.0


def test_draws_of_two_balances_do_not_mix():
    episode, _ = episode_of(1, share=0.9)
    first = episode.draw_edges(50, 0.0, np.random.default_rng(0))
    other = episode.draw_edges(50, 1.0, np.random.default_rng(0))
    again = episode.draw_edges(50, 0.0, np.random.default_rng(0))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_negatives_are_uniform():
    episode, _ = episode_of(2)
    rng = np.random.default_rng(0)
    drawn = np.concatenate([episode.batch(1, 3, 0.0, rng).negatives for _ in range(4000)])
    counts = np.bincount(drawn, minlength=14)
    assert abs(counts - 12_000 / 14).max() < 5 * np.sqrt(12_000 / 14)
