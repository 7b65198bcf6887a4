"""The blend equals its dense formula, freezes what a mode freezes, and comes back bit for bit."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_log
from dense import double_parameters
from dense_blend import (
    all_channels,
    blend_of,
    blended,
    input_of,
    matched_by,
    near_texts,
    permuted,
    popular,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from gnnrec.blend import ChannelBlend, shrunk_counts
from gnnrec.channels import NAMES, Channels
from gnnrec.checkpoint import Checkpoint
from gnnrec.config import ModelConfig, TrainConfig, TransferConfig, validate
from gnnrec.context import context, graph_part, hide
from gnnrec.errors import CheckpointError, ConfigError
from gnnrec.features import GraphInput
from gnnrec.model import build_model
from gnnrec.recommender import Recommender
from gnnrec.storage import seal
from gnnrec.target import Target
from gnnrec.transfer import adapt

SHORT = TrainConfig(learning_rate=3e-2, pull_to_start=0.0, max_steps=6, evaluate_every=3)


def scores_of(model, x, users=None):
    with torch.no_grad():
        scores = model(x, users)
    return scores.rows(0, len(scores.users))


def dense_blend(model, x):
    matched = matched_by(model, x)
    return blended(
        double_parameters(model),
        all_channels(x, model.filter, matched),
        x.user_degrees,
        x.item_degrees,
        model.about(x),
        popular(matched, x.graph.n_items),
    )


@given(
    degree=st.integers(0, 1000),
    popularity=st.floats(0.01, 1e4),
    shape=st.floats(0.01, 100.0),
    scale=st.floats(0.01, 100.0),
)
def test_a_count_is_drawn_to_what_is_expected_and_no_further(degree, popularity, shape, scale):
    def shrunk(degree, popularity):
        some = torch.tensor([degree], dtype=torch.float64), torch.tensor([popularity])
        means = torch.tensor(1.5), torch.tensor(0.7)
        return float(shrunk_counts(*some, means, (1.0, shape, scale)).exp())

    here, expected = shrunk(degree, popularity), scale * 1.5 * popularity
    assert min(degree, expected) * 0.999 <= here <= max(degree, expected) * 1.001
    assert here <= (degree + shape) * 1.001  # however popular it is elsewhere
    assert shrunk(degree + 1, popularity) > here and shrunk(degree, 2 * popularity) >= here * 0.999
    assert shrunk(degree, 0.0) == pytest.approx((degree + 1) * 0.7 / 1.7, rel=1e-5)


@pytest.mark.parametrize(
    ("text", "bridges"), [(False, ()), (True, ()), (True, (11,)), (True, (11, 12))]
)
@pytest.mark.parametrize("seed", range(3))
def test_scores_equal_the_dense_formula(seed, text, bridges):
    model, x = blend_of(seed, 6 if text else 0, bridges), input_of(seed, text)
    expected = dense_blend(model, x).detach()
    largest = float(expected.abs().max())
    np.testing.assert_allclose(scores_of(model, x), expected, atol=1e-4 * largest, rtol=1e-4)


def test_a_bridge_without_a_twin_is_as_if_there_were_none():
    model, alone, x = blend_of(1), blend_of(1, bridges=()), input_of(1)
    alone.load_state_dict({name: model.state_dict()[name] for name in alone.state_dict()})
    assert len(model.matched(x)) == 1
    assert not torch.equal(scores_of(model, x), scores_of(alone, x))
    model.bridges[0].text.zero_()
    x = input_of(1)
    assert not model.channels(x).present[NAMES.index("bridge")]
    assert torch.equal(scores_of(model, x), scores_of(alone, input_of(1)))


def test_some_users_are_those_rows():
    model, x = blend_of(1), input_of(1)
    every, some = scores_of(model, x), torch.tensor([4, 0, 7])
    torch.testing.assert_close(scores_of(model, x, some), every[some], atol=1e-5, rtol=1e-5)


def test_a_user_without_interactions_gets_the_bias_alone():
    model, x = blend_of(2), input_of(2)
    with torch.no_grad():
        scores = model(x)
        _, _, bias = model.weights(model.channels(x), model.about(x), x.user_degrees)
    assert x.user_degrees[-1] == 0 and bias.std() > 0
    assert torch.equal(scores.rows(0, len(scores.users))[-1], bias)
    assert torch.equal(scores.of(np.array([-1, 3])).rows(0, 2)[0], bias)  # nor one nobody knows


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_renumbering_users_and_items_renumbers_the_scores(seed):
    rng = np.random.default_rng(seed)
    model, x = blend_of(seed % 5), input_of(seed % 5)
    users, items = rng.permutation(x.graph.n_users), rng.permutation(x.graph.n_items)
    moved = permuted(x, users, items)
    # Which edges are hidden to see what a channel is worth is drawn by place, as a seed is.
    moved.kept["context"] = (model.bridges, model.about(x))
    expected = scores_of(model, x)
    found = scores_of(model, moved)[users][:, items]
    np.testing.assert_allclose(found, expected, atol=2e-4 * float(expected.abs().max()))


def test_a_model_of_other_texts_is_refused():
    x = GraphInput(input_of().graph, torch.randn(14, 5), spectral_rank=16)
    with pytest.raises(ConfigError, match="reads 6-d text vectors, found 5-d"):
        blend_of()(x)
    with pytest.raises(ConfigError, match="bridges are for the channels encoder with text"):
        validate(ModelConfig, {"encoder": "channels", "bridges": [3]}, "options")


# What a mode trains

HEADS = {"log_weight", "bias.log_prior", "bias.log_source", "bias.log_scale"}
LAYERS = HEADS | {"user_slope", "item_slope"}
NETWORKS = {
    f"{what}_network.{layer}.{kind}"
    for what in ("gate", "slope", "bias") for layer in (0, 2) for kind in ("weight", "bias")
}  # fmt: skip


def test_what_a_mode_retrains():
    model = blend_of()
    assert model.trained_parameters("zero-shot") == []
    assert set(model.trained_parameters("heads")) == HEADS
    assert set(model.trained_parameters("final", 1)) == LAYERS
    for mode in ("full", "scratch"):
        assert set(model.trained_parameters(mode)) == LAYERS | NETWORKS
    with pytest.raises(ConfigError, match="final:1"):
        model.trained_parameters("final", 2)
    counts = model.count_parameters(model.trained_parameters("heads"))
    assert counts["trained"] == len(NAMES) and counts["biases"] == 3
    # Texts, directions and popularity of 11 items, and the directions' response.
    assert counts["id_tables"] == 11 * (6 + 64 + 1) + 64
    assert model.count_parameters([])["trained"] == 0
    total = sum(p.numel() for p in model.parameters())
    assert model.count_parameters()["total"] == total - 3


def checkpoint_of(seed=0, text=True, bridges=(11,)):
    model = blend_of(seed, 6 if text else 0, bridges)
    return Checkpoint("made up", model.config, dict(model.state_dict()))


def target_of(seed=0, text=True):
    frame = make_log(40, 14, 260, seed, text=False)
    users, items = frame.user_id.to_numpy(), frame.item_id.to_numpy()
    return Target(users, items, 40, 14, near_texts() if text else None)


def test_what_may_be_shared_is_of_the_same_channels():
    """Lessons and the guard's twins are kept under a digest; their channels depend on the rank."""
    config = ModelConfig(encoder="channels", spectral_rank=16)
    digests = {
        build_model(config.model_copy(update=change)).fixed_sha256()
        for change in ({}, {}, {"spectral_rank": 8}, {"text_dim": 4, "text_model": "m"})
    }
    assert len(digests) == 3


