"""What a text leads to expect of an item's count, against a search by another method."""

import numpy as np
import pytest
import torch
from dense import random_text
from dense_blend import (
    absent_by_search,
    blend_of,
    expected_counts_of,
    input_of,
    matched_by,
    popular,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from gnnrec import expected
from gnnrec.expected import expected_counts, explained, mean_count, not_on_offer


@pytest.mark.parametrize("seed", range(4))
def test_counts_are_those_that_another_search_finds(seed):
    x = input_of(seed)
    found = expected_counts(x.item_text, x.item_degrees)
    np.testing.assert_allclose(found, expected_counts_of(x), rtol=1e-5)
    popularity = popular(matched_by(blend_of(seed), x), x.graph.n_items)
    with_twins = expected_counts(x.item_text, x.item_degrees, popularity)
    np.testing.assert_allclose(with_twins, expected_counts_of(x, popularity), rtol=1e-5)
    assert not torch.allclose(with_twins, found)
    assert float(found.std() / found.mean()) > 0.01  # the texts say something


@settings(max_examples=25, deadline=None)
@given(n=st.integers(2, 40), seed=st.integers(0, 9), scale=st.sampled_from([0.0, 1.0, 1e4]))
def test_counts_are_finite_positive_and_renamed_with_the_items(n, seed, scale):
    text = random_text(seed, n)
    counts = torch.from_numpy(np.random.default_rng(seed).poisson(scale, n)).float()
    found = expected_counts(text, counts)
    assert found.shape == (n,) and found.dtype == torch.float32
    assert torch.isfinite(found).all() and (found > 0).all()
    order = torch.from_numpy(np.random.default_rng(seed + 1).permutation(n))
    renamed = expected_counts(text[order], counts[order])
    torch.testing.assert_close(renamed, found[order], rtol=1e-5, atol=0.0)


def test_without_any_text_every_item_is_expected_to_be_as_the_mean_one():
    counts = torch.tensor([0.0, 1.0, 5.0, 2.0])
    found = expected_counts(torch.zeros(4, 6), counts)
    torch.testing.assert_close(found, torch.full((4,), 2.0), rtol=1e-3, atol=0.0)
    assert torch.equal(mean_count(counts), torch.full((4,), 8.5 / 5))
    assert torch.equal(mean_count(torch.zeros(3)), torch.full((3,), 0.125))


def test_an_unseen_item_of_a_popular_kind_is_expected_to_be_popular():
    rng = np.random.default_rng(0)
    kind = np.arange(200) % 2
    text = torch.nn.functional.normalize(
        torch.from_numpy(np.eye(2)[kind].repeat(8, axis=1) + 0.3 * rng.normal(size=(200, 16))),
        dim=1,
    ).float()
    counts = torch.from_numpy(rng.poisson(np.where(kind == 1, 6.0, 0.5))).float()
    unseen = torch.from_numpy(rng.random(200) < 0.3)
    found = expected_counts(text, torch.where(unseen, 0.0, counts))
    popular = torch.from_numpy(kind == 1)
    assert found[unseen & popular].mean() > 3 * found[unseen & ~popular].mean()


@pytest.mark.parametrize("slope", [1.0, 0.0, -1.0])
def test_what_a_source_makes_popular_counts_as_far_as_it_does_here(slope):
    rng = np.random.default_rng(1)
    popularity = np.where(rng.random(400) < 0.5, np.exp(rng.normal(size=400)), 0.0)
    means = 3 * np.where(popularity > 0, popularity, 1.0) ** slope
    counts = torch.from_numpy(rng.poisson(means)).float()
    unseen = torch.from_numpy(rng.random(400) < 0.2)
    text, twins = torch.zeros(400, 4), torch.from_numpy(popularity).float()
    found = expected_counts(text, torch.where(unseen, 0.0, counts), twins)
    where = unseen & (twins > 0)
    moved = np.polyfit(twins[where].log(), found[where].log(), 1)[0]
    assert moved == pytest.approx(slope, abs=0.3)


def test_without_interactions_the_source_alone_tells():
    twins = torch.tensor([0.0, 0.5, 4.0])
    found = expected_counts(torch.zeros(3, 4), torch.zeros(3), twins)
    assert found[2] / found[1] == pytest.approx(8.0, rel=0.05)


# What could not have any


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("share", [0.0, 0.3])
def test_zeros_are_explained_as_by_another_search(seed, share):
    rng = np.random.default_rng(seed)
    means = np.exp(rng.normal(1.0, 1.0, size=300)).astype(np.float32)
    counts = rng.poisson(means * rng.gamma(1.0, size=300)) * (rng.random(300) >= share)
    twin = rng.random(300) < 0.5
    counts[twin & (rng.random(300) < 0.5)] = 0  # the two kinds differ
    tables = torch.from_numpy(counts).float(), torch.from_numpy(means), torch.from_numpy(twin)
    absent = not_on_offer(*tables)
    np.testing.assert_allclose(absent, absent_by_search(counts, means, twin), rtol=1e-4, atol=1e-7)
    assert not absent[counts > 0].any() and ((absent >= 0) & (absent < 1)).all()
    assert abs(explained(tables[0][~twin], tables[1][~twin])[0] - share) < 0.2
    found = absent[(counts == 0) & ~twin][means[(counts == 0) & ~twin].argsort()]
    assert (found.diff() >= 0).all()  # the more is expected, the less likely it was there


@pytest.mark.parametrize("scale", [0.0, 1e-3, 1e4])
def test_zeros_are_explained_at_any_scale(scale):
    counts = torch.from_numpy(np.random.default_rng(0).poisson(scale, 20)).float()
    twin = torch.arange(20) < 7
    for mean in (1e-6, 1.0, 1e5):
        assert torch.isfinite(not_on_offer(counts, torch.full((20,), mean), twin)).all()
    assert explained(torch.zeros(0), torch.zeros(0))[0] == 0.0


def test_many_directions_are_cut_to_the_leading_ones(monkeypatch):
    monkeypatch.setattr(expected, "_AXES", 3)
    text, counts = random_text(0, 25), torch.arange(25.0)
    basis = torch.linalg.svd(text.double())[2][:3]
    flat = (text.double() @ basis.T @ basis).float()
    few = expected_counts(text, counts)
    torch.testing.assert_close(few, expected_counts(flat, counts), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(few, expected_counts(text, counts.flip(0)))
