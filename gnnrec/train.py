"""The one training loop: step, evaluate, keep the best, stop early, log."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from gnnrec.config import TrainConfig, check_fan_out
from gnnrec.errors import GnnrecError
from gnnrec.losses import binary_loss, bpr_loss, softmax_loss
from gnnrec.resume import Stage, State, next_stage
from gnnrec.retrain import Retrainable
from gnnrec.sampling import Batch, Episode, collisions
from gnnrec.scores import Differentiable
from gnnrec.signals import asked, check, held
from gnnrec.storage import append_json

AnyModel = TypeVar("AnyModel", bound=nn.Module)


@dataclass
class TrainResult:
    """What a run did: optimiser steps, the step kept, and one record per evaluation."""

    steps: int = 0
    best_step: int = 0
    best_value: float = float("inf")
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """The record as plain values, without the history."""
        return {
            "steps": self.steps,
            "best_step": self.best_step,
            "best_value": self.best_value,
            "seconds": round(self.seconds, 3),
        }


class Remembers(Protocol):
    """What a loss changes from step to step beside the model, as tensors."""

    def remembered(self) -> dict[str, Tensor]:
        """Return it."""

    def remember(self, tables: dict[str, Tensor]) -> None:
        """Put it back."""


def batch_loss(model: Retrainable, episode: Episode, batch: Batch, config: TrainConfig) -> Tensor:
    """Loss of one batch on an episode: vectors from the visible graph, then scores.

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
        return bpr_loss(positive, negative, batch.known)
    if config.loss == "binary":
        return binary_loss(positive, negative, batch.known)
    n_items = episode.input.graph.n_items
    return softmax_loss(positive, negative, batch.known, n_items)


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

    return optimise(
        model,
        loss_of,
        trained,
        evaluate,
        config,
        log=log,
        label=label,
        decay_learning_rate=decay_learning_rate,
        depths=model.depths(trained),
        rng=rng,
    )


def optimise(
    model: AnyModel,
    loss_of: Callable[[int], Tensor],
    trained: list[str],
    evaluate: Callable[[AnyModel], float] | None,
    config: TrainConfig,
    *,
    log: Path | None = None,
    label: str = "training",
    decay_learning_rate: bool = False,
    keep_best: bool = True,
    depths: Mapping[str, int] | None = None,
    rng: np.random.Generator | None = None,
    memories: Sequence[Remembers] = (),
) -> TrainResult:
    """The loop of `fit` for any loss: step number -> a scalar that depends on the model.

    Without `keep_best` the evaluations are only recorded: all steps are made and the last kept.
    `depths` says how many layers below the last each parameter is (0 where it says nothing): with
    `config.layer_decay` lower ones learn more slowly, with `config.unfreeze_every` later, from the
    last layer down (both Howard and Ruder 2018, sections 3.2 and 3.3).

    Inside a command its state is kept, and taken up after a kill (`gnnrec.resume`): so `rng`, which
    the loss draws from, and `memories`, which it changes, have to be named.
    """
    result = TrainResult()
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in trained)
    chosen = [parameters[name] for name in trained]
    stage = next_stage(label)
    if not chosen:
        return result
    start = [p.detach().clone() for p in chosen]
    by_depth: dict[int, list[nn.Parameter]] = {}
    for name in trained:
        by_depth.setdefault((depths or {}).get(name, 0), []).append(parameters[name])
    optimiser = torch.optim.Adam([{"params": by_depth[depth]} for depth in by_depth])
    loop = _Loop(chosen, start, optimiser, result, rng, memories)
    kept = stage.load()
    if kept is not None:
        loop.take(kept)
        for record in result.history:
            _note(log, label, record)
    started = time.perf_counter() - result.seconds
    bar = tqdm(total=config.max_steps, initial=loop.step, desc=label, delay=1, mininterval=1.0)

    def keep() -> None:
        """Write the state where it is time to, or the last chance."""
        if stage.due() or asked():
            result.seconds = time.perf_counter() - started
            stage.save(loop.state())
        check()

    with held() if stage.active else nullcontext():
        while not loop.done:
            step = loop.step
            due = step % config.evaluate_every == 0 or step == config.max_steps
            if evaluate is not None and due and not loop.judged:
                with torch.no_grad():
                    value = evaluate(model)
                seconds = round(time.perf_counter() - started, 4)
                record = {"step": step, "value": value, "loss": loop.running, "seconds": seconds}
                result.history.append(record)
                _note(log, label, record)
                bar.set_postfix(value=f"{value:.4f}", refresh=False)
                loop.judge(value, keep_best)
                if loop.misses >= config.patience:
                    break
                keep()
            if step == config.max_steps:
                break
            share = 1.0
            if decay_learning_rate:
                share = 0.5 * (1.0 + np.cos(np.pi * step / config.max_steps))
            rate = config.learning_rate * share
            for depth, group in zip(by_depth, optimiser.param_groups, strict=True):
                group["lr"] = rate * config.layer_decay**depth
            loss = loss_of(step)
            if not torch.isfinite(loss):
                _diverged(f"the loss became {loss.item()}", stage, step, rate)
            loop.running = loss.item()
            if config.pull_to_start > 0:
                distance = torch.stack(
                    [(p - p0).square().sum() for p, p0 in zip(chosen, start, strict=True)]
                ).sum()
                loss = loss + config.pull_to_start * distance
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            for depth, part in by_depth.items():
                if step < depth * config.unfreeze_every:
                    for parameter in part:
                        parameter.grad = None  # Adam leaves it, and its moments, alone
            optimiser.step()
            result.steps = loop.step = step + 1
            loop.judged = False
            bar.update()
            keep()
    bar.close()
    if evaluate is not None and keep_best and not loop.done:
        with torch.no_grad():
            for parameter, best in zip(chosen, loop.best, strict=True):
                parameter.copy_(best)
    if not all(p.isfinite().all() for p in chosen):
        _diverged("parameters became NaN or infinite", stage, loop.step, config.learning_rate)
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    result.seconds = time.perf_counter() - started
    if not loop.done:
        loop.done = True
        stage.save(loop.state())
    return result


