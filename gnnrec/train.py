"""Training on episodes: the loss of a batch, what is trained on it, the loss on held-out edges."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gnnrec.config import TrainConfig, check_fan_out
from gnnrec.errors import ConfigError
from gnnrec.heads import IdTables
from gnnrec.loop import TrainResult, optimise
from gnnrec.losses import binary_loss, bpr_loss, softmax_loss
from gnnrec.ranks import ALONE, Ranks, current
from gnnrec.retrain import Retrainable
from gnnrec.sampling import Batch, Episode, collisions
from gnnrec.scores import Differentiable


def batch_loss(model: Retrainable, episode: Episode, batch: Batch, config: TrainConfig) -> Tensor:
    """Loss of one batch on an episode: vectors from the visible graph, then scores.

    With several ranks it is this rank's part of it, and the parts add up to the loss.

    Rows are taken with index_select, whose backward is a multi-threaded index_add. Only the
    batch's users are computed where the encoder's layers allow it, and with `batch.blocks` only
    the batch's items too.
    """
    vectors = model(episode.input, batch.users, batch.blocks)
    users, items = vectors.users, vectors.items
    if batch.blocks is None:
        items = items.index_select(0, torch.cat([batch.items, batch.negatives]))
    positives, negatives = items.split([len(batch.items), len(batch.negatives)])
    positive = (users * positives).sum(dim=1)
    negative = users @ negatives.T
    if isinstance(vectors.part, Differentiable):
        positive = positive + vectors.part.pairs(batch.items)
        negative = negative + vectors.part.table(batch.negatives)
    if config.loss == "bpr":
        n_pairs = episode.input.ranks.total(int((~batch.known).sum()))[0]
        return bpr_loss(positive, negative, batch.known, round(n_pairs))
    if config.loss == "binary":
        return binary_loss(positive, negative, batch.known, batch.n_edges)
    n_items = episode.input.graph.n_items
    return softmax_loss(positive, negative, batch.known, n_items, batch.n_edges)


def fit(
    model: Retrainable,
    episode_of: Callable[[int], Episode],
    trained: list[str],
    evaluate: Callable[[Retrainable], float] | None,
    config: TrainConfig,
    rng: np.random.Generator,
    *,
    log: Path | None = None,
    label: str = "training",
    decay_learning_rate: bool = False,
) -> TrainResult:
    """Train the named parameters in place and leave the best ones, by `evaluate`, in the model.

    The starting parameters are a candidate too: training that helps nothing changes nothing.
    `pull_to_start` penalises the squared distance from them (L2-SP, Li et al. 2018), which for a
    transferred model is the pretrained point and for a fresh one its initialisation: one rule for
    all arms.

    Args:
        model: Trained in place.
        episode_of: Step number -> the episode it trains on.
        trained: Names of the parameters to train; all others keep their bits.
        evaluate: Lower is better; called without gradients. None runs all steps and keeps the
            last parameters (a refit whose number of steps is known).
        config: See `TrainConfig`.
        rng: Draws edges and negatives.
        log: Append one JSON line per evaluation here.
        label: Shown on the progress bar.
        decay_learning_rate: Cosine decay to zero over max_steps.

    Raises:
        GnnrecError: The loss is not finite.
        ConfigError: `config.fan_out` does not suit the model.
    """
    check_fan_out(model.config, config)

    def loss_of(step: int) -> Tensor:
        episode = episode_of(step)
        batch = episode.batch(
            config.batch_size, config.n_negatives, config.user_balance, rng, config.fan_out
        )
        return batch_loss(model, episode, batch, config)

    ranks = current()
    if not ranks.alone and config.fan_out:
        raise ConfigError(
            "train.fan_out: found a fan-out with several processes, each of which has the edges of "
            "some users; leave it out, or train with one process"
        )
    tables = [module for module in model.modules() if isinstance(module, IdTables)]
    for table in tables:
        table.share(ranks)
    try:
        return optimise(
            model,
            loss_of,
            trained,
            evaluate,
            config,
            log=log if ranks.rank == 0 else None,
            label=label,
            decay_learning_rate=decay_learning_rate,
            depths=model.depths(trained),
            rng=rng,
            ranks=ranks,
        )
    finally:
        for table in tables:
            table.share(ALONE)


def check_together(
    ranks: Ranks, encoder: str, *, written: bool = False, text_layers: int = 0
) -> None:
    """Check that several processes can share the training of a model.

    Args:
        ranks: Who takes part.
        encoder: Of the model.
        written: Whether it reads texts that users wrote.
        text_layers: Layers of the text encoder to retrain.

    Raises:
        ConfigError: They cannot.
    """
    if ranks.alone:
        return
    found = ""
    if encoder in ("channels", "graph-filter"):
        found = f"the encoder {encoder}, which fits a handful of numbers without steps to share"
    elif text_layers:
        found = "layers of a text encoder to retrain"
    elif written:
        found = "a log with a text column"
    if found:
        raise ConfigError(
            f"torchrun: found {found}; expected lightgcn, graphsage, gmf, mlp, neumf or two-tower "
            "on item texts; leave it out, or train with one process"
        )


def held_out_loss(
    model: Retrainable, episode: Episode, *, max_edges: int = 4000, chunk: int = 512
) -> float:
    """Mean -log softmax over the whole catalogue of an episode's hidden edges.

    The user's other positives are left out of the sum, as ranking leaves them out. Smoother than
    a ranking metric on the few hundred validation edges of a small target.
    Cost: O(edges n_items dim), one chunk of scores in memory.
    """
    total, count = 0.0, min(len(episode.users), max_edges)
    all_items = np.arange(episode.input.graph.n_items)
    for begin in range(0, count, chunk):
        part = slice(begin, min(begin + chunk, count))
        users, items = episode.local(episode.users[part], episode.items[part])
        known = torch.from_numpy(collisions(episode.known, users, all_items)).to(
            episode.input.device
        )
        user_index = torch.from_numpy(users).to(episode.input.device)
        item_index = torch.from_numpy(items).to(episode.input.device)
        vectors = model(episode.input, user_index)
        scores = vectors.rows(0, len(users))
        positive = scores.gather(1, item_index[:, None])[:, 0]
        others = scores.masked_fill(known, -torch.inf)
        losses = torch.logsumexp(torch.cat([positive[:, None], others], 1), 1) - positive
        total += float(losses.sum())
    return episode.input.ranks.total(total)[0] / max(count, 1)
