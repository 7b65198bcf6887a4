import math

import numpy as np
import pytest
import pytrec_eval
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from gnnrec.errors import ConfigError, DataError
from gnnrec.metrics import (
    beyond_accuracy,
    by_bucket,
    item_bucket_recall,
    per_user_metrics,
    summarise,
)

KS = (1, 3, 10, 20)


def random_case(seed, n_users=12, n_items=30, width=20):
    """Rankings of unequal length and one to many relevant items a user."""
    rng = np.random.default_rng(seed)
    top = np.full((n_users, width), -1, dtype=np.int64)
    relevant = np.zeros((n_users, n_items), dtype=np.float32)
    for user in range(n_users):
        length = rng.integers(0, width + 1)
        top[user, :length] = rng.permutation(n_items)[:length]
        relevant[user, rng.permutation(n_items)[: rng.integers(1, n_items + 1)]] = 1
    return top, sp.csr_array(relevant)


def trec(top, relevant, k):
    """What trec_eval says about the run cut to k."""
    qrels = {
        str(u): {str(i): 1 for i in relevant.indices[relevant.indptr[u] : relevant.indptr[u + 1]]}
        for u in range(len(top))
    }
    run = {
        str(u): {str(i): -float(rank) for rank, i in enumerate(row[:k]) if i >= 0}
        for u, row in enumerate(top)
    }
    names = {
        "recall": f"recall_{k}",
        "ndcg": f"ndcg_cut_{k}",
        "mrr": "recip_rank",
        "hit": f"success_{k}",
        "precision": f"P_{k}",
        "map": f"map_cut_{k}",
    }
    measures = {f"recall.{k}", f"ndcg_cut.{k}", "recip_rank", f"success.{k}", f"P.{k}"}
    found = pytrec_eval.RelevanceEvaluator(qrels, measures | {f"map_cut.{k}"}).evaluate(run)
    # A user with an empty run is dropped by trec_eval and counts 0 here.
    return {
        f"{name}@{k}": [found.get(str(u), {}).get(key, 0.0) for u in range(len(top))]
        for name, key in names.items()
    }


