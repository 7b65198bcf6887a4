"""Pretraining: one or several source graphs -> a model that runs on a graph it never saw."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from gnnrec.config import PretrainConfig
from gnnrec.device import derive_seed, numpy_generator
from gnnrec.errors import DataError
from gnnrec.features import GraphInput, text_table
from gnnrec.filters import GraphFilter
from gnnrec.graph import BipartiteGraph
from gnnrec.model import Model, build_model
from gnnrec.sampling import Episode
from gnnrec.search import MAX_SEARCH_USERS, HeldOut, search
from gnnrec.split import carve_validation
from gnnrec.train import TrainResult, fit, held_out_loss

_MIN_EDGES = 50
_SEARCHED_SHARE = 0.1  # of a source's edges, on which a graph filter is chosen


@dataclass(frozen=True)
class Source:
    """A source graph: its edges as codes, and the text vectors of its items, if it has any.

    A pair that is there twice is one edge.
    """

    name: str
    users: np.ndarray
    items: np.ndarray
    n_users: int
    n_items: int
    item_text: np.ndarray | None

    @cached_property
    def graph(self) -> BipartiteGraph:
        """The edges by user, made once: episodes take rows of it."""
        return BipartiteGraph(self.users, self.items, self.n_users, self.n_items)


def pretrain(
    sources: list[Source],
    config: PretrainConfig,
    *,
    device: torch.device | str = "cpu",
    log: Path | None = None,
) -> tuple[Model | GraphFilter, TrainResult]:
    """Train a model on random sub-graphs of the sources, whose supervised edges are hidden.

    A target is usually smaller and sparser than a source, so the model meets graphs of many sizes
    and densities (`sample_episode`), a fresh one every few steps. Episodes of their own choose the
    best step.

    Raises:
        DataError: A source has fewer than 50 interactions.
    """
    for source in sources:
        if len(source.users) < _MIN_EDGES:
            raise DataError(
                f"source {source.name}: found {len(source.users)} interactions, expected at least "
                f"{_MIN_EDGES} to pretrain on"
            )
    torch.manual_seed(derive_seed(config.seed, "model"))
    model = build_model(config.model).to(device)
    if isinstance(model, GraphFilter):
        return _pretrain_filter(model, sources, config, device, log)

    def episode(purpose: str, number: int) -> Episode:
        rng = numpy_generator(config.seed, purpose, number)
        return sample_episode(sources[number % len(sources)], config, rng, device=device)

    validation = [
        episode("validation", number)
        for number in tqdm(range(config.n_validation_episodes), desc="sampling sub-graphs", delay=1)
    ]

    @functools.lru_cache(maxsize=1)  # only the current one is in memory
    def training(number: int) -> Episode:
        return episode("training", number)

    result = fit(
        model,
        lambda step: training(step // config.steps_per_episode),
        model.trained_parameters("full"),
        _mean_loss(validation),
        config.train,
        numpy_generator(config.seed, "batches"),
        log=log,
        label="pretraining",
        decay_learning_rate=True,
    )
    return model.eval(), result


def _pretrain_filter(
    model: GraphFilter,
    sources: list[Source],
    config: PretrainConfig,
    device: torch.device | str,
    log: Path | None,
) -> tuple[GraphFilter, TrainResult]:
    """Choose a filter's numbers on interactions hidden from each whole source graph."""
    parts = []
    for source in sources:
        rows = np.arange(len(source.users))
        visible, hidden = carve_validation(rows, _SEARCHED_SHARE, config.seed)
        graph = BipartiteGraph(
            source.users[visible], source.items[visible], source.n_users, source.n_items
        )
        rank = config.model.spectral_rank
        x = GraphInput(graph, spectral_rank=rank, device=device, seed=config.seed)
        part = HeldOut(x, source.users[hidden], source.items[hidden])
        parts.append(part.some_users(MAX_SEARCH_USERS, config.seed))
    names = model.trained_parameters("full")
    result = search(model, names, parts, config.search_evaluations, log=log, label="pretraining")
    return model.eval(), result


def _mean_loss(episodes: list[Episode]) -> Callable[[Model], float]:
    def evaluate(model: Model) -> float:
        return float(np.mean([held_out_loss(model, e, max_edges=2000) for e in episodes]))

    return evaluate


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
    keep = np.ones(len(item), dtype=bool)
    if rng.random() < 0.5:
        keep &= (rng.random(len(present)) < rng.uniform(0.1, 1.0))[item]
    if rng.random() < config.thinned_share:
        keep &= rng.random(len(keep)) < _thinning(len(present), source.n_items, rng)[item]
    excess = keep.sum() / config.max_edges
    if excess > 1:
        keep &= rng.random(len(keep)) < 1.0 / excess
    if keep.sum() < _MIN_EDGES:  # too thin a draw: any edges, as many as may be taken
        rows = source.graph.user_items
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
    order = rng.permutation(int(hidden.sum()))
    return Episode(
        GraphInput(
            BipartiteGraph(users[visible], items[visible], len(raw_users), len(raw_items)),
            text_table(text, len(raw_items)),
            spectral_rank=config.model.spectral_rank,
            device=device,
            seed=config.seed,
        ),
        users[hidden][order],
        items[hidden][order],
    )


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
