"""What a text leads to expect of an item's count, against a search by another method."""

import numpy as np
import pytest
import torch
from dense import random_text
from dense_blend import input_of, told_by_texts
from hypothesis import given, settings
from hypothesis import strategies as st

from gnnrec import expected
from gnnrec.expected import expected_counts, mean_count


@pytest.mark.parametrize("seed", range(4))
def test_counts_are_those_that_another_search_finds(seed):
    x = input_of(seed)
    found = expected_counts(x.item_text, x.item_degrees)
    np.testing.assert_allclose(found, told_by_texts(x), rtol=1e-5)
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
    torch.testing.assert_close(expected_counts(text[order], counts[order]), found[order])


def test_without_any_text_every_item_is_expected_to_be_as_the_mean_one():
    counts = torch.tensor([0.0, 1.0, 5.0, 2.0])
    found = expected_counts(torch.zeros(4, 6), counts)
    torch.testing.assert_close(found, torch.full((4,), 2.0))  # the mean, to the bit of a search
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


def test_many_directions_are_cut_to_the_leading_ones(monkeypatch):
    monkeypatch.setattr(expected, "_AXES", 3)
    text, counts = random_text(0, 25), torch.arange(25.0)
    basis = torch.linalg.svd(text.double())[2][:3]
    flat = (text.double() @ basis.T @ basis).float()
    few = expected_counts(text, counts)
    torch.testing.assert_close(few, expected_counts(flat, counts), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(few, expected_counts(text, counts.flip(0)))
