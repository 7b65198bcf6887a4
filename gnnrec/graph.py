"""The bipartite graph of an interaction log, its normalisation, its views and its statistics."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp

from gnnrec.errors import DataError
from gnnrec.ranks import ALONE, Ranks

if TYPE_CHECKING:
    import networkx as nx
    from torch_geometric.data import HeteroData

_PIECE = 2**22


class BipartiteGraph:
    """Users on one side, items on the other, one edge per distinct interaction.

    Args:
        users: (n_edges,) integer user codes.
        items: (n_edges,) integer item codes.
        n_users: Size of the user side; isolated users are allowed.
        n_items: Size of the item side; isolated items are allowed.

    Raises:
        DataError: A code lies outside its side.
    """

    def __init__(self, users: np.ndarray, items: np.ndarray, n_users: int, n_items: int) -> None:
        if len(users) and not (
            0 <= users.min() <= users.max() < n_users and 0 <= items.min() <= items.max() < n_items
        ):
            raise DataError(
                f"edge codes must lie in [0, {n_users}) x [0, {n_items}); found up to "
                f"({users.max()}, {items.max()})"
            )
        # Repeated pairs are one edge: their sum is not read, so bytes do while pairs are sorted.
        marks = np.ones(len(users), dtype=np.int8)
        pairs = sp.csr_array((marks, (users, items)), shape=(n_users, n_items))
        ones = np.ones(pairs.nnz, dtype=np.float32)
        matrix = sp.csr_array((ones, pairs.indices, pairs.indptr), shape=pairs.shape)
        matrix.has_canonical_format = True
        self.user_items: sp.csr_array = matrix

    ranks: Ranks = ALONE  # that hold the graph
    first_user = 0  # the code, in the whole graph, of the first user that is here

    @cached_property
    def all_users(self) -> int:
        """Number of users of all ranks, which have to ask together."""
        return sum(self.ranks.counts(self.n_users))

    @cached_property
    def all_edges(self) -> int:
        """Number of edges of all ranks, which have to ask together."""
        return sum(self.ranks.counts(self.n_edges))

    def local(self, users: np.ndarray) -> np.ndarray:
        """(n,) bool: which of the codes of users, in the whole graph, are here."""
        mine: np.ndarray = (users >= self.first_user) & (users < self.first_user + self.n_users)
        return mine

    @property
    def n_users(self) -> int:
        """Number of users, isolated ones included."""
        return int(self.user_items.shape[0])

    @property
    def n_items(self) -> int:
        """Number of items, isolated ones included."""
        return int(self.user_items.shape[1])

    @property
    def n_edges(self) -> int:
        """Number of distinct (user, item) pairs."""
        return int(self.user_items.nnz)

    @cached_property
    def user_degrees(self) -> np.ndarray:
        """(n_users,) int64: distinct items per user."""
        degrees: np.ndarray = np.diff(self.user_items.indptr).astype(np.int64)
        return degrees

    @cached_property
    def item_degrees(self) -> np.ndarray:
        """(n_items,) int64: distinct users per item."""
        items, degrees = self.user_items.indices, np.zeros(self.n_items, dtype=np.int64)
        # In pieces: bincount copies its input to int64.
        step = max(self.n_items, _PIECE)
        for start in range(0, len(items), step):
            degrees += np.bincount(items[start : start + step], minlength=self.n_items)
        return degrees

    def edges(self) -> tuple[np.ndarray, np.ndarray]:
        """Return (users, items), each (n_edges,) int64, sorted by user, then item."""
        users = np.repeat(np.arange(self.n_users), self.user_degrees)
        return users, self.user_items.indices.astype(np.int64)

    @cached_property
    def normalised(self) -> sp.csr_array:
        """D_u^-1/2 R D_i^-1/2, float32 (n_users, n_items); rows of isolated nodes are zero.

        Its singular values lie in [0, 1] on every graph, which is what makes a spectral response
        learned on one graph applicable to another.
        """
        return self.by_degree(-0.5, -0.5)

    def by_degree(self, user_exponent: float, item_exponent: float) -> sp.csr_array:
        """D_u^user_exponent R D_i^item_exponent, float32 (n_users, n_items).

        Rows and columns of isolated nodes are zero.
        """
        users, items = self.user_degrees, self.item_degrees
        return self._scaled(_power(users, user_exponent), _power(items, item_exponent))

    @cached_property
    def user_mean(self) -> sp.csr_array:
        """D_u^-1 R, float32 (n_users, n_items): the mean over a user's items."""
        return self._scaled(_power(self.user_degrees, -1.0), None)

    @cached_property
    def item_mean(self) -> sp.csr_array:
        """D_i^-1 R^T, float32 (n_items, n_users): the mean over an item's users."""
        return sp.csr_array(self._scaled(None, _power(self.item_degrees, -1.0)).T.tocsr())

    def _scaled(self, rows: np.ndarray | None, columns: np.ndarray | None) -> sp.csr_array:
        """diag(rows) R diag(columns); its index arrays are those of `user_items`."""
        matrix = self.user_items
        data = matrix.data.copy() if columns is None else columns[matrix.indices]
        if rows is not None:
            data *= np.repeat(rows, self.user_degrees)
        return sp.csr_array((data, matrix.indices, matrix.indptr), shape=matrix.shape)

    # Views. Their libraries load only here: most users never ask for them.

    def to_pyg(self) -> HeteroData:
        """Return a PyG `HeteroData` with node types user and item and both edge directions."""
        import torch
        from torch_geometric.data import HeteroData

        users, items = (torch.from_numpy(codes) for codes in self.edges())
        data = HeteroData()
        data["user"].num_nodes = self.n_users
        data["item"].num_nodes = self.n_items
        data["user", "interacts", "item"].edge_index = torch.stack([users, items])
        data["item", "rev_interacts", "user"].edge_index = torch.stack([items, users])
        return data

    def to_networkx(self) -> nx.Graph:  # type: ignore[type-arg, unused-ignore]
        """Return a networkx graph: nodes ("user", code) and ("item", code), `bipartite` 0 and 1."""
        import networkx as nx

        graph = nx.Graph()
        graph.add_nodes_from((("user", u) for u in range(self.n_users)), bipartite=0)
        graph.add_nodes_from((("item", i) for i in range(self.n_items)), bipartite=1)
        users, items = self.edges()
        graph.add_edges_from(
            (("user", u), ("item", i)) for u, i in zip(users.tolist(), items.tolist(), strict=True)
        )
        return graph

    def statistics(self) -> dict[str, Any]:
        """Return counts, density, degree statistics, components and popularity concentration.

        Components come from scipy on the (n_users + n_items) adjacency, O(n_edges): the networkx
        view gives the same number and needs about a kilobyte per edge.
        """
        n = self.n_users + self.n_items
        matrix = self.user_items
        # Items' rows are empty: one direction of each edge is enough for components.
        starts = np.append(matrix.indptr, np.full(self.n_items, self.n_edges, matrix.indptr.dtype))
        adjacency = sp.csr_array((matrix.data, matrix.indices + self.n_users, starts), shape=(n, n))
        n_components, labels = sp.csgraph.connected_components(adjacency, directed=False)
        cells = self.n_users * self.n_items
        return {
            "n_users": self.n_users,
            "n_items": self.n_items,
            "n_interactions": self.n_edges,
            "density": self.n_edges / cells if cells else 0.0,
            "user_degree": _summary(self.user_degrees),
            "item_degree": _summary(self.item_degrees),
            "n_components": int(n_components),
            "largest_component_share": float(np.bincount(labels).max() / n) if n else 0.0,
            "isolated_users": int((self.user_degrees == 0).sum()),
            "isolated_items": int((self.item_degrees == 0).sum()),
            "item_gini": gini(self.item_degrees),
            "top_1_percent_item_share": _top_share(self.item_degrees, 0.01),
        }


