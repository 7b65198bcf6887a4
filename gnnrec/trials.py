"""The settings each arm of a suite is tuned over: as many for every arm, the defaults first."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import torch

from gnnrec.baselines import BASELINES, sample
from gnnrec.device import numpy_generator
from gnnrec.model import build_model
from gnnrec.space import defaults_of, space_of
from gnnrec.suite import Suite

Settings = dict[str, Any]


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
    model = suite.encoder[encoder].pretrain.model
    if arm == "zero-shot" or model.encoder == "graph-filter" or not suite.tuning.models:
        return [{}]
    with torch.device("meta"):  # what there is to search, without drawing a weight
        space = space_of(build_model(model), arm)
    drawn = [{name: part.draw(rng) for name, part in space.items()} for _ in range(n - 1)]
    return _distinct([{}, *drawn], defaults_of(space, suite.transfer.model_dump()))


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
