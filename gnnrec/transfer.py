"""Adapting a pretrained model to a target graph: what is frozen, what is trained, and on what."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gnnrec.blend import ChannelBlend
from gnnrec.calibrate import weigh
from gnnrec.checkpoint import Checkpoint
from gnnrec.config import TransferConfig, parse_retrain
from gnnrec.device import derive_seed, numpy_generator
from gnnrec.edge_texts import EdgeTexts
from gnnrec.features import GraphInput
from gnnrec.filters import GraphFilter
from gnnrec.graph import BipartiteGraph
from gnnrec.model import Transferable
from gnnrec.retrain import Retrainable
from gnnrec.sampling import Episode, folds
from gnnrec.search import MAX_SEARCH_USERS, HeldOut, search
from gnnrec.train import TrainResult, fit, held_out_loss


@dataclass(frozen=True)
class Target:
    """A target's edges as codes, with room for items and users that have no edge yet.

    Attributes:
        users: (n,) int64.
        items: (n,) int64.
        item_text: (n_items, text_dim) float32 tensor, or None.
        text_codes: (n,) int64, the row of `text_vectors` that is an edge's text, -1 without.
        text_vectors: (n_texts, text_dim) float32 tensor of what users wrote, or None.
        kept: What `adapt` can use again when it is called with the same rows, as the arms of a
            comparison do.
    """

    users: np.ndarray
    items: np.ndarray
    n_users: int
    n_items: int
    item_text: Tensor | None = None
    text_codes: np.ndarray | None = None
    text_vectors: Tensor | None = None
    kept: dict[str, Any] = field(init=False, default_factory=dict, compare=False, repr=False)

    def graph_input(
        self,
        rows: np.ndarray | slice = slice(None),
        *,
        rank: int = 64,
        device: torch.device | str = "cpu",
    ) -> GraphInput:
        """Return the graph of some of the rows (all by default) with its features."""
        graph = BipartiteGraph(self.users[rows], self.items[rows], self.n_users, self.n_items)
        return self.input_of(graph, rank, device)

    def input_of(
        self, graph: BipartiteGraph, rank: int, device: torch.device | str = "cpu"
    ) -> GraphInput:
        """Return a graph of the same nodes with the target's features."""
        return GraphInput(
            graph, self.item_text, edge_text=self.edge_text, spectral_rank=rank, device=device
        )

    @cached_property
    def edge_text(self) -> EdgeTexts | None:
        """What users wrote on all edges; a graph's features hold those of its own edges alone."""
        if self.text_vectors is None or self.text_codes is None:
            return None
        shape = self.n_users, self.n_items
        return EdgeTexts.of(self.users, self.items, self.text_codes, self.text_vectors, shape)


@dataclass(frozen=True)
class Adapted:
    """A model adapted to a target.

    Attributes:
        model: In evaluation mode.
        trained: Names of the parameters that the retraining mode trains.
        stages: What each stage of the training did; none where nothing was trained.
        choice: What a guard kept, transferred or scratch; empty without one.
    """

    model: Transferable
    trained: list[str]
    stages: tuple[TrainResult, ...] = ()
    choice: str = ""

    @property
    def steps(self) -> int:
        """Optimiser steps, over all stages."""
        return sum(stage.steps for stage in self.stages)

    @property
    def best_steps(self) -> tuple[int, ...]:
        """The step that each stage kept: what a refit repeats."""
        return tuple(stage.best_step for stage in self.stages)

    @property
    def seconds(self) -> float:
        """Training time, over all stages."""
        return sum(stage.seconds for stage in self.stages)

    def count_parameters(self) -> dict[str, int]:
        """See `Retrainable.count_parameters`; nothing counts as trained where no step was made."""
        return self.model.count_parameters(self.trained if self.steps else [])