def config(retrain, **changes):
    return TransferConfig(
        **{"retrain": retrain, "weigh": SHORT, "n_weigh_folds": 3, "guard": False, **changes}
    )


@pytest.mark.parametrize("retrain", ["zero-shot", "heads", "final:1", "full"])
def test_frozen_parameters_keep_the_checkpoints_bits(retrain):
    checkpoint, target = checkpoint_of(), target_of()
    rows = np.arange(len(target.users))
    adapted = adapt(checkpoint, target, rows[20:], rows[:20], config(retrain))
    state = adapted.model.state_dict()
    moved = {n for n, value in checkpoint.state.items() if not torch.equal(state[n], value)}
    assert state.keys() == checkpoint.state.keys() and not adapted.model.training
    assert moved == set(adapted.trained)
    assert adapted.steps == (0 if retrain == "zero-shot" else 6)


def test_scratch_takes_nothing_but_the_architecture():
    target = target_of()
    rows = np.arange(len(target.users))
    ends = [
        adapt(checkpoint_of(seed), target, rows[20:], rows[:20], config("scratch")).model
        for seed in (0, 1)
    ]
    assert all(model.config.bridges == () and not model.bridges for model in ends)
    for name, value in ends[0].state_dict().items():
        assert torch.equal(ends[1].state_dict()[name], value), name


