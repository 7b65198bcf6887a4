"""How often an item is to be expected in a log by what its text says: popularity before counts."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from gnnrec.spectrum import principal_axes

_AXES = 64
_SHAPE = 1.0  # of the counts' Gamma-distributed rates
_RIDGE = 10.0
_TWIN_RIDGE = 1.0
_LEVEL_RIDGE = 0.01  # a log without any interaction still has a level
_SHAPES = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_SHARES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7)
_ON_OFFER = 20.0  # further items that are, of which nothing is counted
_MAX_STEPS = 30
_CLOSE = 1e-12
_SHORTEST = 1e-4
_FAR = 12.0
_coordinates: WeakIdKeyDictionary = WeakIdKeyDictionary()  # the graphs of one catalogue share them


def mean_count(counts: Tensor) -> Tensor:
    """Return (n_items,), the mean count for each: what is expected where no text tells more.

    Half an interaction more than there are, and one item: nothing is zero.
    """
    return ((counts.sum() + 0.5) / (len(counts) + 1)).expand(len(counts))


@torch.no_grad()
def expected_counts(text: Tensor, counts: Tensor, popularity: Tensor | None = None) -> Tensor:
    """Return (n_items,) float32, the count that a regression expects of each item.

    Negative binomial regression with a log link and a ridge (Hilbe 2011, Negative Binomial
    Regression, ch. 8), in the texts' leading directions and, where sources know some of the items,
    in whether they do and in the log of the twin's popularity. New titles of a kind that is popular
    here are expected to be popular, and what a source makes popular as far as it is so here: the
    weights of twins are drawn to 0 and 1, those of texts to 0. Where neither says anything, every
    item is expected to have as many as the mean one.

    Args:
        text: (n_items, text_dim) float32 vectors, zeros where an item has no text.
        counts: (n_items,) float32 interactions.
        popularity: (n_items,) float32, that of the items' twins; zero without one.

    Cost: O(n_items text_dim^2) once a table, and about ten Newton steps of O(n_items 64^2) in
    float64. Memory: two tables of 65 float64 an item.
    """
    twins = torch.zeros(len(text), 2, device=text.device)
    if popularity is not None:
        known = popularity > 0
        twins[known, 0], twins[known, 1] = 1.0, popularity[known].log()
    design = torch.cat([_leading(text), twins, torch.ones_like(twins[:, :1])], dim=1).double()
    d = counts.double()
    ridge = torch.full((design.shape[1],), _RIDGE, dtype=torch.float64, device=text.device)
    ridge[-3], ridge[-1] = _TWIN_RIDGE, _LEVEL_RIDGE
    start = torch.zeros_like(ridge)
    start[-2], start[-1] = 1.0, mean_count(d)[0].log()
    weights = start

    def loss(at: Tensor) -> Tensor:
        eta = design @ at
        value = ((d + _SHAPE) * torch.nn.functional.softplus(eta) - d * eta).sum()
        return value + (ridge * (at - start).square()).sum() / 2

    value = loss(weights)
    for _ in range(_MAX_STEPS):
        share = torch.sigmoid(design @ weights)
        gradient = design.T @ ((d + _SHAPE) * share - d) + ridge * (weights - start)
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


@torch.no_grad()
def not_on_offer(counts: Tensor, expected: Tensor, twin: Tensor) -> Tensor:
    """Return (n_items,) float32, the probability that an item could not have any interaction.

    Zero-inflated negative binomial counts (Lambert 1992, Technometrics 34, for Poisson ones) of
    given means, by the share of absent items and the shape that are most likely. What is expected
    to be popular and has no interaction was not there; where counts spread as far as that by
    chance, nothing needs to be absent. Of items that a source knows apart from the others: it
    knows many that a log never had, which says nothing of the rest.

    Args:
        counts: (n_items,) float32 interactions.
        expected: (n_items,) float32, see `expected_counts`.
        twin: (n_items,) bool, whether a source knows it.

    Cost: O(n_items) for each of a hundred pairs of share and shape.
    """
    absent = torch.zeros_like(expected)
    for some in (twin, ~twin):
        share, shape = explained(counts[some], expected[some])
        where = some & (counts == 0)
        chance = _of_none(expected[where], shape)
        if share:
            absent[where] = share / (share + (1.0 - share) * chance)
    return absent


def explained(counts: Tensor, expected: Tensor) -> tuple[float, float]:
    """Return the share of absent items, and the shape of the others' rates, that are likeliest."""
    none, e = counts == 0, expected.double()
    d, mean = counts[~none].double(), e[~none]
    best, found = -math.inf, (0.0, 1.0)
    for shape in _SHAPES:
        chance = _of_none(e[none], shape)
        there = torch.lgamma(d + shape) - math.lgamma(shape) + d * torch.log(mean / (mean + shape))
        value = float((there - shape * torch.log1p(mean / shape)).sum())
        for share in _SHARES:
            zeros = float(torch.log(share + (1.0 - share) * chance).sum())
            likely = value + zeros + (len(d) + _ON_OFFER) * math.log1p(-share)
            if likely > best:
                best, found = likely, (share, shape)
    return found


def _of_none(expected: Tensor, shape: float) -> Tensor:
    """The chance that what is on offer has no interaction."""
    return torch.exp(-shape * torch.log1p(expected / shape))


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
