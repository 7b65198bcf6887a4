"""What a training step sees: episodes (a visible graph and hidden edges), batches, negatives."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from gnnrec.features import GraphInput
from gnnrec.graph import BipartiteGraph, graph_of
from gnnrec.neighbours import Blocks
from gnnrec.ranks import ALONE, Ranks


@dataclass(frozen=True)
class Batch:
    """Supervised edges and shared negatives: users, items (b,), negatives (n,), known (b, n).

    `n_edges` is b, over all ranks: each has the edges of its own users, in its own codes of them.
    `blocks` is the sampled neighbourhood of the users and of the items followed by the negatives,
    with the reference nodes behind both (see `GraphInput.sample`); None propagates over the whole
    graph.
    """

    users: Tensor
    items: Tensor
    negatives: Tensor
    known: Tensor
    n_edges: int
    blocks: Blocks | None = None


class Episode:
    """A graph that message passing sees, and edges of the same nodes that it does not.

    Were a supervised edge still in the graph, the model would learn to recognise the edge itself.

    Args:
        visible: The message-passing side, or this rank's part of it.
        users: (n,) int64 codes of the hidden edges, of all ranks and in codes of the whole graph:
            which edges a batch has must not depend on how many ranks there are.
        items: (n,) int64 codes of the hidden edges.

    Attributes:
        user_codes, item_codes: The nodes' codes in the source that a sub-graph was drawn from.
        item_shares: (n_items,) float64, the share of each item's edges that were left to it.
    """

    user_codes: np.ndarray
    item_codes: np.ndarray
    item_shares: np.ndarray

    def __init__(self, visible: GraphInput, users: np.ndarray, items: np.ndarray) -> None:
        self.input = visible
        self.users = users
        self.items = items

    @cached_property
    def known(self) -> sp.csr_array:
        """All positives, visible and hidden: what a sampled negative must not be."""
        graph = self.input.graph
        users, items = self.local(self.users, self.items)
        hidden = BipartiteGraph(users, items, graph.n_users, graph.n_items)
        return sp.csr_array(graph.user_items + hidden.user_items)

    def local(self, users: np.ndarray, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return those of some edges whose users are here, in the codes that they have here."""
        graph = self.input.graph
        if graph.ranks.alone:
            return users, items
        mine = graph.local(users)
        return users[mine] - graph.first_user, items[mine]

    def draw_edges(self, size: int, balance: float, rng: np.random.Generator) -> np.ndarray:
        """Return (size,) indices of hidden edges, drawn with weight 1 / user degree ** balance."""
        if balance not in self._weights:
            degrees = np.bincount(self.users)[self.users].astype(np.float64)
            weights = np.cumsum(degrees**-balance)
            self._weights[balance] = weights / weights[-1]
        drawn = np.searchsorted(self._weights[balance], rng.random(size), side="right")
        return np.minimum(drawn, len(self.users) - 1)

    @cached_property
    def _weights(self) -> dict[float, np.ndarray]:
        return {}

    def batch(
        self,
        size: int,
        n_negatives: int,
        balance: float,
        rng: np.random.Generator,
        fan_out: tuple[int, ...] | None = None,
    ) -> Batch:
        """Draw a batch; negatives are uniform without replacement, all items if they are few.

        Cost: O(size + n_items + known positives of the drawn users), and with `fan_out` (see
        `TrainConfig`) that of `NeighbourSampler.draw`.
        """
        index = self.draw_edges(min(size, len(self.users)), balance, rng)
        users, items = self.local(self.users[index], self.items[index])
        n_items = self.input.graph.n_items
        if n_items <= n_negatives:
            negatives = np.arange(n_items)
        else:
            negatives = rng.choice(n_items, n_negatives, replace=False)
        known = collisions(self.known, users, negatives)
        blocks = None
        if fan_out is not None:
            blocks = self.input.sample(users, np.concatenate([items, negatives]), fan_out, rng)

        def tensor(array: np.ndarray) -> Tensor:
            return torch.from_numpy(array).to(self.input.device)

        drawn = (tensor(users), tensor(items), tensor(negatives), tensor(known))
        return Batch(*drawn, len(index), blocks)


def collisions(known: sp.csr_array, users: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    """Return (len(users), len(negatives)) bool: is this negative a known positive of that user?"""
    column = np.full(known.shape[1], -1, dtype=np.int64)
    column[negatives] = np.arange(len(negatives))
    starts, stops = known.indptr[users], known.indptr[users + 1]
    lengths = stops - starts
    rows = np.repeat(np.arange(len(users)), lengths)
    offsets = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    columns = column[known.indices[np.repeat(starts, lengths) + offsets]]
    mask = np.zeros((len(users), len(negatives)), dtype=bool)
    hit = columns >= 0
    mask[rows[hit], columns[hit]] = True
    return mask


def folds(
    users: np.ndarray,
    items: np.ndarray,
    n_users: int,
    n_items: int,
    n_folds: int,
    rng: np.random.Generator,
    ranks: Ranks = ALONE,
) -> list[tuple[BipartiteGraph, np.ndarray, np.ndarray]]:
    """Hide each of n_folds random parts of the edges in turn.

    Returns:
        (visible graph or its part, hidden users, hidden items) per fold that hides anything. With
        a single edge there is nothing to hide and the list is empty.
    """
    n_folds = min(n_folds, len(users))
    if n_folds < 2:
        return []
    part = rng.permutation(len(users)) % n_folds
    return [
        (
            graph_of(users[part != k], items[part != k], n_users, n_items, ranks),
            users[part == k],
            items[part == k],
        )
        for k in range(n_folds)
    ]
