"""Pretraining: one or several source graphs -> a model that runs on a graph it never saw."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from gnnrec.blend import ChannelBlend
from gnnrec.calibrate import pretrain_blend
from gnnrec.config import PretrainConfig, TrainConfig
from gnnrec.device import derive_seed, numpy_generator
from gnnrec.episodes import MIN_EDGES, Source, sample_episode
from gnnrec.errors import ConfigError, DataError
from gnnrec.features import GraphInput
from gnnrec.filters import GraphFilter
from gnnrec.graph import BipartiteGraph
from gnnrec.loop import TrainResult
from gnnrec.model import Transferable, build_model
from gnnrec.ncf import NCF, NeuMF
from gnnrec.ranks import current
from gnnrec.retrain import Retrainable
from gnnrec.sampling import Episode
from gnnrec.search import MAX_SEARCH_USERS, HeldOut, search
from gnnrec.split import carve_validation
from gnnrec.train import check_together, fit, held_out_loss

_SEARCHED_SHARE = 0.1  # of a source's edges, on which a graph filter is chosen


def pretrain(
    sources: list[Source],
    config: PretrainConfig,
    *,
    device: torch.device | str = "cpu",
    log: Path | None = None,
) -> tuple[Transferable, TrainResult]:
    """Train a model on random sub-graphs of the sources, whose supervised edges are hidden.

    A target is usually smaller and sparser than a source, so the model meets graphs of many sizes
    and densities (`sample_episode`), a fresh one every few steps. Episodes of their own choose the
    best step.

    Raises:
        DataError: A source has fewer than 50 interactions.
        ConfigError: The encoder has nothing that could be carried to another graph.
    """
    for source in sources:
        if len(source.users) < MIN_EDGES:
            raise DataError(
                f"source {source.name}: found {len(source.users)} interactions, expected at least "
                f"{MIN_EDGES} to pretrain on"
            )
    if config.model.text_layers and not config.model.text_dim:
        raise ConfigError(
            "model.text_layers are those of a text model; expected 0 with --no-text, or item texts"
        )
    if config.model.encoder == "two-tower" and not config.model.text_dim:
        raise ConfigError(
            "two-tower reads nothing but text: leave out --no-text, give --items, or pretrain "
            "another encoder"
        )
    if config.model.encoder in NCF and not config.model.text_dim:
        raise ConfigError(
            f"{config.model.encoder} without text has only ids to make embeddings from, which no "
            "other graph shares: leave out --no-text, or pretrain another encoder"
        )
    check_together(
        current(),
        config.model.encoder,
        written=any(source.edge_text is not None for source in sources),
        text_layers=config.model.text_layers,
    )
    torch.manual_seed(derive_seed(config.seed, "model"))
    model = build_model(config.model).to(device)
    if isinstance(model, GraphFilter):
        return _pretrain_filter(model, sources, config, device, log)
    if isinstance(model, ChannelBlend):
        return pretrain_blend(model, sources, config, device, log)

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

    def fitted(part: Retrainable, settings: TrainConfig, label: str) -> TrainResult:
        return fit(
            part,
            lambda step: training(step // config.steps_per_episode),
            part.trained_parameters("full"),
            _mean_loss(validation),
            settings,
            numpy_generator(config.seed, "batches"),
            log=log,
            label=label,
            decay_learning_rate=True,
        )

    if isinstance(model, NeuMF) and config.model.encoder == "neumf":
        return _pretrain_neumf(model, config, fitted)
    return model.eval(), fitted(model, config.train, "pretraining")


def _pretrain_neumf(
    model: NeuMF,
    config: PretrainConfig,
    fitted: Callable[[Retrainable, TrainConfig, str], TrainResult],
) -> tuple[NeuMF, TrainResult]:
    """Train a product and a tower alone, then both together from there.

    He et al. 2017, section 3.4.1. Each of the three takes a third of the steps, so that the whole
    has the budget of any other model.
    """
    third = -(-config.train.max_steps // 3)
    settings = config.train.model_copy(update={"max_steps": third})
    device = next(model.parameters()).device
    parts, results = {}, []
    for name in ("gmf", "mlp"):
        part = build_model(config.model.model_copy(update={"encoder": name})).to(device)
        assert isinstance(part, NeuMF)
        results.append(fitted(part, settings, f"pretraining {name}"))
        parts[name] = part
    model.take(parts)
    result = fitted(model, settings, "pretraining")
    result.history = [record for r in (*results, result) for record in r.history]
    result.steps += sum(r.steps for r in results)
    result.seconds += sum(r.seconds for r in results)
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


def _mean_loss(episodes: list[Episode]) -> Callable[[Retrainable], float]:
    def evaluate(model: Retrainable) -> float:
        return float(np.mean([held_out_loss(model, e, max_edges=2000) for e in episodes]))

    return evaluate
