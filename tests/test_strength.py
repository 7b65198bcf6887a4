"""How far to leave popularity is found on hidden edges, and nothing else of a model changes."""

import copy
import math

import numpy as np
import pytest
import torch
from conftest import make_log
from test_pretrain import block_log

from gnnrec.checkpoint import Checkpoint
from gnnrec.config import ModelConfig, TransferConfig
from gnnrec.features import GraphInput
from gnnrec.graph import BipartiteGraph
from gnnrec.interactions import Interactions
from gnnrec.metrics import per_user_metrics
from gnnrec.model import build_model
from gnnrec.runs import transfer_run
from gnnrec.sources import Log
from gnnrec.strength import STRENGTHS, find_strength, strengthened
from gnnrec.target import Target
from gnnrec.transfer import adapt

SIZE = ModelConfig(encoder="channels", spectral_rank=16)


def louder(times=1.0):
    """A model that says the same so many times as loud."""
    torch.manual_seed(0)
    model = build_model(SIZE).eval()
    with torch.no_grad():
        model.log_weight.add_(math.log(times))
    return model


def groups():
    """A log whose users stay in their group of items."""
    return block_log(0, text=False).graph


def taste_free(n_users=150, n_items=80):
    """A log where nothing but popularity decides."""
    rng = np.random.default_rng(5)
    chance = 1.0 / np.arange(1, n_items + 1)
    drawn = [rng.choice(n_items, 8, replace=False, p=chance / chance.sum()) for _ in range(n_users)]
    return BipartiteGraph(np.repeat(np.arange(n_users), 8), np.concatenate(drawn), n_users, n_items)


def target_of(graph):
    users, items = graph.edges()
    return Target(users, items, graph.n_users, graph.n_items)


@pytest.mark.parametrize("strength", STRENGTHS)
def test_a_strength_scales_what_is_personal(strength):
    model, x = louder(), GraphInput(groups(), spectral_rank=16)
    with torch.no_grad():
        scores, sure = model(x), louder(strength)(x)
    everyone = np.arange(20)
    found, expected = (s.of(everyone).rows(0, 20) for s in (strengthened(scores, strength), sure))
    torch.testing.assert_close(found * strength, expected, rtol=1e-3, atol=1e-3)


def test_what_errs_in_nothing_else_is_brought_back():
    x = GraphInput(groups(), spectral_rank=16)
    itself = find_strength(louder(), x)
    for times in (0.5, 2.0):
        found = find_strength(louder(times), GraphInput(groups(), spectral_rank=16)) * times
        assert itself / 2 <= found <= itself * 2, times
    assert find_strength(louder(1 / 64), GraphInput(groups(), spectral_rank=16)) == 4.0
    assert find_strength(louder(8.0), GraphInput(taste_free(), spectral_rank=16)) < 1.0


def test_it_is_the_one_that_ranks_the_hidden_edges_best():
    model, x = louder(4.0), GraphInput(taste_free(), spectral_rank=16)
    inner = model.inner(x)
    rest = inner.channels.graph.user_items.toarray()
    hidden = np.zeros_like(rest)
    hidden[inner.users, inner.items] = 1
    assert not (hidden * rest).any()
    with torch.no_grad():
        scores = model.scores_of(inner.channels, model.about(x))
    bias = scores.items[:, -1]
    values = []
    for strength in STRENGTHS:
        personal = scores.rows(0, len(rest)) - bias
        table = (personal * strength + bias).masked_fill(torch.from_numpy(rest) > 0, -torch.inf)
        top = table.topk(20, dim=1).indices.numpy()
        asked = np.unique(inner.users)
        relevant = BipartiteGraph(
            np.searchsorted(asked, inner.users), inner.items, len(asked), rest.shape[1]
        )
        values.append(per_user_metrics(top[asked], relevant.user_items, (20,))["ndcg@20"])
    best = int(np.argmax([v.mean() for v in values]))
    gap = values[best] - values[0]
    assert best > 0 and gap.mean() > gap.std(ddof=1) / math.sqrt(len(gap))
    assert find_strength(model, x) == STRENGTHS[best]
    assert "inner" not in x.kept  # as large as the graph's own channels


def test_where_nothing_can_be_hidden_a_model_says_what_it_says():
    one = BipartiteGraph(np.array([0]), np.array([1]), 3, 4)
    assert find_strength(louder(16.0), GraphInput(one, spectral_rank=16)) == 1.0


def test_zero_shot_changes_one_number_and_computes_no_channel_twice(monkeypatch):
    target = target_of(taste_free())
    rows = np.arange(len(target.users))
    model = louder(8.0)
    checkpoint = Checkpoint("loud", SIZE, copy.deepcopy(model.state_dict()))
    config = TransferConfig(retrain="zero-shot")
    adapted = adapt(checkpoint, target, rows[10:], rows[:10], config)
    assert adapted.strength < 1.0 and adapted.trained == [] and adapted.steps == 0
    for name, value in adapted.model.state_dict().items():
        change = math.log(adapted.strength) if name == "log_weight" else 0.0
        torch.testing.assert_close(value, checkpoint.state[name] + change)
    x = target.graph_input(rows, rank=16)
    assert {"channels", "context"} <= x.kept.keys() and x.graph.n_edges == len(rows)
    assert not target.graph_input(rows, rank=16).kept  # handed out once
    alone = adapt(
        checkpoint, target, rows[10:], rows[:10], config.model_copy(update={"guard": False})
    )
    assert alone.strength == 1.0
    assert all(torch.equal(v, checkpoint.state[n]) for n, v in alone.model.state_dict().items())


def test_the_report_says_so(tmp_path):
    log = Log("made", Interactions.from_frame(make_log(80, 60, 900, seed=3)), None)
    loud = Checkpoint("loud", SIZE, louder(32.0).state_dict())
    recommender, report = transfer_run(loud, log, TransferConfig(retrain="zero-shot"), device="cpu")
    assert report["strength"] < 1.0 and report["choice"] == ""
    moved = recommender.model.log_weight - louder(32.0 * report["strength"]).log_weight
    assert float(moved.abs().max()) < 1e-5
    recommender.save(tmp_path / "r")
    again = type(recommender).load(tmp_path / "r")
    assert again.recommend(k=3).equals(recommender.recommend(k=3))
