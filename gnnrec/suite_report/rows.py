"""The rows of a benchmark suite in memory, grouped over seeds into one cell per arm."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

NDCG, RECALL, COLD_RECALL = "ndcg@20", "recall@20", "recall@20_cold"
MAIN, COLD_ITEMS, COLD_USERS = "main", "cold-items", "cold-users"
AVERAGE = "all"  # the target of rows that are means over targets
BEST = "the best without a source"  # the opponent in such rows, beside scratch and popularity
BASELINE, SCRATCH, TRANSFER = "baseline", "scratch", "transfer"

LIMITS = ("mean_difference", "low", "high", "relative", "relative_low", "relative_high")
KEY_COLUMNS = ("scenario", "target", "source", "arm", "family", "encoder", "fraction")
_SECONDS = (
    *("seconds_features", "seconds_pretrain", "seconds_train"),
    *("seconds_first", "seconds_evaluate"),
)
_PARAMETERS = ("parameters_total", "parameters_trained", "parameters_ids", "parameters_biases")
RUN_NUMBERS = (
    NDCG,
    RECALL,
    COLD_RECALL,
    "best_value",
    "steps",
    "peak_memory_mb",
    "energy_wh",
    *_SECONDS,
    *_PARAMETERS,
)
_ARMS = (
    "popularity itemknn rp3beta ease ials gf-cf raw-text scratch shuffled-text zero-shot heads "
    "final:1 final:2 full"
).split()
_FAMILIES = (BASELINE, SCRATCH, "control", TRANSFER)


@dataclass(frozen=True)
class Key:
    """What an arm on one target is, but for the seed."""

    scenario: str
    target: str
    source: str
    arm: str
    family: str
    encoder: str
    fraction: float

    @property
    def name(self) -> str:
        """The arm with its encoder, as `final:1 lightgcn`."""
        return f"{self.arm} {self.encoder}".strip()

    @property
    def order(self) -> tuple[Any, ...]:
        """Sorts families, known arms in the order of their strength of training, then names."""
        family = _FAMILIES.index(self.family) if self.family in _FAMILIES else len(_FAMILIES)
        arm = _ARMS.index(self.arm) if self.arm in _ARMS else len(_ARMS)
        scenarios = (MAIN, COLD_ITEMS, COLD_USERS)
        scenario = scenarios.index(self.scenario) if self.scenario in scenarios else len(scenarios)
        return (
            scenario,
            self.scenario,
            self.target,
            self.fraction,
            family,
            self.encoder,
            arm,
            self.arm,
            self.source,
        )


@dataclass(frozen=True)
class Cell:
    """An arm's runs over the seeds; `values` holds a finite number per seed that has one."""

    key: Key
    seeds: tuple[int, ...]
    values: dict[str, tuple[float, ...]]
    choices: tuple[str, ...] = ()

    def mean(self, name: str = NDCG) -> float:
        """Mean over seeds, NaN where no run has the number."""
        found = self.values.get(name, ())
        return float(np.mean(found)) if found else math.nan

    def low(self, name: str = NDCG) -> float:
        """Smallest over seeds."""
        return min(self.values.get(name, ()), default=math.nan)

    def high(self, name: str = NDCG) -> float:
        """Largest over seeds."""
        return max(self.values.get(name, ()), default=math.nan)


@dataclass(frozen=True)
class Interval:
    """A paired difference, arm minus opponent, with its 95 % intervals."""

    mean_difference: float
    low: float
    high: float
    relative: float
    relative_low: float
    relative_high: float
    p_holm: float = math.nan

    def turned(self) -> Interval:
        """The same pair the other way round; a ratio's percentiles turn with the ratio."""

        def other(ratio: float) -> float:
            return 1.0 / (1.0 + ratio) - 1.0 if ratio > -1.0 else math.inf

        return Interval(
            -self.mean_difference,
            -self.high,
            -self.low,
            other(self.relative),
            other(self.relative_high),
            other(self.relative_low),
            self.p_holm,
        )


