"""Adapting a pretrained model to a target graph: what is frozen, what is trained, on which edges."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gnnrec.checkpoint import Checkpoint
from gnnrec.config import TransferConfig, parse_retrain
from gnnrec.device import derive_seed, numpy_generator
from gnnrec.features import GraphInput
from gnnrec.graph import BipartiteGraph
from gnnrec.model import Model
from gnnrec.sampling import Episode, folds
from gnnrec.train import TrainResult, fit, held_out_loss


@dataclass(frozen=True)
class Target:
    """A target's edges as codes, with room for items and users that have no edge yet.

    Attributes:
        users: (n,) int64.
        items: (n,) int64.
        item_text: (n_items, text_dim) float32 tensor, or None.
    """

    users: np.ndarray
    items: np.ndarray
    n_users: int
    n_items: int
    item_text: Tensor | None = None

    def graph_input(
        self,
        rows: np.ndarray | slice = slice(None),
        *,
        rank: int = 64,
        device: torch.device | str = "cpu",
    ) -> GraphInput:
        """Return the graph of some of the rows (all by default) with its features."""
        graph = BipartiteGraph(self.users[rows], self.items[rows], self.n_users, self.n_items)
        return GraphInput(graph, self.item_text, spectral_rank=rank, device=device)


@dataclass(frozen=True)
class Adapted:
    """A model adapted to a target, and the names of the parameters that were trained."""

    model: Model
    trained: list[str]
    result: TrainResult


def adapt(
    checkpoint: Checkpoint,
    target: Target,
    train: np.ndarray,
    validation: np.ndarray,
    config: TransferConfig,
    *,
    device: torch.device | str = "cpu",
    log: Path | None = None,
    fixed_steps: int | None = None,
) -> Adapted:
    """Adapt a checkpoint on a target's training rows.

    The training rows are cut into folds; each step hides one fold from message passing and learns
    to rank it. Validation rows choose the step; with `fixed_steps` there is no choice and every
    row can be used (a refit).

    Args:
        checkpoint: The pretrained model; scratch takes only its architecture.
        target: The target.
        train: Row indices to train on.
        validation: Row indices that choose the step; ignored with fixed_steps.
        config: Retraining mode, loop settings, seed.
        device: Where to train.
        log: JSON lines of the evaluations go here.
        fixed_steps: Train exactly so many steps.

    Returns:
        The adapted model. Parameters that are not in `trained` have the checkpoint's bits.
    """
    retrain, n_layers = parse_retrain(config.retrain)
    torch.manual_seed(derive_seed(config.seed, "model"))
    trains = retrain != "zero-shot" and fixed_steps != 0
    model = checkpoint.model(
        target.n_items if retrain != "zero-shot" else None, pretrained=retrain != "scratch"
    ).to(device)
    trained = model.trained_parameters(retrain, n_layers)
    rank = checkpoint.config.spectral_rank
    parts = folds(
        target.users[train],
        target.items[train],
        target.n_users,
        target.n_items,
        config.n_folds,
        numpy_generator(config.seed, "folds"),
    )
    if not trains or not parts or (fixed_steps is None and not len(validation)):
        return Adapted(model.eval(), trained, TrainResult())
    episodes = [
        Episode(
            GraphInput(graph, target.item_text, spectral_rank=rank, device=device), users, items
        )
        for graph, users, items in parts
    ]
    settings = config.train
    evaluate: Callable[[Model], float] | None = None
    if fixed_steps is None:
        visible = target.graph_input(train, rank=rank, device=device)
        held_out = Episode(visible, target.users[validation], target.items[validation])
        evaluate = functools.partial(held_out_loss, episode=held_out)
    else:
        settings = settings.model_copy(update={"max_steps": fixed_steps})
    order = numpy_generator(config.seed, "order").integers(0, len(episodes), settings.max_steps)
    result = fit(
        model,
        lambda step: episodes[order[step]],
        trained,
        evaluate,
        settings,
        numpy_generator(config.seed, "batches"),
        log=log,
        label=config.retrain,
    )
    return Adapted(model.eval(), trained, result)
