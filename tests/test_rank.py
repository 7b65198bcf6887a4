import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gnnrec import rank
from gnnrec.errors import ConfigError, DataError, GnnrecError
from gnnrec.rank import rank_scores, top_k, top_k_from


def reference(scores, k, seen=None, allowed=None):
    """Sort every candidate of every user by (-score, code)."""
    best = np.full((len(scores), k), -np.inf, dtype=np.float32)
    items = np.full((len(scores), k), -1, dtype=np.int64)
    for user, row in enumerate(scores):
        candidates = [
            (-row[i], i)
            for i in range(len(row))
            if row[i] > -np.inf
            and (seen is None or not seen[user, i])
            and (allowed is None or allowed[i])
        ]
        for place, (negative, item) in enumerate(sorted(candidates)[:k]):
            best[user, place], items[user, place] = -negative, item
    return best, items


def case(seed, n_values=3, n_users=9, n_items=14, dim=2):
    """Vectors of few small integers: products are exact and mostly tied."""
    rng = np.random.default_rng(seed)
    users = rng.integers(-n_values, n_values + 1, (n_users, dim)).astype(np.float32)
    items = rng.integers(-n_values, n_values + 1, (n_items, dim)).astype(np.float32)
    seen = rng.random((n_users, n_items)) < 0.4
    seen[0], seen[1] = True, False
    return users, items, seen


@given(
    seed=st.integers(0, 10_000),
    k=st.integers(1, 17),
    share=st.sampled_from([None, 0.0, 0.2, 0.8]),
    mask_seen=st.booleans(),
    chunk=st.sampled_from([None, 1, 4, 100]),
)
@settings(max_examples=150, deadline=None)
def test_ranking_equals_the_dense_reference(seed, k, share, mask_seen, chunk):
    users, items, seen = case(seed)
    allowed = None if share is None else np.random.default_rng(seed).random(14) < share
    matrix = sp.csr_array(seen) if mask_seen else None
    scores = users @ items.T
    expected = reference(scores, k, seen if mask_seen else None, allowed)
    by_vectors = top_k(torch.from_numpy(users), torch.from_numpy(items), k, matrix, allowed, chunk)
    by_scores = top_k_from(
        lambda rows: torch.from_numpy(scores[rows]), 9, 14, k, matrix, allowed, chunk
    )
    for got in (by_vectors, by_scores):
        assert got[0].dtype == np.float32 and got[1].dtype == np.int64
        np.testing.assert_array_equal(got[1], expected[1])
        np.testing.assert_array_equal(got[0], expected[0])


def test_ties_at_the_boundary_go_to_the_lower_code_in_wide_rows():
    # Wide enough that torch.topk does not happen to keep the lowest columns.
    scores = torch.zeros(3, 5000)
    scores[1, 4000] = 1.0
    scores[2] = torch.randint(0, 3, (5000,), generator=torch.Generator().manual_seed(0)).float()
    values, columns = rank_scores(scores, 10)
    assert columns[0].tolist() == list(range(10))
    assert columns[1].tolist() == [4000, *range(9)]
    assert columns[2].tolist() == (scores[2] == 2).nonzero().squeeze(1)[:10].tolist()
    assert values[1].tolist() == [1.0] + [0.0] * 9