@dataclass(frozen=True, eq=False)
class SuiteRows:
    """A results folder in memory.

    Attributes:
        runs: And the other frames: one row per line of the CSV of that name, empty where missing.
        cells: The runs grouped over seeds, in the order of `Key.order`.
        sha256: File name -> hex digest.
        missing: A sentence for each file or column that is not there.
        chosen: (target, encoder) -> the source that validated best, where the rows say it.
        settings: The suite's settings as dotted names with their values, empty where unknown.
    """

    runs: pd.DataFrame
    curves: pd.DataFrame
    buckets: pd.DataFrame
    differences: pd.DataFrame
    trials: pd.DataFrame
    overlap: pd.DataFrame
    cells: tuple[Cell, ...]
    sha256: dict[str, str]
    missing: tuple[str, ...]
    chosen: dict[tuple[str, str], str] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    _pairs: dict[tuple[Any, ...], list[dict[str, Any]]] = field(default_factory=dict)
    _twins: dict[tuple[str, str, str, float], list[Cell]] = field(default_factory=dict)

    def of(self, scenario: str = MAIN) -> list[Cell]:
        """The cells of a scenario."""
        return [cell for cell in self.cells if cell.key.scenario == scenario]

    def counts(self, key: Key) -> bool:
        """Whether an arm has the source that validated best; true where that is not known."""
        return self.chosen.get((key.target, key.encoder), key.source) == key.source

    def twin(self, key: Key) -> Cell | None:
        """The same architecture from scratch on the same target and fraction."""
        found = self._twins.get((key.scenario, key.target, key.encoder, key.fraction), [])
        return min(found, key=lambda c: (c.key.source != key.source, c.key.source), default=None)

    def interval(self, one: Key, other: Key, metric: str = NDCG) -> Interval | None:
        """The paired difference of one arm to another, whichever way round the row stands.

        None where there is no such row, and where the rows do not say which of several encoders
        they mean.
        """
        found = self._interval(one, other, metric)
        if found is None:
            turned = self._interval(other, one, metric)
            found = turned.turned() if turned is not None else None
        return found

    def _interval(self, one: Key, other: Key, metric: str) -> Interval | None:
        place = (one.scenario, one.target, one.fraction, metric, one.arm, other.arm)
        wanted = {
            "source": one.source,
            "encoder": one.encoder,
            "against_source": other.source,
            "against_encoder": other.encoder,
        }
        rows = [
            row
            for row in self._pairs.get(place, ())
            if all(name not in row or row[name] == value for name, value in wanted.items())
        ]
        # A pair stands in several families of tests: as the twin, and as the best of its cell.
        if len({(row["mean_difference"], row["low"], row["high"]) for row in rows}) != 1:
            return None
        first = rows[0]
        return Interval(
            first["mean_difference"],
            first["low"],
            first["high"],
            first["relative"],
            first["relative_low"],
            first["relative_high"],
            max(row["p_holm"] for row in rows),
        )


def grouped(frame: pd.DataFrame) -> list[tuple[Key, pd.DataFrame]]:
    """Return the rows of each arm on one target, sorted; rows without a fraction are left out."""
    names = list(KEY_COLUMNS)
    parts = [(_key(values), part) for values, part in frame.groupby(names, sort=False)]
    return sorted(parts, key=lambda pair: pair[0].order)


def best(cells: Iterable[Cell], metric: str = NDCG) -> Cell | None:
    """Return the cell with the highest mean; the first of equals."""
    found = [cell for cell in cells if math.isfinite(cell.mean(metric))]
    return max(found, key=lambda cell: cell.mean(metric), default=None)


def _key(values: Any) -> Key:  # noqa: ANN401 (what pandas groups by)
    scenario, target, source, arm, family, encoder, fraction = values
    return Key(scenario, target, source, arm, family, encoder, float(fraction))
