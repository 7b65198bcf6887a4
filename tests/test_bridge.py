"""What is known of a source's items reaches those of a target with the same text, and no others."""

import numpy as np
import pytest
import torch
from dense import power, random_graph, unit

from gnnrec.bridge import BRIDGE_RANK, Bridge, _nearest, item_directions
from gnnrec.features import GraphInput
from gnnrec.graph import BipartiteGraph

EXPONENTS, RIDGE = (0.29, 0.42), 2.0**-4.1


def rows_at(cosine, base, rng):
    """Unit rows, each at the given cosine from its row of `base`."""
    other = torch.from_numpy(rng.standard_normal(base.shape)).float()
    other = unit(other - (other * base).sum(1, keepdim=True) * base)
    return cosine * base + (1 - cosine**2) ** 0.5 * other


def source(seed=0, n_items=14, dim=24):
    rng = np.random.default_rng(seed)
    text = unit(torch.from_numpy(rng.standard_normal((n_items, dim))).float())
    return GraphInput(random_graph(seed, 12, n_items), text, spectral_rank=BRIDGE_RANK)


def bridge_of(x, chosen=None):
    codes = torch.arange(x.graph.n_items) if chosen is None else torch.as_tensor(chosen)
    bridge = Bridge(len(codes), x.item_text.shape[1])
    bridge.take(x, codes)
    return bridge


@pytest.mark.parametrize("seed", range(3))
def test_directions_are_those_of_the_dense_ridge(seed):
    x = source(seed)
    vectors, response = item_directions(x)
    matrix = torch.from_numpy(x.graph.user_items.toarray()).double()
    weighted = (
        power(matrix.sum(1), -EXPONENTS[0])[:, None] * matrix * power(matrix.sum(0), -EXPONENTS[1])
    )
    gram = weighted.T @ weighted
    ridge = RIDGE * torch.linalg.eigvalsh(gram)[-1]
    expected = gram @ torch.linalg.inv(gram + ridge * torch.eye(len(gram)))
    found = (vectors * response) @ vectors.T
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_an_item_meets_itself_again():
    x = source(1)
    matched = bridge_of(x).match(x.item_text)
    degrees = x.item_degrees
    assert matched.found.all()
    torch.testing.assert_close(matched.popularity, degrees / degrees[degrees > 0].mean())
    vectors, response = item_directions(x)
    width = vectors.shape[1]
    scale = vectors.abs().max()
    torch.testing.assert_close(
        matched.vectors[:, :width] * scale, vectors, atol=1e-3 * float(scale), rtol=0
    )
    torch.testing.assert_close(matched.response[:width], response)
    assert not matched.vectors[:, width:].any()


def test_twins_are_found_whatever_their_order_and_only_among_the_chosen():
    x, rng = source(2), np.random.default_rng(0)
    chosen = np.array([3, 0, 8, 5])
    order = rng.permutation(14)
    matched = bridge_of(x, chosen).match(x.item_text[order])
    expected = x.item_degrees / x.item_degrees[x.item_degrees > 0].mean()
    among = torch.from_numpy(np.isin(order, chosen))
    assert torch.equal(matched.found, among.float())
    torch.testing.assert_close(matched.popularity, torch.where(among, expected[order], 0.0))
    assert not matched.vectors[~among].any()
    assert matched.vectors[among].any(dim=1).all()


@pytest.mark.parametrize(
    ("cosine", "same"), [(0.99, True), (0.92, True), (0.88, False), (0.0, False)]
)
def test_twins_are_those_whose_cosine_is_above_the_bound(cosine, same):
    # Half precision of the table moves a cosine by about 1e-3.
    x = source(3, dim=400)
    near = rows_at(cosine, x.item_text, np.random.default_rng(1))
    matched = bridge_of(x).match(near)
    assert torch.equal(matched.found, torch.full((14,), float(same)))
    if not same:
        assert not matched.vectors.any() and not matched.popularity.any()


def test_an_item_without_a_text_has_no_twin():
    x = source(4)
    text = x.item_text.clone()
    text[5] = 0.0
    matched = bridge_of(GraphInput(x.graph, text, spectral_rank=BRIDGE_RANK)).match(text)
    assert matched.found.sum() == 13 and not matched.found[5]
    assert not matched.vectors[5].any() and matched.popularity[5] == 0


def test_many_items_are_matched_as_few_are():
    # More than one chunk of similarities.
    x, rng = source(5), np.random.default_rng(2)
    which = rng.integers(0, 14, 2500)
    matched, few = bridge_of(x).match(x.item_text[which]), bridge_of(x).match(x.item_text)
    assert torch.equal(matched.popularity, few.popularity[which])
    assert torch.equal(matched.vectors, few.vectors[which])


def test_the_last_table_asked_for_is_kept_by_identity():
    x = source(6)
    bridge = bridge_of(x)
    first = bridge.match(x.item_text)
    assert bridge.match(x.item_text) is first
    copy = x.item_text.clone()
    again = bridge.match(copy)
    assert again is not first and torch.equal(again.popularity, first.popularity)
    assert bridge.match(copy) is again


def test_a_source_without_edges_says_nothing():
    nobody = np.zeros(0, dtype=np.int64)
    graph = BipartiteGraph(nobody, nobody, 3, 14)
    x = GraphInput(graph, source().item_text, spectral_rank=BRIDGE_RANK)
    matched = bridge_of(x).match(x.item_text)
    for table in (matched.vectors, matched.response, matched.popularity):
        assert not table.any()


@pytest.mark.parametrize("seed", range(3))
def test_the_nearest_row_is_that_of_all_inner_products(seed):
    rng = np.random.default_rng(seed)
    # Near rows, far rows, rows that are there twice, and empty ones.
    table = unit(torch.from_numpy(rng.standard_normal((2500, 200)) * np.geomspace(1, 0.02, 200)))
    table = table.float()
    table[7], table[1200] = table[900], 0.0
    picked = table[torch.from_numpy(rng.integers(0, 2500, 2100))]
    rows = unit(picked + 0.03 * torch.from_numpy(rng.standard_normal(picked.shape)).float())
    rows[5], rows[1500] = 0.0, table[900]
    index, best = _nearest(rows, table)
    value, expected = (rows @ table.T).max(dim=1)
    near = value > 0.9
    assert 0.2 < near.float().mean() < 1.0 and index[1500] == 7
    torch.testing.assert_close(best[near], value[near], atol=1e-5, rtol=0)
    assert (index == expected)[near].float().mean() > 0.999
    assert not (best[~near] > 0.9).any()
