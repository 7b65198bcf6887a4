"""The baselines equal their dense definitions, and beat popularity where they should."""

import importlib.util

import dense
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from dense import random_graph, random_text
from hypothesis import given, settings
from hypothesis import strategies as st

from gnnrec.baselines import BASELINES, ridge, sample, vectors
from gnnrec.config import TransferConfig
from gnnrec.errors import ConfigError, DownloadError
from gnnrec.evaluate import evaluate_scores
from gnnrec.features import GraphInput
from gnnrec.graph import BipartiteGraph
from gnnrec.runs import prepare
from gnnrec.sources import open_log
from gnnrec.stats import paired_bootstrap

HAS_IMPLICIT = importlib.util.find_spec("implicit") is not None
NAMES = [
    pytest.param(
        name, marks=pytest.mark.skipif(name == "ials" and not HAS_IMPLICIT, reason="extra")
    )
    for name in BASELINES
]
SIZES = {"few users": {"n_users": 9, "n_items": 14}, "few items": {"n_users": 16, "n_items": 8}}


def input_of(seed, n_users=9, n_items=14, rank=16):
    graph = random_graph(seed, n_users=n_users, n_items=n_items)
    return GraphInput(graph, random_text(seed, n_items), spectral_rank=rank)


def all_rows(scores):
    return scores.rows(0, len(scores.users)).double().numpy()


def matrix_of(x):
    return x.graph.user_items.toarray().astype(np.float64)


def with_bias(personal, matrix, weight=0.0):
    """Add log popularity as the docstring says: relative to the scores' spread over the items."""
    log_counts = np.log1p(matrix.sum(axis=0))
    spread = personal[matrix.sum(axis=1) > 0].std(axis=1).mean()
    return personal + (weight + 1e-6) * spread / log_counts.std() * log_counts


def close(found, expected, tolerance=1e-5):
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=tolerance * np.abs(expected).max())


def check_neighbours(x, scores, similarity, k, axis):
    """The scores come from weights that hold the k largest similarities along the axis."""
    np.fill_diagonal(similarity, 0.0)
    weights = scores.part.weights.toarray()
    kept = weights > 0
    close(weights[kept], similarity[kept])
    assert kept.sum(axis=axis).max() <= k
    n_kept = np.minimum((similarity > 0).sum(axis=axis), k)
    assert np.array_equal(kept.sum(axis=axis), n_kept)
    close(np.sort(weights, axis=axis), np.sort(np.where(kept, similarity, 0.0), axis=axis))
    largest = -np.sort(-similarity, axis=axis)
    largest = largest[:k] if axis == 0 else largest[:, :k]
    close(weights.sum(axis=axis), largest.sum(axis=axis))
    matrix = matrix_of(x)
    close(all_rows(scores), with_bias(matrix @ weights, matrix))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), k=st.integers(1, 20), shrink=st.floats(0, 50))
def test_itemknn_keeps_the_k_largest_shrunk_cosines_of_each_scored_item(seed, k, shrink):
    x = input_of(seed)
    counts = matrix_of(x).T @ matrix_of(x)
    lengths = np.sqrt(np.diag(counts))
    similarity = counts / np.maximum(np.outer(lengths, lengths) + shrink, 1e-12)
    scores = BASELINES["itemknn"](x, k=k, shrink=shrink)
    check_neighbours(x, scores, similarity, k, axis=0)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), k=st.integers(1, 20), alpha=st.floats(0, 2), beta=st.floats(0, 1))
def test_rp3beta_walks_three_steps_and_divides_by_popularity(seed, k, alpha, beta):
    x = input_of(seed)
    matrix = matrix_of(x)
    users, items = (np.maximum(matrix.sum(axis=axis), 1.0) for axis in (1, 0))
    to_users, to_items = matrix.T / items[:, None], matrix / users[:, None]  # probabilities
    walks = np.where(to_users > 0, to_users**alpha, 0.0) @ np.where(
        to_items > 0, to_items**alpha, 0.0
    )
    scores = BASELINES["rp3beta"](x, k=k, alpha=alpha, beta=beta)
    check_neighbours(x, scores, walks / items**beta, k, axis=1)


