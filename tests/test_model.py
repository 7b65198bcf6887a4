import dataclasses

import numpy as np
import pytest
import torch
from dense import (
    double_parameters,
    graph_input,
    random_graph,
    random_model,
    random_text,
    scores,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from gnnrec.baselines import Popularity
from gnnrec.encoders import ENCODERS
from gnnrec.errors import ConfigError
from gnnrec.features import GraphInput
from gnnrec.graph import BipartiteGraph

NAMES = sorted(ENCODERS)


def all_scores(model, x, users=None):
    with torch.no_grad():
        vectors = model(x, users)
    return vectors.users @ vectors.items.T


def expected_scores(model, x, text):
    matrix = torch.from_numpy(x.graph.user_items.toarray())
    return scores(double_parameters(model), model.config, matrix, text).detach().float()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["text", "some zero text", "zero text", "no text", "text-free"])
@pytest.mark.parametrize("seed", [0, 1])
def test_scores_equal_the_dense_reference(name, kind, seed):
    graph = random_graph(seed)
    text = random_text(seed)
    if kind == "some zero text":
        text[::2] = 0.0
    elif kind == "zero text":
        text = torch.zeros_like(text)
    elif kind == "no text":
        text = None
    x = GraphInput(graph, text, spectral_rank=16)
    model = random_model(name, seed, text_dim=0 if kind == "text-free" else 6)
    found = all_scores(model, x)
    torch.testing.assert_close(found, expected_scores(model, x, text), atol=1e-3, rtol=1e-3)
    assert found.std() > 0.1


@pytest.mark.parametrize("name", NAMES)
def test_scores_with_residual_ids_equal_the_dense_reference(name):
    x, model = graph_input(2), random_model(name, n_target_items=14)
    expected = expected_scores(model, x, random_text(2))
    torch.testing.assert_close(all_scores(model, x), expected, atol=1e-3, rtol=1e-3)
    before = all_scores(model, x)
    with torch.no_grad():
        model.residual.gate.zero_()
    assert not torch.allclose(all_scores(model, x), before, atol=1e-2)


