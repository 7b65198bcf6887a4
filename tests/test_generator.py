"""The made-up logs of the growth benchmark: their promises, its estimators beside slow ones."""

import importlib.util
import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

from gnnrec.graph import BipartiteGraph

PATH = Path(__file__).parent.parent / "benchmarks" / "generator.py"
SPEC = importlib.util.spec_from_file_location("benchmark_generator", PATH)
generator = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = generator  # dataclasses look their module up
SPEC.loader.exec_module(generator)


@pytest.fixture(scope="module")
def log():
    return generator.generate(60_000)


def test_pairs_are_distinct_sorted_by_user_and_as_many_as_asked(log):
    keys = log.users.astype(np.int64) * log.n_items + log.items
    assert (np.diff(keys) > 0).all()
    assert log.users.dtype == log.items.dtype == np.int32
    assert abs(len(keys) / 60_000 - 1) < 0.005
    assert 0 <= log.items.min() and log.items.max() < log.n_items
    assert log.users[-1] < log.n_users


def test_the_seed_decides(log):
    again, other = generator.generate(60_000), generator.generate(60_000, seed=1)
    np.testing.assert_array_equal(again.items, log.items)
    assert len(other.items) != len(log.items) or (other.items != log.items).any()


def test_small_pieces_give_the_promised_degrees_too(monkeypatch, log):
    monkeypatch.setattr(generator, "_CHUNK", 1_000)
    pieces = generator.generate(60_000)
    np.testing.assert_array_equal(np.bincount(pieces.users), np.bincount(log.users))


@pytest.mark.parametrize("n_edges", [10, 200, 3_000])
def test_tiny_logs_are_possible(n_edges):
    tiny = generator.generate(n_edges)
    assert 0 < len(tiny.users) <= 2 * n_edges
    assert tiny.items.max() < tiny.n_items and tiny.users.max() < tiny.n_users


@pytest.mark.parametrize("side", [generator.USERS, generator.ITEMS])
def test_drawn_degrees_follow_the_fitted_distribution(side):
    n = 10_000
    drawn = side.draw(n, np.inf, np.random.default_rng(0))
    assert drawn.mean() == pytest.approx(side.mean)
    for survival, degree in zip(generator.SURVIVAL, side.degrees, strict=True):
        if 0.005 <= survival < 0.9:
            assert np.quantile(drawn, 1 - survival) == pytest.approx(degree, rel=0.06)
    # Beyond the last quantile a hundred times fewer nodes have 100^(1 / (tail - 1)) the degree.
    large = side.draw(100 * n, np.inf, np.random.default_rng(0))
    ratio = np.sort(large)[-100] / np.sort(large)[-1000]
    assert ratio == pytest.approx(10 ** (1 / (side.tail - 1)), rel=0.05)


def test_mean_degrees_exponents_and_clustering_stay_as_the_graph_grows(log):
    made = {
        (n_edges, inside): generator.describe(
            generator.generate(n_edges, inside=inside, block_users=100), 10_000
        )
        for n_edges in (40_000, 160_000)
        for inside in (0.0, generator.INSIDE)
    }
    small, large = (made[n_edges, generator.INSIDE] for n_edges in (40_000, 160_000))
    for name in ("user_mean_degree", "item_mean_degree"):
        assert large[name] == pytest.approx(small[name], rel=0.02)
    for name in ("user_exponent", "item_exponent", "user_gini", "item_gini"):
        assert large[name] == pytest.approx(small[name], rel=0.1)
    assert large["item_max_degree"] > small["item_max_degree"]
    # Without blocks, paths close by chance alone, the less often the larger the graph.
    kept, chance = (
        made[160_000, inside]["closed_paths"] / made[40_000, inside]["closed_paths"]
        for inside in (generator.INSIDE, 0.0)
    )
    assert kept > 0.45 > chance


def test_node_numbers_carry_no_information(log):
    # Users next to each other by number share no more items than users far apart.
    matrix = BipartiteGraph(log.users, log.items, log.n_users, log.n_items).user_items

    def shared(step):
        return matrix[:-step].multiply(matrix[step:]).sum() / (matrix.shape[0] - step)

    near, far = shared(1), np.mean([shared(step) for step in (200, 500, 900)])
    assert near < 1.5 * far
    ranks = np.argsort(np.argsort(np.bincount(log.items, minlength=log.n_items)))
    assert abs(np.corrcoef(np.arange(log.n_items), ranks)[0, 1]) < 0.05


@pytest.mark.parametrize("exponent", [2.2, 3.1])
def test_the_tail_exponent_of_a_discrete_power_law_is_found(exponent):
    # Inverse transform of a zeta law by its distribution function; a head below x_min is ignored.
    values = np.arange(5, 200_000)
    weights = values**-exponent
    drawn = np.random.default_rng(0).choice(values, 40_000, p=weights / weights.sum())
    degrees = np.concatenate([drawn, np.full(10_000, 3)])
    assert generator.tail_exponent(degrees, 5) == pytest.approx(exponent, abs=0.05)


def test_x_min_is_where_the_power_law_begins():
    values = np.arange(20, 200_000)
    weights = values**-2.5
    rng = np.random.default_rng(0)
    drawn = rng.choice(values, 20_000, p=weights / weights.sum())
    degrees = np.concatenate([drawn, rng.integers(1, 20, 60_000)])
    assert 19 <= generator.choose_x_min(degrees) <= 30


def small_graph():
    dense = np.random.default_rng(1).random((14, 11)) < 0.35
    dense[0], dense[:, 0] = True, True  # a hub on each side
    by_user = sp.csr_array(dense.astype(np.float32))
    return dense, by_user, sp.csr_array(by_user.T.tocsr())


def test_closed_paths_equal_a_count_of_all_paths():
    dense, by_user, by_item = small_graph()
    n_users, n_items = dense.shape
    closed = total = 0
    for u, v in itertools.permutations(range(n_users), 2):
        for i, j in itertools.permutations(range(n_items), 2):
            if dense[u, i] and dense[v, i] and dense[u, j]:  # j - u - i - v
                total += 1
                closed += dense[v, j]
    found = generator.closed_paths(by_user, by_item, 200_000, np.random.default_rng(0))
    assert found == pytest.approx(closed / total, abs=0.005)


def test_pair_overlap_equals_the_mean_over_all_pairs():
    dense, by_user, by_item = small_graph()
    overlaps = []
    for i, j in itertools.combinations(range(dense.shape[1]), 2):
        shared = (dense[:, i] & dense[:, j]).sum()
        if shared:
            overlaps.append(shared / (dense[:, i] | dense[:, j]).sum())
    found = generator.pair_overlap(by_user, by_item, 200_000, np.random.default_rng(0))
    assert found == pytest.approx(np.mean(overlaps), abs=0.005)
