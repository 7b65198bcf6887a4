"""Near texts and the texts that are chosen together, against what is written out by hand."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from dense import random_graph, random_text
from dense_blend import input_of, matrix_of, permuted, tasted
from hypothesis import given, settings
from hypothesis import strategies as st

from gnnrec import alike
from gnnrec.alike import near_items, taste
from gnnrec.features import GraphInput
from gnnrec.scores import ScoreVectors, Similarity


def by_hand(text, rows, k):
    """exp(10 (cosine - 1)) of the k nearest others that have a text."""
    unit = torch.nn.functional.normalize(text.double(), dim=1)
    cosine = (unit @ unit.T).numpy()
    table = np.zeros_like(cosine)
    for item in np.flatnonzero(rows):
        others = [j for j in np.argsort(-cosine[item]) if j != item][:k]
        for j in others:
            if cosine[item, j] > 0:
                table[item, j] = np.exp(10 * (cosine[item, j] - 1))
    return table


@settings(max_examples=25, deadline=None)
@given(
    n=st.just(0) | st.integers(2, 40),
    seed=st.integers(0, 9),
    scale=st.sampled_from([1.0, 30.0]),
)
def test_near_items_are_the_nearest_texts_by_hand(n, seed, scale):
    text = scale * random_text(seed, n) if n else torch.zeros(0, 6)  # item 1 has none
    rows = np.random.default_rng(seed).random(n) < 0.7
    table = near_items(text, rows)
    np.testing.assert_allclose(table.toarray(), by_hand(text, rows, 20), rtol=2e-4, atol=1e-9)
    assert table.has_sorted_indices and not table.diagonal().any()


def test_rows_that_are_asked_for_later_are_the_same(monkeypatch):
    monkeypatch.setattr(alike, "_CHUNK", 7)
    text, some = random_text(3, 50), np.arange(50) % 3 == 0
    first, every = near_items(text, some), near_items(text, np.ones(50, bool))
    alone = near_items(text.clone(), np.ones(50, bool))  # another table: nothing is known of it
    assert (every != alone).nnz == 0
    assert (every[some] != first[some]).nnz == 0 and not first[~some].nnz


def test_a_user_hears_of_the_twin_of_what_it_has():
    # A red mug and a blue one, and ten other things: whoever has one is told of the other.
    text = torch.nn.functional.normalize(torch.randn(12, 32, generator=torch.manual_seed(0)), dim=1)
    text[1] = torch.nn.functional.normalize(text[0] + 0.1 * text[2], dim=0)
    weights = near_items(text, np.ones(12, bool))
    start = sp.csr_array(np.eye(12, dtype=np.float32)[:1])
    scores = ScoreVectors(torch.ones(1, 1), torch.zeros(12, 1), part=Similarity(start, weights))
    _, top = scores.top_k(1, seen=start)
    assert top.tolist() == [[1]]


@pytest.mark.parametrize("seed", range(3))
def test_taste_is_the_ridge_of_co_occurrences_by_hand(seed):
    x = input_of(seed, n_users=30, n_items=40, density=0.2)
    items = taste(x).double()
    matrix = matrix_of(x.graph)
    rows = torch.from_numpy(x.graph.by_degree(0.0, -0.5).toarray()).double()
    found, expected = rows @ items @ items.T, tasted(matrix, x.item_text)
    # Up to a scale: a channel's own is taken out.
    assert torch.corrcoef(torch.stack([found.flatten(), expected.flatten()]))[0, 1] > 1 - 1e-6


def test_taste_does_not_depend_on_the_order_of_nodes():
    x = input_of(1, n_users=30, n_items=40, density=0.2)
    rng = np.random.default_rng(0)
    users, items = rng.permutation(30), rng.permutation(40)
    one, other = taste(x), taste(permuted(x, users, items))[items]
    torch.testing.assert_close(one @ one.T, other @ other.T, atol=1e-4, rtol=1e-3)


def test_texts_that_are_chosen_together_score_above_their_cosine():
    # Items of the first and second kind of text are always bought together, never alike.
    kinds = torch.eye(4)[torch.arange(40) % 4]
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(60), 4)
    pairs = np.where(rng.random(60) < 0.5, 0, 2)
    items = np.concatenate([4 * rng.integers(0, 10, 4) + p + np.array([0, 0, 1, 1]) for p in pairs])
    graph = type(random_graph(0))(users, items, 60, 40)
    vectors = taste(GraphInput(graph, kinds))
    together = vectors @ vectors.T
    assert together[0, 1] > 3 * together[0, 2].abs() and together[2, 3] > 3 * together[2, 1].abs()


def weights_of(n=5):
    return near_items(random_text(2, n), np.ones(n, bool))


def test_weights_come_back_from_their_tables():
    weights = weights_of()
    tables = Similarity(sp.csr_array((1, 5), dtype=np.float32), weights).tables()
    assert (Similarity.weights_from(tables, 5) != weights).nnz == 0


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("near_items", lambda t: t + 5),
        ("near_items", lambda t: t - 5),
        ("near_items", lambda t: t[:-1]),
        ("near_items", lambda t: t.float()),
        ("near_starts", lambda t: t[:-1]),
        ("near_starts", lambda t: t.flip(0)),
        ("near_starts", lambda t: t + 1),
        ("near_weights", lambda t: t * torch.nan),
        ("near_weights", lambda t: t.double()),
        ("near_weights", lambda t: None),
    ],
)
def test_tables_that_make_no_weights_are_refused(name, change):
    tables = Similarity(sp.csr_array((1, 5), dtype=np.float32), weights_of()).tables()
    changed = change(tables[name])
    tables = {k: v for k, v in tables.items() if k != name} | (
        {} if changed is None else {name: changed}
    )
    with pytest.raises(ValueError, match="near texts"):
        Similarity.weights_from(tables, 5)
