"""What a blend is told of a graph: its kind, and what each channel is worth on hidden edges."""

import numpy as np
import pytest
import torch
from dense_blend import matrix_of
from test_channels import everyone, made

from gnnrec.channels import NAMES, OF_TEXT
from gnnrec.context import (
    N_CONTEXT,
    _area,
    _share_on_top,
    channel_part,
    context,
    hide,
    silenced,
)
from gnnrec.graph import BipartiteGraph


def test_the_context_says_what_kind_of_graph_it_is():
    channels, x, *_ = made(5)
    nobody = np.zeros(0, dtype=np.int64)
    about = context(channels, None, (nobody, nobody)).double()
    assert about.shape == (N_CONTEXT,)
    matrix = matrix_of(x.graph)
    edges, degrees = float(matrix.sum()), matrix.sum(0)
    twins = torch.stack([m.found for m in channels.bridges]).amax(dim=0).double()
    assert 0 < twins.sum() < 14
    expected = [
        np.log1p(edges / int((matrix.sum(1) > 0).sum())) / 3,
        np.log1p(edges / int((degrees > 0).sum())) / 3,
        np.log(14) / 10,
        np.log1p(edges) / 12,
        float(twins @ degrees / edges),
        1.0,
    ]
    np.testing.assert_allclose(about[:6], expected, rtol=1e-5)
    assert not about[6:].any()
    assert context(made(5, text=False)[0], None, (nobody, nobody))[4:6].tolist() == [0.0, 0.0]


def test_the_areas_are_large_where_a_channel_ranks_the_hidden_edges_first():
    channels, x, *_ = made(6, size="large")
    rows = channels.rows(everyone(x))
    for place, name in enumerate(NAMES):
        # The best item of each user by this channel, and the worst: areas near one and zero.
        for pick, sign in (("argmax", 1), ("argmin", -1)):
            first = rows[place].sort(dim=1, descending=True).values
            alone = (first[:, 0] - first[:, 1] > 1e-3) & (x.user_degrees > 0)
            users = torch.nonzero(alone)[:, 0].numpy()  # whose best item no other equals
            items = getattr(rows[place], pick)(dim=1).numpy()[users]
            about = context(channels, channels, (users, items))
            area = 0.5 + float(about[8 + place]) * (len(users) + 60) / len(users) / 4
            assert sign * (area - 0.5) > 0.4, (name, pick)
            lift = 2 * float(about[8 + len(NAMES) + place])
            # All of the edges are on top, or none is, and one is added to both sides.
            expected = np.log((sign > 0) * len(users) + 1) - np.log(0.02 * len(users) + 1)
            assert lift == pytest.approx(expected, abs=1e-5), (name, pick)
    users = np.arange(20)
    popular = np.full(20, int(x.item_degrees.argmax()))
    assert context(channels, channels, (users, popular))[7] > 0.4 * 4 * 20 / 80
    known = np.full(20, int(channels.popularity.argmax()))
    assert context(channels, channels, (users, known))[6] > 0.3 * 4 * 20 / 80


def test_a_channel_that_is_not_there_is_told_as_nothing():
    channels, x, *_ = made(6, text=False, size="large")
    users, items = x.graph.edges()
    about = context(channels, channels, (users, items))
    silent = [NAMES.index(name) for name in (*OF_TEXT, "bridge")]
    told = channel_part(about)
    heard = [place for place in range(len(NAMES)) if place not in silent]
    assert not told[silent].any() and told[heard].all() and about[6] == 0
    heard = context(made(6, size="large")[0], made(6, size="large")[0], (users, items))
    names = (*OF_TEXT, "bridge")
    assert channel_part(heard)[silent].any()
    assert torch.equal(silenced(heard, names), about)


def test_hiding_takes_a_fifth_of_the_edges_away():
    graph = BipartiteGraph(*(a.ravel() for a in np.indices((60, 50))), 60, 50)
    rest, users, items = hide(graph, 0)
    assert (rest.n_users, rest.n_items) == (60, 50)
    assert rest.n_edges + len(users) == 3000 and 0.17 < len(users) / 3000 < 0.23
    assert rest.user_items.toarray()[users, items].sum() == 0
    again, other = hide(graph, 0), hide(graph, 1)
    np.testing.assert_array_equal(again[1], users)
    np.testing.assert_array_equal(again[2], items)
    assert len(other[1]) != len(users) or (other[2] != items).any()


@pytest.mark.parametrize("n", [0, 1])
def test_there_may_be_nothing_to_hide(n):
    edges = np.zeros(n, dtype=np.int64)
    assert all(hide(BipartiteGraph(edges, edges, 2, 2), seed) is None for seed in range(20))


def test_without_its_vectors_it_still_says_what_weights_need():
    channels, *_ = made(7)
    light = channels.light()
    for name in ("user_degrees", "item_degrees", "popularity", "found", "weights"):
        assert torch.equal(getattr(light, name), getattr(channels, name))
    assert light.present == channels.present and not hasattr(light, "parts")
    assert channels.parts[0] is not None  # the whole one is as it was


def test_the_top_is_what_a_count_by_hand_says():
    rng = np.random.default_rng(3)
    z = rng.normal(size=(6, 80)).round(1).astype(np.float32)  # many are equal
    z[2] = 4.0
    degrees = rng.integers(0, 4, 80).astype(np.float64)
    row, items = np.repeat(np.arange(6), 40), np.tile(np.arange(40), 6)
    row, items = row[row != 4], items[row != 4]  # nothing of this user is hidden
    expected = []
    for user, item in zip(row, items, strict=True):
        others = np.arange(80) != item
        before = degrees[others & (z[user] > z[user, item])].sum()
        before += degrees[others & (z[user] == z[user, item])].sum() / 2
        expected.append(0.02 if user == 2 else float(before < 0.02 * degrees.sum()))
    assert 0 < sum(expected) < len(expected)
    found = _share_on_top(z, row, items, degrees)
    assert found == pytest.approx(np.mean(expected))


def test_equal_scores_stay_equal_however_they_are_rounded():
    rng = np.random.default_rng(4)
    z = rng.integers(-3, 4, (8, 60)).astype(np.float32)
    degrees = rng.integers(1, 9, 60).astype(np.float64)
    row, items = np.repeat(np.arange(8), 5), rng.integers(0, 60, 40)
    others = rng.integers(0, 60, 40)
    rounded = z + rng.normal(scale=1e-6, size=z.shape).astype(np.float32)
    assert (z[row, items] == z[row, others]).any()
    for values in (z, rounded):
        assert _area(values[row, items], values[row, others]) == pytest.approx(
            np.mean(np.sign(z[row, items] - z[row, others]) / 2 + 0.5), abs=1e-12
        )
    assert _share_on_top(rounded, row, items, degrees) == _share_on_top(z, row, items, degrees)
