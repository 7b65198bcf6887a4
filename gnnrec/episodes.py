"""Sub-graphs of a source on which a model is pretrained, some of their edges hidden."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from gnnrec.config import PretrainConfig
from gnnrec.edge_texts import EdgeTexts
from gnnrec.features import GraphInput, text_table
from gnnrec.graph import BipartiteGraph, graph_of
from gnnrec.ranks import current
from gnnrec.sampling import Episode

MIN_EDGES = 50


@dataclass(frozen=True)
class Source:
    """A source graph: its edges as codes, the text vectors of its items and what users wrote.

    A pair that is there twice is one edge.
    """

    name: str
    users: np.ndarray
    items: np.ndarray
    n_users: int
    n_items: int
    item_text: np.ndarray | None
    edge_text: EdgeTexts | None = None

    @cached_property
    def graph(self) -> BipartiteGraph:
        """The edges by user, made once: episodes take rows of it."""
        return BipartiteGraph(self.users, self.items, self.n_users, self.n_items)


def sample_episode(
    source: Source,
    config: PretrainConfig,
    rng: np.random.Generator,
    *,
    device: torch.device | str = "cpu",
) -> Episode:
    """Draw a sub-graph of a source and hide most or few of its edges.

    Users: a random subset, its size log-uniform in [min_users, max_users]. Items: a random share,
    in half of the draws. Popularity: in `thinned_share` of the draws each item loses edges down to
    a random power law over all items of the source; some public logs were capped at so many
    interactions an item, and a model that meets only these learns that popularity means nothing.
    Edges: a random `max_edges` of what is left, about. Visible share: log-uniform in
    [keep_low, keep_high].

    Cost: O(edges of the chosen users) beside the sub-graph itself, however large the source is;
    its `graph` is made with the first episode.
    """
    low, high = min(config.min_users, source.n_users), min(config.max_users, source.n_users)
    n_users = round(math.exp(rng.uniform(math.log(low), math.log(high))))
    chosen = rng.choice(source.n_users, n_users, replace=False, shuffle=False)
    rows = source.graph.user_items[np.sort(chosen)]
    present, item = np.unique(rows.indices, return_inverse=True)
    keep, shares = np.ones(len(item), dtype=bool), np.ones(source.n_items)
    if rng.random() < 0.5:
        keep &= (rng.random(len(present)) < rng.uniform(0.1, 1.0))[item]
    if rng.random() < config.thinned_share:
        shares[present] = _thinning(len(present), source.n_items, rng)
        keep &= rng.random(len(keep)) < shares[present[item]]
    excess = keep.sum() / config.max_edges
    if excess > 1:
        keep &= rng.random(len(keep)) < 1.0 / excess
    if keep.sum() < MIN_EDGES:  # too thin a draw: any edges, as many as may be taken
        rows, shares = source.graph.user_items, np.ones(source.n_items)
        keep = rng.choice(rows.nnz, min(config.max_edges, rows.nnz), replace=False, shuffle=False)
    else:
        keep = np.flatnonzero(keep)
    raw_users, users = np.unique(
        np.searchsorted(rows.indptr, keep, side="right"), return_inverse=True
    )
    raw_items, items = np.unique(rows.indices[keep], return_inverse=True)
    visible_share = math.exp(rng.uniform(math.log(config.keep_low), math.log(config.keep_high)))
    visible = rng.random(len(users)) < visible_share
    visible[rng.integers(len(visible))] = True
    hidden = ~visible
    hidden[rng.integers(len(hidden))] = True
    hidden &= ~visible
    if not hidden.any():
        visible[0], hidden[0] = False, True
    text = None if source.item_text is None else source.item_text[raw_items]
    whole = len(rows.indptr) == source.n_users + 1
    user_codes = raw_users - 1 if whole else np.sort(chosen)[raw_users - 1]
    written = source.edge_text
    order = rng.permutation(int(hidden.sum()))
    episode = Episode(
        GraphInput(
            graph_of(users[visible], items[visible], len(raw_users), len(raw_items), current()),
            text_table(text, len(raw_items)),
            edge_text=None if written is None else written.part(user_codes, raw_items),
            spectral_rank=config.model.spectral_rank,
            device=device,
            seed=config.seed,
        ),
        users[hidden][order],
        items[hidden][order],
    )
    episode.user_codes = user_codes
    episode.item_codes, episode.item_shares = raw_items, np.minimum(shares[raw_items], 1.0)
    return episode


def _thinning(n: int, n_items: int, rng: np.random.Generator) -> np.ndarray:
    """Shares of their edges that n of n_items items keep: rank ** -a, the top percent all.

    Ranks are distinct and random over all items; only those of the n items are drawn.
    """
    ranks = rng.choice(n_items, n, replace=False) + 1.0
    exponent = rng.uniform(0.0, 1.5)
    # What np.quantile(shares of all n_items, 0.99) returns: between two neighbouring ranks.
    last = 1.0 + 0.01 * (n_items - 1)
    around = np.array([math.floor(last), math.floor(last) + 1.0])
    shares: np.ndarray = (ranks**-exponent) / np.interp(last, around, around**-exponent)
    return shares
