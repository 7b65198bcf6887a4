"""GraphSAGE (Hamilton et al. 2017) with mean aggregation on a bipartite graph."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gnnrec.config import ModelConfig
from gnnrec.encoders.base import Block, Encoder
from gnnrec.features import GraphInput

_DEGREE_FEATURES = 2


class SAGELayer(nn.Module):
    """h_v = W_self h_v + W_neighbour mean(h_w for w in N(v)) + b, one pair of weights per side.

    Hamilton et al. 2017, algorithm 1 with the mean aggregator written as a sum of two products
    (as in PyG's `SAGEConv`, which it equals side by side).
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.user_self = nn.Linear(dim, dim, bias=False)
        self.user_neighbour = nn.Linear(dim, dim)
        self.item_self = nn.Linear(dim, dim, bias=False)
        self.item_neighbour = nn.Linear(dim, dim)

    def forward(self, x: GraphInput, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        """(n_users, dim), (n_items, dim) -> the same shapes. Cost: O(n_edges dim + n dim^2)."""
        return (
            self.user_self(users) + self.user_neighbour(x.user_mean(items)),
            self.item_self(items) + self.item_neighbour(x.item_mean(users)),
        )


class GraphSAGE(Encoder):
    """Per-layer weights, ReLU between layers, unit vectors out.

    Items start from projected text plus degree features, users from degree features alone: a
    user's taste arrives through the graph.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.input: nn.Linear | None = None
        if config.text_dim:
            self.input = nn.Linear(config.text_dim, config.dim, bias=False)
            nn.init.orthogonal_(self.input.weight)
        self.user_degree = nn.Linear(_DEGREE_FEATURES, config.dim)
        self.item_degree = nn.Linear(_DEGREE_FEATURES, config.dim)
        self.layers = nn.ModuleList(SAGELayer(config.dim) for _ in range(config.n_layers))

    def forward(self, x: GraphInput, users: Tensor | None = None) -> Block | None:
        """See `Encoder.forward`."""
        every = self.user_degree(degree_features(x.user_degrees))
        items = self.item_degree(degree_features(x.item_degrees))
        if self.input is not None and x.text is not None:
            items = items + self.input(x.text)
        for number, layer in enumerate(self.layers, start=1):
            every, items = layer(x, every, items)
            if number < self.n_layers:
                every, items = torch.relu(every), torch.relu(items)
        every = torch.nn.functional.normalize(every, dim=1)
        mean_user = (x.user_degrees @ every) / x.user_degrees.sum().clamp_min(1.0)
        return Block(
            every if users is None else every.index_select(0, users),
            torch.nn.functional.normalize(items, dim=1),
            mean_user,
        )

    def layer_parameters(self, layer: int) -> list[str]:
        """All weights of that layer."""
        prefix = f"layers.{layer - 1}."
        return [name for name, _ in self.named_parameters() if name.startswith(prefix)]


def degree_features(degrees: Tensor) -> Tensor:
    """(n,) degrees -> (n, 2): log(1 + degree) / 10, and whether the node has any edge."""
    return torch.stack([torch.log1p(degrees) / 10.0, (degrees > 0).float()], dim=1)
