"""Neighbour sampling: the part of a bipartite graph that a batch's vectors are computed from.

Hamilton et al. 2017 (GraphSAGE), algorithm 2: from the batch's nodes inwards, each layer draws a
fixed number of neighbours of every node it needs, and only what was drawn is ever computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from gnnrec.propagate import SparseOperator


def sample_neighbours(
    indptr: np.ndarray,
    indices: np.ndarray,
    seeds: np.ndarray,
    fan_out: int | None,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw min(fan_out, degree) distinct neighbours of each seed.

    Every set of that size is equally likely, and seeds are drawn independently. So the mean of any
    fixed vectors over the drawn neighbours is an unbiased estimate of their mean over all
    neighbours (simple random sampling without replacement), and equals it where fan_out >= degree.
    What a nonlinearity makes of such a mean is not unbiased, nor is a mean of sampled means after
    one: a stack of layers is only consistent, as fan-outs grow.

    Distinct offsets come from Floyd's algorithm (Bentley and Floyd 1987), all seeds at once, so a
    neighbour list is never copied or walked.

    Args:
        indptr: (n_nodes + 1,) of a CSR matrix.
        indices: (n_edges,) of the same matrix; a row's neighbours are distinct.
        seeds: (n,) integer rows.
        fan_out: At least 1; None takes every neighbour and draws nothing.
        rng: The draw is a function of its state and the arguments.

    Returns:
        (n + 1,) int64 row starts and the drawn neighbours, in the dtype of `indices`. Time
        O(n fan_out) draws and O(n fan_out^2) comparisons of one machine instruction each, memory
        O(n fan_out), whatever the size of the graph and its largest degree.
    """
    begin = indptr[seeds].astype(np.int64)
    degrees = indptr[np.asarray(seeds) + 1] - begin
    counts = degrees if fan_out is None else np.minimum(degrees, fan_out)
    starts = np.concatenate([[0], np.cumsum(counts)])
    # A node with few neighbours takes offsets 0, 1, ... of its own list.
    offsets = np.arange(starts[-1]) - np.repeat(starts[:-1], counts)
    if fan_out is not None:
        large = degrees > fan_out
        drawn = _distinct_offsets(degrees[large], fan_out, rng)
        offsets[np.repeat(large, counts)] = drawn.T.ravel()
    return starts, indices[np.repeat(begin, counts) + offsets]