@pytest.mark.parametrize("name", NAMES)
def test_no_score_depends_on_the_signs_of_singular_vectors(name):
    # Each fold, and the graph that is served, has a spectrum of its own with signs of its own.
    x, model = graph_input(2), random_model(name, n_target_items=14)
    before = all_scores(model, x)
    signs = torch.tensor([1.0, -1.0]).repeat(8)
    s = x.spectrum
    x.spectrum = dataclasses.replace(s, user=s.user * signs, item=s.item * signs)
    x.__dict__.pop("spectral_user_mean", None)
    torch.testing.assert_close(all_scores(model, x), before, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_items_that_arrive_after_the_ids_are_scored_by_the_channels(name):
    x, model = graph_input(3), random_model(name, n_target_items=10)
    assert torch.isfinite(all_scores(model, x)).all()
    plain = random_model(name)
    plain.load_state_dict(
        {k: v for k, v in model.state_dict().items() if not k.startswith("residual")}
    )
    torch.testing.assert_close(all_scores(model, x)[:, 10:], all_scores(plain, x)[:, 10:])


@pytest.mark.parametrize("name", NAMES)
def test_some_users_are_rows_of_all_users(name):
    x, model = graph_input(4), random_model(name, n_target_items=14)
    rows = torch.tensor([8, 0, 5, 5])
    torch.testing.assert_close(
        all_scores(model, x, rows), all_scores(model, x)[rows], atol=1e-5, rtol=1e-4
    )
    with torch.no_grad():
        vectors = model(x)
    pairs = vectors.score(rows, torch.tensor([1, 13]))
    torch.testing.assert_close(pairs, all_scores(model, x)[rows][:, [1, 13]], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
@given(seed=st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_renaming_nodes_renames_the_scores(name, seed):
    rng = np.random.default_rng(seed)
    x, model = graph_input(seed), random_model(name, seed)
    users, items = x.graph.edges()
    new_user, new_item = rng.permutation(9), rng.permutation(14)
    text = torch.empty(14, 6)
    text[new_item] = random_text(seed)
    renamed = GraphInput(
        BipartiteGraph(new_user[users], new_item[items], 9, 14), text, spectral_rank=16
    )
    # Where singular values are zero or nearly so, single precision does not settle the vectors.
    singular = np.linalg.svd(x.graph.normalised.toarray(), compute_uv=False)
    if singular[7] < 1e-2:
        return
    before, after = all_scores(model, x), all_scores(model, renamed)
    torch.testing.assert_close(after[new_user][:, new_item], before, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_a_user_without_interactions_gets_the_item_bias_alone(name):
    x, model = graph_input(5), random_model(name)
    with torch.no_grad():
        torch.testing.assert_close(all_scores(model, x)[-1], model.bias(x))


@pytest.mark.parametrize("name", NAMES)
def test_degenerate_graphs_give_finite_scores(name):
    none = np.array([], dtype=np.int64)
    same = np.repeat(np.arange(4), 3), np.tile(np.arange(3), 4)
    for users, items in ((none, none), same, ([1], [2])):
        graph = BipartiteGraph(np.array(users), np.array(items), 4, 14)
        x = GraphInput(graph, random_text(0), spectral_rank=16)
        assert torch.isfinite(all_scores(random_model(name, n_target_items=14), x)).all()


def test_text_of_another_length_is_refused():
    with pytest.raises(ConfigError, match="6-d text vectors, found 3-d"):
        random_model("lightgcn")(GraphInput(random_graph(0), torch.ones(14, 3), spectral_rank=16))


@pytest.mark.parametrize("name", NAMES)
def test_pretrained_weights_are_taken_but_the_bias_is_fresh(name):
    source = random_model(name, seed=1)
    target = random_model(name, seed=2, n_target_items=4)
    own = {k: v.clone() for k, v in target.state_dict().items()}
    target.load_pretrained(source.state_dict())
    for key, value in target.state_dict().items():
        if key.startswith(("bias.", "residual.")):
            assert torch.equal(value, own[key]), key
        if key.startswith(("encoder.", "spectral.", "user_head.", "item_head.")):
            assert torch.equal(value, source.state_dict()[key]), key
            assert not torch.equal(value, own[key]), key


def test_weights_of_another_architecture_are_not_taken():
    with pytest.raises((AssertionError, RuntimeError)):
        random_model("lightgcn").load_pretrained(random_model("graphsage").state_dict())
    with pytest.raises((AssertionError, RuntimeError)):
        random_model("lightgcn").load_pretrained(random_model("lightgcn", dim=4).state_dict())


@pytest.mark.parametrize("name", NAMES)
def test_what_each_mode_trains(name):
    model = random_model(name, n_target_items=14)
    everything = [parameter_name for parameter_name, _ in model.named_parameters()]
    assert model.trained_parameters("zero-shot") == []
    assert model.trained_parameters("full") == model.trained_parameters("scratch") == everything
    heads = model.trained_parameters("heads")
    assert not any(n.startswith(("encoder.", "spectral.", "text.")) for n in heads)
    for prefix in ("user_head.", "item_head.", "bias.", "calibration.", "residual."):
        assert {n for n in everything if n.startswith(prefix)} <= set(heads)
    for n_layers in (1, 2, 3):
        final = model.trained_parameters("final", n_layers)
        extra = {n for n in final if n not in heads}
        layers = {
            f"encoder.{n}"
            for layer in range(4 - n_layers, 4)
            for n in model.encoder.layer_parameters(layer)
        }
        assert extra == layers | {n for n in everything if n.startswith(("spectral.", "text."))}
        assert set(heads) <= set(final) and "encoder.input.weight" not in final
        assert final == [n for n in everything if n in final]  # in the model's order


def test_the_last_layers_by_name():
    final = random_model("lightgcn").trained_parameters("final", 2)
    assert [n for n in final if n.startswith("encoder.")] == [
        "encoder.layer_weights.2",
        "encoder.layer_weights.3",
    ]
    final = random_model("graphsage").trained_parameters("final", 1)
    owned = {n for n in final if n.startswith("encoder.")}
    assert owned and all(n.startswith("encoder.layers.2.") for n in owned)


@pytest.mark.parametrize("name", NAMES)
def test_more_final_layers_than_there_are_is_refused(name):
    with pytest.raises(ConfigError, match="final:9: the encoder has 3 layers"):
        random_model(name).trained_parameters("final", 9)


@pytest.mark.parametrize("name", NAMES)
def test_counts_add_up(name):
    model = random_model(name, n_target_items=14)
    n_all = sum(p.numel() for p in model.parameters())
    counts = model.count_parameters()
    assert counts["id_tables"] == 14 * 5
    assert counts["biases"] == 2 + 6
    assert counts["total"] + counts["id_tables"] + counts["biases"] == n_all
    assert counts["trained"] == counts["total"]
    assert model.count_parameters([])["trained"] == 0
    sizes = {n: p.numel() for n, p in model.named_parameters()}
    heads = model.trained_parameters("heads")
    expected = sum(sizes[n] for n in heads if not n.startswith("bias.") and n != "residual.items")
    assert model.count_parameters(heads)["trained"] == expected < counts["total"]


def test_popularity_scores_everyone_alike():
    x = graph_input(6)
    found = all_scores(Popularity(), x, torch.tensor([0, 8]))
    expected = torch.log(1 + torch.from_numpy(x.graph.item_degrees).float())
    torch.testing.assert_close(found, expected.expand(2, -1))
    assert all_scores(Popularity(), x).shape == (9, 14)


def test_sampled_scores_equal_those_of_the_whole_graph_with_full_fan_out():
    x, model = graph_input(3), random_model("graphsage", 3, n_target_items=14)
    users, items = np.array([4, 0, 4, 8]), np.array([13, 2, 2, 7, 0])
    blocks = x.sample(users, items, (None,) * 3, np.random.default_rng(0))
    with torch.no_grad():
        sampled = model(x, blocks=blocks)
    assert sampled.users.shape[0] == 4 and sampled.items.shape[0] == 5
    expected = all_scores(model, x)[users][:, items]
    torch.testing.assert_close(sampled.users @ sampled.items.T, expected, atol=1e-3, rtol=1e-3)


def test_what_else_is_in_a_batch_moves_no_score():
    x, model = graph_input(5), random_model("graphsage", 5)
    found = []
    for items in ([3, 5], [3, 5, 0, 0, 1, 2]):
        blocks = x.sample(np.array([1]), np.array(items), (None,) * 3, np.random.default_rng(0))
        with torch.no_grad():
            vectors = model(x, blocks=blocks)
        found.append((vectors.users @ vectors.items.T)[:, :2])
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=1e-4)