class GraphPart(BipartiteGraph):
    """The edges of some consecutive users of a graph, the others' being on other ranks.

    Users are counted from the first that is here; `item_degrees` are those of the whole graph.

    Args:
        users: (n_edges,) of the whole graph; blocks of users are cut evenly by their edges.
        items: The same of the items.
        n_users: Of the whole graph.
        n_items: The same.
        ranks: Who has the other users.
    """

    def __init__(
        self, users: np.ndarray, items: np.ndarray, n_users: int, n_items: int, ranks: Ranks
    ) -> None:
        work = np.cumsum(np.bincount(users, minlength=n_users) + 1.0)
        shares = np.arange(1, ranks.size) / ranks.size
        cuts = [0, *np.searchsorted(work, shares * work[-1]).tolist(), n_users]
        first, last = cuts[ranks.rank], cuts[ranks.rank + 1]
        mine = (users >= first) & (users < last)
        super().__init__(users[mine] - first, items[mine], last - first, n_items)
        self.ranks, self.first_user = ranks, first

    @cached_property
    def item_degrees(self) -> np.ndarray:
        """(n_items,) int64: distinct users per item, on all ranks."""
        here = np.bincount(self.user_items.indices, minlength=self.n_items).astype(np.int64)
        return self.ranks.sum_array(here)


def graph_of(
    users: np.ndarray, items: np.ndarray, n_users: int, n_items: int, ranks: Ranks = ALONE
) -> BipartiteGraph:
    """Return the graph of some edges, or a rank's part of it; every rank gives all edges."""
    if ranks.alone:
        return BipartiteGraph(users, items, n_users, n_items)
    return GraphPart(users, items, n_users, n_items, ranks)


def gini(counts: np.ndarray) -> float:
    """Return the Gini coefficient of non-negative counts: 0 when equal, towards 1 when one has all.

    From the sorted counts x_1..x_n: (2 sum_i i x_i) / (n sum_i x_i) - (n + 1) / n.
    """
    total = counts.sum()
    n = len(counts)
    if n == 0 or total == 0:
        return 0.0
    ranks = np.arange(1, n + 1)
    return float(2.0 * (ranks * np.sort(counts)).sum() / (n * total) - (n + 1) / n)


def _power(degrees: np.ndarray, exponent: float) -> np.ndarray:
    """Degrees ** exponent with 0 for isolated nodes, float32."""
    out = np.zeros(len(degrees), dtype=np.float32)
    positive = degrees > 0
    out[positive] = degrees[positive].astype(np.float64) ** exponent
    return out


def _summary(degrees: np.ndarray) -> dict[str, float]:
    if not len(degrees):
        return dict.fromkeys(("min", "median", "mean", "p90", "max"), 0.0)
    return {
        "min": float(degrees.min()),
        "median": float(np.median(degrees)),
        "mean": float(degrees.mean()),
        "p90": float(np.quantile(degrees, 0.9)),
        "max": float(degrees.max()),
    }


def _top_share(degrees: np.ndarray, share: float) -> float:
    total = degrees.sum()
    if total == 0:
        return 0.0
    top = max(1, round(share * len(degrees)))
    return float(np.sort(degrees)[::-1][:top].sum() / total)