# Saved and loaded


@pytest.mark.parametrize(("text", "bridges"), [(False, ()), (True, ()), (True, (11, 12))])
def test_a_checkpoint_comes_back(text, bridges, tmp_path):
    checkpoint = checkpoint_of(3, text, bridges)
    loaded = Checkpoint.load(checkpoint.save(tmp_path / "made up"))
    assert loaded.config == checkpoint.config and loaded.config.bridges == bridges
    assert loaded.state.keys() == checkpoint.state.keys()
    assert all(torch.equal(loaded.state[n], v) for n, v in checkpoint.state.items())
    x = input_of(3, text)
    assert torch.equal(scores_of(loaded.model(14), x), scores_of(checkpoint.model(14), x))
    assert loaded.model(pretrained=False).config.bridges == ()


def test_a_checkpoint_with_a_table_of_another_size_is_refused(tmp_path):
    checkpoint = checkpoint_of()
    lying = checkpoint.config.model_copy(update={"bridges": (12,)})
    folder = checkpoint.save(tmp_path / "c")
    other = Checkpoint("c", lying, blend_of(bridges=(12,)).state_dict()).save(tmp_path / "o")
    (folder / "config.json").write_text((other / "config.json").read_text())
    seal(folder)
    with pytest.raises(CheckpointError, match="bridges.0"):
        Checkpoint.load(folder)


@pytest.mark.parametrize("retrain", ["zero-shot", "heads", "scratch"])
def test_a_recommender_comes_back_bit_for_bit(retrain, frame, tmp_path):
    recommender = Recommender(checkpoint_of(4, text=False, bridges=()), config(retrain), "cpu")
    recommender.fit(frame)
    recommender.save(tmp_path / "r")
    loaded = Recommender.load(tmp_path / "r", "cpu")
    everyone = np.append(np.arange(recommender.log.n_users), -1)
    ours, theirs = (r.vectors.of(everyone).rows(0, len(everyone)) for r in (recommender, loaded))
    assert torch.equal(ours, theirs) and torch.isfinite(ours).all()
    assert recommender.vectors.walk is not None
    assert (ours - recommender.vectors.users[0] @ recommender.vectors.items.T).abs().max() > 0
    lists = recommender.recommend(k=7)
    pd.testing.assert_frame_equal(loaded.recommend(k=7), lists, check_exact=True)
    chosen = set(map(tuple, lists[["user_id", "item_id"]].to_numpy()))
    assert not chosen & set(map(tuple, frame[["user_id", "item_id"]].to_numpy()))
    fresh = pd.DataFrame({"user_id": ["new", "u1"], "item_id": ["i1", "j2"]})
    updated = [r.update(fresh).recommend(k=100) for r in (recommender, loaded)]
    pd.testing.assert_frame_equal(*updated, check_exact=True)
    assert "j2" in set(updated[0].item_id)


