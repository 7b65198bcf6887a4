"""A target as models read it: its edges, its texts, and what can be used again."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from gnnrec.edge_texts import EdgeTexts
from gnnrec.features import GraphInput
from gnnrec.graph import BipartiteGraph, graph_of
from gnnrec.ranks import ALONE, Ranks
from gnnrec.text_layers import HiddenTexts


@dataclass(frozen=True)
class Target:
    """A target's edges as codes, with room for items and users that have no edge yet.

    Attributes:
        users: (n,) int64.
        items: (n,) int64.
        item_text: (n_items, text_dim) float32 tensor, or None.
        text_codes: (n,) int64, the row of `text_vectors` that is an edge's text, -1 without.
        text_vectors: (n_texts, text_dim) float32 tensor of what users wrote, or None.
        texts: n_items texts that `item_text` was made from, "" where there is none, or None.
        written: n_texts texts that `text_vectors` was made from, or None.
        text_delta: Digest of what the text model had learned when it made them.
        kept: What `adapt` can use again when it is called with the same rows, as the arms of a
            comparison do.
        read: The same of the texts, whatever the rows; see `TextTask.read`.
    """

    users: np.ndarray
    items: np.ndarray
    n_users: int
    n_items: int
    item_text: Tensor | None = None
    text_codes: np.ndarray | None = None
    text_vectors: Tensor | None = None
    texts: tuple[str, ...] | None = None
    written: tuple[str, ...] | None = None
    text_delta: str = ""
    kept: dict[str, Any] = field(init=False, default_factory=dict, compare=False, repr=False)
    read: dict[str, HiddenTexts] = field(default_factory=dict, compare=False, repr=False)

    def graph_input(
        self,
        rows: np.ndarray | slice = slice(None),
        *,
        rank: int = 64,
        device: torch.device | str = "cpu",
        ranks: Ranks = ALONE,
    ) -> GraphInput:
        """Return the graph of some of the rows (all by default), or its part, with its features."""
        edges = self.users[rows], self.items[rows]
        key, found = self.kept.pop("input", ("", None))
        if found is not None and key == _input_key(rows, rank, device):
            return cast("GraphInput", found)
        graph = graph_of(*edges, self.n_users, self.n_items, ranks)
        return self.input_of(graph, rank, device)

    def keep_input(self, rows: np.ndarray, x: GraphInput) -> None:
        """Let the next `graph_input` of the same rows return this, with what was computed of it."""
        self.kept["input"] = (_input_key(rows, x.spectral_rank, x.device), x)

    def input_of(
        self, graph: BipartiteGraph, rank: int, device: torch.device | str = "cpu"
    ) -> GraphInput:
        """Return a graph of the same nodes with the target's features."""
        return GraphInput(
            graph, self.item_text, edge_text=self.edge_text, spectral_rank=rank, device=device
        )

    @cached_property
    def edge_text(self) -> EdgeTexts | None:
        """What users wrote on all edges; a graph's features hold those of its own edges alone."""
        if self.text_vectors is None or self.text_codes is None:
            return None
        shape = self.n_users, self.n_items
        return EdgeTexts.of(self.users, self.items, self.text_codes, self.text_vectors, shape)


def _input_key(rows: np.ndarray | slice, rank: int, device: torch.device | str) -> str:
    """Digest of what decides an input of a target."""
    what = repr(rows).encode() if isinstance(rows, slice) else rows.tobytes()
    return hashlib.sha256(what + f"|{rank}|{torch.device(device)}".encode()).hexdigest()
