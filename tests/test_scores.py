"""Scores in factored form: some users, unknown users, ranking, with and without a walk."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gnnrec.propagate import SparseOperator
from gnnrec.scores import ScoreVectors, Walk, rows_of

N_USERS, N_ITEMS = 12, 11


def made_up(walk, seed=0):
    """(scores, the same as a dense table)."""
    rng = np.random.default_rng(seed)
    users = rng.standard_normal((N_USERS, 3)).astype(np.float32)
    users[:, -1] = 1.0
    items = rng.standard_normal((N_ITEMS, 3)).astype(np.float32)
    dense = users @ items.T
    part = None
    if walk:
        start, matrix = (
            (rng.random((N_USERS, N_ITEMS)) * (rng.random((N_USERS, N_ITEMS)) < 0.4)).astype("f4")
            for _ in range(2)
        )
        out = rng.random(N_ITEMS).astype(np.float32)
        part = Walk(sp.csr_array(start), SparseOperator(sp.csr_array(matrix)), torch.tensor(out))
        dense = dense + start @ matrix.T @ matrix * out
    return ScoreVectors(torch.from_numpy(users), torch.from_numpy(items), part), dense


@pytest.mark.parametrize("walk", [False, True])
def test_rows_and_pairs_equal_the_dense_table(walk):
    scores, dense = made_up(walk)
    np.testing.assert_allclose(scores.rows(0, N_USERS), dense, rtol=1e-5, atol=1e-5)
    for begin in (0, 2):  # many users at once, and few: two ways
        for end in (5, N_USERS):
            found = scores.rows(begin, end)
            np.testing.assert_allclose(found, dense[begin:end], rtol=1e-5, atol=1e-5)
    found = scores.score(torch.tensor([6, 1]), torch.tensor([0, 3, 9]))
    np.testing.assert_allclose(found, dense[[6, 1]][:, [0, 3, 9]], rtol=1e-5, atol=1e-5)
    assert scores.rows(0, 0).shape == (0, N_ITEMS)


@pytest.mark.parametrize("walk", [False, True])
@settings(max_examples=30, deadline=None)
@given(codes=st.lists(st.integers(-1, N_USERS - 1), max_size=9), seed=st.integers(0, 99))
def test_an_unknown_user_gets_the_item_bias_and_others_their_row(walk, codes, seed):
    scores, dense = made_up(walk, seed)
    found = scores.of(np.array(codes, dtype=np.int64)).rows(0, len(codes))
    bias = scores.items[:, -1].numpy()
    expected = [bias if code < 0 else dense[code] for code in codes]
    np.testing.assert_allclose(found, np.reshape(expected, (-1, N_ITEMS)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("walk", [False, True])
def test_ranking_leaves_out_what_is_seen(walk):
    scores, dense = made_up(walk)
    seen = sp.csr_array((np.random.default_rng(1).random(dense.shape) < 0.3).astype(np.float32))
    values, items = scores.top_k(4, seen=seen)
    masked = np.where(seen.toarray() > 0, -np.inf, dense)
    assert np.array_equal(items, np.argsort(-masked, axis=1)[:, :4])
    np.testing.assert_allclose(values, -np.sort(-masked, axis=1)[:, :4], rtol=1e-5, atol=1e-5)


@settings(deadline=None)
@given(codes=st.lists(st.integers(-1, 4), max_size=8))
def test_rows_of_a_matrix_are_its_rows_or_empty(codes):
    matrix = sp.random_array((5, 6), density=0.5, format="csr", rng=np.random.default_rng(0))
    found = rows_of(sp.csr_array(matrix), np.array(codes, dtype=np.int64))
    expected = [np.zeros(6) if code < 0 else matrix.toarray()[code] for code in codes]
    assert np.array_equal(found.toarray(), np.reshape(expected, (-1, 6)))


def test_a_copy_on_the_processor_scores_the_same():
    scores, _ = made_up(True)
    assert torch.equal(scores.cpu().rows(0, N_USERS), scores.rows(0, N_USERS))
