"""Models without anything learned elsewhere, under the same contract as the transferable model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gnnrec.features import GraphInput
from gnnrec.scores import ScoreVectors


class Popularity(nn.Module):
    """score(u, i) = log(1 + d_i) for every user: the bar that personal models must clear."""

    def forward(self, x: GraphInput, users: Tensor | None = None) -> ScoreVectors:
        """Return (n_users, 1) ones and (n_items, 1) log counts."""
        n_users = x.graph.n_users if users is None else len(users)
        return ScoreVectors(
            torch.ones(n_users, 1, device=x.device), torch.log1p(x.item_degrees)[:, None]
        )
