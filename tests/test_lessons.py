"""What a blend learns from: a lesson's scores, its loss, its gradient and the steps they make."""

import dataclasses

import numpy as np
import pytest
import torch
from dense import double_parameters, random_graph, random_text
from dense_blend import (
    all_channels,
    blend_of,
    blended,
    blended_bias,
    input_of,
    matched_by,
    popular,
)

from gnnrec import lessons
from gnnrec.bridge import Matched
from gnnrec.config import TrainConfig
from gnnrec.features import GraphInput
from gnnrec.graph import BipartiteGraph
from gnnrec.lessons import lessons_of, ndcg_loss, user_ndcg
from gnnrec.loop import optimise
from gnnrec.sampling import Episode


def episode_of(seed=0):
    """Every fourth edge is hidden, from some of the users."""
    x = input_of(seed)
    users, items = x.graph.edges()
    hidden = (np.arange(len(users)) % 4 == 1) & (users != 3)
    visible = BipartiteGraph(users[~hidden], items[~hidden], 9, 14)
    return Episode(GraphInput(visible, x.item_text, spectral_rank=16), users[hidden], items[hidden])


def lesson(model, episode, seed=0):
    (found,) = lessons_of(model, episode, seed)
    return found


def test_a_lesson_holds_the_channels_of_the_users_with_hidden_edges():
    model, episode = blend_of(1), episode_of(1)
    part, x = lesson(model, episode, 0), episode.input
    expected = all_channels(x, model.filter, matched_by(model, x))
    assert part.users.tolist() == sorted(set(episode.users.tolist()))
    np.testing.assert_allclose(part.scores, expected[:, part.users], atol=4e-3, rtol=2e-3)
    edges = zip(part.users[part.row], part.column.tolist(), strict=True)
    assert sorted(edges) == sorted(zip(episode.users, episode.items, strict=True))
    # A user counts by the inverse of the chance to be among them, hidden edge by hidden edge.
    share = len(episode.users) / (len(episode.users) + x.graph.n_edges)
    chance = np.array(
        [
            1 - (1 - share) ** (x.graph.user_degrees[u] + (episode.users == u).sum())
            for u in part.users
        ]
    )
    np.testing.assert_allclose(part.weight, (1 / chance) / (1 / chance).mean())
    assert part.n_told == (x.graph.user_degrees[part.users] > 0).sum()
    nobody = np.zeros(0, dtype=np.int64)
    assert list(lessons_of(model, Episode(x, nobody, nobody), 0)) == []


@pytest.mark.parametrize("size", [1, 3, 8])
def test_lessons_of_an_episode_share_no_user_and_hide_what_it_hides(size, monkeypatch):
    model, episode = blend_of(1), episode_of(1)
    whole = lesson(model, episode)
    monkeypatch.setattr(lessons, "_MAX_LESSONS", 3)
    parts = list(lessons_of(model, episode, 0, max_users=size))
    users = np.concatenate([part.users for part in parts])
    assert len(users) == len(set(users)) == min(3 * size, whole.n_users)
    assert all(part.n_users <= size for part in parts) and set(users) <= set(whole.users)
    for part in parts:
        place = np.searchsorted(whole.users, part.users)
        assert torch.equal(part.scores, whole.scores[:, place])
        edges = zip(part.users[part.row.numpy()], part.column.tolist(), strict=True)
        wanted = [
            edge
            for edge in zip(episode.users, episode.items, strict=True)
            if edge[0] in set(part.users)
        ]
        assert sorted(edges) == sorted(wanted)
    again = lessons_of(model, episode, 1, max_users=size)
    assert size == 8 or [p.users.tolist() for p in again] != [p.users.tolist() for p in parts]


