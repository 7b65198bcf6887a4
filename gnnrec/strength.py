"""How far to leave popularity where nothing is fitted: one number, found without training."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import scipy.sparse as sp
import torch

from gnnrec.blend import ChannelBlend
from gnnrec.device import numpy_generator
from gnnrec.features import GraphInput
from gnnrec.metrics import per_user_metrics
from gnnrec.scores import ScoreVectors

# Of what is personal, beside the items' bias; of equally good ones the first is taken.
STRENGTHS = (1.0, 2.0, 4.0, 0.5, 0.25, 0.125)
K = 20
_MAX_USERS = 500
_DOUBT = 1.0  # standard errors by which another strength has to be better


def strengthened(scores: ScoreVectors, strength: float) -> ScoreVectors:
    """Return scores that rank as if what is personal counted so many times beside the bias."""
    bias = scores.items[:, -1:] / strength
    return replace(scores, items=torch.cat([scores.items[:, :-1], bias], dim=1))


def hidden_ndcg(
    scores: ScoreVectors, seen: sp.csr_array, row: np.ndarray, items: np.ndarray
) -> np.ndarray:
    """Return (m,) NDCG@20 of m users' scores.

    Args:
        scores: Of these users.
        seen: (m, n_items) CSR of their visible edges, which are not ranked.
        row: (n,) int64, the user's place of each hidden edge.
        items: (n,) int64, its item.
    """
    relevant = sp.csr_array((np.ones(len(row), dtype=np.float32), (row, items)), shape=seen.shape)
    _, top = scores.top_k(min(K, seen.shape[1]), seen=seen)
    return per_user_metrics(top, relevant, (K,))[f"ndcg@{K}"]


@torch.no_grad()
def find_strength(model: ChannelBlend, x: GraphInput) -> float:
    """Return which of the strengths ranks a graph's hidden edges best; no weight is fitted.

    The edges are those that the context hides anyway (`gnnrec.context.hide`), a fifth of a graph's.
    One that differs from what the model says itself, 1, has to be better in mean NDCG@20 by more
    than a standard error of the paired difference over users. What a source says of the channels'
    proportions carries further than how popular things are there: a model that errs only in this
    one number would rank as badly as if it knew nothing.

    Args:
        model: As it was pretrained.
        x: The target's graph, all that is known of it. Its channels and its context stay for the
            model's next call.

    Cost: that of the model's context, which a call needs anyway, and six rankings of up to 500
    users.
    """
    inner = model.inner(x)
    if inner is None:
        return 1.0
    asked = np.unique(inner.users)
    if len(asked) > _MAX_USERS:
        rng = numpy_generator(x.seed, "strength")
        asked = np.sort(rng.choice(asked, _MAX_USERS, replace=False))
    users = torch.from_numpy(asked).to(x.device)
    scores = model.scores_of(inner.channels, model.about(x), users)
    x.kept.pop("inner")
    rows = np.isin(inner.users, asked)
    row, items = np.searchsorted(asked, inner.users[rows]), inner.items[rows]
    seen = sp.csr_array(inner.channels.graph.user_items[asked])
    reached = [hidden_ndcg(strengthened(scores, s), seen, row, items) for s in STRENGTHS]
    best = int(np.argmax([values.mean() for values in reached]))
    gap = reached[best] - reached[0]
    error = gap.std(ddof=1) / math.sqrt(len(gap)) if len(gap) > 1 else math.inf
    return STRENGTHS[best] if gap.mean() > _DOUBT * error else STRENGTHS[0]
