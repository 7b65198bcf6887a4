"""Two models' scores of one graph in one: each user's row scaled to unit spread, then added."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from gnnrec.errors import GnnrecError
from gnnrec.scores import ScoreVectors

_CHUNK_SCORES = 4 * 2**20
_TIES = 1e-6  # weight of the items' bias beside scores of unit spread


def spread(scores: ScoreVectors) -> Tensor:
    """Return (n_users,) float32, the standard deviation of each user's scores over the items.

    Cost: where all scores are in vectors, O(n_items d^2) for the items' covariance; otherwise the
    scores of all users, a chunk of them in memory.
    """
    if scores.walk is None and scores.part is None:
        centred = scores.items.double() - scores.items.double().mean(dim=0)
        covariance = centred.T @ centred / len(centred)
        users = scores.users.double()
        variance = ((users @ covariance) * users).sum(dim=1)
        return variance.clamp_min(0.0).sqrt().float()
    n_users, step = len(scores.users), max(1, _CHUNK_SCORES // len(scores.items))
    chunks = [
        scores.rows(begin, min(begin + step, n_users)).std(dim=1, correction=0)
        for begin in range(0, n_users, step)
    ]
    return torch.cat([scores.users.new_zeros(0), *chunks])


def mixture(
    first: ScoreVectors,
    second: ScoreVectors,
    weight: float,
    spreads: tuple[Tensor, Tensor] | None = None,
) -> ScoreVectors:
    """Return score(u, i) = first(u, i) / spread_u + weight * second(u, i) / spread'_u + bias.

    Means over the items need not be taken away: they move all items of a user alike. The bias,
    which unknown users get, is that of `first` at a millionth of the spread, which only breaks
    ties. A part that scores all items alike counts as zero.

    Args:
        first: May have a walk.
        second: Scores of the same users and items, all in vectors.
        weight: Of the second part against the first.
        spreads: Those of both parts, where they are at hand; see `spread`.

    Raises:
        GnnrecError: `second` has a part of full rank, or `first` one beside its walk.

    Cost: that of `spread`; the result has the columns of both.
    """
    if second.walk is not None or second.part is not None or first.part is not None:
        raise GnnrecError("a mixture takes one walk at most, in its first part, and vectors")
    scales = [
        torch.where(s > 0, 1.0 / s.clamp_min(1e-30), 0.0)
        for s in (spreads or (spread(first), spread(second)))
    ]
    users = [
        first.users * scales[0][:, None],
        second.users * (weight * scales[1][:, None]),
        torch.ones_like(first.users[:, -1:]),
    ]
    bias = first.items[:, -1:]
    bias = bias * (_TIES / bias.std(correction=0).clamp_min(1e-30))
    items = torch.cat([first.items, second.items, bias], dim=1)
    walk = first.walk
    if walk is not None:
        rows = sp.csr_array(walk.start, copy=True)
        rows.data *= np.repeat(scales[0].cpu().numpy(), np.diff(rows.indptr))
        walk = replace(walk, start=rows)
    return ScoreVectors(torch.cat(users, dim=1), items, walk)
