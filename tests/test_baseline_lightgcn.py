"""LightGCN with free vectors equals its dense definition, and learns on a real log."""

import math

import numpy as np
import pytest
import torch
from dense import power, random_graph, unit

from gnnrec.baselines import BASELINES
from gnnrec.baselines.lightgcn import LightGCN, lightgcn, train_config, train_lightgcn
from gnnrec.config import TransferConfig
from gnnrec.errors import ConfigError, DownloadError
from gnnrec.evaluate import evaluate_scores
from gnnrec.features import GraphInput
from gnnrec.graph import BipartiteGraph
from gnnrec.runs import prepare
from gnnrec.sampling import Episode
from gnnrec.sources import open_log
from gnnrec.stats import paired_bootstrap
from gnnrec.train import batch_loss, fit

SIZE = {"dim": 5, "temperature": 0.3}


def input_of(seed=0, rank=16):
    return GraphInput(random_graph(seed), spectral_rank=rank, seed=seed)


def model_of(n_layers=2, seed=0, n_users=9, n_items=14):
    model = LightGCN(n_users, n_items, n_layers=n_layers, seed=seed, **SIZE)
    with torch.no_grad():
        for table in model.parameters():
            table.mul_(10.0)
    return model


def dense_scores(users, items, matrix, n_layers):
    """Personal scores in double precision: the stacked table, layer by layer."""
    n_users = len(matrix)
    a = torch.zeros(sum(matrix.shape), sum(matrix.shape), dtype=torch.float64)
    a[:n_users, n_users:], a[n_users:, :n_users] = matrix, matrix.T
    degrees = a.sum(dim=1)
    scale = power(degrees, -0.5)
    a = scale[:, None] * a * scale
    layer = total = torch.cat([users, items])
    for _ in range(n_layers):
        layer = a @ layer
        total = total + layer
    vectors = unit(total) * (degrees > 0).double()[:, None]
    return vectors[:n_users] @ vectors[n_users:].T / SIZE["temperature"]


def double_tables(model):
    return [t.detach().double().requires_grad_(True) for t in (model.users, model.items)]


def matrix_of(x):
    return torch.from_numpy(x.graph.user_items.toarray()).double()


def dense_loss(scores, matrix, users, items):
    """Softmax of each edge against the items that the user does not have."""
    losses = []
    for u, i in zip(users.tolist(), items.tolist(), strict=True):
        others = scores[u][matrix[u] == 0]
        losses.append(torch.log(scores[u, i].exp() + others.exp().sum()) - scores[u, i])
    return torch.stack(losses).mean()


