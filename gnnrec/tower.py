"""The tower of neural collaborative filtering: a score that is no inner product."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

_CHUNK = 4 * 2**20  # numbers of one hidden layer at a time


class Tower(nn.Module):
    """phi(p, q): ReLU layers over the concatenated embeddings, each half as wide as the one before.

    He et al. 2017, equation 10. The first layer of [p; q] is the sum of a layer of p and one of q,
    which are computed once a user and once an item; only what follows the sum costs a pair.

    Args:
        width: Of p and of q.
        n_layers: Hidden layers; the last is 2 width / 2^n_layers wide.
    """

    def __init__(self, width: int, n_layers: int) -> None:
        super().__init__()
        self.user = nn.Linear(width, width, bias=False)
        self.item = nn.Linear(width, width)
        widths = [width // 2**layer for layer in range(n_layers)]
        self.layers = nn.ModuleList(
            nn.Linear(before, after) for before, after in zip(widths, widths[1:], strict=False)
        )
        self.width = widths[-1]

    def above(self, sums: Tensor) -> Tensor:
        """Return the last hidden layer of the first one before its ReLU, (..., width)."""
        hidden = torch.relu(sums)
        for layer in self.layers:
            hidden = torch.relu(layer(hidden))
        return hidden

    def layer_parameters(self, layer: int) -> list[str]:
        """Names of the parameters of hidden layer 1..n_layers."""
        if layer == 1:
            return ["user.weight", "item.weight", "item.bias"]
        return [f"layers.{layer - 2}.weight", f"layers.{layer - 2}.bias"]


@dataclass(frozen=True)
class TowerScores:
    """score(u, i) = known_u h . tower(users[u] + items[i]): a `gnnrec.scores.FullRank`.

    Attributes:
        users: (n, width + 1) float32, the first layer's user half; the last column is `known`, zero
            for somebody of whom nothing is known.
        items: (n_items, width) float32, its item half with the bias.
        tower: What follows.
        fusion: (tower.width,) float32, h.
    """

    users: Tensor
    items: Tensor
    tower: Tower
    fusion: Tensor

    def columns(self, begin: int, end: int) -> Tensor:
        """Return (n_items, end - begin) scores. Cost: that of the tower for every pair."""
        step = max(1, _CHUNK // max(self.items.numel(), 1))
        parts = [
            self._all(self.users[first : min(first + step, end)])
            for first in range(begin, end, step)
        ]
        return torch.cat([self.items.new_zeros(0, len(self.items)), *parts]).T

    def of(self, users: np.ndarray) -> TowerScores:
        """Return the part of some users: (n,) int64 codes, -1 for somebody who gets zeros."""
        index = torch.from_numpy(np.where(users >= 0, users, 0)).to(self.users.device)
        there = torch.from_numpy(users >= 0).to(self.users)
        return replace(self, users=self.users[index] * there[:, None])

    def cpu(self) -> TowerScores:
        """Return the same part on the processor."""
        tower = copy.deepcopy(self.tower).cpu()
        return TowerScores(self.users.cpu(), self.items.cpu(), tower, self.fusion.cpu())

    def tables(self) -> dict[str, Tensor]:
        """Return what a saved recommender keeps beside its model."""
        return {"tower_users": self.users, "tower_items": self.items}

    def pairs(self, items: Tensor) -> Tensor:
        """Return (n,) scores of each user with the item of the same place: (n,) int64 codes."""
        hidden = self.tower.above(self.users[:, :-1] + self.items[items])
        return (hidden @ self.fusion) * self.users[:, -1]

    def table(self, items: Tensor) -> Tensor:
        """Return (n, m) scores of each user with each of m items; gradients reach everything."""
        return replace(self, items=self.items[items])._all(self.users)

    def _all(self, users: Tensor) -> Tensor:
        hidden = self.tower.above(users[:, None, :-1] + self.items)
        return (hidden @ self.fusion) * users[:, -1:]
