import dataclasses
import tracemalloc

import numpy as np
import pytest
import torch
from dense import double_parameters, graph_input, graphsage, lightgcn, random_model, random_text
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.nn import LGConv, SAGEConv

from gnnrec.config import ModelConfig
from gnnrec.encoders import ENCODERS, build_encoder
from gnnrec.encoders.graphsage import SAGELayer, degree_features
from gnnrec.features import GraphInput, centre_text
from gnnrec.graph import BipartiteGraph

NAMES = sorted(ENCODERS)


def encoder_of(name, **arguments):
    return random_model(name, **arguments).encoder


def parts(block):
    return block.users, block.items, block.mean_user


def test_lightgcn_equals_projection_then_lgconv_then_weighted_sum():
    x, encoder = graph_input(0), encoder_of("lightgcn")
    users, items = (torch.from_numpy(codes) for codes in x.graph.edges())
    items = items + x.graph.n_users
    edges = torch.stack([torch.cat([users, items]), torch.cat([items, users])])
    layer = torch.cat([torch.zeros(x.graph.n_users, 5), encoder.input(x.text)])
    total = encoder.layer_weights[0] * layer
    for weight in list(encoder.layer_weights)[1:]:
        layer = LGConv()(layer, edges)
        total = total + weight * layer
    block = encoder(x)
    found = torch.cat([block.users, block.items])
    torch.testing.assert_close(found, total, atol=1e-5, rtol=1e-5)
    assert found.abs().max() > 0.1


