"""Scores in factored form: some users, unknown users, ranking, with and without full rank parts."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gnnrec.propagate import SparseOperator
from gnnrec.scores import ScoreVectors, Similarity, Walk, rows_of

N_USERS, N_ITEMS = 12, 11
KINDS = ("vectors", "walk", "dense", "sparse", "walk and dense")


def made_up(kind, seed=0):
    """(scores, the same as a dense table)."""
    rng = np.random.default_rng(seed)
    users = rng.standard_normal((N_USERS, 3)).astype(np.float32)
    users[:, -1] = 1.0
    items = rng.standard_normal((N_ITEMS, 3)).astype(np.float32)
    dense = users @ items.T

    def sparse(n_rows):
        shape = (n_rows, N_ITEMS)
        return (rng.random(shape) * (rng.random(shape) < 0.4)).astype(np.float32)

    walk = part = None
    if "walk" in kind:
        start, matrix, out = sparse(N_USERS), sparse(N_USERS), rng.random(N_ITEMS, dtype=np.float32)
        walk = Walk(sp.csr_array(start), SparseOperator(sp.csr_array(matrix)), torch.tensor(out))
        dense = dense + start @ matrix.T @ matrix * out
    if "dense" in kind or "sparse" in kind:
        start, weights = sparse(N_USERS), sparse(N_ITEMS)
        kept = torch.from_numpy(weights) if "dense" in kind else sp.csr_array(weights)
        part = Similarity(sp.csr_array(start), kept)
        dense = dense + start @ weights
    return ScoreVectors(torch.from_numpy(users), torch.from_numpy(items), walk, part), dense


@pytest.mark.parametrize("kind", KINDS)
def test_rows_and_pairs_equal_the_dense_table(kind):
    scores, dense = made_up(kind)
    np.testing.assert_allclose(scores.rows(0, N_USERS), dense, rtol=1e-5, atol=1e-5)
    for begin in (0, 2, 4):  # many users at once, few, and one: three ways
        for end in (5, N_USERS):
            found = scores.rows(begin, end)
            assert found.shape == (end - begin, N_ITEMS)
            np.testing.assert_allclose(found, dense[begin:end], rtol=1e-5, atol=1e-5)
    found = scores.score(torch.tensor([6, 1]), torch.tensor([0, 3, 9]))
    np.testing.assert_allclose(found, dense[[6, 1]][:, [0, 3, 9]], rtol=1e-5, atol=1e-5)
    assert scores.rows(0, 0).shape == (0, N_ITEMS)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30, deadline=None)
@given(codes=st.lists(st.integers(-1, N_USERS - 1), max_size=9), seed=st.integers(0, 99))
def test_an_unknown_user_gets_the_item_bias_and_others_their_row(kind, codes, seed):
    scores, dense = made_up(kind, seed)
    found = scores.of(np.array(codes, dtype=np.int64)).rows(0, len(codes))
    bias = scores.items[:, -1].numpy()
    expected = [bias if code < 0 else dense[code] for code in codes]
    np.testing.assert_allclose(found, np.reshape(expected, (-1, N_ITEMS)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_ranking_leaves_out_what_is_seen(kind):
    scores, dense = made_up(kind)
    seen = sp.csr_array((np.random.default_rng(1).random(dense.shape) < 0.3).astype(np.float32))
    values, items = scores.top_k(4, seen=seen)
    masked = np.where(seen.toarray() > 0, -np.inf, dense)
    assert np.array_equal(items, np.argsort(-masked, axis=1)[:, :4])
    np.testing.assert_allclose(values, -np.sort(-masked, axis=1)[:, :4], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n", [1, 4, 5])
def test_a_list_does_not_depend_on_how_many_are_asked_for(n):
    scores, dense = made_up("walk", seed=3)
    every = scores.top_k(5)[1]
    assert np.array_equal(every, np.argsort(-dense, axis=1)[:, :5])
    for first in range(N_USERS - n + 1):
        some = np.arange(first, first + n)[::-1].copy()
        assert np.array_equal(scores.of(some).top_k(5)[1], every[some])


@settings(deadline=None)
@given(codes=st.lists(st.integers(-1, 4), max_size=8))
def test_rows_of_a_matrix_are_its_rows_or_empty(codes):
    matrix = sp.random_array((5, 6), density=0.5, format="csr", rng=np.random.default_rng(0))
    found = rows_of(sp.csr_array(matrix), np.array(codes, dtype=np.int64))
    expected = [np.zeros(6) if code < 0 else matrix.toarray()[code] for code in codes]
    assert np.array_equal(found.toarray(), np.reshape(expected, (-1, 6)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_on_the_processor_scores_the_same(kind):
    scores, _ = made_up(kind)
    assert torch.equal(scores.cpu().rows(0, N_USERS), scores.rows(0, N_USERS))
