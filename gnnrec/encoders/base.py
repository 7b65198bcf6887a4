"""The contract of a graph encoder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from gnnrec.config import ModelConfig
from gnnrec.features import GraphInput
from gnnrec.newcomers import Rows


@dataclass(frozen=True)
class Block:
    """One channel's vectors: users (n, dim), items (n_items, dim), mean_user (dim,), float32.

    `mean_user` is the interaction-weighted mean over all users of the graph, also where `users`
    holds only some of them.
    """

    users: Tensor
    items: Tensor
    mean_user: Tensor


class Encoder(nn.Module, ABC):
    """Maps a graph with inductive features to user and item vectors.

    No parameter's shape may depend on the graph: that is what lets it run on another one.

    Args:
        config: Sizes; see `ModelConfig`.

    Attributes:
        sizes: For a class that `gnnrec.encoders.register` gets: its own defaults of `ModelConfig`,
            such as dim and n_layers.
    """

    sizes: ClassVar[dict[str, int]] = {}

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_layers = config.n_layers

    @abstractmethod
    def forward(self, x: GraphInput, users: Tensor | None = None) -> Block | None:
        """Return the vectors of the given users (all of them by default) and of all items.

        None where the input has nothing that this encoder can make vectors from (a LightGCN
        without text); the other channels of the score then stand alone.
        """

    @abstractmethod
    def newcomers(self, x: GraphInput) -> Rows | None:
        """Return what gives users who are not in the graph their rows of `Block.users`.

        The items' vectors stay those of the graph, so a user of the graph gets their own row again.
        None as in `forward`. Costs a pass once, then O(a user's items x dim).
        """

    @abstractmethod
    def layer_parameters(self, layer: int) -> list[str]:
        """Names of the parameters of message-passing layer 1..n_layers, the last being n_layers."""