def _distinct_offsets(degrees: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """(size, n): in each column a uniform subset of range(degree), for degrees above `size`.

    Of range(last + 1), a number not yet chosen is taken, and `last` itself in place of one that
    was: by induction every subset is equally likely.
    """
    chosen = np.empty((size, len(degrees)), dtype=np.int64)
    for k in range(size):
        last = degrees - size + k
        drawn = (rng.random(len(degrees)) * (last + 1)).astype(np.int64)
        repeated = (chosen[:k] == drawn).any(axis=0)
        chosen[k] = np.where(repeated, last, drawn)
    return chosen


@dataclass(frozen=True)
class LayerBlock:
    """One message-passing layer on a sampled neighbourhood: means over what was drawn.

    `user_mean` is (users out, items in) and `item_mean` is (items out, users in); a row holds
    1 / min(fan-out, degree) at the drawn neighbours. The nodes out are the first of the nodes in.
    A `GraphInput` has operators of the same names, in which all nodes are in and out. `n_edges`
    counts the entries of both.
    """

    user_mean: SparseOperator
    item_mean: SparseOperator
    n_edges: int


@dataclass(frozen=True)
class Blocks:
    """What a batch needs of a graph, layer by layer, under local numbers.

    Attributes:
        layers: In the order of computation: the first reads the nodes listed here.
        users: (n,) int64 codes of the users whose features are read. The users that a layer puts
            out are the first of them, in the same order.
        items: Likewise.
        user_rows: Where in the last layer's users each wanted user is, in the order asked for.
        item_rows: Likewise.
    """

    layers: tuple[LayerBlock, ...]
    users: Tensor
    items: Tensor
    user_rows: Tensor
    item_rows: Tensor

    @property
    def wanted_users(self) -> Tensor:
        """The codes that the blocks were drawn for, repeats included."""
        return self.users[self.user_rows]

    @property
    def wanted_items(self) -> Tensor:
        """The codes that the blocks were drawn for, repeats included."""
        return self.items[self.item_rows]


class NeighbourSampler:
    """Draws sampled neighbourhoods of one graph.

    Args:
        user_items: CSR (n_users, n_items); only where its entries are is read.
        item_users: Its transpose, as CSR.
    """

    def __init__(self, user_items: sp.csr_array, item_users: sp.csr_array) -> None:
        self._of_users = user_items.indptr, user_items.indices
        self._of_items = item_users.indptr, item_users.indices
        self._users = _Renumbering(user_items.shape[0])
        self._items = _Renumbering(user_items.shape[1])

    def draw(
        self,
        users: np.ndarray,
        items: np.ndarray,
        fan_out: Sequence[int | None],
        rng: np.random.Generator,
        device: torch.device | str = "cpu",
    ) -> Blocks:
        """Draw the neighbourhood from which the given nodes' vectors are computed.

        A node that a layer needs several times is drawn for once, so the nodes of a batch share
        what they have in common. Not safe to call from two threads at once.

        Args:
            users: (n,) int64 codes, repeats allowed.
            items: (m,) int64 codes, repeats allowed.
            fan_out: One number a layer, the layer nearest to the batch (the last to be computed)
                first; None takes all neighbours.
            rng: See `sample_neighbours`.
            device: Where the blocks live.

        Returns:
            See `Blocks`. Cost: that of `sample_neighbours` for the nodes of each layer, of which
            there are at most (n + m)(1 + f_1)(1 + f_2)... and never more than the graph has.
        """
        nothing = np.zeros(0, dtype=np.int64)
        users, user_rows = self._users.extend(nothing, users)
        items, item_rows = self._items.extend(nothing, items)
        layers = []
        for size in fan_out:
            item_starts, drawn_items = sample_neighbours(*self._of_users, users, size, rng)
            user_starts, drawn_users = sample_neighbours(*self._of_items, items, size, rng)
            users, user_columns = self._users.extend(users, drawn_users)
            items, item_columns = self._items.extend(items, drawn_items)
            layers.append(
                LayerBlock(
                    _mean_operator(item_starts, item_columns, len(items), device),
                    _mean_operator(user_starts, user_columns, len(users), device),
                    len(drawn_items) + len(drawn_users),
                )
            )
        tables = (torch.from_numpy(a).to(device) for a in (users, items, user_rows, item_rows))
        return Blocks(tuple(reversed(layers)), *tables)


class _Renumbering:
    """Local numbers for the nodes that a batch meets, in time that depends on the nodes seen alone.

    One number per node of the graph is reserved once; nothing is cleared between calls, since only
    entries that a call has just written are read.
    """

    def __init__(self, n_nodes: int) -> None:
        self._place = np.empty(n_nodes, dtype=np.int64)

    def extend(self, nodes: np.ndarray, more: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return distinct `nodes` followed by the new ones of `more`, and where `more` is there."""
        place, order = self._place, np.arange(len(nodes) + len(more))
        # One of the writes to an entry stays, whichever: a new node has one winner among its
        # appearances, and a known one has none.
        place[more] = order[: len(more)]
        place[nodes] = -1
        fresh = more[place[more] == order[: len(more)]].astype(np.int64)
        together = np.concatenate([nodes, fresh])
        place[together] = order[: len(together)]
        return together, place[more]


def _mean_operator(
    starts: np.ndarray, columns: np.ndarray, n_columns: int, device: torch.device | str
) -> SparseOperator:
    counts = np.diff(starts)
    values = np.repeat((1.0 / np.maximum(counts, 1)).astype(np.float32), counts)
    matrix = sp.csr_array((values, columns, starts), shape=(len(counts), n_columns))
    return SparseOperator(matrix, device)