def test_a_walk_with_texts_and_bridges_is_put_together_again():
    model, x = blend_of(5, bridges=(11, 12)), input_of(5)
    with torch.no_grad():
        scores = model(x)
    walk = model.walk(x.graph, scores.walk.out, scores.users)
    assert torch.equal(walk.columns(0, 9), scores.walk.columns(0, 9))
    assert walk.columns(0, 9).abs().max() > 0.01


def edge_cases():
    text = near_texts(5)
    none = np.array([], dtype=np.int64)
    same = np.repeat(np.arange(6), 3), np.tile(np.arange(3), 6)
    return {
        "no interaction": Target(none, none, 2, 5, text),
        "one interaction": Target(np.array([1]), np.array([3]), 2, 5, text),
        "one user": Target(np.zeros(4, dtype=np.int64), np.arange(4), 1, 5, text),
        "one item": Target(np.arange(6), np.zeros(6, dtype=np.int64), 6, 1, text[:1]),
        "identical users": Target(*same, 6, 5, text),
        "no text": Target(*same, 6, 5, None),
    }


@pytest.mark.parametrize("case", sorted(edge_cases()))
@pytest.mark.parametrize("retrain", ["zero-shot", "final:1", "scratch"])
def test_degenerate_targets_do_not_crash(case, retrain):
    target = edge_cases()[case]
    n = len(target.users)
    rows = np.arange(n)
    for train, validation in ((rows, rows[:0]), (rows[: n - 1], rows[n - 1 :])):
        adapted = adapt(checkpoint_of(), target, train, validation, config(retrain, guard=True))
        found = scores_of(adapted.model, target.graph_input(rank=16))
        assert found.shape == (target.n_users, target.n_items) and torch.isfinite(found).all()


def test_a_fresh_blend_reads_nothing_of_the_context():
    model, x = build_model(ModelConfig(encoder="channels", spectral_rank=16)), input_of(text=False)
    assert isinstance(model, ChannelBlend)
    before = scores_of(model, x)
    x.kept["context"] = (model.bridges, 3.0 * torch.ones_like(model.about(x)))
    assert torch.equal(scores_of(model, x), before)


@torch.no_grad()
def test_drawing_back_moves_what_is_computed_in_a_straight_line_to_a_fresh_blend():
    x, logs = input_of(3), []
    for share in (0.0, 0.3, 1.0):
        model = blend_of(3)
        model.draw_back(share)
        gates, slopes = model.gates_and_slopes(model.channels(x), model.about(x), x.user_degrees)
        shapes = torch.stack([model.bias.log_prior, model.bias.log_source])
        shapes = shapes + model.bias_network(graph_part(model.about(x)))
        logs.append((gates[x.user_degrees > 0].log(), slopes, shapes))
    fresh = ChannelBlend(model.config)
    fresh.load_state_dict(model.state_dict() | {"log_weight": fresh.log_weight})
    assert torch.equal(scores_of(model, x), scores_of(fresh, x)) and not logs[2][1].any()
    for start, between, end in zip(*logs, strict=True):
        assert (start - end).abs().max() > 0.1
        torch.testing.assert_close(between, torch.lerp(start, end, 0.3), atol=1e-5, rtol=1e-5)


def test_the_context_is_measured_on_a_graph_without_the_hidden_edges():
    model, x = blend_of(6), input_of(6, n_users=40, n_items=30)
    rest, users, items = hide(x.graph, x.seed)
    with torch.no_grad():
        inner = Channels(x.on(rest), model.filter, matched_by(model, x))
    whole, about = model.channels(x), model.about(x)
    assert torch.equal(about, context(whole, inner, (users, items)))
    # Channels that had seen the edges rank them better, and would say so.
    assert (context(whole, whole, (users, items)) - about)[8] > 0.2
    assert model.about(x) is about and model.channels(x) is whole  # made once a graph
