import math
import tracemalloc

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from dense import graph_input, random_graph, random_text
from hypothesis import given, settings
from hypothesis import strategies as st

from gnnrec import neighbours
from gnnrec.config import ModelConfig, TrainConfig, check_fan_out, load_config, validate, write_toml
from gnnrec.errors import ConfigError
from gnnrec.features import GraphInput
from gnnrec.graph import BipartiteGraph
from gnnrec.neighbours import NeighbourSampler, sample_neighbours
from gnnrec.sampling import Episode


def csr_of(rows):
    """Neighbour lists, in their order, as (indptr, indices)."""
    return np.concatenate([[0], np.cumsum([len(r) for r in rows])]), np.concatenate(rows)


def random_lists(rng, n_nodes=8, n_neighbours=30):
    sizes = rng.integers(0, 13, n_nodes)
    return [rng.choice(n_neighbours, size, replace=False) for size in sizes]


def sampler_of(graph):
    edges = graph.user_items
    return NeighbourSampler(edges, sp.csr_array(edges.T.tocsr()))


def dense(operator):
    return operator(torch.eye(operator.shape[1])).numpy()


def first_offsets(degrees, size, rng):
    """What a careless sampler draws: the first neighbours of the list."""
    return np.broadcast_to(np.arange(size)[:, None], (size, len(degrees)))


# The draw


@given(seed=st.integers(0, 10_000), fan_out=st.one_of(st.none(), st.integers(1, 14)))
@settings(max_examples=80, deadline=None)
def test_each_seed_gets_distinct_neighbours_of_its_own(seed, fan_out):
    rng = np.random.default_rng(seed)
    lists = random_lists(rng)
    seeds = rng.integers(0, len(lists), rng.integers(0, 20))
    starts, drawn = sample_neighbours(*csr_of([*lists, np.zeros(0, int)]), seeds, fan_out, rng)
    assert starts[0] == 0 and starts[-1] == len(drawn) and len(starts) == len(seeds) + 1
    for k, node in enumerate(seeds):
        part, every = drawn[starts[k] : starts[k + 1]].tolist(), lists[node].tolist()
        assert len(part) == len(set(part)) and set(part) <= set(every)
        if fan_out is None or fan_out >= len(every):
            assert part == every
        else:
            assert len(part) == fan_out


@pytest.mark.parametrize(("degree", "fan_out"), [(6, 1), (6, 2), (6, 3), (6, 5), (4, 2)])
def test_every_subset_is_equally_likely(degree, fan_out):
    n = 40_000
    seeds, rng = np.zeros(n, dtype=np.int64), np.random.default_rng(0)
    _, drawn = sample_neighbours(*csr_of([np.arange(degree)]), seeds, fan_out, rng)
    sets = (1 << drawn.reshape(n, fan_out)).sum(axis=1)
    _, counts = np.unique(sets, return_counts=True)
    n_subsets = math.comb(degree, fan_out)
    assert len(counts) == n_subsets
    share = 1 / n_subsets
    error = np.sqrt(n * share * (1 - share))
    assert np.abs(counts - n * share).max() < 4.5 * error


def test_the_draw_follows_its_generator():
    lists = random_lists(np.random.default_rng(1), n_nodes=40)
    csr, seeds = csr_of(lists), np.arange(40)

    def drawn(seed):
        return sample_neighbours(*csr, seeds, 3, np.random.default_rng(seed))[1].tolist()

    assert drawn(1) == drawn(1) != drawn(2)


def test_neither_a_hub_nor_the_rest_of_the_graph_is_copied():
    # A million neighbours each: eight megabytes of indices that no draw may touch as a whole.
    indptr, indices = np.array([0, 10**6, 2 * 10**6]), np.arange(2 * 10**6, dtype=np.int32)
    tracemalloc.start()
    starts, drawn = sample_neighbours(
        indptr, indices, np.array([0, 1, 1]), 25, np.random.default_rng(0)
    )
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 50_000 and starts.tolist() == [0, 25, 50, 75]
    assert drawn[:25].max() < 10**6 <= drawn[25:].min()
    assert np.ptp(drawn[:25]) > 500_000