def adapt(
    checkpoint: Checkpoint,
    target: Target,
    train: np.ndarray,
    validation: np.ndarray,
    config: TransferConfig,
    *,
    device: torch.device | str = "cpu",
    log: Path | None = None,
    fixed_steps: tuple[int, ...] | None = None,
) -> Adapted:
    """Adapt a checkpoint on a target's training rows.

    The training rows are cut into folds; each step hides one fold from message passing and learns
    to rank it. Two stages: first the few numbers that act on every score (`config.calibrate`), then
    all that the mode retrains (`config.train`). Validation rows choose each stage's step, its
    start included; with `fixed_steps` there is no choice and every row can be used (a refit).

    A graph filter has no folds and no stages: its numbers are searched on the validation rows.

    Args:
        checkpoint: The pretrained model; scratch takes only its architecture.
        target: The target.
        train: Row indices to train on.
        validation: Row indices that choose the steps; ignored with fixed_steps.
        config: Retraining mode, loop settings, seed.
        device: Where to train.
        log: JSON lines of the evaluations go here.
        fixed_steps: Train exactly so many steps in each stage; empty trains nothing.

    Returns:
        The adapted model. Parameters that are not in `trained` have the checkpoint's bits, but for
        those that are new on a target (`Retrainable.load_pretrained`).
    """
    retrain, n_layers = parse_retrain(config.retrain)
    torch.manual_seed(derive_seed(config.seed, "model"))
    model = checkpoint.model(
        target.n_items if retrain != "zero-shot" else None, pretrained=retrain != "scratch"
    ).to(device)
    trained = model.trained_parameters(retrain, n_layers)
    rank = checkpoint.config.spectral_rank
    if isinstance(model, GraphFilter):
        result = TrainResult()
        if len(train) and len(validation) and fixed_steps is None:
            seen = target.graph_input(train, rank=rank, device=device)
            part = HeldOut(seen, target.users[validation], target.items[validation])
            part = part.some_users(MAX_SEARCH_USERS, config.seed)
            result = search(model, trained, [part], config.search_evaluations, log=log)
        return Adapted(model.eval(), trained, (result,) if result.steps else ())
    episodes = [
        Episode(target.input_of(graph, rank, device), users, items)
        for graph, users, items in folds(
            target.users[train],
            target.items[train],
            target.n_users,
            target.n_items,
            config.n_weigh_folds if isinstance(model, ChannelBlend) else config.n_folds,
            numpy_generator(config.seed, "folds"),
        )
    ]
    if isinstance(model, ChannelBlend):
        return _weighed(checkpoint, model, target, (train, validation), trained, episodes, config)
    can_choose = fixed_steps is not None or len(validation) > 0
    nothing = fixed_steps is not None and not any(fixed_steps)
    if not trained or not episodes or not can_choose or nothing:
        return Adapted(model.eval(), trained)
    evaluate: Callable[[Retrainable], float] | None = None
    if fixed_steps is None:
        visible = target.graph_input(train, rank=rank, device=device)
        # Shuffled: where there are many, the loss is taken on the first few thousand.
        rows = numpy_generator(config.seed, "validation").permutation(validation)
        held_out = Episode(visible, target.users[rows], target.items[rows])
        evaluate = functools.partial(held_out_loss, episode=held_out)
    stages = []
    for number, (settings, names) in enumerate(
        ((config.calibrate, type(model).calibrating(trained)), (config.train, trained))
    ):
        if fixed_steps is not None:
            if fixed_steps[number] == 0:
                stages.append(TrainResult())
                continue
            settings = settings.model_copy(update={"max_steps": fixed_steps[number]})
        order = numpy_generator(config.seed, "order", number)
        numbers = order.integers(0, len(episodes), settings.max_steps)
        stages.append(
            fit(
                model,
                lambda step, numbers=numbers: episodes[numbers[step]],  # type: ignore[misc]
                names,
                evaluate,
                settings,
                numpy_generator(config.seed, "batches", number),
                log=log,
                label=f"{config.retrain} {('calibrating', 'training')[number]}",
            )
        )
    return Adapted(model.eval(), trained, tuple(stages))


def _weighed(
    checkpoint: Checkpoint,
    model: ChannelBlend,
    target: Target,
    rows: tuple[np.ndarray, np.ndarray],
    trained: list[str],
    episodes: list[Episode],
    config: TransferConfig,
) -> Adapted:
    """Fit a channel blend on (training, validation) rows; see `gnnrec.calibrate.weigh`."""
    train, validation = rows
    if not trained or not episodes:
        return Adapted(model.eval(), trained)
    device = episodes[0].input.device
    visible = target.graph_input(train, rank=checkpoint.config.spectral_rank, device=device)
    held_out = None
    if len(validation):
        held_out = Episode(visible, target.users[validation], target.items[validation])

    def fresh() -> ChannelBlend:
        torch.manual_seed(derive_seed(config.seed, "model"))
        made = checkpoint.model(pretrained=False)
        assert isinstance(made, ChannelBlend)
        return made.to(device)

    rows_sha256 = hashlib.sha256(train.tobytes() + b"|" + validation.tobytes()).hexdigest()
    if target.kept.get("rows") != rows_sha256:
        target.kept.clear()
        target.kept["rows"] = rows_sha256
    found = weigh(fresh, model, trained, episodes, held_out, visible, config, target.kept)
    if found.choice == "scratch":
        trained = found.model.trained_parameters("scratch")
    return Adapted(found.model.eval(), trained, (found.result,), found.choice)