@pytest.mark.parametrize("n_layers", [1, 2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_scores_equal_the_dense_definition(n_layers, seed):
    x, model = input_of(seed), model_of(n_layers, seed)
    with torch.no_grad():
        found = model(x)
        some = model(x, torch.tensor([3, 8, 3]))
        expected = dense_scores(*double_tables(model), matrix_of(x), n_layers)
    expected = expected + 1e-6 * torch.log1p(x.item_degrees.double())
    torch.testing.assert_close(found.rows(0, 9).double(), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(some.users, found.users[[3, 8, 3]])


@pytest.mark.parametrize("n_layers", [1, 2, 3])
def test_one_step_of_training_equals_a_dense_step_by_hand(n_layers):
    x, model = input_of(1), model_of(n_layers, 1)
    matrix, config = matrix_of(x), train_config(1, 12, 100, 0.02)
    episode = Episode(x, *x.graph.edges())
    batch = episode.batch(12, 100, 0.0, np.random.default_rng(4))  # what fit will draw
    tables = double_tables(model)
    value = dense_loss(dense_scores(*tables, matrix, n_layers), matrix, batch.users, batch.items)
    with torch.no_grad():
        assert float(batch_loss(model, episode, batch, config)) == pytest.approx(value.item(), 1e-5)
    gradients = torch.autograd.grad(value, tables)
    fit(model, lambda step: episode, ["users", "items"], None, config, np.random.default_rng(4),
        decay_learning_rate=True)  # fmt: skip
    n_clear = 0
    for table, start, g in zip(model.parameters(), tables, gradients, strict=True):
        expected = start.detach() - 0.02 * g / (g.abs() + 1e-8)  # Adam's first step
        clear = g.abs() > 1e-6  # of a smaller one float32 has only the sign, if that
        torch.testing.assert_close(table.double()[clear], expected[clear], atol=2e-5, rtol=0)
        n_clear += int(clear.sum())
    assert n_clear > 0.9 * 5 * (8 + 13)  # all rows with interactions


def test_an_edge_is_drawn_by_no_users_degree_and_no_positive_is_a_negative():
    x = input_of(2)
    users, items = x.graph.edges()
    episode, rng = Episode(x, users, items), np.random.default_rng(0)
    drawn = np.bincount(episode.draw_edges(40 * len(users), 0.0, rng), minlength=len(users))
    assert drawn.min() > 15 and drawn.max() < 75
    batch = episode.batch(len(users), 100, 0.0, rng)
    assert np.array_equal(batch.known.numpy(), matrix_of(x)[batch.users].bool().numpy())


def test_renumbering_users_and_items_renumbers_what_is_learned():
    x, model = input_of(3), model_of(2, 3)
    rng = np.random.default_rng(7)
    user_order, item_order = rng.permutation(9), rng.permutation(14)  # old code -> new code
    users, items = x.graph.edges()
    moved_users, moved_items = user_order[users], item_order[items]
    moved_x = GraphInput(BipartiteGraph(moved_users, moved_items, 9, 14))
    moved = model_of(2, 3)
    with torch.no_grad():
        moved.users[user_order], moved.items[item_order] = model.users.clone(), model.items.clone()
    before = model.users.detach().clone()
    for each, episode in (
        (model, Episode(x, users, items)),
        (moved, Episode(moved_x, moved_users, moved_items)),
    ):
        fit(each, lambda step, e=episode: e, ["users", "items"], None,
            train_config(10, 20, 100, 0.01), np.random.default_rng(1))  # fmt: skip
    assert float((model.users - before).abs().max()) > 0.05
    with torch.no_grad():
        expected, found = model(x).rows(0, 9), moved(moved_x).rows(0, 9)
    torch.testing.assert_close(found[user_order][:, item_order], expected, atol=1e-3, rtol=0)


def test_training_starts_along_the_singular_vectors():
    x = input_of(5, rank=4)
    model = LightGCN(9, 14, dim=6)
    drawn = model.users.detach().clone()
    model.start_from_spectrum(x)
    scale = power(matrix_of(x).sum(1), -0.5)[:, None] * matrix_of(x)
    scale = scale * power(matrix_of(x).sum(0), -0.5)
    left, _, right = torch.linalg.svd(scale)
    found = (model.users[:, :4] @ model.items[:, :4].T).detach().double()
    expected = left[:, :4] @ right[:4]
    ratio = found.norm() / expected.norm()
    torch.testing.assert_close(found / ratio, expected, atol=1e-4, rtol=0)
    leading = torch.cat([model.users[:, :4], model.items[:, :4]])
    assert float(leading.std()) == pytest.approx(0.1, abs=1e-5)
    assert torch.equal(model.users[:, 4:], drawn[:, 4:])


def test_the_same_seed_gives_the_same_bits():
    graph = random_graph(6, 40, 50, 0.15)
    runs = [lightgcn(GraphInput(graph, seed=seed), passes=3) for seed in (1, 1, 2)]
    assert torch.equal(runs[0].users, runs[1].users) and torch.equal(runs[0].items, runs[1].items)
    assert not torch.equal(runs[0].users, runs[2].users)


def test_training_lowers_the_loss():
    x = GraphInput(random_graph(6, 40, 50, 0.15))
    episode = Episode(x, *x.graph.edges())
    losses = []
    for steps in (1, 40):
        model, result = train_lightgcn(x, train_config(steps, 128, 30))
        batch = episode.batch(128, 50, 0.0, np.random.default_rng(0))
        losses.append(float(batch_loss(model, episode, batch, train_config(1, 128)).detach()))
        assert result.steps == steps
    assert losses[1] < losses[0] - 0.3 and losses[0] < math.log(51) + 1


def test_strangers_get_popularity():
    x = input_of(7)
    popular = np.argsort(-x.graph.item_degrees, kind="stable")
    _, lists = lightgcn(x).of(np.array([-1, 8, 2])).top_k(14)  # unknown, without interactions
    assert np.array_equal(lists[:2], [popular, popular])
    assert not np.array_equal(lists[2], popular)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n_layers": 0}, "lightgcn-ids: n_layers is 0; expected a whole number of at least 1"),
        ({"temperature": 0.0}, "lightgcn-ids: temperature is 0.0; expected a number above 0"),
        ({"learning_rate": float("nan")}, "lightgcn-ids: learning_rate is nan"),
        ({"passes": 2.5}, "lightgcn-ids: passes is 2.5"),
    ],
)
def test_a_setting_out_of_range_is_refused(wrong, message):
    with pytest.raises(ConfigError, match=message):
        lightgcn(input_of(0), **wrong)


def test_trained_on_films_it_beats_popularity():
    try:
        log = open_log("ml-latest-small")
    except DownloadError as error:
        pytest.skip(f"ml-latest-small is not to be had: {error}")
    prepared = prepare(log, None, TransferConfig())
    x = prepared.target.graph_input(prepared.split.kept)
    ndcg = [
        evaluate_scores(
            scores, x.graph.user_items, prepared.test_users, prepared.test_items, (20,)
        ).per_user["ndcg@20"]
        for scores in (lightgcn(x, passes=2), BASELINES["popularity"](x))
    ]
    difference = paired_bootstrap(*ndcg, 1000)
    assert difference["low"] > 0
    assert difference["relative"] > 0.1
