"""Node features that every domain has, so that an encoder can run on a graph it never saw.

Three kinds: degrees, item text, and the spectrum of the normalised interaction matrix. Singular
vectors have an arbitrary sign and rotation on each graph, so models may use them only through
inner products weighted by a response h(sigma); see `gnnrec.heads.SpectralChannel`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from gnnrec import edge_texts
from gnnrec.device import numpy_generator
from gnnrec.edge_texts import EdgeTexts
from gnnrec.errors import ConfigError
from gnnrec.graph import BipartiteGraph
from gnnrec.neighbours import Blocks, NeighbourSampler
from gnnrec.propagate import SparseOperator, propagate
from gnnrec.spectrum import Spectrum, TruncatedSVD, principal_axes

_N_REFERENCE = 256
_N_REFERENCE_ITEMS = 512
_N_COMPONENTS = 128


class GraphInput:
    """What an encoder sees of one graph: its operators and its node features, each built once.

    Args:
        graph: The message-passing graph. Edges that a model is trained or tested on are not in it.
        item_text: (n_items, text_dim) float32 vectors, zero rows where an item has no text, or
            None. `item_text` holds them as they came, `text` centred (see `centre_text`) and with
            what users wrote (see `start_text`).
        spectral_rank: How many singular triplets `spectrum` holds.
        edge_text: What users wrote, also on edges that the graph does not have: only what is on
            its own edges is read, and kept as `edge_text`.
        device: Where tables and products live.
        seed: Seeds the randomised SVD.
        compact: Leave nodes without edges out of decompositions: much cheaper where they are many,
            and another draw of the random start.
    """

    def __init__(
        self,
        graph: BipartiteGraph,
        item_text: Tensor | None = None,
        *,
        edge_text: EdgeTexts | None = None,
        spectral_rank: int = 64,
        device: torch.device | str = "cpu",
        seed: int = 0,
        compact: bool = False,
    ) -> None:
        self.graph = graph
        self.ranks = graph.ranks
        self.compact = compact
        self.device = torch.device(device)
        self.spectral_rank = spectral_rank
        self.seed = seed
        self.item_text = None if item_text is None else item_text.to(self.device)
        self.edge_text = None if edge_text is None else edge_text.within(graph)
        self._said = None if self.edge_text is None else self.edge_text.to(self.device).centred()
        self.text = start_text(self.item_text, self._said)
        self.user_degrees = torch.from_numpy(graph.user_degrees).float().to(self.device)
        self.item_degrees = torch.from_numpy(graph.item_degrees).float().to(self.device)
        self._propagated: dict[int, tuple[list[Tensor | None], ...]] = {}
        self._components: dict[int, tuple[list[Tensor | None], ...]] = {}
        self._filtered: tuple[tuple[float, float], SparseOperator, Spectrum] | None = None
        self.kept: dict[str, Any] = {}  # what a model computed of this graph, by the model's keys

    def on(self, graph: BipartiteGraph) -> GraphInput:
        """Return the features of another graph of the same nodes."""
        return self._like(graph, self.item_text, self.edge_text)

    def with_text(self, item_text: Tensor | None, edge_vectors: Tensor | None = None) -> GraphInput:
        """Return the features of the same graph with other texts of items.

        Args:
            item_text: (n_items, text_dim).
            edge_vectors: (n_texts, text_dim) instead of those of what users wrote; none without.
        """
        edges = self.edge_text if edge_vectors is not None else None
        if edges is not None and edge_vectors is not None:
            edges = replace(edges, vectors=edge_vectors)
        return self._like(self.graph, item_text, edges)

    def _like(
        self, graph: BipartiteGraph, item_text: Tensor | None, edge_text: EdgeTexts | None
    ) -> GraphInput:
        return GraphInput(
            graph,
            item_text,
            edge_text=edge_text,
            spectral_rank=self.spectral_rank,
            device=self.device,
            seed=self.seed,
            compact=self.compact,
        )

    def check_text(self, text_dim: int) -> None:
        """Check that a model that reads vectors of that length (0: none) can read these.

        Raises:
            ConfigError: They have another length.
        """
        if self.text is not None and text_dim not in (0, self.text.shape[1]):
            raise ConfigError(
                f"this model reads {text_dim}-d text vectors, found {self.text.shape[1]}-d"
            )

    @cached_property
    def adjacency(self) -> SparseOperator:
        """The symmetrically normalised user-item matrix as an operator."""
        return self.operator(self.graph.normalised)

    @cached_property
    def user_mean(self) -> SparseOperator:
        """Mean over a user's items, (n_users, n_items)."""
        return self.operator(self.graph.user_mean)

    @cached_property
    def item_mean(self) -> SparseOperator:
        """Mean over an item's users, (n_items, n_users)."""
        return SparseOperator(self.graph.item_mean, self.device, columns_over=self.ranks)

    def operator(self, matrix: sp.csr_array) -> SparseOperator:
        """Return a (n_users, n_items) matrix as an operator; other ranks have other users."""
        return SparseOperator(matrix, self.device, rows_over=self.ranks)

    def mean_user(self, users: Tensor) -> Tensor:
        """(dim,) mean of the rows of all users, (n_users, dim), weighted by interactions."""
        return self.ranks.sum(self.user_degrees @ users) / max(self.graph.all_edges, 1)

    @cached_property
    def neighbours(self) -> NeighbourSampler:
        """Draws sampled neighbourhoods of this graph; made in O(n_edges)."""
        edges = self.graph.user_items
        return NeighbourSampler(edges, sp.csr_array(edges.T.tocsr()))

    def sample(
        self,
        users: np.ndarray,
        items: np.ndarray,
        fan_out: Sequence[int | None],
        rng: np.random.Generator,
    ) -> Blocks:
        """Draw what the vectors of some nodes are computed from (see `NeighbourSampler.draw`).

        The reference users and `reference_items` are appended to the users and items asked for: on
        them means and scales are estimated that full propagation takes over all nodes.
        """
        users = np.concatenate([users, self.reference_users.cpu().numpy()])
        items = np.concatenate([items, self.reference_items[0].cpu().numpy()])
        return self.neighbours.draw(users, items, fan_out, rng, self.device)

    @cached_property
    def context(self) -> Tensor:
        """(3,) float32, what kind of graph this is, in logs scaled to order one.

        log(1 + mean user degree), log(1 + mean item degree), log(n_items), each over 5.
        """
        g = self.graph
        values = (
            math.log1p(g.all_edges / max(g.all_users, 1)),
            math.log1p(g.all_edges / max(g.n_items, 1)),
            math.log(max(g.n_items, 1)),
        )
        return torch.tensor(values, device=self.device) / 5.0

    @cached_property
    def spectrum(self) -> Spectrum:
        """Leading singular triplets, padded with zeros up to `spectral_rank`.

        See `gnnrec.spectrum`. Cost: O((n_edges + (n_users + n_items) r) r).
        """
        spectrum = self.decompose(self.adjacency)
        return Spectrum(spectrum.user, spectrum.sigma.clamp(0.0, 1.0), spectrum.item)

    def filtered(
        self, user_exponent: float, item_exponent: float
    ) -> tuple[SparseOperator, Spectrum]:
        """A = D_u^-user_exponent R D_i^-item_exponent as an operator, and its leading triplets.

        The last one asked for is kept. Cost: as `spectrum`.
        """
        key = (user_exponent, item_exponent)
        if self._filtered is None or self._filtered[0] != key:
            matrix = self.graph.by_degree(-user_exponent, -item_exponent)
            operator = self.operator(matrix)
            self._filtered = (key, operator, self.decompose(operator))
        return self._filtered[1:]

    def decompose(self, operator: SparseOperator) -> Spectrum:
        """Leading singular triplets of an operator on this graph. Cost: as `spectrum`."""
        if not self.compact:
            return self._svd(operator)
        users, items, connected = self._connected(operator)
        small = self._svd(connected)
        tables = []
        for table, rows, n in (
            (small.user, users, self.graph.n_users),
            (small.item, items, self.graph.n_items),
        ):
            tables.append(table.new_zeros(n, table.shape[1]).index_copy(0, rows, table))
        return Spectrum(tables[0], small.sigma, tables[1])

    def user_map(self, operator: SparseOperator) -> Tensor:
        """(n_items, r) W with A W = U: what gives a row of A its row of `decompose`'s users.

        V / sigma only approaches it, where the iteration has not converged. Columns of singular
        values that are zero have no meaning. Cost: as `spectrum`, which it computes again.
        """
        if not self.compact:
            return self._svd.user_map(operator)
        _, items, connected = self._connected(operator)
        table = self._svd.user_map(connected)
        return table.new_zeros(self.graph.n_items, table.shape[1]).index_copy(0, items, table)

    @property
    def _svd(self) -> TruncatedSVD:
        return TruncatedSVD(self.spectral_rank, self.seed, self.ranks)

    def _connected(self, operator: SparseOperator) -> tuple[Tensor, Tensor, SparseOperator]:
        """The users and items that have edges, and the operator on them alone."""
        users, items = (torch.nonzero(d)[:, 0] for d in (self.user_degrees, self.item_degrees))
        matrix = operator.scipy()[users.cpu().numpy()][:, items.cpu().numpy()]
        return users, items, SparseOperator(sp.csr_array(matrix), self.device)

    def propagated_components(self, n_layers: int) -> tuple[list[Tensor | None], ...]:
        """As `propagated_text`, for the texts' leading principal components on this graph.

        A rotation, so inner products are those of the texts but for the components left out.
        """
        if n_layers not in self._components:
            assert self.text is not None, "the caller checks that there is text"
            vectors = self.ranks.same(principal_axes(self.text))
            basis = vectors[:, -min(_N_COMPONENTS, vectors.shape[1]) :]
            profile = None if self.first_written is None else self.first_written @ basis
            self._components[n_layers] = self._propagate(self.text @ basis, profile, n_layers)
        return self._components[n_layers]

    @cached_property
    def first_written(self) -> Tensor | None:
        """(n_users, text_dim), what users wrote, as LightGCN's first layer adds it up, or None."""
        return None if self._said is None else self._said.user_sums(self.graph.normalised)

    @cached_property
    def mean_written(self) -> Tensor | None:
        """(n_users, text_dim), what a user wrote over the number of the user's items, or None."""
        return None if self._said is None else self._said.user_sums(self.graph.user_mean)

    def _propagate(
        self, items: Tensor, profile: Tensor | None, n_layers: int
    ) -> tuple[list[Tensor | None], ...]:
        if profile is None or n_layers == 0:
            users, tables = propagate(self.adjacency, None, items, n_layers)
        else:
            first = self.adjacency(items) + profile
            later = propagate(self.adjacency, first, None, n_layers - 1)
            users, tables = [None, *later[0]], [items, *later[1]]
        means = [None if table is None else self.mean_user(table) for table in users]
        return users, tables, means

    @cached_property
    def reference_users(self) -> Tensor:
        """(m,) int64, those of 256 users with interactions, or of all if they are fewer.

        Channel scales are measured on them. Other ranks have the others.
        """
        active = np.flatnonzero(self.graph.user_degrees)
        counts = self.ranks.counts(len(active))
        if sum(counts) > _N_REFERENCE:
            rng = numpy_generator(self.seed, "reference")
            drawn = np.sort(rng.choice(sum(counts), _N_REFERENCE, replace=False))
            drawn -= sum(counts[: self.ranks.rank])
            active = active[drawn[(drawn >= 0) & (drawn < len(active))]]
        return torch.from_numpy(active).to(self.device)

    @cached_property
    def reference_items(self) -> tuple[Tensor, Tensor]:
        """(m,) int64, up to 512 items with interactions, and their (m,) float32 weights.

        Their weighted means stand for means over all items weighted by degree. All items and
        their degrees where they are few; otherwise a systematic sample with probabilities
        proportional to degree (Madow 1949), with which such a mean is unbiased. Drawn once from
        the seed, so a batch does not move it.
        """
        degrees = self.graph.item_degrees
        codes = np.flatnonzero(degrees)
        weights = degrees[codes]
        if len(codes) > _N_REFERENCE_ITEMS:
            start = numpy_generator(self.seed, "reference items").random()
            points = (np.arange(_N_REFERENCE_ITEMS) + start) / _N_REFERENCE_ITEMS
            drawn = np.searchsorted(np.cumsum(weights), points * weights.sum(), side="right")
            drawn, weights = np.unique(drawn, return_counts=True)
            codes = codes[drawn]
        return torch.from_numpy(codes).to(self.device), torch.from_numpy(weights).float().to(
            self.device
        )

    @cached_property
    def spectral_user_mean(self) -> Tensor:
        """(r,) interaction-weighted mean of the rows of D_u^1/2 U."""
        return self.mean_user(self.user_degrees.sqrt()[:, None] * self.spectrum.user)

    def propagated_text(self, n_layers: int) -> tuple[list[Tensor | None], ...]:
        """Text after 0..n_layers LightGCN layers: user tables, item tables, mean user rows.

        The mean is weighted by interactions; None stands for a zero table. A message of the first
        layer along an edge that has a text is the item's text plus the edge's: so what a user wrote
        is part of the user, and later of the user's items. LightGCN's layers are linear, so a
        projection applied before them equals the same projection applied to these tables: training
        then needs no propagation at all.
        """
        if n_layers not in self._propagated:
            assert self.text is not None, "the caller checks that there is text"
            self._propagated[n_layers] = self._propagate(self.text, self.first_written, n_layers)
        return self._propagated[n_layers]


