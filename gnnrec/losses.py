"""Ranking losses on positive edges and a set of negatives shared by the whole batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def softmax_loss(positive: Tensor, negative: Tensor, known: Tensor, n_items: int) -> Tensor:
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

    Returns:
        Scalar mean. Source: Bengio and Senecal 2008, with uniform proposal; used for LightGCN in
        Wu et al. 2022 (arXiv 2201.02327).
    """
    shift = math.log(n_items / negative.shape[1])
    logits = (negative + shift).masked_fill(known, -torch.inf)
    total = torch.logsumexp(torch.cat([positive[:, None], logits], dim=1), dim=1)
    return (total - positive).mean()


def bpr_loss(positive: Tensor, negative: Tensor, known: Tensor) -> Tensor:
    """Bayesian personalised ranking, -log sigmoid(positive - negative), over all kept pairs.

    Args:
        positive: (batch,).
        negative: (batch, n_negatives).
        known: (batch, n_negatives) bool, pairs to leave out.

    Returns:
        Scalar mean. Source: Rendle et al. 2009, section 4.
    """
    losses = torch.nn.functional.softplus(negative - positive[:, None]) * ~known
    return losses.sum() / (~known).sum().clamp_min(1)
