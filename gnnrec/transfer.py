"""Adapting a pretrained model to a target graph: what is frozen, what is trained, and on what."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from gnnrec.blend import ChannelBlend
from gnnrec.calibrate import weigh
from gnnrec.checkpoint import Checkpoint
from gnnrec.config import TransferConfig, graph_mode, parse_retrain
from gnnrec.device import derive_seed, numpy_generator
from gnnrec.errors import ConfigError
from gnnrec.features import GraphInput
from gnnrec.filters import GraphFilter
from gnnrec.loop import TrainResult
from gnnrec.model import Transferable
from gnnrec.ranks import current
from gnnrec.retrain import Retrainable
from gnnrec.sampling import Episode, folds
from gnnrec.scores import ScoreVectors
from gnnrec.search import MAX_SEARCH_USERS, HeldOut, search
from gnnrec.strength import find_strength
from gnnrec.target import Target
from gnnrec.text import TextEncoder
from gnnrec.text_layers import delta_sha256
from gnnrec.text_tuning import OwnText, TextTask, own_text
from gnnrec.train import check_together, fit, held_out_loss


@dataclass(frozen=True)
class Adapted:
    """A model adapted to a target.

    Attributes:
        model: In evaluation mode.
        trained: Names of the parameters that the retraining mode trains.
        stages: What each stage of the training did; none where nothing was trained.
        choice: What a guard kept, transferred or scratch; empty without one.
        strength: By how much what is personal was scaled where nothing was fitted.
        text: The target's texts as the checkpoint's own text model encodes them, retrained or not;
            None where those of the target are the same.
    """

    model: Transferable
    trained: list[str]
    stages: tuple[TrainResult, ...] = ()
    choice: str = ""
    strength: float = 1.0
    text: OwnText | None = None

    def reads(self, x: GraphInput) -> GraphInput:
        """Return a graph of the target with the texts as the model's own encoder makes them."""
        if self.text is None:
            return x
        return x.with_text(self.text.table, self.text.written)

    @torch.no_grad()
    def scores(
        self, target: Target, rows: np.ndarray, device: torch.device | str = "cpu"
    ) -> tuple[ScoreVectors, GraphInput]:
        """Return the scores of a target of which some rows are visible, and what was read."""
        rank = self.model.config.spectral_rank
        x = self.reads(target.graph_input(rows, rank=rank, device=device))
        return self.model(x), x

    @property
    def names(self) -> list[str]:
        """All parameters that were trained, those of the text encoder first."""
        of_text = [] if self.text is None else self.text.trained
        return [*of_text, *(self.trained if sum(s.steps for s in self.stages) else [])]

    @property
    def steps(self) -> int:
        """Optimiser steps, over all stages."""
        return sum(stage.steps for stage in self._all)

    @property
    def best_steps(self) -> tuple[int, ...]:
        """The step that each stage kept: what a refit repeats."""
        return tuple(stage.best_step for stage in self._all)

    @property
    def seconds(self) -> float:
        """Training time, over all stages."""
        return sum(stage.seconds for stage in self._all)

    @property
    def _all(self) -> tuple[TrainResult, ...]:
        result = None if self.text is None else self.text.result
        return self.stages if result is None else (result, *self.stages)

    def count_parameters(self) -> dict[str, int]:
        """See `Retrainable.count_parameters`; nothing counts as trained where no step was made.

        A retrained text encoder's are in `text_encoder`, and its low-rank differences among the
        trained ones.
        """
        counts = self.model.count_parameters(
            self.trained if any(s.steps for s in self.stages) else []
        )
        if self.text is None or self.text.result is None:
            return counts
        of_text = self.text.n_trained
        counts["trained"] += of_text
        counts["total"] += of_text
        return counts | {"text_encoder": self.text.n_frozen}


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

    A graph filter has no folds and no stages: its numbers are searched on the validation rows. A
    blend of channels has one stage (`config.weigh`), all of whose steps are taken; zero-shot moves
    its weights alike, by the strength that hidden edges choose (`gnnrec.strength`).

    Args:
        checkpoint: The pretrained model; scratch takes only its architecture.
        target: The target.
        train: Row indices to train on.
        validation: Row indices that choose the steps; ignored with fixed_steps.
        config: Retraining mode, loop settings, seed.
        device: Where to train.
        log: JSON lines of the evaluations go here.
        fixed_steps: Train exactly so many steps in each stage; empty trains nothing. A blend has
            no stage to which it applies.

    Returns:
        The adapted model. Parameters that are not in `trained` have the checkpoint's bits, but for
        those that are new on a target (`Retrainable.load_pretrained`) and the weights that the
        strength of zero-shot moved.

    Raises:
        ConfigError: The model does not have that retraining mode, or cannot be adapted by several
            processes; a text model is missing.
    """
    text = _own_text(checkpoint, target, (train, validation), config, str(device), log, fixed_steps)
    if text is not None:
        target = replace(target, item_text=text.table, text_vectors=text.written)
        if text.result is not None and fixed_steps is not None:
            fixed_steps = fixed_steps[1:]
    adapted = _adapt(checkpoint, target, (train, validation), config, device, log, fixed_steps)
    return replace(adapted, text=text)


def _own_text(
    checkpoint: Checkpoint,
    target: Target,
    rows: tuple[np.ndarray, np.ndarray],
    config: TransferConfig,
    device: str,
    log: Path | None,
    fixed_steps: tuple[int, ...] | None,
) -> OwnText | None:
    """Make the target's text vectors where they are not those of the checkpoint's own encoder.

    full and scratch retrain as many layers of it as pretraining did, scratch from the frozen one.
    """
    kind, k = parse_retrain(config.retrain)
    model = checkpoint.config
    if not model.text_dim or (target.item_text is None and target.text_vectors is None):
        if kind == "text":
            raise ConfigError(
                f"--retrain {config.retrain}: found a target without item texts, expected some; "
                "give --items, or retrain something else"
            )
        return None
    n_layers = {"text": k, "full": model.text_layers, "scratch": model.text_layers}.get(kind, 0)
    if fixed_steps is not None and n_layers and not fixed_steps[:1]:
        n_layers = 0
    delta = {} if kind == "scratch" else checkpoint.text
    if not n_layers and (delta_sha256(delta) if delta else "") == target.text_delta:
        return None
    missing = (target.item_text is not None and target.texts is None) or (
        target.text_vectors is not None and target.written is None
    )
    if missing or model.text_model is None:
        raise ConfigError("this checkpoint's text encoder was retrained; it needs the texts again")
    if n_layers:
        check_together(current(), model.encoder, text_layers=n_layers)
    if n_layers and target.texts is None:
        n_layers = 0  # there are no items to tell apart by their texts
    edges = [(target.users[part], target.items[part]) for part in rows]
    return own_text(
        TextEncoder(model.text_model, device, delta),
        TextTask(list(target.texts or ()), *edges[0], edges[1], target.n_users, target.read),
        n_layers,
        config,
        written=target.written,
        log=log,
        fixed_steps=fixed_steps[0] if fixed_steps else None,
    )


def _adapt(
    checkpoint: Checkpoint,
    target: Target,
    rows: tuple[np.ndarray, np.ndarray],
    config: TransferConfig,
    device: torch.device | str,
    log: Path | None,
    fixed_steps: tuple[int, ...] | None,
) -> Adapted:
    """Adapt the model behind the texts."""
    ranks = current()
    check_together(ranks, checkpoint.config.encoder, written=target.edge_text is not None)
    train, validation = rows
    retrain, n_layers = graph_mode(config.retrain)
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
    if isinstance(model, ChannelBlend) and retrain == "zero-shot":
        return _as_it_is(model.eval(), target, np.sort(np.concatenate(rows)), config, device)
    episodes = [
        Episode(target.input_of(graph, rank, device), users, items)
        for graph, users, items in folds(
            target.users[train],
            target.items[train],
            target.n_users,
            target.n_items,
            config.n_weigh_folds if isinstance(model, ChannelBlend) else config.n_folds,
            numpy_generator(config.seed, "folds"),
            ranks,
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
        visible = target.graph_input(train, rank=rank, device=device, ranks=ranks)
        # Shuffled: where there are many, the loss is taken on the first few thousand.
        order = numpy_generator(config.seed, "validation").permutation(validation)
        held_out = Episode(visible, target.users[order], target.items[order])
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
        drawn = numpy_generator(config.seed, "order", number)
        numbers = drawn.integers(0, len(episodes), settings.max_steps)
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


def _as_it_is(
    model: ChannelBlend,
    target: Target,
    rows: np.ndarray,
    config: TransferConfig,
    device: torch.device | str,
) -> Adapted:
    """Fit nothing; but see on all rows how far to leave popularity, unless there is no guard."""
    if not config.guard or not len(rows):
        return Adapted(model, [])
    x = target.graph_input(rows, rank=model.config.spectral_rank, device=device)
    strength = find_strength(model, x)
    with torch.no_grad():
        model.log_weight.add_(math.log(strength))
    target.keep_input(rows, x)
    return Adapted(model, [], strength=strength)


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
