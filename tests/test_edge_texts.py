"""What users write: exact where it is visible, and nowhere else."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from dense import centred, power, random_graph, random_model, random_text, unit
from dense_blend import blend_of
from hypothesis import given, settings
from hypothesis import strategies as st
from test_ncf import model_of

from gnnrec.baselines import BASELINES
from gnnrec.checkpoint import Checkpoint
from gnnrec.config import ModelConfig, PretrainConfig, TransferConfig
from gnnrec.edge_texts import WEIGHT, EdgeTexts
from gnnrec.episodes import Source, sample_episode
from gnnrec.features import GraphInput
from gnnrec.graph import BipartiteGraph
from gnnrec.target import Target
from gnnrec.transfer import adapt

TRAIN = {"max_steps": 3, "evaluate_every": 1, "n_negatives": 5, "batch_size": 8}
MODELS = {
    "lightgcn": lambda: random_model("lightgcn"),
    "graphsage": lambda: random_model("graphsage"),
    "gmf": lambda: model_of("gmf", n_items=None),
    "channels": blend_of,
    "raw-text": lambda: BASELINES["raw-text"],
    "raw-text without layers": lambda: lambda x: BASELINES["raw-text"](x, n_layers=0),
}


def target_of(seed, item_text=True, share=0.6, n_texts=7):
    """Edges of a random graph, most of them with one of a few texts."""
    rng = np.random.default_rng(seed)
    graph = random_graph(seed)
    users, items = graph.edges()
    codes = np.where(rng.random(len(users)) < share, rng.integers(0, n_texts, len(users)), -1)
    text = random_text(seed, graph.n_items)
    text[2:5] = 0.0  # items without a text of their own
    vectors = torch.nn.functional.normalize(random_text(seed + 1, n_texts + 1)[[0, *range(2, 8)]])
    return Target(
        users, items, graph.n_users, graph.n_items, text if item_text else None, codes, vectors
    )


def scores_of(model, x):
    with torch.no_grad():
        return model(x).rows(0, x.graph.n_users)


def dense_texts(target, rows):
    """(n_users, n_items, dim) centred texts of the visible edges, and the items' start."""
    n_users, n_items = target.n_users, target.n_items
    edge = torch.zeros(n_users, n_items, target.text_vectors.shape[1], dtype=torch.float64)
    there = torch.zeros(n_users, n_items, dtype=torch.bool)
    for row in rows:
        if target.text_codes[row] >= 0:
            place = target.users[row], target.items[row]
            edge[place] = target.text_vectors[target.text_codes[row]].double()
            there[place] = True
    edge[there] = unit(edge[there] - edge[there].mean(dim=0))
    mean = edge.sum(dim=0) / there.sum(dim=0).clamp_min(1)[:, None]
    own = torch.zeros_like(mean)
    if target.item_text is not None:
        own = centred(target.item_text)
    said = there.any(dim=0)[:, None]
    return edge, torch.where(said, unit(own + WEIGHT * mean), own)