# The blocks


def check_blocks(graph, blocks, users, items, fan_out):
    """Compare every operator with the dense matrix of the graph, row by row."""
    matrix = graph.user_items.toarray() > 0
    in_users, in_items = blocks.users.numpy(), blocks.items.numpy()
    assert len(set(in_users)) == len(in_users) and len(set(in_items)) == len(in_items)
    assert blocks.wanted_users.tolist() == users.tolist()
    assert blocks.wanted_items.tolist() == items.tolist()
    assert len(blocks.layers) == len(fan_out)
    n_users, n_items = len(in_users), len(in_items)
    for layer, size in zip(blocks.layers, reversed(fan_out), strict=True):
        n_edges = 0
        for operator, rows, columns, full in (
            (layer.user_mean, in_users, in_items[:n_items], matrix),
            (layer.item_mean, in_items, in_users[:n_users], matrix.T),
        ):
            table = dense(operator)
            assert table.shape[1] == len(columns)
            here = full[rows[: len(table)]]
            degrees = here.sum(axis=1)
            counts = degrees if size is None else np.minimum(degrees, size)
            assert not table[~here[:, columns]].any()
            assert ((table > 0).sum(axis=1) == counts).all()
            np.testing.assert_allclose(table * counts[:, None], table > 0, rtol=1e-6)
            n_edges += counts.sum()
        assert layer.n_edges == n_edges
        n_users, n_items = layer.user_mean.shape[0], layer.item_mean.shape[0]
    assert n_users == len(set(users)) and n_items == len(set(items))


@given(
    seed=st.integers(0, 10_000),
    fan_out=st.lists(st.one_of(st.none(), st.integers(1, 12)), min_size=1, max_size=3),
)
@settings(max_examples=60, deadline=None)
def test_blocks_hold_means_over_drawn_edges_under_local_numbers(seed, fan_out):
    rng = np.random.default_rng(seed)
    graph = random_graph(seed, n_users=20, n_items=25)
    sampler = sampler_of(graph)
    for _ in range(2):  # the second draw meets what the first left in the sampler
        users = rng.integers(0, 20, rng.integers(0, 6))
        items = rng.integers(0, 25, rng.integers(0, 6))
        blocks = sampler.draw(users, items, fan_out, rng)
        check_blocks(graph, blocks, users, items, fan_out)


def test_fan_outs_are_counted_from_the_batch_inwards():
    graph = random_graph(0, n_users=30, n_items=40, density=0.5)
    blocks = sampler_of(graph).draw(np.array([0]), np.array([0]), (2, 7), np.random.default_rng(0))
    first, last = blocks.layers
    assert last.n_edges == 4 and (dense(last.user_mean) > 0).sum(axis=1).max() == 2
    assert (dense(first.user_mean) > 0).sum(axis=1).max() == 7


def test_an_empty_request_and_an_empty_graph_have_empty_blocks():
    none, rng = np.zeros(0, dtype=np.int64), np.random.default_rng(0)
    blocks = sampler_of(random_graph(0)).draw(none, none, (3, 3), rng)
    assert len(blocks.users) == len(blocks.items) == sum(b.n_edges for b in blocks.layers) == 0
    graph = BipartiteGraph(none, none, 3, 4)
    blocks = sampler_of(graph).draw(np.array([2, 2]), np.array([1]), (3, 3), rng)
    check_blocks(graph, blocks, np.array([2, 2]), np.array([1]), (3, 3))


