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