@pytest.mark.parametrize("item_text", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_propagation_equals_messages_added_up_by_hand(seed, item_text):
    target = target_of(seed, item_text)
    rows = np.arange(0, len(target.users), 2)
    x = target.graph_input(rows, rank=4)
    edge, item = dense_texts(target, rows)
    torch.testing.assert_close(x.text.double(), item, atol=1e-5, rtol=0)
    matrix = torch.from_numpy(x.graph.user_items.toarray()).double()
    a = power(matrix.sum(1), -0.5)[:, None] * matrix * power(matrix.sum(0), -0.5)
    # A message of the first layer is the item's text and the edge's.
    first = (a[:, :, None] * (item[None] + edge)).sum(dim=1)
    expected_users = [None, first, None, a @ (a.T @ first)]
    expected_items = [item, None, a.T @ first, None]
    users, items, means = x.propagated_text(3)
    shares = matrix.sum(1) / matrix.sum()
    for found, expected in ((users, expected_users), (items, expected_items)):
        for one, other in zip(found, expected, strict=True):
            assert (one is None) == (other is None)
            if one is not None:
                torch.testing.assert_close(one.double(), other, atol=1e-5, rtol=0)
    torch.testing.assert_close(means[3].double(), shares @ expected_users[3], atol=1e-5, rtol=0)
    # Six dimensions: the principal components are a rotation.
    for one, other in zip(x.propagated_components(3)[0], users, strict=True):
        if one is not None:
            torch.testing.assert_close(one @ one.T, other @ other.T, atol=1e-5, rtol=0)


def test_graphsage_adds_the_texts_to_the_first_layers_messages():
    target = target_of(3)
    x, encoder = target.graph_input(), random_model("graphsage", n_layers=1).encoder
    edge, item = dense_texts(target, range(len(target.users)))
    mean = torch.from_numpy(x.graph.user_mean.toarray()).double()
    profile = (mean[:, :, None] * edge).sum(dim=1).float()
    torch.testing.assert_close(x.mean_written, profile, atol=1e-5, rtol=0)
    moved = GraphInput(x.graph, spectral_rank=4)
    moved.text = item.float()  # the items alone
    layer = encoder.layers[0]
    plain = layer(moved, torch.zeros(9, 5), torch.zeros(14, 5))[0]
    with_texts = layer(x, torch.zeros(9, 5), torch.zeros(14, 5), encoder.input(profile))[0]
    expected = encoder.input(profile) @ layer.user_neighbour.weight.T
    torch.testing.assert_close(with_texts - plain, expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(encoder(x).users, encoder(moved).users, atol=1e-3)


def test_sampling_every_neighbour_is_the_whole_graph():
    x, model = target_of(4).graph_input(), random_model("graphsage")
    users, items = np.array([3, 0]), np.array([5, 2, 13])
    blocks = x.sample(users, items, (20, 20, 20), np.random.default_rng(0))
    whole, part = model.encoder(x), model.encoder(x, blocks=blocks)
    torch.testing.assert_close(part.users[:2], whole.users[users], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(part.items[:3], whole.items[items], atol=1e-5, rtol=1e-4)


def with_other_texts(target, rows):
    """Other texts, or none, or some where there was none, on the given rows."""
    codes = target.text_codes.copy()
    codes[rows] = (codes[rows] + 3) % 8 - 1
    return dataclasses.replace(target, text_codes=codes)


@pytest.mark.parametrize("item_text", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_a_hidden_edges_text_is_never_seen(name, item_text):
    target, model = target_of(5, item_text), MODELS[name]()
    rows = np.random.default_rng(0).permutation(len(target.users))
    visible, hidden = rows[8:], rows[:8]
    other = with_other_texts(target, hidden)
    assert (other.text_codes[hidden] != target.text_codes[hidden]).any()
    first = scores_of(model, target.graph_input(visible, rank=16))
    assert torch.equal(first, scores_of(model, other.graph_input(visible, rank=16)))
    # Nor where a graph loses edges later, as when a blend hides some of its own.
    whole, changed = target.graph_input(rank=16), other.graph_input(rank=16)
    part = target.graph_input(visible, rank=16).graph
    assert torch.equal(first, scores_of(model, whole.on(part)))
    assert torch.equal(first, scores_of(model, changed.on(part)))
    # What is visible is read.
    moved = with_other_texts(target, visible)
    assert not torch.allclose(first, scores_of(model, moved.graph_input(visible, rank=16)))
    assert not torch.allclose(scores_of(model, whole), scores_of(model, changed))


def test_edges_do_not_come_back_with_their_texts():
    target = target_of(6)
    x = target.graph_input(np.arange(10))
    again = x.on(target.graph_input().graph)  # the text of what was hidden was never here
    assert again.edge_text.rows.nnz == (target.text_codes[:10] >= 0).sum()
    assert target.graph_input(np.flatnonzero(target.text_codes < 0)).edge_text is None


@pytest.mark.parametrize("name", ["lightgcn", "graphsage", "gmf", "channels"])
def test_adapting_does_not_see_the_test_part(name):
    target, model = target_of(7), MODELS[name]()
    config = TransferConfig.model_validate(
        {"retrain": "heads" if name == "channels" else "final:1", "train": TRAIN}
        | {"calibrate": TRAIN, "weigh": {"max_steps": 3}}
    )
    checkpoint = Checkpoint("made", model.config, model.state_dict(), {})
    rows = np.random.default_rng(1).permutation(len(target.users))
    test, validation, train = rows[:8], np.sort(rows[8:14]), np.sort(rows[14:])
    found = []
    for log in (target, with_other_texts(target, test)):
        adapted = adapt(checkpoint, log, train, validation, config)
        kept = np.concatenate([train, validation])
        found.append(scores_of(adapted.model, log.graph_input(kept, rank=16)))
    assert torch.equal(*found)


@pytest.mark.parametrize("name", MODELS)
@given(seed=st.integers(0, 1000))
@settings(max_examples=5, deadline=None)
def test_renaming_nodes_renames_the_scores(name, seed):
    rng = np.random.default_rng(seed)
    target, model = target_of(seed), MODELS[name]()
    user, item = rng.permutation(target.n_users), rng.permutation(target.n_items)
    order = rng.permutation(len(target.users))
    renamed = Target(
        user[target.users][order],
        item[target.items][order],
        target.n_users,
        target.n_items,
        target.item_text[np.argsort(item)],
        target.text_codes[order],
        target.text_vectors,
    )
    if name == "channels":  # a blend hides edges at random, and the draw is by code
        x, moved = target.graph_input(rank=16), renamed.graph_input(rank=16)
        about = model.about(x)
        moved.kept["context"] = (model.bridges, about)
        before, after = scores_of(model, x), scores_of(model, moved)
    else:
        before, after = (scores_of(model, t.graph_input(rank=16)) for t in (target, renamed))
    torch.testing.assert_close(after[user][:, item], before, atol=2e-3, rtol=2e-3)


def test_no_texts_are_as_no_column():
    target = target_of(8)
    empty = dataclasses.replace(target, text_codes=np.full(len(target.users), -1))
    without = dataclasses.replace(target, text_codes=None, text_vectors=None)
    for name, make in MODELS.items():
        model = make()
        first, second = (scores_of(model, t.graph_input(rank=16)) for t in (empty, without))
        assert torch.equal(first, second), name


def test_equal_texts_say_nothing_and_a_single_one_stands():
    graph = BipartiteGraph(np.array([0, 0, 1]), np.array([0, 1, 1]), 2, 3)
    vectors = torch.eye(2, 4)
    same = EdgeTexts.of(np.array([0, 1]), np.array([0, 1]), np.array([1, 1]), vectors, (2, 3))
    own = torch.nn.functional.normalize(torch.randn(3, 4))
    plain, x = GraphInput(graph, own), GraphInput(graph, own, edge_text=same)
    assert torch.equal(x.text, plain.text) and not x.first_written.any()
    one = EdgeTexts.of(np.array([0, 1]), np.array([0, 1]), np.array([1, -1]), vectors, (2, 3))
    x = GraphInput(graph, edge_text=one)
    assert torch.equal(x.text, torch.tensor([[0.0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]))
    # A repeated pair has its first text.
    twice = EdgeTexts.of(np.array([0, 0]), np.array([0, 0]), np.array([1, 0]), vectors, (2, 3))
    assert twice.rows.data.tolist() == [2]


def test_other_texts_of_items_leave_what_users_wrote_out():
    x = target_of(9).graph_input()
    other = x.with_text(random_text(1))
    assert other.edge_text is None and torch.equal(other.item_text, random_text(1))


def test_a_sub_graph_of_a_source_has_the_texts_of_its_visible_edges():
    rng = np.random.default_rng(0)
    pairs = np.unique(rng.integers(0, 60 * 40, 900))
    users, items = pairs // 40, pairs % 40
    codes = np.where(rng.random(len(pairs)) < 0.7, np.arange(len(pairs)), -1)
    vectors = torch.nn.functional.normalize(torch.randn(len(pairs), 5))
    texts = EdgeTexts.of(users, items, codes, vectors, (60, 40))
    source = Source("made", users, items, 60, 40, None, texts)
    config = PretrainConfig(model=ModelConfig(spectral_rank=4), min_users=10)
    wanted = dict(zip(zip(users.tolist(), items.tolist(), strict=True), codes, strict=True))
    n_found = 0
    for number in range(6):
        episode = sample_episode(source, config, np.random.default_rng(number))
        x = episode.input
        expected = {}
        for user, item in zip(*x.graph.edges(), strict=True):
            code = wanted[int(episode.user_codes[user]), int(episode.item_codes[item])]
            if code >= 0:
                expected[int(user), int(item)] = code + 1
        found = x.edge_text.rows.tocoo()
        places = zip(found.row.tolist(), found.col.tolist(), strict=True)
        assert dict(zip(places, found.data, strict=True)) == expected
        n_found += len(expected)
    assert n_found > 100