@given(seed=st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_metrics_equal_trec_eval(seed):
    top, relevant = random_case(seed)
    ours = per_user_metrics(top, relevant, KS)
    assert len(ours) == 6 * len(KS)
    for k in KS:
        for name, expected in trec(top, relevant, k).items():
            assert ours[name].dtype == np.float64
            np.testing.assert_allclose(ours[name], expected, atol=1e-9, err_msg=name)


def test_metrics_of_one_user_by_hand():
    top = np.array([[4, 0, 2, 9]])
    relevant = sp.csr_array((np.ones(3), ([0, 0, 0], [0, 2, 7])), shape=(1, 10))
    got = {name: v[0] for name, v in per_user_metrics(top, relevant, (3,)).items()}
    ideal = 1 + 1 / math.log2(3) + 1 / 2
    assert got == pytest.approx(
        {
            "recall@3": 2 / 3,
            "ndcg@3": (1 / math.log2(3) + 1 / 2) / ideal,
            "mrr@3": 1 / 2,
            "hit@3": 1.0,
            "precision@3": 2 / 3,
            "map@3": (1 / 2 + 2 / 3) / 3,
        }
    )


def test_a_padding_place_is_never_a_hit():
    # The key of (user 1, -1) is the one of (user 0, last item), which is relevant.
    relevant = sp.csr_array(np.array([[0, 0, 1], [1, 0, 0]]))
    got = per_user_metrics(np.array([[0, -1], [-1, -1]]), relevant, (2,))
    assert all((values == 0).all() for values in got.values())


def test_stored_zeros_and_unsorted_columns_do_not_matter():
    messy = sp.csr_array(
        (np.array([1.0, 0.0, 1.0]), np.array([4, 1, 2]), np.array([0, 3])), shape=(1, 5)
    )
    clean = sp.csr_array(np.array([[0, 0, 1, 0, 1]]))
    top = np.array([[1, 4, 0]])
    messy_metrics, clean_metrics = (per_user_metrics(top, r, (3,)) for r in (messy, clean))
    for name, values in clean_metrics.items():
        assert messy_metrics[name] == values
    assert messy.nnz == 3  # the caller's matrix is left alone


def test_a_cut_beyond_the_width_counts_misses():
    relevant = sp.csr_array(np.array([[1, 1, 1]]))
    got = per_user_metrics(np.array([[0, 1]]), relevant, (10,))
    assert got["precision@10"][0] == pytest.approx(0.2)
    assert got["recall@10"][0] == pytest.approx(2 / 3)


def test_what_cannot_be_scored_is_refused():
    relevant = sp.csr_array(np.array([[1, 0], [0, 0]]))
    with pytest.raises(DataError, match="1 of 2 users have no test item"):
        per_user_metrics(np.array([[0], [1]]), relevant)
    with pytest.raises(DataError, match="ranking for each"):
        per_user_metrics(np.array([[0]]), relevant)
    with pytest.raises(DataError, match="below 2"):
        per_user_metrics(np.array([[2], [0]]), relevant)
    with pytest.raises(ConfigError):
        per_user_metrics(np.array([[0], [1]]), relevant, (0,))


@given(seed=st.integers(0, 10_000), k=st.integers(1, 20))
@settings(max_examples=40, deadline=None)
def test_beyond_accuracy_equals_the_written_reference(seed, k):
    top, relevant = random_case(seed)
    degrees = np.random.default_rng(seed).integers(0, 50, 30)
    shown = [int(i) for row in top for i in row[:k] if i >= 0]
    got = beyond_accuracy(top, degrees, 30, k)
    if not shown:
        assert set(got.values()) == {0.0}
        return
    counts = [shown.count(i) for i in range(30)]
    total = int(degrees.sum()) + 30
    gini = sum(abs(x - y) for x in counts for y in counts) / (2 * 30 * sum(counts))
    assert got == pytest.approx(
        {
            f"coverage@{k}": len(set(shown)) / 30,
            f"novelty@{k}": -sum(math.log2((degrees[i] + 1) / total) for i in shown) / len(shown),
            f"average_popularity@{k}": sum(degrees[i] for i in shown) / len(shown),
            f"gini@{k}": gini,
        }
    )


def test_summarise_is_the_mean_over_users():
    assert summarise({"a": np.array([0.0, 1.0, 0.5]), "b": np.array([])}) == {"a": 0.5, "b": 0.0}


def test_by_bucket_sets_users_without_history_apart():
    degrees = np.array([0, 1, 4, 5, 100, 7, 0])
    values = np.array([1.0, 2.0, 4.0, 8.0, 16.0, 0.0, 3.0])
    assert by_bucket({"m": values}, degrees) == [
        {"bucket": "0", "n_users": 2, "m": 2.0},
        {"bucket": "1-4", "n_users": 2, "m": 3.0},
        {"bucket": "5-19", "n_users": 2, "m": 4.0},
        {"bucket": "100+", "n_users": 1, "m": 16.0},
    ]
    with pytest.raises(ConfigError):
        by_bucket({"m": values}, degrees, edges=(1, 0))


def test_item_bucket_recall_by_hand():
    # Of 100 training interactions: above item 0 lie 0 %, above 1 and 2: 30 %, above 3: 90 %.
    degrees = np.array([30, 30, 30, 10, 0, 0])
    # Items 0, 1 and 2 are equal, so all are head.
    relevant = sp.csr_array(np.array([[1, 0, 0, 1, 1, 0], [1, 1, 0, 0, 0, 1]]))
    top = np.array([[0, 3, 5], [4, 5, 1]])
    assert item_bucket_recall(top, relevant, degrees, 2) == [
        {"bucket": "unseen", "n_items": 2, "n_interactions": 2, "recall@2": 0.5},
        {"bucket": "tail", "n_items": 1, "n_interactions": 1, "recall@2": 1.0},
        {"bucket": "head", "n_items": 3, "n_interactions": 3, "recall@2": pytest.approx(1 / 3)},
    ]
    degrees = np.array([25, 24, 23, 22, 6, 0])  # above: 0, 25, 49, 72, 94 %
    buckets = item_bucket_recall(top, sp.csr_array(np.ones((2, 6))), degrees, 3)
    assert [(row["bucket"], row["n_items"]) for row in buckets] == [
        ("unseen", 1),
        ("tail", 1),
        ("middle", 3),
        ("head", 1),
    ]


@given(seed=st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_item_buckets_add_up_to_all_test_interactions(seed):
    top, relevant = random_case(seed)
    rows = item_bucket_recall(top, relevant, np.random.default_rng(seed).integers(0, 9, 30), 10)
    assert sum(row["n_interactions"] for row in rows) == relevant.nnz
    found = sum(row["n_interactions"] * row["recall@10"] for row in rows)
    expected = (per_user_metrics(top, relevant, (10,))["precision@10"] * 10).sum()
    assert found == pytest.approx(expected)


def test_wrong_degrees_are_refused():
    with pytest.raises(DataError):
        beyond_accuracy(np.array([[0]]), np.ones(3), 2, 1)
    with pytest.raises(DataError):
        item_bucket_recall(np.array([[0]]), sp.csr_array(np.ones((1, 2))), np.ones(3), 1)
