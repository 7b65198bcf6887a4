"""GraphSAGE (Hamilton et al. 2017) with mean aggregation on a bipartite graph."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gnnrec.config import ModelConfig
from gnnrec.encoders.base import Block, Encoder
from gnnrec.features import GraphInput
from gnnrec.neighbours import Blocks, LayerBlock
from gnnrec.newcomers import Newcomers, Rows

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

    def forward(
        self,
        x: GraphInput | LayerBlock,
        users: Tensor,
        items: Tensor,
        written: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Users (n, dim), items (m, dim) -> the first of each that x puts out: all for a graph.

        `written` (n, dim) is added to the users' neighbour mean: the part of the messages that is
        the edges' own.

        Cost: O(n_edges dim + n dim^2), of the graph or of the block.
        """
        users_out, items_out = x.user_mean.shape[0], x.item_mean.shape[0]
        mean = x.user_mean(items)
        if written is not None:
            mean = mean + written[:users_out]
        return (
            self.user_self(users[:users_out]) + self.user_neighbour(mean),
            self.item_self(items[:items_out]) + self.item_neighbour(x.item_mean(users)),
        )


class GraphSAGE(Encoder):
    """Per-layer weights, ReLU between layers, unit vectors out.

    Items start from projected text plus degree features, users from degree features alone: a
    user's taste arrives through the graph, and what the user wrote with the first layer's messages.
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

    def forward(
        self, x: GraphInput, users: Tensor | None = None, blocks: Blocks | None = None
    ) -> Block:
        """Return the vectors of the given users (all by default) and of all items, or sampled ones.

        With `blocks` they are those of `blocks.wanted_users` and `blocks.wanted_items` alone, from
        sampled neighbours (Hamilton et al. 2017, algorithm 2), and nothing else of the graph is
        read. Equal to the vectors of the whole graph where every fan-out reaches the largest
        degree; otherwise each layer's neighbour mean is unbiased given the layer before, the
        vectors after ReLU and normalisation are not.

        Args:
            x: The graph.
            users: (n,) int64 codes, or None; not read with `blocks`.
            blocks: From `x.sample`: the last of its wanted users are the reference users, from
                which `mean_user` is then estimated, as their mean weighted by degree: a ratio
                estimate from a uniform sample, consistent, and exact where they are all users
                with interactions.
        """
        if blocks is None:
            every, items = self._layers(x, (x,) * self.n_layers)
            mean_user = x.mean_user(every)
            return Block(every if users is None else every.index_select(0, users), items, mean_user)
        every, items = self._layers(x, blocks.layers, blocks.users, blocks.items)
        every = every.index_select(0, blocks.user_rows)
        weights = x.user_degrees[x.reference_users]
        reference = every[len(every) - len(weights) :]
        mean_user = (weights @ reference) / weights.sum().clamp_min(1.0)
        return Block(every, items.index_select(0, blocks.item_rows), mean_user)

    def newcomers(self, x: GraphInput) -> Rows:
        """See `Encoder.newcomers`; it keeps the items' vectors that each layer reads."""
        tables: list[Tensor] = []
        self._layers(x, (x,) * self.n_layers, read=tables)

        def rows(new: Newcomers) -> Tensor:
            users = self.user_degree(degree_features(new.degrees))
            for number, (layer, table) in enumerate(zip(self.layers, tables, strict=True), start=1):
                assert isinstance(layer, SAGELayer)
                mean = new.sums(table, -1.0, 0.0)
                users = layer.user_self(users) + layer.user_neighbour(mean)
                users = torch.relu(users) if number < self.n_layers else users
            return torch.nn.functional.normalize(users, dim=1)

        return rows

    def _layers(
        self,
        x: GraphInput,
        operators: Sequence[GraphInput | LayerBlock],
        users: Tensor | None = None,
        items: Tensor | None = None,
        read: list[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """All layers, from the features of the given nodes (None: of all) to unit vectors.

        The item tables that the layers read are appended to `read`.
        """
        assert len(operators) == self.n_layers
        user_x = self.user_degree(degree_features(_rows(x.user_degrees, users)))
        item_x = self.item_degree(degree_features(_rows(x.item_degrees, items)))
        written = None
        if self.input is not None and x.text is not None:
            item_x = item_x + self.input(_rows(x.text, items))
            if x.mean_written is not None:
                written = self.input(_rows(x.mean_written, users))
        for number, (layer, operator) in enumerate(
            zip(self.layers, operators, strict=True), start=1
        ):
            if read is not None:
                read.append(item_x)
            user_x, item_x = layer(operator, user_x, item_x, written if number == 1 else None)
            if number < self.n_layers:
                user_x, item_x = torch.relu(user_x), torch.relu(item_x)
        normalize = torch.nn.functional.normalize
        return normalize(user_x, dim=1), normalize(item_x, dim=1)

    def layer_parameters(self, layer: int) -> list[str]:
        """All weights of that layer."""
        prefix = f"layers.{layer - 1}."
        return [name for name, _ in self.named_parameters() if name.startswith(prefix)]


def _rows(table: Tensor, nodes: Tensor | None) -> Tensor:
    return table if nodes is None else table.index_select(0, nodes)


def degree_features(degrees: Tensor) -> Tensor:
    """(n,) degrees -> (n, 2): log(1 + degree) / 10, and whether the node has any edge."""
    return torch.stack([torch.log1p(degrees) / 10.0, (degrees > 0).float()], dim=1)
