"""The transferable model: an encoder, and the heads that make its vectors scores."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from gnnrec.config import ModelConfig, Retrain
from gnnrec.encoders import build_encoder
from gnnrec.encoders.base import Block
from gnnrec.errors import ConfigError
from gnnrec.features import GraphInput
from gnnrec.heads import (
    ItemBias,
    ResidualIds,
    ScoreCalibration,
    SpectralChannel,
    TextChannel,
    standardise,
)

# Popularity, and how far a channel may outweigh it, mean something else in every domain: carried
# over from one source they did harm on far targets, so they start afresh.
_NEW_ON_TARGET = ("bias.", "calibration.", "residual.")
_CALIBRATING = (
    "calibration.",
    "spectral.",
    "text.",
    "bias.slope",
    "bias.log_prior",
    "encoder.layer_weights.",
)
_HEADS = ("user_head.", "item_head.", "bias.", "calibration.", "residual.")


@dataclass(frozen=True)
class ScoreVectors:
    """score(u, i) = users[u] . items[i]; (n_users, d) and (n_items, d) float32.

    The last column of `items` is the item bias and that of `users` is one.
    """

    users: Tensor
    items: Tensor

    def score(self, users: Tensor, items: Tensor) -> Tensor:
        """Return (len(users), len(items)) scores of all pairs."""
        return self.users[users] @ self.items[items].T


class Model(nn.Module):
    """score(u, i) = sum over channels c of g_c(u) <p_c(u) - mean p_c, q_c(i)> + b_i.

    Channels: the encoder's vectors through the embedding heads (plus residual ids on a target),
    and the spectral channel. g is the score calibration, b the item bias.

    Args:
        config: The architecture.
        n_target_items: Size of the residual id table; None for a model without one.
    """

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

    def forward(self, x: GraphInput, users: Tensor | None = None) -> ScoreVectors:
        """Return the vectors of the given users (all by default) and of all items of a graph.

        Args:
            x: The graph.
            users: (n,) int64 codes, or None.

        Raises:
            ConfigError: The text vectors' length is not the one the model was made for.
        """
        if x.text is not None and self.config.text_dim not in (0, x.text.shape[1]):
            raise ConfigError(
                f"this model reads {self.config.text_dim}-d text vectors, found {x.text.shape[1]}-d"
            )
        gates, item_gates = self.calibration(x, users), self.calibration.item_weight(x)
        reference = x.reference_users
        wanted = torch.arange(x.graph.n_users, device=x.device) if users is None else users
        rows = torch.cat([wanted, reference])
        user_parts, item_parts = [], []
        text = None if self.text is None else self.text(x, rows)
        for channel, block in enumerate((self._encode(x, rows), self.spectral(x, rows), text)):
            if block is None:
                continue
            weighted = replace(block, items=block.items * item_gates[:, channel, None])
            channel_users, channel_items = standardise(weighted, len(reference), x.item_degrees)
            if channel == 0 and self.residual is not None:
                # Only here: the other channels' coordinates differ from graph to graph.
                channel_items = channel_items + self.residual(x.graph.n_items)
            user_parts.append(gates[:, channel, None] * channel_users)
            item_parts.append(channel_items)
        user_parts.append(torch.ones(len(gates), 1, device=x.device))
        item_parts.append(self.bias(x)[:, None])
        return ScoreVectors(torch.cat(user_parts, dim=1), torch.cat(item_parts, dim=1))

    def _encode(self, x: GraphInput, users: Tensor) -> Block | None:
        block = self.encoder(x, users)
        if block is None:
            return None
        return Block(
            self.user_head(block.users),
            self.item_head(block.items),
            self.user_head(block.mean_user),
        )

    def trained_parameters(self, retrain: Retrain, n_layers: int = 0) -> list[str]:
        """Names of the parameters that a retraining mode trains, in a stable order.

        heads: embedding heads, item bias, score calibration, residual ids. final: those, the last
        n_layers message-passing layers, and the spectral response, which is the last layer of the
        spectral channel. full and scratch: everything. The input projection stays frozen in heads
        and final.

        Raises:
            ConfigError: More final layers than the encoder has.
        """
        names = [name for name, _ in self.named_parameters()]
        if retrain == "zero-shot":
            return []
        if retrain in ("full", "scratch"):
            return names
        chosen = {name for name in names if name.startswith(_HEADS)}
        if retrain == "final":
            total = self.encoder.n_layers
            if n_layers > total:
                raise ConfigError(
                    f"--retrain final:{n_layers}: the encoder has {total} layers; expected "
                    f"final:1 to final:{total}"
                )
            chosen |= {name for name in names if name.startswith(("spectral.", "text."))}
            for layer in range(total - n_layers + 1, total + 1):
                chosen |= {f"encoder.{name}" for name in self.encoder.layer_parameters(layer)}
        return [name for name in names if name in chosen]

    @staticmethod
    def calibrating(names: list[str]) -> list[str]:
        """Return those of the named parameters that are a handful of numbers on every score."""
        return [name for name in names if name.startswith(_CALIBRATING)]

    def load_pretrained(self, state: dict[str, Tensor]) -> None:
        """Take a source model's parameters except those that are new on every target."""
        carried = {k: v for k, v in state.items() if not k.startswith(_NEW_ON_TARGET)}
        missing, unexpected = self.load_state_dict(carried, strict=False)
        assert not unexpected and all(k.startswith(_NEW_ON_TARGET) for k in missing)

    def count_parameters(self, trained: list[str] | None = None) -> dict[str, int]:
        """Count parameters: total and trained without id tables and biases, which stand apart."""
        sizes = {name: p.numel() for name, p in self.named_parameters()}
        ids = {name for name in sizes if name.startswith("residual.items")}
        biases = {name for name in sizes if name.startswith("bias.")}
        chosen = (set(sizes) if trained is None else set(trained)) - ids - biases
        return {
            "total": sum(n for name, n in sizes.items() if name not in ids | biases),
            "trained": sum(sizes[name] for name in chosen),
            "id_tables": sum(sizes[name] for name in ids),
            "biases": sum(sizes[name] for name in biases),
        }
