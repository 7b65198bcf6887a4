"""LightGCN (He et al. 2020) on item text instead of id embeddings, with learnable layer weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gnnrec.config import ModelConfig
from gnnrec.encoders.base import Block, Encoder
from gnnrec.features import GraphInput
from gnnrec.newcomers import Rows


class LightGCN(Encoder):
    """E = sum_k alpha_k A^k X W, with A the normalised adjacency and X the items' text.

    LightGCN's equations 3 and 4, with two changes that make it transferable: the input is a
    projection W of text vectors (users start at zero, so they get odd layers and items get even
    ones), and the layer weights alpha are learned, each on its own, not normalised against the
    others, so that the last can be retrained while the first stay frozen.

    As every layer is linear, A^k X is computed once per graph and W applied afterwards.
    Cost of a pass: O((n_users + n_items) text_dim dim), after O(n_layers n_edges text_dim) once.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.input: nn.Linear | None = None
        if config.text_dim:
            self.input = nn.Linear(config.text_dim, config.dim, bias=False)
            # Orthogonal: inner products of the projected texts start as those of the texts.
            nn.init.orthogonal_(self.input.weight)
        start = [1.0, 1.0] + [0.5] * (config.n_layers - 1)
        self.layer_weights = nn.ParameterList(nn.Parameter(torch.tensor(value)) for value in start)

    def forward(self, x: GraphInput, users: Tensor | None = None) -> Block | None:
        """See `Encoder.forward`; None without text."""
        if self.input is None or x.text is None:
            return None
        user_tables, item_tables, mean_user = x.propagated_text(self.n_layers)
        if users is not None:
            user_tables = [t if t is None else t.index_select(0, users) for t in user_tables]
        return Block(
            self._combine(user_tables), self._combine(item_tables), self._combine(mean_user)
        )

    def newcomers(self, x: GraphInput) -> Rows | None:
        """See `Encoder.newcomers`: a user's layer k is the sum of their items' layers k - 1."""
        if self.input is None or x.text is None:
            return None
        table = self._combine([None, *x.propagated_text(self.n_layers)[1][:-1]])
        return lambda new: new.sums(table, -0.5, -0.5)

    def _combine(self, tables: list[Tensor | None]) -> Tensor:
        assert self.input is not None
        parts = [
            weight * self.input(table)  # project first: the tables are wider than the result
            for weight, table in zip(self.layer_weights, tables, strict=True)
            if table is not None
        ]
        return torch.stack(parts).sum(dim=0)

    def layer_parameters(self, layer: int) -> list[str]:
        """The weight of that layer in the sum."""
        return [f"layer_weights.{layer}"]