def test_sage_layer_equals_sageconv_on_both_edge_directions():
    torch.manual_seed(0)
    x, layer = graph_input(1), SAGELayer(5)
    data = x.graph.to_pyg()
    user_x, item_x = torch.randn(x.graph.n_users, 5), torch.randn(x.graph.n_items, 5)
    found = layer(x, user_x, item_x)
    for side, tables, edge_type, got in (
        ("user", (item_x, user_x), ("item", "rev_interacts", "user"), found[0]),
        ("item", (user_x, item_x), ("user", "interacts", "item"), found[1]),
    ):
        conv = SAGEConv((5, 5), 5, aggr="mean")
        conv.lin_l.load_state_dict(getattr(layer, f"{side}_neighbour").state_dict())
        conv.lin_r.load_state_dict(getattr(layer, f"{side}_self").state_dict())
        expected = conv(tables, data[edge_type].edge_index)
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n_layers", [1, 2, 3])
def test_vectors_equal_the_dense_formula(name, n_layers):
    x, model = graph_input(2), random_model(name, n_layers=n_layers)
    matrix = torch.from_numpy(x.graph.user_items.toarray()).double()
    text = centre_text(random_text(2)).double()
    formula = {"lightgcn": lightgcn, "graphsage": graphsage}[name]
    users, items = formula(double_parameters(model), matrix, text, n_layers)
    block = model.encoder(x)
    torch.testing.assert_close(block.users.double(), users, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(block.items.double(), items, atol=1e-5, rtol=1e-4)
    mean = (matrix.sum(dim=1) / matrix.sum()) @ users
    torch.testing.assert_close(block.mean_user.double(), mean, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
@given(seed=st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_renaming_nodes_renames_the_vectors(name, seed):
    rng = np.random.default_rng(seed)
    x, encoder = graph_input(seed), encoder_of(name)
    users, items = x.graph.edges()
    new_user, new_item = rng.permutation(x.graph.n_users), rng.permutation(x.graph.n_items)
    text = torch.empty(x.graph.n_items, 6)
    text[new_item] = random_text(seed)
    order = rng.permutation(len(users))
    renamed = BipartiteGraph(
        new_user[users][order], new_item[items][order], x.graph.n_users, x.graph.n_items
    )
    before, after = encoder(x), encoder(GraphInput(renamed, text))
    torch.testing.assert_close(after.users[new_user], before.users, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(after.items[new_item], before.items, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(after.mean_user, before.mean_user, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_some_users_are_rows_of_all_users(name):
    x, encoder = graph_input(3), encoder_of(name)
    rows = torch.tensor([8, 0, 3, 3])
    some, every = encoder(x, rows), encoder(x)
    torch.testing.assert_close(some.users, every.users[rows], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(some.items, every.items)
    torch.testing.assert_close(some.mean_user, every.mean_user)
    assert encoder(x, rows[:0]).users.shape == (0, 5)


@pytest.mark.parametrize("name", NAMES)
def test_one_encoder_runs_on_graphs_of_any_size(name):
    encoder = encoder_of(name)
    for n_users, n_items in ((5, 8), (30, 20), (2, 3)):
        block = encoder(graph_input(0, n_users=n_users, n_items=n_items))
        assert block.users.shape == (n_users, 5) and block.items.shape == (n_items, 5)
        assert all(torch.isfinite(part).all() for part in parts(block))


def test_without_text_lightgcn_has_nothing_and_graphsage_has_degrees():
    with_text, without = graph_input(4), graph_input(4, text=False)
    for x, text_dim in ((without, 6), (with_text, 0), (without, 0)):
        assert encoder_of("lightgcn", text_dim=text_dim)(x) is None
        block = encoder_of("graphsage", text_dim=text_dim)(x)
        assert all(torch.isfinite(part).all() for part in parts(block))
    # Without text, items of equal degree and equal neighbourhoods are alike.
    star = BipartiteGraph(np.array([0, 0, 1]), np.array([0, 1, 2]), 2, 4)
    items = encoder_of("graphsage", text_dim=0)(GraphInput(star)).items
    torch.testing.assert_close(items[0], items[1])
    assert not torch.allclose(items[0], items[3], atol=1e-3)


def test_graphsage_vectors_have_length_one():
    block = encoder_of("graphsage")(graph_input(5))
    for table in (block.users, block.items):
        torch.testing.assert_close(table.norm(dim=1), torch.ones(len(table)))


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_reached_by_a_gradient(name):
    x, encoder = graph_input(6), encoder_of(name)
    torch.manual_seed(0)
    sum((part * torch.randn_like(part)).sum() for part in parts(encoder(x))).backward()
    for parameter_name, parameter in encoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, parameter_name


@pytest.mark.parametrize("name", NAMES)
def test_layers_own_disjoint_parameters(name):
    encoder = encoder_of(name)
    known = {parameter_name for parameter_name, _ in encoder.named_parameters()}
    owned = [encoder.layer_parameters(layer) for layer in (1, 2, 3)]
    flat = [parameter_name for names in owned for parameter_name in names]
    assert all(owned) and set(flat) < known and len(set(flat)) == len(flat)
    assert not any(parameter_name.startswith("input") for parameter_name in flat)


@pytest.mark.parametrize("name", NAMES)
def test_the_last_layer_moves_only_what_the_last_layer_computes(name):
    x, encoder = graph_input(7), encoder_of(name)
    parameters = dict(encoder.named_parameters())
    before = encoder(x).users.detach()
    with torch.no_grad():
        for parameter_name in encoder.layer_parameters(3):
            parameters[parameter_name].zero_()
    after = encoder(x).users.detach()
    assert not torch.allclose(before, after, atol=1e-4)


def test_the_projection_starts_orthogonal():
    for name in NAMES:
        torch.manual_seed(0)
        encoder = build_encoder(ModelConfig(encoder=name, dim=4, n_layers=2, text_dim=9))
        weight = encoder.input.weight
        torch.testing.assert_close(weight @ weight.T, torch.eye(4), atol=1e-5, rtol=0)


def test_degree_features():
    features = degree_features(torch.tensor([0.0, 1.0, 9.0]))
    expected = [[0.0, 0.0], [np.log(2) / 10, 1.0], [np.log(10) / 10, 1.0]]
    np.testing.assert_allclose(features.numpy(), expected, rtol=1e-6)


# GraphSAGE on sampled neighbourhoods


@pytest.mark.parametrize("fan_out", [(None, None, None), (14, 14, 14), (14, None, 100)])
@pytest.mark.parametrize("text", [True, False])
def test_full_fan_out_equals_full_propagation_and_its_gradients(fan_out, text):
    x, encoder = graph_input(8, text=text), encoder_of("graphsage", text_dim=6 * text)
    users, items = np.array([8, 0, 3, 3]), np.array([13, 1, 1, 5, 0])
    blocks = x.sample(users, items, fan_out, np.random.default_rng(0))
    torch.manual_seed(0)
    gradients = []
    for sampled in (False, True):
        encoder.zero_grad()
        block = encoder(x, blocks=blocks) if sampled else encoder(x)
        some = (block.users[:4], block.items[:5], block.mean_user)
        if not sampled:
            some = (block.users[users], block.items[items], block.mean_user)
            expected = some
            weights = [torch.randn_like(part) for part in some]
        for part, other in zip(some, expected, strict=True):
            torch.testing.assert_close(part, other, atol=1e-5, rtol=1e-4)
        sum((part * weight).sum() for part, weight in zip(some, weights, strict=True)).backward()
        gradients.append({name: p.grad.clone() for name, p in encoder.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient.abs().max() > 0 or not text, name  # without text some ReLUs are dead
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-4, rtol=1e-3)


def drawn_means(layer, x, users, items, fan_out, n_draws):
    """The layer's outputs before the nonlinearity, from fixed inputs, (n_draws, n, dim) a side."""
    rng, found = np.random.default_rng(1), ([], [])
    every_user, every_item = np.arange(x.graph.n_users), np.arange(x.graph.n_items)
    for _ in range(n_draws):
        blocks = x.neighbours.draw(every_user, every_item, (fan_out,), rng)
        out = layer(blocks.layers[0], users[blocks.users], items[blocks.items])
        found[0].append(out[0][blocks.user_rows])
        found[1].append(out[1][blocks.item_rows])
    return torch.stack(found[0]), torch.stack(found[1])


def test_each_layer_is_unbiased_before_its_nonlinearity(monkeypatch):
    # Unbiased given the layer before: every layer here reads the vectors of full propagation.
    x, encoder = graph_input(9, n_users=12, n_items=15), encoder_of("graphsage", n_layers=2)
    n_draws, worst = 150, {}
    for sampler in ("uniform", "first"):
        if sampler == "first":
            monkeypatch.setattr(
                "gnnrec.neighbours._distinct_offsets",
                lambda degrees, size, rng: np.tile(np.arange(size)[:, None], len(degrees)),
            )
        with torch.no_grad():
            users = encoder.user_degree(degree_features(x.user_degrees))
            items = encoder.item_degree(degree_features(x.item_degrees)) + encoder.input(x.text)
            for number, layer in enumerate(encoder.layers):
                expected = layer(x, users, items)
                draws = drawn_means(layer, x, users, items, 2, n_draws)
                for side, draw, full in zip("ui", draws, expected, strict=True):
                    error = draw.std(dim=0) / n_draws**0.5 + 1e-5  # float32 rounding
                    deviation = (draw.mean(dim=0) - full).abs() / error
                    worst[sampler, number, side] = float(deviation.max())
                users, items = (side.relu() for side in expected)
    assert len(worst) == 8
    for (sampler, number, side), deviation in worst.items():
        assert (deviation < 5) == (sampler == "uniform"), (sampler, number, side, deviation)


def test_sampled_vectors_approach_those_of_full_propagation():
    x, encoder = graph_input(3, n_users=40, n_items=50), encoder_of("graphsage")
    users, items = np.arange(40), np.arange(50)
    errors = []
    with torch.no_grad():
        full = encoder(x)
        for fan_out in (1, 4, 12, 50):
            draws = [
                encoder(x, blocks=x.sample(users, items, (fan_out,) * 3, np.random.default_rng(k)))
                for k in range(5)
            ]
            errors.append(np.mean([float((d.items[:50] - full.items).norm()) for d in draws]))
    assert errors[0] > 1.5 * errors[1] > 1.5**2 * errors[2] and errors[3] < 1e-4 < errors[2]


def test_sampled_vectors_do_not_depend_on_names_or_on_what_else_is_asked_for():
    x, encoder = graph_input(4, n_users=20, n_items=25), encoder_of("graphsage")
    rng = np.random.default_rng(0)
    new_user, new_item = rng.permutation(20), rng.permutation(25)
    users, items = x.graph.edges()
    text = torch.empty_like(random_text(4, 25))
    text[new_item] = random_text(4, 25)
    renamed = GraphInput(BipartiteGraph(new_user[users], new_item[items], 20, 25), text)
    blocks = x.sample(np.array([3, 0, 3]), np.array([7, 1]), (2, 3, 2), rng)
    # The same draw under the other names.
    other = dataclasses.replace(
        blocks,
        users=torch.from_numpy(new_user[blocks.users]),
        items=torch.from_numpy(new_item[blocks.items]),
    )
    renamed.__dict__["reference_users"] = torch.from_numpy(new_user)[x.reference_users]
    before, after = encoder(x, blocks=blocks), encoder(renamed, blocks=other)
    for one, two in zip(parts(before), parts(after), strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-4)
    # Rows are in the order asked for; one node has one vector.
    assert torch.equal(before.users[0], before.users[2])
    assert not torch.allclose(before.users[0], before.users[1], atol=1e-3)


def test_a_batch_on_a_large_graph_reads_only_what_was_drawn():
    rng = np.random.default_rng(0)
    n_users, n_items, n_edges, dim = 40_000, 30_000, 2_000_000, 4
    popular = (n_items * rng.random(n_edges) ** 3).astype(np.int64)
    graph = BipartiteGraph(rng.integers(0, n_users, n_edges), popular, n_users, n_items)
    x = GraphInput(graph, torch.from_numpy(rng.standard_normal((n_items, dim), np.float32)))
    encoder = encoder_of("graphsage", text_dim=dim, n_layers=2)
    x.__dict__["reference_users"] = torch.arange(8)
    x.__dict__["reference_items"] = (torch.arange(8), torch.ones(8))
    x.sample(np.arange(2), np.arange(2), (4, 3), rng)  # builds the sampler
    users, items = rng.integers(0, n_users, 50), rng.integers(0, n_items, 60)
    tracemalloc.start()
    blocks = x.sample(users, items, (4, 3), rng)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    n_drawn = (58 + 68) * 4 * (1 + 4)
    assert sum(layer.n_edges for layer in blocks.layers) <= n_drawn
    assert len(blocks.users) + len(blocks.items) <= (58 + 68) * (1 + 4) * (1 + 3)
    assert peak < 1_000_000 < graph.user_items.indices.nbytes / 4
    # Whatever else the graph's tables hold is not read, and no operator of the graph is made.
    for table, nodes in ((x.text, blocks.items), (x.item_degrees, blocks.items),
                         (x.user_degrees, blocks.users)):  # fmt: skip
        unread = torch.ones(len(table), dtype=torch.bool)
        unread[nodes] = False
        assert unread.float().mean() > 0.9
        table[unread] = torch.nan
    block = encoder(x, blocks=blocks)
    assert block.users.shape == (58, 5) and block.items.shape == (68, 5)
    assert all(torch.isfinite(part).all() for part in parts(block))
    sum(part.sum() for part in parts(block)).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in encoder.parameters())
    assert not {"user_mean", "item_mean", "adjacency", "spectrum"} & set(x.__dict__)