def dense_loss(p, part, episode, score):
    """Minus the mean of what DCG@20 over its ideal is where each step is a logistic function."""
    visible = episode.input.graph.user_items.toarray() > 0
    table, losses = score(p), []
    degrees = episode.input.item_degrees.double()
    bias = blended_bias(p, degrees, part.context, part.popularity[0])
    share = degrees / degrees.sum()
    width = lessons._WIDTH * (share * (bias - (share * bias).sum()) ** 2).sum().sqrt()
    for row, user in enumerate(part.users):
        own = table[row][torch.from_numpy(~visible[user])]
        bars = own.sort(descending=True).values
        hidden, gain = episode.items[episode.users == user], 0.0
        for item in hidden:
            for k in range(1, 21):
                step = 1 / np.log2(1 + k) - (1 / np.log2(2 + k) if k < 20 else 0.0)
                # Beyond the last item there is nothing to be better than.
                bar = bars[k - 1] if k <= len(bars) else -1e9
                gain = gain + step * torch.sigmoid((table[row, item] - bar) / width)
        losses.append(-gain / sum(1 / np.log2(1 + k) for k in range(1, min(len(hidden), 20) + 1)))
    return (torch.stack(losses) * torch.from_numpy(part.weight)).mean()


def dense_scores_of(model, part, episode):
    matched = matched_by(model, episode.input)

    def scores(p):
        return blended(
            p,
            part.scores.double(),  # constants: half precision is the lesson's own
            episode.input.user_degrees[part.users],
            episode.input.item_degrees,
            part.context,
            popular(matched, 14),
        )

    return scores


@pytest.mark.parametrize("mode", ["heads", "final", "full"])
@pytest.mark.parametrize("pull", [0.0, 0.5])
def test_two_steps_equal_dense_steps_by_hand(mode, pull, monkeypatch):
    # Wide enough that most hidden edges of so small a graph have a gradient.
    monkeypatch.setattr(lessons, "_WIDTH", 1.0)
    episode, model, rate = episode_of(5), blend_of(3, moved=0.1), 0.01
    part = lesson(model, episode, 0)
    trained = model.trained_parameters(mode, 1)
    p = double_parameters(model)
    start = {name: p[name].detach().clone() for name in trained}
    score = dense_scores_of(model, part, episode)
    with torch.no_grad():
        expected = dense_loss(p, part, episode, score)
        assert float(ndcg_loss(model, part)) == pytest.approx(float(expected), abs=1e-5)
    gradients = torch.autograd.grad(
        ndcg_loss(model, part), [model.get_parameter(n) for n in trained]
    )
    by_hand = torch.autograd.grad(dense_loss(p, part, episode, score), [p[n] for n in trained])
    for name, found, wanted in zip(trained, gradients, by_hand, strict=True):
        scale = float(wanted.abs().max())
        np.testing.assert_allclose(found, wanted, atol=1e-4 * scale + 1e-6, err_msg=name)
    moments = {name: (0.0, 0.0) for name in trained}
    steady = {name: torch.ones_like(p[name], dtype=torch.bool) for name in trained}
    for step in (1, 2):
        value = dense_loss(p, part, episode, score)
        grads = torch.autograd.grad(value, [p[n] for n in trained])
        for name, g in zip(trained, grads, strict=True):
            # Near zero a gradient is rounding error, of which Adam sees only the sign.
            steady[name] &= g.abs() > 1e-4
            g = g + 2 * pull * (p[name].detach() - start[name])
            first, second = moments[name]
            first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g * g
            moments[name] = first, second
            root = (second / (1 - 0.999**step)).sqrt() + 1e-8
            moved = p[name].detach() - rate * first / (1 - 0.9**step) / root
            p[name] = moved.requires_grad_(True)
    optimise(
        model, lambda step: ndcg_loss(model, part), trained, None,
        TrainConfig(learning_rate=rate, pull_to_start=pull, max_steps=2),
    )  # fmt: skip
    checked = 0
    for name in trained:
        found, wanted = model.get_parameter(name).detach(), p[name].detach()
        where = steady[name]
        checked += int(where.sum())
        np.testing.assert_allclose(found[where], wanted[where], atol=2e-5, err_msg=name)
    assert checked > 0.5 * sum(p[name].numel() for name in trained)


