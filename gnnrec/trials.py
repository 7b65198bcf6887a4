"""The settings each arm of a suite is tuned over: as many for every arm, the defaults first."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from typing import Any

from gnnrec.baselines import BASELINES, sample
from gnnrec.config import TransferConfig
from gnnrec.device import numpy_generator
from gnnrec.suite import Suite

Settings = dict[str, Any]

# Of the arms that train: what moved results most, each around its default.
MODEL_SPACE: dict[str, tuple[float, ...]] = {
    "train.learning_rate": (3e-4, 1e-3, 3e-3),
    "train.pull_to_start": (1e-3, 1e-2, 1e-1),
    "n_folds": (3, 5, 10),
}
CHANNELS_SPACE: dict[str, tuple[float, ...]] = {
    "weigh.learning_rate": (1e-2, 3e-2, 1e-1),
    "weigh.pull_to_start": (1e-3, 1e-2, 1e-1),
    "n_weigh_folds": (5, 10, 15),
}


def settings_to_try(suite: Suite, arm: str, encoder: str) -> list[Settings]:
    """Return the settings of an arm's trials, the defaults first, none of them twice.

    Popularity and zero-shot have nothing to choose, and a graph-filter searches its few numbers
    on the same validation interactions by itself: these have the one trial.
    """
    n = suite.tuning.n_trials
    rng = numpy_generator(0, "trials", arm, encoder)
    if arm in BASELINES:
        drawn = sample(arm, rng, n)
        defaults, others = drawn[0], drawn[1:]
        # Only what is tuned: a default that changes in a later version is not frozen in a row.
        tuned = BASELINES[arm].space
        drawn = [{}, *({key: value for key, value in s.items() if key in tuned} for s in others)]
        return _distinct(drawn, defaults)
    architecture = suite.encoder[encoder].pretrain.model.encoder
    if arm == "zero-shot" or architecture == "graph-filter" or not suite.tuning.models:
        return [{}]
    space = CHANNELS_SPACE if architecture == "channels" else MODEL_SPACE
    points = [
        dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())
    ]
    defaults = {key: _value(suite.transfer, key) for key in space}
    points = [point for point in points if point != defaults]
    order = rng.permutation(len(points))[: n - 1]
    return [{}, *(points[place] for place in order)]


def nearer(fraction: float, fractions: Sequence[float]) -> float:
    """Return the fraction that is nearer by ratio; of two equally near, the smaller."""
    return min(fractions, key=lambda f: (round(abs(math.log(f / fraction)), 9), f))


def as_json(settings: Settings) -> str:
    """Return settings as one line, keys sorted."""
    return json.dumps(settings, sort_keys=True)


def _distinct(settings: list[Settings], defaults: Settings) -> list[Settings]:
    seen: set[str] = set()
    out = []
    for one in settings:
        key = as_json(defaults | one)
        if key not in seen:
            seen.add(key)
            out.append(one)
    return out


def _value(config: TransferConfig, dotted: str) -> Any:  # noqa: ANN401
    value: Any = config
    for name in dotted.split("."):
        value = getattr(value, name)
    return value
