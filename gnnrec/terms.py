"""The pieces that a score is a sum of, each traced back to the items that the user has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from gnnrec.scores import ScoreVectors, Similarity, Walk

TOLERANCE = 1e-4  # of a part's largest value: beyond it a split is called an estimate
Give = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Split:
    """A part of one user's scores, traced back to the user's own items.

    Attributes:
        values: (n_items,) float32, the part for every item of the catalogue.
        shares: (n_own, k) float64, what each own item says for each of k items.
        exact: Whether the shares are the part's own terms; if not they are estimates.
    """

    values: Tensor
    shares: Tensor
    exact: bool


class Piece(Protocol):
    """Some columns of the score vectors, or a part of full rank."""

    def split(self, user: ScoreVectors, own: Tensor, items: Tensor) -> Split:
        """Trace the scores of one user: (n_own,) and (k,) int64 codes."""
        ...


@dataclass(frozen=True)
class Linear:
    """f_u sum_j (give_j . take_i): a sum over the user's items j, times a factor of the user's own.

    The factor (a gate, a length, a power of the degree) is the one with which the sum equals the
    scores as they are served; how well it does says whether the split is exact. It, and all that
    belongs to the item, is held fixed: an own item's share is its term of the sum.

    Attributes:
        columns: Of the score vectors.
        give: (n_own,) codes -> (n_own, d), what each of a user's items adds to the user.
        take: (n_items, d).
        centre: (d,), what is taken off the user's sum; None for nothing.
    """

    columns: slice
    give: Give
    take: Tensor
    centre: Tensor | None = None

    def split(self, user: ScoreVectors, own: Tensor, items: Tensor) -> Split:
        """Cost: O(n_items d), that of the user's scores."""
        values = user.items[:, self.columns] @ user.users[0, self.columns]
        given = self.give(own)
        whole = given.sum(dim=0) - (0.0 if self.centre is None else self.centre)
        factor, exact = _factor(values, self.take @ whole)
        return Split(values, factor * (given.double() @ self.take[items].double().T), exact)


@dataclass(frozen=True)
class Steps:
    """A walk user -> item -> user -> item: each first step's share of what arrives, exactly."""

    def split(self, user: ScoreVectors, own: Tensor, items: Tensor) -> Split:
        """Cost: the entries of the own items' and the asked items' columns, and a user's walk."""
        walk = user.walk
        assert walk is not None
        values = walk.columns(0, 1)[:, 0]
        start, to_users, out = steps(walk, own, items)
        shares = start[:, None] * (to_users[0] @ to_users[1].T).toarray() * out
        return Split(values, torch.from_numpy(shares), True)


@dataclass(frozen=True)
class Near:
    """What each own item says for the items of near texts, exactly: see `scores.Similarity`."""

    def split(self, user: ScoreVectors, own: Tensor, items: Tensor) -> Split:
        """Cost: the neighbours of the own items."""
        part = user.part
        assert isinstance(part, Similarity) and not isinstance(part.weights, Tensor)
        start = sp.csr_array(part.start)[[0]].toarray()[0]
        said = sp.csr_array(part.weights[own.numpy()])[:, items.numpy()].toarray()
        shares = start[own.numpy(), None].astype(np.float64) * said
        return Split(part.columns(0, 1)[:, 0], torch.from_numpy(shares), True)


def steps(
    walk: Walk, own: Tensor, items: Tensor
) -> tuple[np.ndarray, tuple[sp.csr_array, sp.csr_array], np.ndarray]:
    """Return a walk's weights: of leaving each own item, (own, users), (items, users), arriving."""
    rows = walk.operator.T.scipy()
    start = np.zeros(walk.start.shape[1])
    start[walk.start.indices] = walk.start.data
    codes, last = own.numpy(), items.numpy()
    return start[codes], (rows[codes], rows[last]), walk.out.numpy()[last].astype(np.float64)


@dataclass(frozen=True)
class Bent:
    """A part that is not linear in the user's items: what is missed when one of them is silent.

    Each own item's share is the difference that its silence makes; together they are made to add up
    to what all items in one make, the correction shared by size. An encoder's user has a degree
    less then; a tower's keeps it.

    Attributes:
        values: The part's scores of one user, (n_items,).
        bend: (own codes, (m, n_own) weights of them, (k,) codes of items) -> (m, k) scores.
        fitted: Whether these are so only up to a factor of the user's own, as in `Linear`.
    """

    values: Callable[[ScoreVectors], Tensor]
    bend: Callable[[Tensor, Tensor, Tensor], Tensor]
    fitted: bool = False

    def split(self, user: ScoreVectors, own: Tensor, items: Tensor) -> Split:
        """Cost: n_own + 2 forward passes for the asked items, and one for the catalogue."""
        values = self.values(user)
        n = len(own)
        every = torch.ones(1, n)
        weights = torch.cat([every, torch.zeros(1, n), 1.0 - torch.eye(n)])
        found = self.bend(own, weights, items).double()
        if self.fitted:  # up to a factor of the user's own
            catalogue = torch.arange(len(values))
            found = found * _factor(values, self.bend(own, every, catalogue)[0])[0]
        whole, nothing, without = found[0], found[1], found[2:]
        missed = whole - without
        gap = whole - nothing - missed.sum(dim=0)
        size = missed.abs()
        return Split(values, missed + gap * size / size.sum(dim=0).clamp_min(1e-12), False)


@dataclass(frozen=True)
class Part:
    """One of the numbers that a score is the sum of.

    Attributes:
        name: As the model calls it.
        kind: What it speaks of: people, text, source, learned or popularity.
        pieces: What it is made of.
        offset: Columns that none of the user's items stands behind.
    """

    name: str
    kind: str
    pieces: tuple[Piece, ...] = ()
    offset: slice | None = None


POPULARITY = Part("popularity", "popularity", (), slice(-1, None))


def _factor(values: Tensor, found: Tensor) -> tuple[float, bool]:
    """Return the factor that brings `found` nearest to `values`, and whether it meets them."""
    found, values = found.double(), values.double()
    factor = float(found @ values / (found @ found).clamp_min(1e-30))
    gap = float((values - factor * found).abs().max())
    return factor, gap <= TOLERANCE * float(values.abs().max())
