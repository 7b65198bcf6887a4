"""What is searched, family by family, by `gnnrec tune` and for the arms of a suite."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gnnrec.filters import GraphFilter
from gnnrec.model import Transferable
from gnnrec.retrain import Retrainable

if TYPE_CHECKING:
    import optuna


@dataclass(frozen=True)
class Range:
    """Numbers from low to high, by ratio; whole ones if low is an int."""

    low: float
    high: float

    def suggest(self, trial: optuna.Trial, name: str) -> float:
        """Draw one for a trial."""
        if isinstance(self.low, int):
            return trial.suggest_int(name, self.low, int(self.high), log=True)
        return trial.suggest_float(name, self.low, self.high, log=True)

    def draw(self, rng: np.random.Generator) -> float:
        """Draw one, uniform by ratio, to three digits."""
        value = math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
        return round(value) if isinstance(self.low, int) else float(f"{value:.3g}")


@dataclass(frozen=True)
class Choice:
    """One of a few values."""

    values: tuple[str, ...]

    def suggest(self, trial: optuna.Trial, name: str) -> str:
        """Draw one for a trial."""
        return str(trial.suggest_categorical(name, self.values))

    def draw(self, rng: np.random.Generator) -> str:
        """Draw one."""
        return self.values[int(rng.integers(len(self.values)))]


Space = dict[str, Range | Choice]


def space_of(model: Transferable, retrain: str | None) -> Space:
    """Return the settings that moved results most for a model, by their dotted names.

    Args:
        model: What is adapted.
        retrain: A mode that is kept, or None to search the mode too.
    """
    if isinstance(model, GraphFilter):
        return {"search_evaluations": Range(10, 160)}
    if isinstance(model, Retrainable):
        layers = tuple(f"final:{k}" for k in range(1, model.n_retrained_layers() + 1))
        space: Space = {
            "train.learning_rate": Range(1e-4, 1e-2),
            "train.pull_to_start": Range(1e-4, 1.0),
            "train.loss": Choice(("softmax", "bpr")),
            "calibrate.learning_rate": Range(1e-3, 3e-2),
        }
    else:
        layers = ("final:1",)
        space = {
            "weigh.learning_rate": Range(5e-3, 1e-1),
            "weigh.pull_to_start": Range(1e-4, 3e-1),
            "weigh.max_steps": Range(50, 600),
        }
    if retrain is None:
        space["retrain"] = Choice(("zero-shot", "heads", *layers, "full"))
    return space


def defaults_of(space: Space, config: dict[str, Any]) -> dict[str, Any]:
    """Return the settings' values in a configuration that was dumped, those within the space."""
    found = {}
    for dotted, part in space.items():
        value: Any = config
        for name in dotted.split("."):
            value = value[name]
        inside = (
            value in part.values if isinstance(part, Choice) else part.low <= value <= part.high
        )
        if inside:
            found[dotted] = value
    return found
