"""Every channel equals its dense definition on the one scale, and their sum is a sum of rows."""

import numpy as np
import pytest
import torch
from dense_blend import (
    all_channels,
    blend_of,
    input_of,
    matrix_of,
    near_texts,
)

from gnnrec.channels import NAMES, OF_TEXT, Channels, mixed
from gnnrec.features import GraphInput
from gnnrec.graph import BipartiteGraph
from gnnrec.scores import ScoreVectors

SIZES = {"small": {}, "large": {"n_users": 30, "n_items": 40, "density": 0.2}}


def made(seed=0, text=True, size="small", rank=64):
    """(channels, their input, the filter, what is matched)."""
    model = blend_of(seed, rank=rank, bridges=(11, 12), moved=0.1)
    x = input_of(seed, text, rank, **SIZES[size])
    matched = [bridge.match(x.item_text) for bridge in model.bridges] if text else []
    with torch.no_grad():
        return Channels(x, model.filter, matched), x, model.filter, matched


def everyone(x):
    return np.arange(x.graph.n_users)


def random_gates(x, seed=0):
    rng = np.random.default_rng(seed)
    shapes = (x.graph.n_users, len(NAMES)), (x.graph.n_items, len(NAMES))
    return [torch.from_numpy(rng.uniform(0.2, 2.0, shape)).float() for shape in shapes]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("text", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_every_channel_equals_its_dense_definition(seed, text, size):
    channels, x, graph_filter, matched = made(seed, text, size)
    expected = all_channels(x, graph_filter, matched)
    of_text = {*OF_TEXT, "bridge"}
    assert channels.present == [text or name not in of_text for name in NAMES]
    found = channels.rows(everyone(x))
    active = x.graph.user_degrees > 0  # the others' gates are zero
    for place, name in enumerate(NAMES):
        np.testing.assert_allclose(
            found[place][active], expected[place][active], atol=3e-4, rtol=1e-3, err_msg=name
        )
    assert (expected[:, active].abs().amax(dim=(1, 2)) > 0.5).tolist() == channels.present


def test_the_four_spectral_channels_and_the_two_text_layers_differ_on_a_larger_graph():
    channels, x, *_ = made(size="large")
    rows = dict(zip(NAMES, channels.rows(everyone(x)), strict=True))
    for one, other in (
        ("low16", "low64"),
        ("low64", "ridge"),
        ("ridge", "counts"),
        ("text", "deep_text"),
    ):
        assert (rows[one] - rows[other]).abs().max() > 0.3


@pytest.mark.parametrize("size", SIZES)
def test_scores_are_centred_and_of_unit_spread(size):
    channels, x, *_ = made(1, size=size)
    weights = x.item_degrees.double() / x.item_degrees.double().sum()
    rows = channels.rows(x.reference_users.numpy()).double()
    np.testing.assert_allclose(rows @ weights, 0.0, atol=2e-4)  # each user's mean item
    np.testing.assert_allclose(rows.mean(dim=1), 0.0, atol=2e-4)  # the mean user
    spread = (rows.square() @ weights).mean(dim=1).sqrt()
    np.testing.assert_allclose(spread, 1.0, atol=1e-3)


def test_a_channels_weight_does_not_depend_on_its_scale():
    _, x, graph_filter, matched = made(2)
    parts = [Channels(x, graph_filter, matched)]
    large = [type(m)(50.0 * m.vectors, m.response, m.popularity, m.found) for m in matched]
    parts.append(Channels(x, graph_filter, large))
    bridge = [p.rows(everyone(x))[NAMES.index("bridge")] for p in parts]
    torch.testing.assert_close(bridge[0], bridge[1], atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("users", [[0], [5, 2], [0, 1, 2, 3, 4, 5, 6, 7], []])
def test_rows_are_those_of_the_score_vectors(users):
    channels, x, *_ = made(3)
    users = np.array(users, dtype=np.int64)
    found = channels.rows(users)
    assert found.shape == (len(NAMES), len(users), x.graph.n_items)
    for place, channel in enumerate(channels.parts):
        scores, scale = channel.scores, channel.scale
        some = scores.of(users)
        expected = some.users @ some.items.T
        for part in some.full_rank() if len(users) else ():
            expected = expected + scale * part.columns(0, len(users)).T
        torch.testing.assert_close(found[place], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("text", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_mixed_scores_are_the_sum_of_weighted_rows(size, text):
    channels, x, *_ = made(4, text, size)
    gates, items = random_gates(x)
    users = torch.from_numpy(np.random.default_rng(1).permutation(x.graph.n_users)[:7])
    scores = mixed(channels, users, gates[users], items)
    assert isinstance(scores, ScoreVectors)
    assert torch.equal(scores.users[:, -1], torch.ones(7))
    assert torch.equal(scores.items[:, -1], torch.zeros(x.graph.n_items))
    rows = channels.rows(users.numpy()).double()
    expected = torch.einsum("cui,uc,ic->ui", rows, gates[users].double(), items.double())
    np.testing.assert_allclose(scores.rows(0, 7), expected, atol=1e-3, rtol=1e-3)
    # The walk is no rounding error of it.
    assert (scores.users @ scores.items.T - expected).abs().max() > 0.05


@pytest.mark.parametrize("seed", range(3))
def test_the_ridge_channel_ranks_other_items_as_ease_does(seed):
    channels, x, *_ = made(seed, size="large")
    matrix = matrix_of(x.graph)
    ridge = 0.05 * float(torch.linalg.matrix_norm(matrix, 2)) ** 2
    inverse = torch.linalg.inv(matrix.T @ matrix + ridge * torch.eye(40, dtype=torch.float64))
    weights = -inverse / inverse.diagonal()
    weights.fill_diagonal_(0.0)
    scores = channels.parts[NAMES.index("ridge")].scores
    raw = scores.users[:, :-2].double() @ scores.items[:, :-2].double().T
    others = (matrix == 0) & (matrix.sum(0) > 0)
    found, expected = raw[others], (matrix @ weights)[others]
    assert torch.corrcoef(torch.stack([found, expected]))[0, 1] > 1 - 1e-6


def test_a_graph_without_edges_scores_zero():
    empty = np.zeros(0, dtype=np.int64)
    graph = BipartiteGraph(empty, empty, 3, 14)
    _, _, graph_filter, matched = made()
    channels = Channels(GraphInput(graph, near_texts()), graph_filter, matched)
    assert not channels.rows(np.arange(3)).any()