@dataclass
class _Loop:
    """All that the loop's next step depends on, apart from what a restart makes again."""

    chosen: list[nn.Parameter]
    best: list[Tensor]
    optimiser: torch.optim.Adam
    result: TrainResult
    rng: np.random.Generator | None
    memories: Sequence[Remembers]
    step: int = 0  # the next
    judged: bool = False  # the evaluation before it was made
    misses: int = 0
    running: float = 0.0
    done: bool = False

    def judge(self, value: float, keep_best: bool) -> None:
        """Count an evaluation, and note the parameters that are the best so far."""
        self.judged = True
        if not keep_best:
            self.result.best_value, self.result.best_step = value, self.step
        elif value < self.result.best_value:
            self.result.best_value, self.result.best_step, self.misses = value, self.step, 0
            self.best = [p.detach().clone() for p in self.chosen]
        else:
            self.misses += 1

    def state(self) -> State:
        """Return it as plain values and tensors; a finished one without what only steps need."""
        values = {
            "step": self.step,
            "judged": self.judged,
            "misses": self.misses,
            "running": self.running,
            "done": self.done,
            "result": vars(self.result),
            "rng": None if self.rng is None else self.rng.bit_generator.state,
        }
        tensors = {"torch rng": torch.get_rng_state()}
        for number, (parameter, best) in enumerate(zip(self.chosen, self.best, strict=True)):
            tensors[f"{number} now"] = parameter
            if not self.done:
                tensors[f"{number} best"] = best
                adam = self.optimiser.state.get(parameter, {})
                tensors |= {f"{number} adam {name}": table for name, table in adam.items()}
        for number, memory in enumerate(self.memories):
            tensors |= {f"{number} of {name}": t for name, t in memory.remembered().items()}
        return State(values, tensors)

    def take(self, state: State) -> None:
        """Put it back, bit for bit."""
        values, tensors = state.values, state.tensors
        for name in ("step", "judged", "misses", "running", "done"):
            setattr(self, name, values[name])
        vars(self.result).update(values["result"])
        if self.rng is not None:
            self.rng.bit_generator.state = values["rng"]
        torch.set_rng_state(tensors["torch rng"])
        with torch.no_grad():
            for number, parameter in enumerate(self.chosen):
                parameter.copy_(tensors[f"{number} now"])
        if not self.done:
            self.best = [
                tensors[f"{number} best"].to(parameter, copy=True)
                for number, parameter in enumerate(self.chosen)
            ]
            for number, parameter in enumerate(self.chosen):
                adam = _named(tensors, f"{number} adam ")
                if adam:
                    self.optimiser.state[parameter] = {
                        name: t.clone() if name == "step" else t.to(parameter, copy=True)
                        for name, t in adam.items()
                    }
        for number, memory in enumerate(self.memories):
            memory.remember(_named(tensors, f"{number} of "))


def _note(log: Path | None, label: str, record: dict[str, float]) -> None:
    if log is not None:
        append_json(log, {"label": label, **record})


def _named(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _diverged(found: str, stage: Stage, step: int, learning_rate: float) -> NoReturn:
    raise GnnrecError(
        f"{stage.label}: {found} at step {step} with the learning rate {learning_rate:.3g}; lower "
        "--learning-rate (train.learning_rate) or look for extreme values in the data"
        + stage.where()
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
        users = episode.users[begin : min(begin + chunk, count)]
        items = episode.items[begin : min(begin + chunk, count)]
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
    return total / max(count, 1)