def test_neighbours_are_the_same_whatever_the_block(monkeypatch):
    x = input_of(3)
    whole = BASELINES["itemknn"](x, k=4).part.weights
    monkeypatch.setattr("gnnrec.baselines.neighbours._BLOCK_BYTES", 4 * 14 * 3)
    assert (BASELINES["itemknn"](x, k=4).part.weights != whole).nnz == 0


@pytest.mark.parametrize("size", SIZES)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999), penalty=st.floats(0.5, 500), weight=st.floats(0, 10))
def test_ease_equals_its_plain_formula(size, seed, penalty, weight):
    x = input_of(seed, **SIZES[size])
    matrix = matrix_of(x)
    inverse = np.linalg.inv(matrix.T @ matrix + penalty * np.eye(x.graph.n_items))
    weights = np.eye(x.graph.n_items) - inverse / np.diag(inverse)
    assert np.abs(np.diag(weights)).max() < 1e-9
    scores = BASELINES["ease"](x, ridge=penalty, popularity=weight)
    close(all_rows(scores), with_bias(matrix @ weights, matrix, weight), 1e-4)
    assert isinstance(scores.part, ridge._Mixture) == (size == "few users")
    some = np.array([3, -1, 0, 3])
    expected = all_rows(scores)[np.maximum(some, 0)]
    expected[1] = scores.items[:, -1]
    close(all_rows(scores.of(some).cpu()), expected)


def test_ease_refuses_a_matrix_too_large_to_invert(monkeypatch):
    monkeypatch.setattr(ridge, "MAX_SIDE", 8)
    BASELINES["ease"](input_of(0))  # 8 users with interactions
    monkeypatch.setattr(ridge, "MAX_SIDE", 7)
    with pytest.raises(ConfigError, match="8 users with interactions and 14 items, expected at mo"):
        BASELINES["ease"](input_of(0))
    with pytest.raises(ConfigError, match="15 users with interactions and 8 items"):
        BASELINES["ease"](input_of(0, n_users=16, n_items=8))


def test_ease_with_next_to_no_ridge_is_refused_where_it_cannot_be_computed():
    same = BipartiteGraph(np.repeat(np.arange(40), 6), np.tile(np.arange(6), 40), 40, 6)
    with pytest.raises(ConfigError, match="too small to invert"):
        BASELINES["ease"](GraphInput(same), ridge=1e-9)


@pytest.mark.skipif(not HAS_IMPLICIT, reason="the [baselines] extra is not installed")
def test_ials_solves_both_sides_normal_equations():
    x = input_of(4)
    matrix, alpha, penalty = matrix_of(x), 5.0, 0.5
    chosen = {"factors": 3, "alpha": alpha, "regularisation": penalty, "iterations": 400}
    scores = BASELINES["ials"](x, **chosen)
    users, items = scores.users[:, :3].double().numpy(), scores.items[:, :3].double().numpy()

    def solved(rows, others):
        return [
            np.linalg.solve(
                (others.T * np.where(row > 0, alpha, 1.0)) @ others + penalty * np.eye(3),
                others.T @ (alpha * row),
            )
            for row in rows
        ]

    np.testing.assert_allclose(users, solved(matrix, items), atol=2e-3)
    np.testing.assert_allclose(items, solved(matrix.T, users), atol=2e-3)
    assert np.abs(users).max() > 0.1
    close(all_rows(scores), with_bias(users @ items.T, matrix))
    assert torch.equal(BASELINES["ials"](x, **chosen).users, scores.users)


@pytest.mark.parametrize(("rank", "at_hand"), [(2, 16), (4, 4), (6, 2)])
@pytest.mark.parametrize("seed", range(3))
def test_gf_cf_is_a_linear_filter_and_a_low_pass(seed, rank, at_hand):
    x = input_of(seed, rank=at_hand)
    matrix = matrix_of(x)
    users, items = (np.maximum(matrix.sum(axis=axis), 1.0) ** -0.5 for axis in (1, 0))
    normalised = users[:, None] * matrix * items
    low = np.linalg.svd(normalised)[2][:rank]
    low_pass = np.diag(items) @ low.T @ low @ np.diag(1.0 / items)
    expected = matrix @ (normalised.T @ normalised + 0.7 * low_pass)
    scores = BASELINES["gf-cf"](x, rank=rank, weight=0.7)
    close(all_rows(scores), with_bias(expected, matrix), 1e-4)


