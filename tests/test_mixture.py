"""A mixture is the sum of standardised scores, up to a constant that moves no user's ranking."""

import numpy as np
import pytest
import torch
from dense import graph_input

from gnnrec import mixture as module
from gnnrec.config import ModelConfig
from gnnrec.errors import GnnrecError
from gnnrec.filters import GraphFilter
from gnnrec.mixture import mixture, spread
from gnnrec.scores import ScoreVectors


def parts(seed):
    """(filter scores with a walk, vector scores) of 9 users, the last without interactions."""
    x = graph_input(seed, text=False)
    with torch.no_grad():
        first = GraphFilter(ModelConfig(encoder="graph-filter"))(x)
    generator = torch.Generator().manual_seed(seed)
    users, items = (torch.randn(n, 4, generator=generator) for n in (9, 14))
    users[:, -1] = 1.0
    return first, ScoreVectors(users, items)


def standard(rows):
    """Each row with mean zero and, where it has any spread, standard deviation one."""
    rows = rows.double().numpy()
    rows = rows - rows.mean(axis=1, keepdims=True)
    return rows / np.maximum(rows.std(axis=1, keepdims=True), 1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_spreads_are_those_of_the_rows(monkeypatch, seed):
    for chunk in (14 * 4, 2**20):
        monkeypatch.setattr(module, "_CHUNK_SCORES", chunk)
        for scores in parts(seed):
            expected = scores.rows(0, 9).double().std(dim=1, correction=0)
            torch.testing.assert_close(spread(scores).double(), expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("weight", [0.0, 0.5, 3.0])
@pytest.mark.parametrize("seed", range(3))
def test_a_mixture_adds_standardised_rows(seed, weight):
    first, second = parts(seed)
    expected = standard(first.rows(0, 9)) + weight * standard(second.rows(0, 9))
    found = mixture(first, second, weight).rows(0, 9).double().numpy()
    found = found - found.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(found[:8], expected[:8], atol=2e-5)
    at_hand = mixture(first, second, weight, (spread(first), spread(second)))
    assert torch.equal(at_hand.users, mixture(first, second, weight).users)
    some = np.array([5, 2])
    picked = mixture(first.of(some), second.of(some), weight).rows(0, 2)
    found = mixture(first, second, weight).of(some).rows(0, 2)
    torch.testing.assert_close(picked, found, atol=1e-5, rtol=0)


def test_unknown_users_are_ranked_by_the_bias_of_the_first():
    first, second = parts(4)
    _, expected = first.of(np.array([-1])).top_k(14)
    _, found = mixture(first, second, 1.0).of(np.array([-1])).top_k(14)
    assert np.array_equal(found, expected)


def test_a_walk_in_the_second_part_is_refused():
    first, second = parts(0)
    with pytest.raises(GnnrecError, match="one walk at most"):
        mixture(second, first, 1.0)
