"""The one training loop: step, evaluate, keep the best, stop early, log."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from gnnrec.callbacks import tell, tell_end
from gnnrec.config import TrainConfig
from gnnrec.errors import GnnrecError
from gnnrec.heads import IdTables
from gnnrec.ranks import ALONE, Ranks
from gnnrec.resume import Stage, State, next_stage
from gnnrec.signals import asked, check, held, stop

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
    ranks: Ranks = ALONE,
) -> TrainResult:
    """The loop of `fit` for any loss: step number -> a scalar that depends on the model.

    Without `keep_best` the evaluations are only recorded: all steps are made and the last kept.
    `depths` says how many layers below the last each parameter is (0 where it says nothing): with
    `config.layer_decay` lower ones learn more slowly, with `config.unfreeze_every` later, from the
    last layer down (both Howard and Ruder 2018, sections 3.2 and 3.3).

    Inside a command its state is kept, and taken up after a kill (`gnnrec.resume`): so `rng`, which
    the loss draws from, and `memories`, which it changes, have to be named.

    With several `ranks` the loss is this one's part, and gradients are added up; tables of item ids
    (`IdTables`) have their own rows on each. Every rank makes the same steps.
    """
    result = TrainResult()
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in trained)
    chosen = [parameters[name] for name in trained]
    of_rows = {
        id(table)
        for module in model.modules()
        if isinstance(module, IdTables)
        for table in map(module.get_parameter, module.names)
    }
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
            tell(log, label, record)
    started = time.perf_counter() - result.seconds
    bar = tqdm(total=config.max_steps, initial=loop.step, desc=label, delay=1, mininterval=1.0)

    def keep() -> None:
        """Write the state where it is time to, or the last chance."""
        due, stopping = ranks.total(ranks.rank == 0 and stage.due(), asked())
        if due or stopping:
            result.seconds = time.perf_counter() - started
            stage.save(loop.state())
        if stopping and not asked():  # another rank was
            stop()
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
                tell(log, label, record)
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
            loop.running = ranks.total(loss.item())[0]
            if not math.isfinite(loop.running):
                _diverged(f"the loss became {loop.running}", stage, step, rate)
            optimiser.zero_grad(set_to_none=True)
            if not ranks.alone:  # the pull, which all have, is not added up
                loss.backward()  # type: ignore[no-untyped-call]
                ranks.add_up(_gradients(p for p in chosen if id(p) not in of_rows))
                loss = torch.zeros((), requires_grad=True)
            if config.pull_to_start > 0:
                distance = torch.stack(
                    [(p - p0).square().sum() for p, p0 in zip(chosen, start, strict=True)]
                ).sum()
                loss = loss + config.pull_to_start * distance
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
    tell_end(label, result.summary())
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


def _gradients(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """Return dense gradients, zeros where a rank has none: all ranks send as many numbers."""
    found = []
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        found.append(parameter.grad)
    return found


def _named(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _diverged(found: str, stage: Stage, step: int, learning_rate: float) -> NoReturn:
    raise GnnrecError(
        f"{stage.label}: {found} at step {step} with the learning rate {learning_rate:.3g}; lower "
        "the stage's learning_rate in --config (train, calibrate, weigh or text) or look for "
        "extreme values in the data" + stage.where()
    )