@pytest.mark.parametrize("n_layers", [0, 1, 2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_raw_text_is_the_cosine_of_propagated_texts(seed, n_layers):
    x = input_of(seed)
    matrix, text = torch.from_numpy(matrix_of(x)), dense.centred(random_text(seed))
    if n_layers:
        users, items = dense.layers_summed([1.0] * (n_layers + 1), matrix, text)
    else:
        users, items = matrix @ text / matrix.sum(dim=1, keepdim=True).clamp_min(1.0), text
    expected = (dense.unit(users) @ dense.unit(items).T).numpy()
    scores = BASELINES["raw-text"](x, n_layers=n_layers, weight=0.8)
    close(all_rows(scores), with_bias(expected, matrix.numpy(), 0.8))


def test_raw_text_without_text_is_refused():
    with pytest.raises(ConfigError, match="raw-text: found no item text"):
        BASELINES["raw-text"](GraphInput(random_graph(0)))
    assert [n for n, baseline in BASELINES.items() if baseline.needs_text] == ["raw-text"]


@pytest.mark.parametrize("name", NAMES)
def test_nothing_seen_is_recommended_and_strangers_get_popularity(name):
    x = input_of(7)
    scores = BASELINES[name](x)
    seen = x.graph.user_items
    _, lists = scores.top_k(14, seen=seen)
    for user, row in enumerate(lists):
        unseen = np.setdiff1d(np.arange(14), seen[[user]].indices)
        assert set(row) - {-1} == set(unseen)
    popular = np.argsort(-x.graph.item_degrees, kind="stable")
    _, strangers = scores.of(np.array([-1, 8])).top_k(14)  # unknown, and without interactions
    assert np.array_equal(strangers, [popular, popular])


@pytest.mark.parametrize("name", NAMES)
def test_a_graph_without_edges_scores_zero(name):
    empty = np.zeros(0, dtype=np.int64)
    x = GraphInput(BipartiteGraph(empty, empty, 3, 4), random_text(0, 4), spectral_rank=2)
    assert not all_rows(BASELINES[name](x)).any()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("name", "chosen"),
    [
        ("itemknn", {"k": 14}),  # with fewer, equal similarities are a matter of numbering
        ("rp3beta", {"k": 14}),
        ("ease", {}),
        ("gf-cf", {"rank": 16}),
        ("raw-text", {}),
    ],
)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 999))
def test_renumbering_users_and_items_renumbers_the_scores(size, name, chosen, seed):
    x = input_of(seed, **SIZES[size])
    n_users, n_items = x.graph.n_users, x.graph.n_items
    rng = np.random.default_rng(seed)
    user_order, item_order = rng.permutation(n_users), rng.permutation(n_items)
    users, items = x.graph.edges()
    text = torch.empty(n_items, 6)
    text[torch.from_numpy(item_order)] = random_text(seed, n_items)
    graph = BipartiteGraph(user_order[users], item_order[items], n_users, n_items)
    moved = BASELINES[name](GraphInput(graph, text, spectral_rank=16), **chosen)
    expected = all_rows(BASELINES[name](x, **chosen))
    close(all_rows(moved)[user_order][:, item_order], expected, 1e-4)


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("itemknn", {"k": 0}, "itemknn: k is 0; expected a whole number of at least 1"),
        ("itemknn", {"k": 2.5}, "itemknn: k is 2.5"),
        ("itemknn", {"shrink": -1.0}, "itemknn: shrink is -1.0; expected a number of at least 0"),
        ("rp3beta", {"alpha": float("nan")}, "rp3beta: alpha is nan"),
        ("rp3beta", {"beta": -0.1}, "rp3beta: beta is -0.1"),
        ("ease", {"ridge": 0.0}, "ease: ridge is 0.0; expected a number above 0"),
        ("ease", {"popularity": -2.0}, "ease: popularity is -2.0"),
        ("ease", {"rigde": 3.0}, "ease: unknown setting 'rigde'; did you mean 'ridge'"),
        ("ials", {"factors": True}, "ials: factors is True"),
        ("ials", {"alpha": 0}, "ials: alpha is 0; expected a number above 0"),
        ("gf-cf", {"rank": "8"}, "gf-cf: rank is '8'"),
        ("gf-cf", {"weight": float("inf")}, "gf-cf: weight is inf"),
        ("raw-text", {"n_layers": -1}, "raw-text: n_layers is -1"),
        ("popularity", {"k": 3}, "popularity: unknown setting 'k'; it has none"),
    ],
)
def test_a_setting_out_of_range_is_refused(name, wrong, message):
    with pytest.raises(ConfigError, match=message):
        BASELINES[name](input_of(0), **wrong)