def centre_text(vectors: Tensor) -> Tensor:
    """Subtract the catalogue's mean vector and rescale rows to length one; zero rows stay zero.

    What all items of a catalogue share ("this is a film") says nothing about which of them a user
    wants, and differs between catalogues.

    Args:
        vectors: (n_items, text_dim) float32.
    """
    present = vectors.abs().sum(dim=1) > 0
    if int(present.sum()) < 2:  # one text minus its own mean would be nothing
        return vectors
    centred = vectors - vectors[present].mean(dim=0)
    return torch.nn.functional.normalize(centred, dim=1) * present[:, None]


def start_text(item_text: Tensor | None, said: EdgeTexts | None) -> Tensor | None:
    """Return what the items' text is before any layer: their own, and what users wrote of them.

    Unit rows of own + WEIGHT * mean of the edges' texts, either of them centred among its like; an
    item without an own text has the mean alone, one that nobody wrote of its own text alone.

    Args:
        item_text: (n_items, text_dim) float32 as they came, or None.
        said: The centred texts of the graph's edges, or None.
    """
    own = None if item_text is None else centre_text(item_text)
    if said is None:
        return own
    means = said.item_means()
    if own is None:
        return torch.nn.functional.normalize(means, dim=1)
    both = torch.nn.functional.normalize(own + edge_texts.WEIGHT * means, dim=1)
    return torch.where((means != 0).any(dim=1, keepdim=True), both, own)


def text_table(vectors: np.ndarray | None, n_items: int) -> Tensor | None:
    """Turn an array into the float32 table that `GraphInput` takes, checking its height."""
    if vectors is None:
        return None
    assert len(vectors) == n_items, f"{len(vectors)} text vectors for {n_items} items"
    return torch.from_numpy(np.ascontiguousarray(vectors, dtype=np.float32))
