"""How often an item is to be expected in a log by what its text says: popularity before counts."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from gnnrec.spectrum import principal_axes

_AXES = 64
_SHAPE = 1.0  # of the counts' Gamma-distributed rates
_RIDGE = 10.0
_MAX_STEPS = 30
_CLOSE = 1e-9
_SHORTEST = 1e-4
_FAR = 12.0
_coordinates: WeakIdKeyDictionary = WeakIdKeyDictionary()  # the graphs of one catalogue share them


def mean_count(counts: Tensor) -> Tensor:
    """Return (n_items,), the mean count for each: what is expected where no text tells more.

    Half an interaction more than there are, and one item: nothing is zero.
    """
    return ((counts.sum() + 0.5) / (len(counts) + 1)).expand(len(counts))


@torch.no_grad()
def expected_counts(text: Tensor, counts: Tensor) -> Tensor:
    """Return (n_items,) float32, the count that a regression on the texts expects of each item.

    Negative binomial regression with a log link and a ridge (Hilbe 2011, Negative Binomial
    Regression, ch. 8), in the texts' leading directions. New titles of a kind that is popular here
    are expected to be popular; where texts say nothing of it, every item is expected to have as
    many as the mean one.

    Args:
        text: (n_items, text_dim) float32 vectors, zeros where an item has no text.
        counts: (n_items,) float32 interactions.

    Cost: O(n_items text_dim^2) once a table, and about ten Newton steps of O(n_items 64^2) in
    float64. Memory: two tables of 65 float64 an item.
    """
    design = torch.nn.functional.pad(_leading(text).double(), (0, 1), value=1.0)
    d = counts.double()
    ridge = torch.full((design.shape[1],), _RIDGE, dtype=torch.float64, device=text.device)
    ridge[-1] = 0.0
    weights = torch.zeros_like(ridge)
    weights[-1] = torch.log(mean_count(d)[0])

    def loss(at: Tensor) -> Tensor:
        eta = design @ at
        value = ((d + _SHAPE) * torch.nn.functional.softplus(eta) - d * eta).sum()
        return value + (ridge * at.square()).sum() / 2

    value = loss(weights)
    for _ in range(_MAX_STEPS):
        share = torch.sigmoid(design @ weights)
        gradient = design.T @ ((d + _SHAPE) * share - d) + ridge * weights
        curve = (d + _SHAPE) * share * (1 - share)
        hessian = (design * curve[:, None]).T @ design + torch.diag(ridge + 1e-9)
        step = torch.linalg.solve(hessian, gradient)
        length = 1.0
        while (lower := loss(weights - length * step)) > value and length > _SHORTEST:
            length /= 2
        if lower > value:
            break  # rounding hides what is left
        weights, fell, value = weights - length * step, value - lower, lower
        if fell < _CLOSE * (1 + value.abs()):
            break
    return (design @ weights).clamp(-_FAR, _FAR).exp().float()


def _leading(text: Tensor) -> Tensor:
    """(n_items, r) centred texts in their leading directions, zeros without; kept by table."""
    if text not in _coordinates:
        there = text.square().sum(dim=1) > 0
        x = text[there]
        axes = principal_axes(x)[:, -_AXES:]
        table = torch.zeros(len(text), axes.shape[1], device=text.device)
        if len(x):
            table[there] = (x - x.mean(dim=0)) @ axes
        _coordinates[text] = table
    found: Tensor = _coordinates[text]
    return found
