"""Time to quality: validation values over training seconds, beside the from-scratch twin's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from gnnrec.suite_report.rows import KEY_COLUMNS, MAIN, TRANSFER, Cell, Key, SuiteRows


@dataclass(frozen=True)
class Curve:
    """One run: (n,) seconds after features, ascending, and the best validation value so far.

    Larger is better: the sign of the rows' values is turned.
    """

    seconds: np.ndarray
    best: np.ndarray

    def first(self, value: float) -> float:
        """Seconds to a value at least as good; infinite where it is never reached."""
        places = np.flatnonzero(self.best >= value)
        return float(self.seconds[places[0]]) if len(places) else math.inf


@dataclass(frozen=True)
class Arrival:
    """When a transfer arm has its twin's final validation value, in means over the seeds.

    Attributes:
        cell: The transfer arm.
        seconds: After features; infinite where a seed never gets there.
        twin_seconds: The twin's own, to the same value.
        n_reached: Seeds that get there.
        n_seeds: Seeds that both arms have a curve for.
    """

    cell: Cell
    seconds: float
    twin_seconds: float
    n_reached: int
    n_seeds: int

    @property
    def share(self) -> float:
        """Of the twin's seconds; NaN where the twin's value was there before its first step."""
        return self.seconds / self.twin_seconds if self.twin_seconds > 0 else math.nan


@lru_cache(maxsize=1)
def curves(rows: SuiteRows) -> dict[Key, dict[int, Curve]]:
    """Return every run's curve, by arm and seed, in the main scenario.

    Validation values are losses, or measures with their sign turned: lower is better in the rows.
    """
    out: dict[Key, dict[int, Curve]] = {}
    for key, runs in _evaluations(rows).items():
        for seed, run in sorted(runs.items()):
            seconds, values = np.array(sorted(run, key=lambda pair: pair[0])).T
            out.setdefault(key, {})[seed] = Curve(seconds, np.maximum.accumulate(-values))
    return out


def _evaluations(rows: SuiteRows) -> dict[Key, dict[int, list[tuple[float, float]]]]:
    """(seconds, value) of every evaluation in the main scenario, by arm and seed."""
    frame = rows.curves[rows.curves["scenario"] == MAIN]
    frame = frame.dropna(subset=["fraction", "seed", "seconds", "value"])
    out: dict[Key, dict[int, list[tuple[float, float]]]] = {}
    names = [*KEY_COLUMNS, "seed", "seconds", "value"]
    for *key, seed, seconds, value in zip(*(frame[name] for name in names), strict=True):
        runs = out.setdefault(Key(*key), {})
        runs.setdefault(int(seed), []).append((seconds, value))
    return out


def arrivals(rows: SuiteRows) -> list[Arrival]:
    """Return the time to the twin's final value of every transfer arm with a curve."""
    drawn = curves(rows)
    out = []
    for cell in rows.of(MAIN):
        own = drawn.get(cell.key, {}) if cell.key.family == TRANSFER else {}
        twin = rows.twin(cell.key)
        other = drawn.get(twin.key, {}) if twin is not None else {}
        seeds = sorted(set(own) & set(other))
        if not seeds:
            continue
        ends = [float(other[seed].best[-1]) for seed in seeds]
        seconds = [own[seed].first(end) for seed, end in zip(seeds, ends, strict=True)]
        twins = [other[seed].first(end) for seed, end in zip(seeds, ends, strict=True)]
        reached = sum(math.isfinite(value) for value in seconds)
        out.append(
            Arrival(cell, float(np.mean(seconds)), float(np.mean(twins)), reached, len(seeds))
        )
    return out


def to_twin(rows: SuiteRows) -> dict[Key, list[Curve]]:
    """Return the curves of every arm with a twin, less what the twin ends with on that seed.

    Seeds draw their own validation rows: without that, their spread hides the difference.
    """
    drawn = curves(rows)
    out: dict[Key, list[Curve]] = {}
    for key, runs in drawn.items():
        twin = rows.twin(key)
        other = drawn.get(twin.key, {}) if twin is not None else {}
        for seed in sorted(set(runs) & set(other)):
            curve = Curve(runs[seed].seconds, runs[seed].best - other[seed].best[-1])
            out.setdefault(key, []).append(curve)
    return out


def averaged(runs: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return times with the mean, smallest and largest best value over the runs by then.

    Starts when every run has a value.
    """
    times = np.unique(np.concatenate([run.seconds for run in runs]))
    times = times[times >= max(float(run.seconds[0]) for run in runs)]
    values = np.stack(
        [run.best[np.searchsorted(run.seconds, times, side="right") - 1] for run in runs]
    )
    return times, values.mean(axis=0), values.min(axis=0), values.max(axis=0)
