"""The closed-form filter equals a dense ridge regression, and is carried between graphs."""

import numpy as np
import pytest
import torch
from dense import power, random_graph, unit
from hypothesis import given, settings
from hypothesis import strategies as st

from gnnrec.config import ModelConfig, validate
from gnnrec.errors import ConfigError
from gnnrec.features import GraphInput
from gnnrec.filters import GraphFilter, filter_response
from gnnrec.graph import BipartiteGraph


def filter_of(seed=0, rank=32):
    """A filter with every number moved off its start."""
    model = GraphFilter(ModelConfig(encoder="graph-filter", spectral_rank=rank))
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(float(rng.uniform(-0.3, 0.3)))
    return model


def dense_scores(model, matrix, rank):
    """Written from the definition: ridge on the leading directions, a line on the rest, cosine."""
    n = {name: p.item() for name, p in model.named_parameters()}
    matrix = torch.from_numpy(matrix).double()
    users, items = matrix.sum(1), matrix.sum(0)
    weighted = (
        power(users, -n["user_exponent"])[:, None] * matrix * power(items, -n["item_exponent"])
    )
    _, sigma, vt = torch.linalg.svd(weighted, full_matrices=False)
    leading = min(rank, int((sigma > 1e-3 * sigma[0]).sum()))
    ridge = 2.0 ** n["log2_ridge"] * sigma[0] ** 2
    slope = 2.0 ** n["log2_tail"] / (sigma[leading - 1] ** 2 + ridge)
    response = slope * sigma**2
    response[:leading] = sigma[:leading] ** 2 / (sigma[:leading] ** 2 + ridge)
    rows = matrix * power(items, -n["row_exponent"])
    filtered = rows @ (vt.T * response) @ vt * power(items, n["output_exponent"])
    directions = vt[:leading].T
    cosines = unit(rows @ directions * sigma[:leading].sqrt()) @ unit(directions).T
    lengths = rows.norm(dim=1, keepdim=True)
    active = users > 0
    tiny = 1e-6 * torch.log1p(items)
    spread = ((filtered + tiny)[active].std(dim=1) / lengths[active, 0]).mean()
    weight = n["cosine_weight"] * spread * leading**0.5
    return filtered + weight * lengths * cosines + tiny


def scores_of(model, graph, users=None):
    x = GraphInput(graph, spectral_rank=model.config.spectral_rank)
    with torch.no_grad():
        scores = model(x, users)
    return scores.rows(0, len(scores.users))


@pytest.mark.parametrize("rank", [1, 3, 8, 32])
@pytest.mark.parametrize("seed", range(4))
def test_scores_equal_the_dense_filter(seed, rank):
    graph = random_graph(seed, n_users=12, n_items=15)
    model = filter_of(seed, rank)
    expected = dense_scores(model, graph.user_items.toarray(), rank)
    np.testing.assert_allclose(scores_of(model, graph), expected, rtol=2e-4, atol=2e-5)


def test_with_a_complete_spectrum_it_is_the_ridge_regression_of_the_co_occurrences():
    graph, model = random_graph(1), filter_of(1)
    model.cosine_weight.data.zero_()
    n = {name: p.item() for name, p in model.named_parameters()}
    matrix = torch.from_numpy(graph.user_items.toarray()).double()
    users, items = matrix.sum(1), matrix.sum(0)
    weighted = (
        power(users, -n["user_exponent"])[:, None] * matrix * power(items, -n["item_exponent"])
    )
    gram = weighted.T @ weighted
    ridge = 2.0 ** n["log2_ridge"] * torch.linalg.eigvalsh(gram)[-1]
    regression = gram @ torch.linalg.inv(gram + ridge * torch.eye(len(gram)))
    rows = matrix * power(items, -n["row_exponent"])
    expected = rows @ regression * power(items, n["output_exponent"])
    np.testing.assert_allclose(scores_of(model, graph), expected, rtol=1e-3, atol=5e-5)


def test_some_users_are_those_rows_and_nobody_known_gets_popularity():
    graph, model = random_graph(2), filter_of(2)
    every = scores_of(model, graph)
    some = np.array([4, 0, 7])
    assert torch.allclose(scores_of(model, graph, torch.from_numpy(some)), every[some], atol=1e-6)
    x = GraphInput(graph, spectral_rank=32)
    with torch.no_grad():
        scores = model(x).of(np.array([4, -1, 0]))
    rows = scores.rows(0, 3)
    assert torch.allclose(rows[[0, 2]], every[[4, 0]], atol=1e-6)
    assert torch.equal(rows[1], 1e-6 * torch.log1p(x.item_degrees))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_renumbering_users_and_items_renumbers_the_scores(seed):
    rng = np.random.default_rng(seed)
    graph, model = random_graph(seed % 7, n_users=10, n_items=11), filter_of(seed)
    user_order, item_order = rng.permutation(10), rng.permutation(11)
    users, items = graph.edges()
    moved = BipartiteGraph(user_order[users], item_order[items], 10, 11)
    found = scores_of(model, moved)[user_order][:, item_order]
    expected = scores_of(model, graph)
    tolerance = 1e-4 * float(expected.abs().max())
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=tolerance)


def test_a_graph_without_edges_scores_zero():
    empty = np.zeros(0, dtype=np.int64)
    scores = scores_of(filter_of(), BipartiteGraph(empty, empty, 3, 4))
    assert torch.equal(scores, torch.zeros(3, 4))


@settings(deadline=None)
@given(
    sigma=st.lists(st.floats(1e-3, 2.0), min_size=1, max_size=6),
    ridge=st.floats(1e-3, 10.0),
)
def test_the_response_is_the_ridge_and_meets_its_line_at_the_last_value(sigma, ridge):
    values = torch.tensor(sorted(sigma, reverse=True), dtype=torch.float32)
    rest, slope = filter_response(torch.nn.functional.pad(values, (0, 2)), ridge, 1.0)
    whole = rest[: len(values)] + slope * values**2
    expected = values**2 / (values**2 + ridge * values[0] ** 2)
    torch.testing.assert_close(whole, expected, rtol=1e-4, atol=1e-6)
    assert abs(float(rest[len(values) - 1])) < 1e-5 and not rest[len(values) :].any()
    assert filter_response(values, ridge, 2.0)[1] == pytest.approx(2.0 * slope)


def test_what_a_mode_retrains():
    model = filter_of()
    every = [name for name, _ in model.named_parameters()]
    assert model.trained_parameters("zero-shot") == []
    heads = ["row_exponent", "output_exponent", "cosine_weight"]
    assert model.trained_parameters("heads") == heads
    assert model.trained_parameters("final", 1) == [*heads, "log2_ridge", "log2_tail"]
    assert model.trained_parameters("full") == model.trained_parameters("scratch") == every
    with pytest.raises(ConfigError, match="final:1"):
        model.trained_parameters("final", 2)
    assert model.count_parameters(["log2_ridge"])["trained"] == 1


def test_text_is_refused():
    with pytest.raises(ConfigError, match="reads no text"):
        validate(ModelConfig, {"encoder": "graph-filter", "text_dim": 8}, "options")