def test_a_missing_library_is_one_line_with_its_cure(monkeypatch):
    monkeypatch.setattr(vectors.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"^ials needs an extra: pip install 'gnnrec\[baselines"):
        BASELINES["ials"](input_of(0))


@pytest.mark.parametrize("name", BASELINES)
def test_settings_are_drawn_from_the_space_the_defaults_first(name):
    baseline = BASELINES[name]
    drawn = sample(name, np.random.default_rng(5), 40)
    assert drawn[0] == baseline.defaults
    assert set(baseline.space) == set(baseline.defaults)
    assert len(drawn) == (40 if baseline.space else 1)
    assert drawn == sample(name, np.random.default_rng(5), 40)
    for setting, space in baseline.space.items():
        values = [chosen[setting] for chosen in drawn]
        assert len(set(values[1:])) > 2
        if space[-1] in ("log", "linear", "int"):
            assert all(space[0] <= value <= space[1] for value in values)
            middle = np.sqrt(space[0] * space[1]) if space[2] == "log" else np.mean(space[:2])
            assert 5 < sum(value < middle for value in values) < 35
            assert all(isinstance(value, int) for value in values) == (space[2] == "int")
        else:
            assert set(values) <= set(space)


def test_settings_of_an_unknown_baseline_are_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(ConfigError, match="baseline 'easy' is not known; expected one of popul"):
        sample("easy", rng, 3)
    with pytest.raises(ConfigError, match="found 0 settings to draw"):
        sample("ease", rng, 0)


@pytest.fixture(scope="module")
def films():
    """(target with words for text, popularity's results on it)."""
    try:
        log = open_log("ml-latest-small")
    except DownloadError as error:
        pytest.skip(f"ml-latest-small is not to be had: {error}")
    prepared = prepare(log, None, TransferConfig())
    texts, _ = log.items.align(prepared.catalogue.log.item_ids)
    words = {}
    rows = [[words.setdefault(word, len(words)) % 512 for word in text.split()] for text in texts]
    counts = sp.csr_array(
        (
            np.ones(sum(map(len, rows)), dtype=np.float32),
            np.concatenate([np.array(row, dtype=np.int64) for row in rows]),
            np.cumsum([0, *map(len, rows)]),
        ),
        shape=(len(rows), 512),
    )
    graph = prepared.target.graph_input(prepared.split.kept).graph
    x = GraphInput(graph, torch.from_numpy(counts.toarray()), spectral_rank=64)

    def measured(name):
        scores, seen = BASELINES[name](x), x.graph.user_items
        results = evaluate_scores(scores, seen, prepared.test_users, prepared.test_items, (20,))
        return results.per_user["ndcg@20"]

    return measured, measured("popularity")


# lightgcn-ids has a learning test of its own.
PERSONAL = [name for name in NAMES if name.values[0] not in ("popularity", "lightgcn-ids")]


@pytest.mark.parametrize("name", PERSONAL)
def test_every_personal_baseline_beats_popularity_on_films(films, name):
    measured, popular = films
    difference = paired_bootstrap(measured(name), popular, 1000)
    assert difference["low"] > 0
    assert difference["relative"] > 0.1