@given(
    seed=st.integers(0, 10_000),
    k=st.integers(1, 12),
    width=st.integers(1, 5),
    tail=st.integers(0, 3),
    block=st.sampled_from([1, 2, 7]),
    transposed=st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_block_maxima_change_nothing(seed, k, width, tail, block, transposed):
    # From too few blocks to search by maxima up to many, with ties, -inf and a part of a block.
    n = max(k, 2 * width * (k + 1) * block // 3 + tail)
    rng = np.random.default_rng(seed)
    scores = rng.integers(-2, 2 * k, (5, n)).astype(np.float32)
    scores[rng.random((5, n)) < 0.3] = -np.inf
    scores[0] = -np.inf
    expected = reference(scores, k)
    given_scores = torch.from_numpy(scores)
    if transposed:
        given_scores = given_scores.T.contiguous().T
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rank, "_BLOCK", block)
        values, columns = rank_scores(given_scores, k)
    np.testing.assert_array_equal(values.numpy(), expected[0])
    np.testing.assert_array_equal(
        np.where(np.isneginf(values.numpy()), -1, columns.numpy()), expected[1]
    )


@pytest.mark.parametrize("place", [0, 700, 4999])
def test_one_nan_among_many_scores_is_found(place):
    scores = torch.rand(3, 5000)
    scores[1, place] = torch.nan
    for layout in (scores, scores.T.contiguous().T):
        with pytest.raises(GnnrecError, match="not a number"):
            rank_scores(layout, 5)


def test_negative_zero_equals_zero():
    values, columns = rank_scores(torch.tensor([[-0.0, 0.0, -0.0, 1.0]]), 3)
    assert columns.tolist() == [[3, 0, 1]]
    assert not np.signbit(values.numpy()).any()


def test_seen_items_never_appear_even_when_they_score_best():
    rng = np.random.default_rng(0)
    seen = sp.csr_array(rng.random((40, 60)) < 0.7)
    scores = torch.from_numpy(seen.toarray() * 100.0 + rng.random((40, 60)))
    best, items = top_k_from(lambda rows: scores[rows], 40, 60, 30, seen, chunk_users=7)
    for user in range(40):
        shown = items[user][items[user] >= 0]
        assert not seen.toarray()[user, shown].any()
        assert len(shown) == min(30, 60 - seen.indptr[user + 1] + seen.indptr[user])
        assert np.isneginf(best[user, len(shown) :]).all()


def test_the_scorers_own_tensor_is_not_written_to():
    scores = torch.arange(12.0).view(3, 4)
    before = scores.clone()
    allowed = np.array([True, True, True, False])
    top_k_from(lambda rows: scores[rows[0] : rows[-1] + 1], 3, 4, 2, sp.eye_array(3, 4).tocsr(),
               allowed)  # fmt: skip
    assert torch.equal(scores, before)


@given(seed=st.integers(0, 1000), chunk=st.integers(1, 30))
@settings(max_examples=30, deadline=None)
def test_chunk_size_changes_nothing(seed, chunk):
    users, items, seen = case(seed, n_values=1000, n_users=25, dim=3)
    arguments = (torch.from_numpy(users), torch.from_numpy(items), 5, sp.csr_array(seen))
    for whole, parts in zip(top_k(*arguments), top_k(*arguments, chunk_users=chunk), strict=True):
        np.testing.assert_array_equal(whole, parts)


@given(seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_renaming_items_renames_the_ranking(seed):
    rng = np.random.default_rng(seed)
    scores = rng.permuted(np.tile(np.arange(20.0), (6, 1)), axis=1)  # distinct within a row
    new_code = rng.permutation(20)
    renamed = np.empty_like(scores)
    renamed[:, new_code] = scores
    _, items = top_k_from(lambda rows: torch.from_numpy(scores[rows]), 6, 20, 7)
    _, moved = top_k_from(lambda rows: torch.from_numpy(renamed[rows]), 6, 20, 7)
    np.testing.assert_array_equal(moved, new_code[items])


def test_a_chunk_stays_near_the_memory_target(monkeypatch):
    sizes = []

    def score(rows):
        sizes.append(len(rows))
        return torch.zeros(len(rows), 50)

    for target in (1, 4 * 50 * 200):
        monkeypatch.setitem(rank._CHUNK_BYTES, "cpu", target)
        top_k_from(score, 200, 50, 3)
    assert sizes == [64, 64, 64, 8, 192, 8]


def test_one_user_gets_the_same_bits_as_among_many():
    rng = torch.Generator().manual_seed(0)
    users, items = torch.randn(70, 48, generator=rng), torch.randn(3000, 48, generator=rng)
    whole = items @ users.T
    if not all(torch.equal(items @ users[:n].T, whole[:, :n]) for n in (16, 17, 40)):
        pytest.skip("this BLAS rounds by the number of rows, beyond 16 too")
    expected = top_k(users, items, 5)
    for chunk in (1, 3, 16, 69):
        for got, wanted in zip(top_k(users, items, 5, chunk_users=chunk), expected, strict=True):
            np.testing.assert_array_equal(got, wanted)


def test_scores_that_are_excluded_by_the_scorer_leave_places_empty():
    scores = torch.tensor([[1.0, -torch.inf, 2.0]])
    best, items = top_k_from(lambda rows: scores[rows], 1, 3, 5)
    assert items.tolist() == [[2, 0, -1, -1, -1]]
    assert best.tolist() == [[2.0, 1.0, -np.inf, -np.inf, -np.inf]]


def test_no_gradient_is_kept_and_low_precision_is_accepted():
    users = torch.eye(3, dtype=torch.bfloat16, requires_grad=True)
    best, items = top_k(users, torch.eye(3, dtype=torch.bfloat16), 1)
    assert items[:, 0].tolist() == [0, 1, 2] and best.dtype == np.float32


def test_empty_sides_give_empty_lists():
    best, items = top_k(torch.ones(2, 4), torch.ones(0, 4), 3)
    assert items.tolist() == [[-1] * 3] * 2 and np.isneginf(best).all()
    assert top_k(torch.ones(0, 4), torch.ones(5, 4), 3)[1].shape == (0, 3)


def test_wrong_inputs_are_refused():
    vectors = torch.ones(2, 3)
    with pytest.raises(GnnrecError, match="not a number"):
        top_k(vectors, torch.tensor([[1.0] * 3, [torch.nan] * 3, [2.0] * 3]), 1)
    with pytest.raises(ConfigError):
        top_k(vectors, vectors, 0)
    with pytest.raises(DataError, match="seen"):
        top_k(vectors, vectors, 1, sp.csr_array((2, 5)))
    with pytest.raises(DataError, match="allowed"):
        top_k(vectors, vectors, 1, allowed=np.array([0, 1]))
    with pytest.raises(DataError, match="scores"):
        top_k_from(lambda rows: torch.ones(len(rows), 3), 2, 4, 1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_ranks_like_the_cpu():
    users, items, seen = case(0)
    allowed = np.arange(14) % 3 == 0
    for mask in (None, allowed):
        on_cpu = top_k(
            torch.from_numpy(users), torch.from_numpy(items), 5, sp.csr_array(seen), mask
        )
        on_gpu = top_k(
            torch.from_numpy(users).cuda(),
            torch.from_numpy(items).cuda(),
            5,
            sp.csr_array(seen),
            mask,
        )
        np.testing.assert_array_equal(on_cpu[1], on_gpu[1])
