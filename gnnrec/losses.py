"""Ranking losses on positive edges and a set of negatives shared by the whole batch."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_N_BINARY = 4.0  # negatives a positive


class _LogSumExp(torch.autograd.Function):
    """log(exp(positive) + sum of exp(negative) where not known), row by row.

    Beside the scores a single table of their size is written forwards and one backwards; put
    together from torch's own operations it is about ten, and they took half of a step of a
    LightGCN.
    """

    @staticmethod
    def forward(ctx: Any, positive: Tensor, negative: Tensor, known: Tensor) -> Tensor:  # noqa: ANN401
        table = torch.where(known, -torch.inf, negative)
        top = torch.maximum(table.amax(dim=1), positive)
        table.sub_(top[:, None]).exp_()
        own = (positive - top).exp()
        total = table.sum(dim=1) + own
        ctx.save_for_backward(table, own, total)
        return top + total.log()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:  # noqa: ANN401
        table, own, total = ctx.saved_tensors
        share = grads[0] / total
        return own * share, table * share[:, None], None


def softmax_loss(
    positive: Tensor, negative: Tensor, known: Tensor, n_items: int, n_rows: int | None = None
) -> Tensor:
    """Sampled softmax with uniform shared negatives: -log p(positive | user).

    The negatives' logits are raised by log(n_items / n_negatives), so that the sum over the
    sample estimates the sum over the catalogue and the item bias is calibrated on it. In-batch
    positives are not used as negatives: they are drawn by popularity and would unlearn it.

    Args:
        positive: (batch,) scores of the supervised edges.
        negative: (batch, n_negatives) scores of the shared negatives.
        known: (batch, n_negatives) bool, negatives that are in truth positives of that user
            (collisions); they are left out of the sum.
        n_items: Catalogue size.
        n_rows: What the sum is divided by, where other ranks have more of the batch.

    Returns:
        Scalar mean. Source: Bengio and Senecal 2008, with uniform proposal; used for LightGCN in
        Wu et al. 2022 (arXiv 2201.02327).
    """
    shift = math.log(n_items / negative.shape[1])
    relative = positive - shift  # instead of every negative + shift
    total: Tensor = _LogSumExp.apply(relative, negative, known)  # type: ignore[no-untyped-call]
    return (total - relative).sum() / (len(positive) if n_rows is None else n_rows)


def binary_loss(
    positive: Tensor, negative: Tensor, known: Tensor, n_rows: int | None = None
) -> Tensor:
    """Binary cross-entropy of interactions against sampled non-interactions, four to one.

    Args:
        positive: (batch,) logits.
        negative: (batch, n_negatives) logits.
        known: (batch, n_negatives) bool, pairs to leave out.
        n_rows: As in `softmax_loss`.

    Returns:
        -log sigmoid(positive), and four times the mean of -log(1 - sigmoid(negative)): what four
        negatives drawn for each positive give on average. Scalar mean over the batch. Source: He
        et al. 2017, equation 7 and section 4.1.
    """
    softplus = torch.nn.functional.softplus
    others = (softplus(negative) * ~known).sum(dim=1) / (~known).sum(dim=1).clamp_min(1)
    losses = softplus(-positive) + _N_BINARY * others
    return losses.sum() / (len(positive) if n_rows is None else n_rows)


def bpr_loss(
    positive: Tensor, negative: Tensor, known: Tensor, n_pairs: int | None = None
) -> Tensor:
    """Bayesian personalised ranking, -log sigmoid(positive - negative), over all kept pairs.

    Args:
        positive: (batch,).
        negative: (batch, n_negatives).
        known: (batch, n_negatives) bool, pairs to leave out.
        n_pairs: What the sum is divided by, where other ranks have more of the pairs.

    Returns:
        Scalar mean. Source: Rendle et al. 2009, section 4.
    """
    losses = torch.nn.functional.softplus(negative - positive[:, None]) * ~known
    n_pairs = int((~known).sum()) if n_pairs is None else n_pairs
    return losses.sum() / max(n_pairs, 1)