def test_user_ndcg_is_the_weighted_ndcg_of_the_dense_ranking():
    episode, model = episode_of(3), blend_of(3)
    part = lesson(model, episode, 0)
    with torch.no_grad():
        table = dense_scores_of(model, part, episode)(double_parameters(model)).numpy()
    table[episode.input.graph.user_items.toarray()[part.users] > 0] = -np.inf
    expected = []
    for row, user in enumerate(part.users):
        relevant = set(episode.items[episode.users == user].tolist())
        order = [i for i in np.argsort(-table[row]) if table[row][i] > -np.inf]
        gains = [1 / np.log2(rank + 2) for rank, item in enumerate(order) if item in relevant]
        expected.append(sum(gains) / sum(1 / np.log2(r + 2) for r in range(len(relevant))))
    found = user_ndcg(model, [part, part.light()])
    np.testing.assert_allclose(found, np.tile(expected * part.weight, 2), rtol=1e-6)
    assert 0 < found.mean() < 1


def test_scoring_leaves_a_lessons_scores_as_they_are():
    model, part = blend_of(3), lesson(blend_of(3), episode_of(3), 0)
    single = dataclasses.replace(part, scores=part.scores.float())
    before = single.scores.clone()
    ndcg_loss(model, single).backward()
    assert torch.equal(single.scores, before)
    assert torch.equal(ndcg_loss(model, single), ndcg_loss(model, part))


@pytest.mark.parametrize("twins", [False, True])  # popular elsewhere, hardly known here
@pytest.mark.parametrize("at_once", [64, 7])  # in one part, and in parts of unequal width
def test_candidates_are_as_good_as_the_whole_catalogue(at_once, twins, monkeypatch):
    monkeypatch.setattr(lessons, "_AT_ONCE", at_once)
    graph = random_graph(5, n_users=40, n_items=300, density=0.06)
    users, items = graph.edges()
    hidden = np.arange(len(users)) % 4 == 1
    visible = BipartiteGraph(users[~hidden], items[~hidden], 40, 300)
    texts = torch.nn.functional.normalize(random_text(3, 300), dim=1)
    model = blend_of(3, moved=0.1)
    parts = []
    for leading in (300, 40):  # all items, then about a third of them
        monkeypatch.setattr(lessons, "_LEADING", leading)
        x = GraphInput(visible, texts, spectral_rank=16)
        if twins:
            known = torch.arange(300) % 12 == 5
            popularity = 40.0 * known * torch.rand(300, generator=torch.Generator().manual_seed(1))
            nothing = torch.zeros(300, 64), torch.zeros(64)
            x.kept["bridges"] = [Matched(*nothing, popularity, known.float())]
        parts.append(lesson(model, Episode(x, users[hidden], items[hidden]), 0))
    every, few = parts
    assert every.scores.shape[2] == 300 and few.scores.shape[2] < 220
    assert few.valid.sum() < 0.6 * every.valid.sum()
    np.testing.assert_allclose(user_ndcg(model, [few]), user_ndcg(model, [every]), atol=1e-6)
    trained = [model.get_parameter(name) for name in model.trained_parameters("full")]
    losses = [ndcg_loss(model, part) for part in parts]
    assert float(losses[1]) == pytest.approx(float(losses[0]), abs=1e-5)
    for one, other in zip(*(torch.autograd.grad(loss, trained) for loss in losses), strict=True):
        torch.testing.assert_close(other, one, atol=1e-5, rtol=1e-3)
    # Every hidden edge is among them, in the place that is said.
    with torch.no_grad():
        scores = [part.scored(model) for part in parts]
    own = [s[p.row, p.column] for s, p in zip(scores, parts, strict=True)]
    torch.testing.assert_close(own[0], own[1])
    assert torch.isfinite(own[0]).all()
