"""Choosing the few numbers of a closed-form model by a ranking measure on held-out interactions."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.optimize
import torch
from tqdm import tqdm

from gnnrec.callbacks import tell, tell_end
from gnnrec.device import numpy_generator
from gnnrec.evaluate import evaluate_scores
from gnnrec.features import GraphInput
from gnnrec.filters import GraphFilter
from gnnrec.loop import TrainResult
from gnnrec.resume import State, next_stage
from gnnrec.signals import asked, check, held

# How far the search first steps in each number: what changes a ranking visibly.
_FIRST_STEP = {"log2_ridge": -0.7, "log2_tail": -0.3, "cosine_weight": 0.3}
_OTHER_STEP = 0.06
_MEASURE = "ndcg@20"
# More would not change which of two settings ranks better.
MAX_SEARCH_USERS = 4000


@dataclass(frozen=True)
class HeldOut:
    """A visible graph, and interactions of its nodes that the search ranks: (n,) int64 codes."""

    input: GraphInput
    users: np.ndarray
    items: np.ndarray

    def some_users(self, n: int, seed: int) -> HeldOut:
        """Return the interactions of up to n random users."""
        users = np.unique(self.users)
        if len(users) <= n:
            return self
        chosen = numpy_generator(seed, "searched users").choice(users, n, replace=False)
        keep = np.isin(self.users, chosen)
        return HeldOut(self.input, self.users[keep], self.items[keep])


def search(
    model: GraphFilter,
    names: Sequence[str],
    held_out: Sequence[HeldOut],
    max_evaluations: int,
    *,
    log: Path | None = None,
    label: str = "searching",
) -> TrainResult:
    """Set the named numbers to those that rank best; the starting point is a candidate too.

    Nelder-Mead (1965, through scipy) on the mean NDCG@20 over the held-out parts, which it only
    ever compares: fitted by likelihood instead, the same numbers ranked clearly worse at the top
    of the list.

    Args:
        model: Changed in place.
        names: Parameter names to search; the others keep their bits.
        held_out: One part per graph, none empty.
        max_evaluations: Budget.
        log: Append one JSON line per evaluation here.
        label: Shown on the progress bar.

    What was tried before a kill is not computed again: the search takes the same way, and finds the
    values of its first evaluations in the state that was kept.

    Returns:
        What was tried; values are -NDCG@20, steps are evaluations.

    Cost: an evaluation is a truncated SVD where an exponent of the normalisation changed, and the
    full ranking of the held-out users.
    """
    result = TrainResult()
    stage = next_stage(label)
    if not names or max_evaluations < 1:
        return result
    kept = stage.load()
    known: dict[tuple[float, ...], float] = {}
    if kept is not None:
        known = {tuple(point): value for point, value in kept.values["tried"]}
    tried: list[tuple[list[float], float]] = []
    started = time.perf_counter() - (0.0 if kept is None else kept.values["seconds"])
    parameters = [dict(model.named_parameters())[name] for name in names]
    start = np.array([p.item() for p in parameters])
    best = start.copy()
    bar = tqdm(total=max_evaluations, desc=label, delay=1, mininterval=1.0)

    def objective(point: np.ndarray) -> float:
        nonlocal best
        place = tuple(point.tolist())
        if place not in known:
            _assign(parameters, point)
            known[place] = -float(np.mean([_measure(model, part) for part in held_out]))
        value = known[place]
        tried.append((list(place), value))
        step = len(result.history)
        record = {"step": step, "value": value} | dict(zip(names, point.tolist(), strict=True))
        result.history.append(record)
        tell(log, label, record)
        if value < result.best_value:
            result.best_value, result.best_step, best = value, step, point.copy()
        bar.set_postfix(value=f"{-result.best_value:.4f}", refresh=False)
        bar.update()
        if len(tried) >= len(known) and (stage.due() or asked()):
            keep(done=False)
        check()
        return value

    def keep(*, done: bool) -> None:
        seconds = time.perf_counter() - started
        values = {"step": len(tried), "done": done, "tried": tried, "seconds": seconds}
        stage.save(State(values))

    with held() if stage.active else nullcontext():
        _minimise(objective, start, names, max_evaluations)
    bar.close()
    keep(done=True)
    _assign(parameters, best)
    result.steps = len(result.history)
    result.seconds = time.perf_counter() - started
    tell_end(label, result.summary())
    return result


def _minimise(
    objective: Callable[[np.ndarray], float],
    start: np.ndarray,
    names: Sequence[str],
    max_evaluations: int,
) -> None:
    steps = np.array([_FIRST_STEP.get(name, _OTHER_STEP) for name in names])
    simplex = np.vstack([start, start + np.diag(steps)])
    scipy.optimize.minimize(
        objective,
        start,
        method="Nelder-Mead",
        options={
            "initial_simplex": simplex,
            "maxfev": max_evaluations,
            "xatol": 5e-3,
            "fatol": 1e-5,
        },
    )


def _assign(parameters: Sequence[torch.nn.Parameter], point: np.ndarray) -> None:
    with torch.no_grad():
        for parameter, value in zip(parameters, point, strict=True):
            parameter.fill_(float(value))


def _measure(model: GraphFilter, part: HeldOut) -> float:
    with torch.no_grad():
        scores = model(part.input)
    seen = part.input.graph.user_items
    return evaluate_scores(scores, seen, part.users, part.items, ks=(20,)).metrics[_MEASURE]
