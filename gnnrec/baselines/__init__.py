"""Models without anything learned elsewhere, under the same contract as the transferable model.

Each is a function of a `GraphInput` and its settings that returns `ScoreVectors`. `BASELINES`
holds them with what a fair comparison needs: defaults, and a space that all are tuned in with the
same number of trials.
"""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gnnrec.baselines.base import Popularity, popularity
from gnnrec.baselines.lightgcn import lightgcn as lightgcn_ids  # not to hide the module
from gnnrec.baselines.neighbours import itemknn, rp3beta
from gnnrec.baselines.ridge import ease
from gnnrec.baselines.vectors import gf_cf, ials, raw_text
from gnnrec.errors import ConfigError
from gnnrec.features import GraphInput
from gnnrec.scores import ScoreVectors

__all__ = ["BASELINES", "Baseline", "Popularity", "sample"]

Settings = dict[str, Any]


@dataclass(frozen=True)
class Baseline:
    """A model that is fitted to one graph by a call.

    Attributes:
        name: As users write it.
        citation: Who described it.
        fit: `(x, **settings)` -> scores of all users.
        space: Setting -> (low, high, "log" | "linear" | "int"), both ends included, or a tuple of
            choices.
        needs_text: Whether the graph must have item text.
    """

    name: str
    citation: str
    fit: Callable[..., ScoreVectors]
    space: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    needs_text: bool = False

    @property
    def defaults(self) -> Settings:
        """The default settings: those of the function itself."""
        parameters = inspect.signature(self.fit).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}

    def __call__(self, x: GraphInput, **settings: Any) -> ScoreVectors:  # noqa: ANN401
        """Return the scores of all users; settings that are left out have their defaults.

        Raises:
            ConfigError: A setting is unknown or out of range, or the graph lacks what is needed.
        """
        known = list(self.defaults)
        for name in settings:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"known: {', '.join(known)}" if known else "it has none"
                if near:
                    hint = f"did you mean {near[0]!r}?"
                raise ConfigError(f"{self.name}: unknown setting {name!r}; {hint}")
        return self.fit(x, **settings)


_ALL = (
    Baseline("popularity", "-", popularity),
    Baseline(
        "itemknn",
        "Sarwar et al. 2001",
        itemknn,
        {"k": (10, 500, "int"), "shrink": (1.0, 300.0, "log")},
    ),
    Baseline(
        "rp3beta",
        "Paudel et al. 2017",
        rp3beta,
        {"alpha": (0.1, 1.2, "linear"), "beta": (0.0, 0.8, "linear"), "k": (10, 500, "int")},
    ),
    Baseline(
        "ease",
        "Steck 2019",
        ease,
        {"ridge": (3.0, 3000.0, "log"), "popularity": (0.03, 100.0, "log")},
    ),
    Baseline(
        "ials",
        "Hu et al. 2008",
        ials,
        {
            "factors": (16, 32, 64, 128),
            "regularisation": (0.1, 100.0, "log"),
            "alpha": (1.0, 50.0, "log"),
            "iterations": (5, 30, "int"),
        },
    ),
    Baseline(
        "gf-cf",
        "Shen et al. 2021",
        gf_cf,
        {"rank": (16, 32, 64, 128, 256), "weight": (0.03, 10.0, "log")},
    ),
    Baseline(
        "lightgcn-ids",
        "He et al. 2020",
        lightgcn_ids,
        {
            "n_layers": (1, 2, 3),
            "temperature": (0.07, 0.4, "log"),
            "learning_rate": (0.003, 0.05, "log"),
            "passes": (2, 16, "int"),
        },
    ),
    Baseline(
        "raw-text",
        "He et al. 2020",
        raw_text,
        {"n_layers": (0, 1, 2, 3), "weight": (0.3, 30.0, "log")},
        needs_text=True,
    ),
)
BASELINES: dict[str, Baseline] = {baseline.name: baseline for baseline in _ALL}


def sample(name: str, rng: np.random.Generator, n: int) -> list[Settings]:
    """Draw settings to try: the defaults first, the others at random from the baseline's space.

    Args:
        name: A key of `BASELINES`.
        rng: Drawn from in the order of the space.
        n: How many, at least 1.

    Returns:
        n dictionaries with every setting of the baseline; one where there is nothing to choose.

    Raises:
        ConfigError: The name is unknown, or n is below 1.
    """
    if name not in BASELINES:
        raise ConfigError(f"baseline {name!r} is not known; expected one of {', '.join(BASELINES)}")
    if n < 1:
        raise ConfigError(f"found {n} settings to draw, expected at least 1")
    baseline = BASELINES[name]
    drawn = [
        {setting: _draw(space, rng) for setting, space in baseline.space.items()}
        for _ in range(n - 1)
    ]
    return [baseline.defaults, *drawn] if baseline.space else [baseline.defaults]


def _draw(space: tuple[Any, ...], rng: np.random.Generator) -> Any:  # noqa: ANN401 (a setting)
    if len(space) == 3 and space[2] in ("log", "linear", "int"):
        low, high, kind = space
        if kind == "int":
            return int(rng.integers(low, high, endpoint=True))
        if kind == "log":
            return float(math.exp(rng.uniform(math.log(low), math.log(high))))
        return float(rng.uniform(low, high))
    return space[int(rng.integers(len(space)))]