def test_renamed_nodes_in_the_same_lists_give_renamed_blocks():
    rng = np.random.default_rng(5)
    graph = random_graph(5, n_users=20, n_items=25)
    matrix, by_item = graph.user_items, sp.csr_array(graph.user_items.T.tocsr())
    new_user, new_item = rng.permutation(20), rng.permutation(25)

    def renamed(rows, row_names, column_names):
        lists = np.split(column_names[rows.indices], rows.indptr[1:-1])
        indptr, indices = csr_of([lists[old] for old in np.argsort(row_names)])
        return sp.csr_array((np.ones(len(indices)), indices, indptr), shape=rows.shape)

    other = NeighbourSampler(
        renamed(matrix, new_user, new_item), renamed(by_item, new_item, new_user)
    )
    users, items = np.array([3, 1, 3, 12]), np.array([7, 0])
    before = NeighbourSampler(matrix, by_item).draw(users, items, (3, 2), np.random.default_rng(1))
    after = other.draw(new_user[users], new_item[items], (3, 2), np.random.default_rng(1))
    assert after.users.tolist() == new_user[before.users].tolist()
    assert after.items.tolist() == new_item[before.items].tolist()
    for one, two in zip(before.layers, after.layers, strict=True):
        np.testing.assert_array_equal(dense(one.user_mean), dense(two.user_mean))
        np.testing.assert_array_equal(dense(one.item_mean), dense(two.item_mean))


# What is unbiased


def standard_errors_of_a_layers_input():
    """Deviation of the average sampled mean from the mean, in standard errors, and its exactness.

    One layer on fixed vectors, many draws; rows whose nodes have more neighbours than are drawn.
    """
    graph = random_graph(2, n_users=12, n_items=15, density=0.6)
    sampler, rng = sampler_of(graph), np.random.default_rng(0)
    torch.manual_seed(0)
    user_x, item_x = torch.randn(12, 3), torch.randn(15, 3)
    users, items, fan_out = np.arange(12), np.arange(15), 4
    found: dict[str, list[torch.Tensor]] = {"users": [], "items": []}
    for _ in range(200):
        blocks = sampler.draw(users, items, (fan_out,), rng)
        (layer,) = blocks.layers
        found["users"].append(layer.user_mean(item_x[blocks.items])[blocks.user_rows])
        found["items"].append(layer.item_mean(user_x[blocks.users])[blocks.item_rows])
    worst = 0.0
    for side, mean, table, degrees in (
        ("users", graph.user_mean, item_x, graph.user_degrees),
        ("items", graph.item_mean, user_x, graph.item_degrees),
    ):
        draws, expected = torch.stack(found[side]), torch.from_numpy(mean @ table.numpy())
        few = torch.from_numpy(degrees <= fan_out)
        torch.testing.assert_close(draws[:, few], expected[few].expand(200, -1, -1))
        error = draws.std(dim=0) / 200**0.5
        deviation = ((draws.mean(dim=0) - expected) / error.clamp_min(1e-9))[~few]
        assert few.any() and len(deviation) > 8
        worst = max(worst, float(deviation.abs().max()))
    return worst


def test_a_sampled_mean_is_unbiased(monkeypatch):
    assert standard_errors_of_a_layers_input() < 4.5
    monkeypatch.setattr(neighbours, "_distinct_offsets", first_offsets)
    assert standard_errors_of_a_layers_input() > 50  # so the test above can fail


# The references on which channels are measured under sampling


def test_few_items_are_all_references_with_their_degrees():
    x = graph_input(0)
    codes, weights = x.reference_items
    assert codes.tolist() == np.flatnonzero(x.graph.item_degrees).tolist()
    assert weights.tolist() == x.graph.item_degrees[codes.numpy()].tolist()


