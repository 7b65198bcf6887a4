"""The search keeps the best of what it tried, its start included, and touches only what it may."""

import json

import numpy as np
import pytest
import torch
from test_pretrain import block_log

from gnnrec.checkpoint import Checkpoint
from gnnrec.config import ModelConfig, PretrainConfig, TransferConfig
from gnnrec.evaluate import evaluate_scores
from gnnrec.features import GraphInput
from gnnrec.filters import GraphFilter
from gnnrec.graph import BipartiteGraph
from gnnrec.pretrain import pretrain
from gnnrec.search import HeldOut, search
from gnnrec.target import Target
from gnnrec.transfer import adapt

HEADS = {"row_exponent", "output_exponent", "cosine_weight"}
CONFIG = ModelConfig(encoder="graph-filter", spectral_rank=8)


def held_out(seed=0):
    log = block_log(seed, n_users=60, n_items=40, per_user=8)
    hidden = np.random.default_rng(seed).random(len(log.users)) < 0.2
    graph = BipartiteGraph(log.users[~hidden], log.items[~hidden], log.n_users, log.n_items)
    return HeldOut(GraphInput(graph, spectral_rank=8), log.users[hidden], log.items[hidden])


def ndcg(model, part):
    with torch.no_grad():
        scores = model(part.input)
    seen = part.input.graph.user_items
    return evaluate_scores(scores, seen, part.users, part.items, (20,)).metrics["ndcg@20"]


def numbers(model):
    return {name: p.item() for name, p in model.named_parameters()}


def test_it_leaves_the_best_of_what_it_tried(tmp_path):
    part, model = held_out(), GraphFilter(CONFIG)
    model.output_exponent.data.fill_(1.4)  # far off: there is something to find
    start, before = ndcg(model, part), numbers(model)
    result = search(model, ["output_exponent", "log2_ridge"], [part], 12, log=tmp_path / "log")
    values = [record["value"] for record in result.history]
    assert result.steps == len(values) == 12 and values[0] == pytest.approx(-start)
    assert result.best_value == min(values) < values[0]
    assert values[result.best_step] == result.best_value
    assert ndcg(model, part) == pytest.approx(-result.best_value)
    changed = {name for name, value in numbers(model).items() if value != before[name]}
    assert changed <= {"output_exponent", "log2_ridge"} and "output_exponent" in changed
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [line["value"] for line in lines] == values


@pytest.mark.parametrize(("names", "budget"), [([], 5), (["row_exponent"], 0)])
def test_nothing_to_search_changes_nothing(names, budget):
    model = GraphFilter(CONFIG)
    before = numbers(model)
    assert search(model, names, [held_out()], budget).steps == 0
    assert numbers(model) == before


def test_some_users_are_drawn_with_all_their_interactions():
    part = held_out()
    some = part.some_users(10, seed=3)
    users = np.unique(some.users)
    assert len(users) == 10
    assert len(some.users) == np.isin(part.users, users).sum()
    assert np.array_equal(some.items, part.items[np.isin(part.users, users)])
    assert part.some_users(10_000, seed=3) is part


@pytest.mark.parametrize(
    ("retrain", "may_change"),
    [
        ("zero-shot", set()),
        ("heads", HEADS),
        ("final:1", HEADS | {"log2_ridge", "log2_tail"}),
        ("full", set(numbers(GraphFilter(CONFIG)))),
    ],
)
def test_adapting_searches_what_the_mode_retrains(retrain, may_change):
    log = block_log(1, n_users=60, n_items=40, per_user=8)
    target = Target(log.users, log.items, log.n_users, log.n_items)
    source = GraphFilter(CONFIG)
    source.row_exponent.data.fill_(0.9)
    checkpoint = Checkpoint("made up", CONFIG, source.state_dict())
    order = np.random.default_rng(0).permutation(len(log.users))
    config = TransferConfig(retrain=retrain, search_evaluations=10)
    adapted = adapt(checkpoint, target, order[60:], order[:60], config)
    before, after = numbers(source), numbers(adapted.model)
    assert {name for name in after if after[name] != before[name]} <= may_change
    assert set(adapted.trained) == may_change
    assert (adapted.steps > 0) == bool(may_change)


def test_pretraining_chooses_the_numbers_on_hidden_interactions_of_all_sources():
    sources = [block_log(seed, n_users=60, n_items=40, per_user=8) for seed in (0, 1)]
    config = PretrainConfig(model=CONFIG, search_evaluations=16)
    first, result = pretrain(sources, config)
    again, _ = pretrain(sources, config)
    assert result.steps == 16 and numbers(first) == numbers(again)
    alone, _ = pretrain(sources[:1], config)
    assert numbers(alone) != numbers(first)
