"""The transferable model: an encoder, and the heads that make its vectors scores."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from gnnrec.blend import ChannelBlend
from gnnrec.config import ModelConfig
from gnnrec.encoders import build_encoder
from gnnrec.encoders.base import Block
from gnnrec.features import GraphInput
from gnnrec.filters import GraphFilter
from gnnrec.heads import (
    ItemBias,
    ResidualIds,
    ScoreCalibration,
    SpectralChannel,
    TextChannel,
    spread_scale,
    standardise,
)
from gnnrec.ncf import NCF, NeuMF
from gnnrec.neighbours import Blocks
from gnnrec.newcomers import Arrived, FoldIn, Newcomers, Rows
from gnnrec.retrain import Retrainable
from gnnrec.scores import ScoreVectors
from gnnrec.two_tower import TwoTower


class Model(Retrainable):
    """score(u, i) = sum over channels c of g_c(u) <p_c(u) - mean p_c, q_c(i)> + b_i.

    Channels: the encoder's vectors through the embedding heads (plus residual ids on a target),
    and the spectral channel. g is the score calibration, b the item bias.

    Args:
        config: The architecture.
        n_target_items: Size of the residual id table; None for a model without one.
    """

    # Popularity, and how far a channel may outweigh it, mean something else in every domain:
    # carried over from one source they did harm on far targets, so they start afresh.
    new_on_target = ("bias.", "calibration.", "residual.")
    head_names = ("user_head.", "item_head.", "bias.", "calibration.", "residual.")
    final_names = ("spectral.", "text.")  # the response is the last layer of the spectral channel
    calibrating_names = (
        "calibration.",
        "spectral.",
        "text.",
        "bias.slope",
        "bias.log_prior",
        "encoder.layer_weights.",
    )
    id_names = ("residual.items",)

    def __init__(self, config: ModelConfig, n_target_items: int | None = None) -> None:
        super().__init__()
        self.config = config
        self.encoder = build_encoder(config)
        # A LightGCN without text has no vectors: nothing for heads or residual ids to act on.
        has_block = config.encoder != "lightgcn" or config.text_dim > 0
        self.user_head, self.item_head = (
            nn.Linear(config.dim, config.dim, bias=False) if has_block else nn.Identity()
            for _ in range(2)
        )
        for head in (self.user_head, self.item_head):
            if isinstance(head, nn.Linear):
                nn.init.eye_(head.weight)  # heads start as no change
        self.spectral = SpectralChannel()
        self.text = TextChannel() if config.text_dim else None
        self.calibration = ScoreCalibration((0.1, 0.05, 0.2))
        self.bias = ItemBias(config.text_dim)
        self.residual = (
            ResidualIds(n_target_items, config.dim)
            if has_block and n_target_items is not None
            else None
        )

    def forward(
        self, x: GraphInput, users: Tensor | None = None, blocks: Blocks | None = None
    ) -> ScoreVectors:
        """Return the vectors of the given users (all by default) and of all items of a graph.

        With `blocks` from `x.sample`, those of the users and items that it was asked for, in that
        order. Channels are then standardised on the reference users and items alone: the mean user
        of the encoder's block, the mean item and the covariance of the items are estimates (see
        `GraphSAGE.forward`, `GraphInput.reference_items`), exact where the references are all nodes
        with interactions.

        Args:
            x: The graph.
            users: (n,) int64 codes, or None; not read with `blocks`.
            blocks: A sampled neighbourhood; only for an encoder that samples.

        Raises:
            ConfigError: The text vectors' length is not the one the model was made for.
        """
        x.check_text(self.config.text_dim)
        reference = x.reference_users
        items, item_weights, n_items = None, x.item_degrees, x.graph.n_items
        if blocks is None:
            wanted = torch.arange(x.graph.n_users, device=x.device) if users is None else users
            rows = torch.cat([wanted, reference])
        else:
            rows, items = blocks.wanted_users, blocks.wanted_items
            wanted = rows[: len(rows) - len(reference)]
            n_items = len(items) - len(x.reference_items[1])
            # The batch's own items do not count: they would move the scale from step to step.
            item_weights = nn.functional.pad(x.reference_items[1], (n_items, 0))
        gates, item_gates = self.calibration(x, wanted), self.calibration.item_weight(x, items)
        user_parts, item_parts = [], []
        text = None if self.text is None else self.text(x, rows, items)
        channels = (self.encode(x, rows, blocks), self.spectral(x, rows, items), text)
        for channel, block in enumerate(channels):
            if block is None:
                continue
            weighted = replace(block, items=block.items * item_gates[:, channel, None])
            channel_users, channel_items = standardise(
                weighted, len(reference), item_weights, x.ranks
            )
            if channel == 0 and self.residual is not None:
                # Only here: the other channels' coordinates differ from graph to graph.
                channel_items = channel_items + self.residual(x.graph.n_items, items)
            user_parts.append(gates[:, channel, None] * channel_users)
            item_parts.append(channel_items)
        user_parts.append(torch.ones(len(gates), 1, device=x.device))
        item_parts.append(self.bias(x, items)[:, None])
        return ScoreVectors(torch.cat(user_parts, dim=1), torch.cat(item_parts, dim=1)[:n_items])

    def encode(self, x: GraphInput, users: Tensor, blocks: Blocks | None = None) -> Block | None:
        """Return the encoder's channel behind its heads, None where there is none."""
        block = self.encoder(x, users) if blocks is None else self.encoder(x, users, blocks)
        if block is None:
            return None
        return Block(
            self.user_head(block.users),
            self.item_head(block.items),
            self.user_head(block.mean_user),
        )

    @torch.no_grad()
    def newcomers(self, x: GraphInput) -> FoldIn:
        """Return what scores users who are not in the graph, whose items' side stays as it is.

        A user of the graph gets their own vector again. Costs a pass, and a decomposition more.
        """
        reference, graph = x.reference_users, x.context
        gates = self.calibration.item_weight(x)
        encoded = self.encoder.newcomers(x)
        head = self.user_head
        ways: list[tuple[Block | None, Rows | None]] = [
            (
                self.encode(x, reference),
                None if encoded is None else lambda new: head(encoded(new)),
            ),
            (self.spectral(x, reference), self.spectral.newcomers(x)),
        ]
        if self.text is not None:
            ways.append((self.text(x, reference), self.text.newcomers(x)))
        channels = []
        for channel, (block, rows) in enumerate(ways):
            if block is not None and rows is not None:
                items = block.items * gates[:, channel, None]
                mean = block.mean_user
                scale, _ = spread_scale(block.users - mean, items, x.item_degrees)
                channels.append((channel, rows, mean, scale))

        @torch.no_grad()
        def fold(new: Newcomers) -> Arrived:
            weight = self.calibration.user_weight(graph, new.degrees)
            parts = [
                weight[:, channel, None] * (scale * (rows(new) - mean))
                for channel, rows, mean, scale in channels
            ]
            return Arrived(torch.cat([*parts, torch.ones_like(weight[:, :1])], dim=1))

        return fold

    def n_retrained_layers(self) -> int:
        """The encoder's message-passing layers."""
        return self.encoder.n_layers

    def layer_parameters(self, layer: int) -> list[str]:
        """Those of a message-passing layer."""
        return [f"encoder.{name}" for name in self.encoder.layer_parameters(layer)]

    @property
    def n_residual(self) -> int | None:
        """Rows of the residual id table; None without one."""
        return None if self.residual is None else len(self.residual.items)


Transferable = Model | GraphFilter | ChannelBlend | NeuMF | TwoTower


def build_model(config: ModelConfig, n_target_items: int | None = None) -> Transferable:
    """Return the configured model with fresh parameters (torch's global generator).

    Args:
        config: The architecture.
        n_target_items: Size of a table of residual ids, for models that have one.
    """
    if config.encoder == "graph-filter":
        return GraphFilter(config)
    if config.encoder == "channels":
        return ChannelBlend(config)
    if config.encoder in NCF:
        return NeuMF(config, n_target_items)
    if config.encoder == "two-tower":
        return TwoTower(config)
    return Model(config, n_target_items)