def test_of_many_items_a_fixed_sample_by_degree_stands_for_all():
    rng = np.random.default_rng(0)
    items = np.concatenate([np.zeros(300, dtype=int), (3000 * rng.random(9000) ** 2).astype(int)])
    graph = BipartiteGraph(rng.integers(0, 2000, len(items)), items, 2000, 3001)
    value = torch.from_numpy(rng.standard_normal(3001)).float()
    degrees = torch.from_numpy(graph.item_degrees).float()
    means = []
    for seed in range(200):
        codes, weights = GraphInput(graph, seed=seed).reference_items
        assert len(codes) == len(codes.unique()) <= 512 == weights.sum()
        assert (degrees[codes] > 0).all()
        means.append((weights @ value[codes]) / weights.sum())
    again = GraphInput(graph, seed=199).reference_items
    assert torch.equal(again[0], codes) and torch.equal(again[1], weights)
    draws, expected = torch.stack(means), (degrees @ value) / degrees.sum()
    assert abs(draws.mean() - expected) < 4 * draws.std() / 200**0.5


def test_no_interactions_no_references():
    none = np.zeros(0, dtype=np.int64)
    codes, weights = GraphInput(BipartiteGraph(none, none, 3, 4)).reference_items
    assert len(codes) == len(weights) == 0


def test_a_sample_ends_with_the_references():
    x, rng = graph_input(0), np.random.default_rng(0)
    blocks = x.sample(np.array([4, 4]), np.array([13, 2, 13]), (2,), rng)
    assert blocks.wanted_users.tolist() == [4, 4, *x.reference_users.tolist()]
    assert blocks.wanted_items.tolist() == [13, 2, 13, *x.reference_items[0].tolist()]


# Batches and the setting


def test_a_sampled_batch_is_the_batch_with_blocks():
    graph = random_graph(0)
    users, items = graph.edges()
    hidden = np.arange(len(users)) % 4 == 1
    visible = BipartiteGraph(users[~hidden], items[~hidden], 9, 14)
    episode = Episode(GraphInput(visible, random_text(0)), users[hidden], items[hidden])
    plain = episode.batch(6, 5, 0.5, np.random.default_rng(3))
    sampled = episode.batch(6, 5, 0.5, np.random.default_rng(3), (2, 2))
    for name in ("users", "items", "negatives", "known"):
        assert torch.equal(getattr(plain, name), getattr(sampled, name))
    assert plain.blocks is None
    x, blocks = episode.input, sampled.blocks
    wanted = torch.cat([plain.users, x.reference_users])
    assert torch.equal(blocks.wanted_users, wanted)
    wanted = torch.cat([plain.items, plain.negatives, x.reference_items[0]])
    assert torch.equal(blocks.wanted_items, wanted)
    check_blocks(visible, blocks, blocks.wanted_users.numpy(), wanted.numpy(), (2, 2))


def test_fan_out_is_read_from_and_written_to_toml(tmp_path):
    path = tmp_path / "train.toml"
    path.write_text("fan_out = [15, 10]\n")
    config = load_config(TrainConfig, path, {})
    assert config.fan_out == (15, 10) and TrainConfig().fan_out is None
    for settings_ in (config, TrainConfig()):
        write_toml(settings_, path)
        assert load_config(TrainConfig, path, {}) == settings_


@pytest.mark.parametrize("value", [[], [0], [5, -1], 3, ["many"]])
def test_a_fan_out_that_is_none_is_refused(value):
    with pytest.raises(ConfigError, match="here: fan_out"):
        validate(TrainConfig, {"fan_out": value}, "here")


def test_fan_out_has_one_number_a_layer_and_an_encoder_that_samples():
    sage, train = ModelConfig(encoder="graphsage", n_layers=2), TrainConfig(fan_out=(5, 3))
    check_fan_out(sage, train)
    check_fan_out(ModelConfig(), TrainConfig())
    with pytest.raises(ConfigError, match=r"fan_out is \[5\]; expected 2 numbers"):
        check_fan_out(sage, TrainConfig(fan_out=(5,)))
    with pytest.raises(ConfigError, match=r"fan_out is \[5, 3\] and the encoder is lightgcn"):
        check_fan_out(ModelConfig(), train)
