"""Pretraining: one or several source graphs -> a model that runs on a graph it never saw."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from gnnrec.config import PretrainConfig
from gnnrec.device import derive_seed, numpy_generator
from gnnrec.errors import DataError
from gnnrec.features import GraphInput, text_table
from gnnrec.graph import BipartiteGraph
from gnnrec.model import Model
from gnnrec.sampling import Episode
from gnnrec.train import TrainResult, fit, held_out_loss

_MIN_EDGES = 50


@dataclass(frozen=True)
class Source:
    """A source graph: its edges as codes, and the text vectors of its items, if it has any."""

    name: str
    users: np.ndarray
    items: np.ndarray
    n_users: int
    n_items: int
    item_text: np.ndarray | None


def pretrain(
    sources: list[Source],
    config: PretrainConfig,
    *,
    device: torch.device | str = "cpu",
    log: Path | None = None,
) -> tuple[Model, TrainResult]:
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
    model = Model(config.model).to(device)

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

    Users: a random subset, its size log-uniform. Items: a random share, in half of the draws.
    Popularity: in `thinned_share` of the draws each item loses edges down to a random power law;
    some public logs were capped at so many interactions an item, and a model that meets only
    these learns that popularity means nothing. Visible share: log-uniform in
    [keep_low, keep_high].
    """
    low, high = min(config.min_users, source.n_users), min(config.max_users, source.n_users)
    n_users = round(math.exp(rng.uniform(math.log(low), math.log(high))))
    chosen = np.zeros(source.n_users, dtype=bool)
    chosen[rng.permutation(source.n_users)[:n_users]] = True
    keep = chosen[source.users]
    if rng.random() < 0.5:
        keep &= (rng.random(source.n_items) < rng.uniform(0.1, 1.0))[source.items]
    if rng.random() < config.thinned_share:
        rank = rng.permutation(source.n_items) + 1.0
        share = rank ** -rng.uniform(0.0, 1.5)
        share /= np.quantile(share, 0.99)
        keep &= rng.random(len(keep)) < share[source.items]
    excess = keep.sum() / config.max_edges
    if excess > 1:
        keep &= rng.random(len(keep)) < 1.0 / excess
    if keep.sum() < _MIN_EDGES:  # too thin a draw: any edges, as many as may be taken
        keep = np.zeros(len(source.users), dtype=bool)
        keep[rng.permutation(len(keep))[: config.max_edges]] = True
    users, n_users = _compact(source.users[keep])
    raw_items = np.unique(source.items[keep])
    items, n_items = np.searchsorted(raw_items, source.items[keep]), len(raw_items)
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
            BipartiteGraph(users[visible], items[visible], n_users, n_items),
            text_table(text, n_items),
            spectral_rank=config.model.spectral_rank,
            device=device,
            seed=config.seed,
        ),
        users[hidden][order],
        items[hidden][order],
    )


def _compact(codes: np.ndarray) -> tuple[np.ndarray, int]:
    unique, inverse = np.unique(codes, return_inverse=True)
    return inverse.astype(np.int64), len(unique)
