"""From per-user values to differences: each transferred arm against what it has to beat.

Metrics are averaged over seeds per user first; users are what the intervals generalise over. All
pairs of one target and fraction share the draws of users, which costs one product with a matrix of
counts where `gnnrec.stats.paired_bootstrap` would draw for every pair, and gives the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from gnnrec.device import derive_seed, numpy_generator
from gnnrec.errors import ConfigError, DataError
from gnnrec.ledger import Row, as_text, write_rows
from gnnrec.metrics import by_bucket
from gnnrec.plan import best_source
from gnnrec.stats import holm, percentile_bounds, two_sided
from gnnrec.suite import Suite

METRICS = ("ndcg@20", "recall@20")
COLD_METRIC = "recall@20_cold"  # where there are cold items: in a full ranking all may miss them
DIFFERENCE_COLUMNS = (
    *("scenario", "target", "fraction", "source", "arm", "against", "metric", "n_users"),
    *("mean_difference", "low", "high", "relative", "relative_low", "relative_high"),
    *("p", "p_holm", "family", "bucket"),
    # Beside the arms' names: what tells two arms of one name apart, and how it was found.
    *("encoder", "against_source", "against_encoder", "chosen", "n_targets", "n_resamples"),
)
SCRATCH, POPULARITY, BEST, CONTROL = "scratch", "popularity", "the best without a source", "control"
EDGES = (0, 1, 5, 20, 100)
_CELLS = 4_000_000  # as many resampled users at a time as gnnrec.stats, for the same draws


@dataclass(frozen=True)
class ArmRuns:
    """An arm on one target and fraction, all seeds.

    Attributes:
        row: The key columns of its rows.
        users: (n_users,) int64 codes.
        activity: (n_seeds, n_users) int64 visible interactions.
        values: Metric -> (n_seeds, n_users) float64.
    """

    row: Row
    users: np.ndarray
    activity: np.ndarray
    values: dict[str, np.ndarray]

    def mean(self, metric: str) -> float:
        """Mean over users and seeds."""
        return float(self.values[metric].mean())


@dataclass(frozen=True)
class Pair:
    """Two arms of one cell, and why they are compared."""

    arm: ArmRuns
    against: ArmRuns
    kind: str
    metric: str


@dataclass
class Resampled:
    """Differences and bases of a pair under the draws of users, each (n_resamples,)."""

    shifts: np.ndarray
    bases: np.ndarray
    mean_difference: float
    base: float
    n_users: int
    ratios: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        """Divide; a ratio to a base of 0 is infinite."""
        self.ratios = np.full_like(self.shifts, np.inf)
        np.divide(self.shifts, self.bases, out=self.ratios, where=self.bases != 0)

    def small(self) -> Resampled:
        """Return a copy in float32, which holds no larger array."""
        shifts, bases = (x.astype(np.float32) for x in (self.shifts, self.bases))
        return replace(self, shifts=shifts, bases=bases)

    @property
    def relative(self) -> float:
        """The mean difference over the mean of the base."""
        return self.mean_difference / self.base if self.base else float("nan")


def write_differences(suite: Suite, out: Path, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Compare the arms of a results folder and write its differences.csv.

    Each transferred arm stands against the same architecture from scratch, popularity, and the best
    arm without a source, which is the best on the test part: the hardest choice for the transferred
    arm. The arm that the control takes the text from stands against the control as well. An arm is
    compared where all seeds of the suite are there.

    Families of Holm's correction: scenario, kind of comparison, metric and bucket, over all
    targets, fractions, sources, encoders and arms; there are at least 20 resamples for each test.
    The rows of the target "all" are means of the targets' differences, with each target's source
    that validated best; users are resampled within targets.
    """
    cells = list(_cells(suite, rows))
    n_tests = sum(len(_transferred(cell)) for cell in cells)
    n_resamples = max(10_000, 20 * n_tests)
    chosen = {
        (target, encoder): _chosen(suite, rows, target, encoder)
        for target in suite.targets
        for encoder in suite.encoders
    }
    found: list[dict[str, Any]] = []
    averaged: dict[tuple[str, ...], list[Resampled]] = {}
    for cell in cells:
        arms = [_load(out, runs) for runs in cell]
        if any(not np.array_equal(arms[0].users, arm.users) for arm in arms):
            raise DataError(f"{out}: the arms of {cell[0][0]['run']} were tested on other users")
        pairs = list(pairs_of(arms, suite.shuffled))
        first = arms[0].row
        seed = derive_seed(0, first["scenario"], first["target"], first["fraction"])
        for bucket in ("all", *_buckets(arms[0].activity)):
            for pair, resampled in resample(pairs, bucket, n_resamples, seed):
                is_chosen = (
                    pair.arm.row["source"]
                    == chosen[pair.arm.row["target"], pair.arm.row["encoder"]]
                )
                found.append(_difference(pair, resampled, bucket, is_chosen))
                if bucket == "all" and is_chosen:
                    row = pair.arm.row
                    names = (row["scenario"], row["fraction"], row["arm"], row["encoder"])
                    averaged.setdefault((*names, pair.kind, pair.metric), []).append(
                        resampled.small()
                    )
    found += [_average(key, parts) for key, parts in averaged.items() if len(parts) > 1]
    _adjust(found)
    write_rows(out / "differences.csv", DIFFERENCE_COLUMNS, found)
    return found


def pairs_of(arms: Sequence[ArmRuns], shuffled: str) -> Iterator[Pair]:
    """Yield the comparisons of one cell for each metric."""
    without = [arm for arm in arms if arm.row["family"] in ("baseline", "scratch")]
    for metric in arms[0].values if arms else ():
        best = max(without, key=lambda arm: arm.mean(metric), default=None)
        for arm in arms:
            if arm.row["family"] != "transfer":
                continue
            for other in arms:
                row = other.row
                twin = row["encoder"] == arm.row["encoder"]
                if row["family"] == "scratch" and twin:
                    yield Pair(arm, other, SCRATCH, metric)
                if row["arm"] == "popularity":
                    yield Pair(arm, other, POPULARITY, metric)
                same = twin and row["source"] == arm.row["source"]
                if row["family"] == "control" and same and arm.row["arm"] == shuffled:
                    yield Pair(arm, other, CONTROL, metric)
            if best is not None:
                yield Pair(arm, best, BEST, metric)


def resample(
    pairs: Sequence[Pair], bucket: str, n_resamples: int, seed: int
) -> Iterator[tuple[Pair, Resampled]]:
    """Yield each pair's means under the same draws of users.

    In a bucket of user activity a user counts with the seeds in which their visible interactions
    fall into it; users who have none are left out.

    Cost: O(n_resamples n_users pairs), about 32 MB of draws in memory.
    """
    if not pairs:
        return
    inside = _inside(pairs[0].arm.activity, bucket)
    users = inside.any(axis=0)
    n_users = int(users.sum())
    bases: dict[tuple[int, str], int] = {}
    columns = []
    for pair in pairs:
        first, second = (_per_user(arm, pair.metric, inside) for arm in (pair.arm, pair.against))
        columns.append(first - second)
        bases.setdefault((id(pair.against), pair.metric), len(bases))
    for pair in pairs:
        key = (id(pair.against), pair.metric)
        if len(columns) == len(pairs) + bases[key]:
            columns.append(_per_user(pair.against, pair.metric, inside))
    table = np.stack(columns, axis=1)
    means = resampled_means(table, n_resamples, seed)
    for place, pair in enumerate(pairs):
        base = len(pairs) + bases[id(pair.against), pair.metric]
        yield (
            pair,
            Resampled(
                means[:, place],
                means[:, base],
                float(table[:, place].mean()),
                float(table[:, base].mean()),
                n_users,
            ),
        )


def resampled_means(table: np.ndarray, n_resamples: int, seed: int) -> np.ndarray:
    """Return the column means of a (n_users, n) table under draws of its rows: (n_resamples, n).

    The draws are those of `gnnrec.stats.paired_bootstrap` with that seed.
    """
    n, width = table.shape
    generator = numpy_generator(seed, "bootstrap")
    means = np.empty((n_resamples, width))
    chunk = max(1, _CELLS // n)
    for start in range(0, n_resamples, chunk):
        stop = min(start + chunk, n_resamples)
        drawn = generator.integers(0, n, size=(stop - start, n))
        drawn += n * np.arange(stop - start)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=(stop - start) * n)
        means[start:stop] = counts.reshape(stop - start, n).astype(np.float64) @ table / n
    return means


def interval(resampled: Resampled) -> dict[str, float]:
    """Return what `gnnrec.stats.paired_bootstrap` returns."""
    bounds = percentile_bounds(resampled.shifts, resampled.ratios)
    if not resampled.base:
        bounds |= {"relative_low": float("nan"), "relative_high": float("nan")}
    return {
        "mean_difference": resampled.mean_difference,
        "relative": resampled.relative,
        **bounds,
        "p": two_sided(resampled.shifts),
        "n_users": resampled.n_users,
        "n_resamples": len(resampled.shifts),
    }


def _difference(pair: Pair, resampled: Resampled, bucket: str, chosen: bool) -> dict[str, Any]:
    row, other = pair.arm.row, pair.against.row
    return {
        **{name: row[name] for name in ("scenario", "target", "fraction", "source", "arm")},
        "against": other["arm"],
        "metric": pair.metric,
        **interval(resampled),
        "family": f"{row['scenario']}: against {pair.kind}, {pair.metric}, users {bucket}",
        "bucket": bucket,
        "encoder": row["encoder"],
        "against_source": other["source"],
        "against_encoder": other["encoder"],
        "chosen": "yes" if chosen else "no",
        "n_targets": 1,
    }


def _average(key: tuple[str, ...], parts: list[Resampled]) -> dict[str, Any]:
    """The mean over targets; p is that of the mean relative difference."""
    scenario, fraction, arm, encoder, kind, metric = key
    ratios = np.mean([part.ratios for part in parts], axis=0)
    shifts = np.mean([part.shifts for part in parts], axis=0)
    return {
        "scenario": scenario,
        "target": "all",
        "fraction": fraction,
        "source": "",
        "arm": arm,
        "against": kind,
        "metric": metric,
        "n_users": sum(part.n_users for part in parts),
        "mean_difference": float(np.mean([part.mean_difference for part in parts])),
        "relative": float(np.mean([part.relative for part in parts])),
        **percentile_bounds(shifts, ratios),
        "p": two_sided(ratios),
        "n_resamples": len(ratios),
        "family": f"{scenario}: mean over targets against {kind}, {metric}",
        "bucket": "all",
        "encoder": encoder,
        "against_source": "",
        "against_encoder": "",
        "chosen": "yes",
        "n_targets": len(parts),
    }


def _adjust(rows: list[dict[str, Any]]) -> None:
    """Add p_holm to the rows of each family."""
    families: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        families.setdefault(row["family"], []).append(row)
    for members in families.values():
        adjusted = holm([row["p"] for row in members])
        for row, p in zip(members, adjusted.tolist(), strict=True):
            row["p_holm"] = p


def _cells(suite: Suite, rows: Sequence[Row]) -> Iterator[list[list[Row]]]:
    """Yield the complete arms of each scenario, target and fraction: their rows by seed."""
    seeds = [as_text(seed) for seed in suite.seeds]
    places: dict[tuple[str, ...], dict[tuple[str, ...], dict[str, Row]]] = {}
    for row in rows:
        if row["suite"] == suite.name:
            place = (row["scenario"], row["target"], row["fraction"])
            arm = (row["source"], row["arm"], row["encoder"])
            # A run that was made again, with other settings, is its last row.
            places.setdefault(place, {}).setdefault(arm, {})[row["seed"]] = row
    for arms in places.values():
        whole = [[runs[s] for s in seeds] for runs in arms.values() if set(seeds) <= set(runs)]
        if any(runs[0]["family"] == "transfer" for runs in whole):
            yield whole


def _transferred(cell: list[list[Row]]) -> list[list[Row]]:
    return [runs for runs in cell if runs[0]["family"] == "transfer"]


def _load(out: Path, runs: list[Row]) -> ArmRuns:
    files = []
    for row in runs:
        path = out / "per_user" / f"{row['run']}.npz"
        try:
            with np.load(path, allow_pickle=False) as file:
                cold = [COLD_METRIC] if COLD_METRIC in file else []
                files.append({n: file[n] for n in ("users", "activity", *METRICS, *cold)})
        except (OSError, ValueError, KeyError) as error:
            raise DataError(
                f"{path}: found no readable values of the run's users ({error}), expected what "
                "gnnrec bench wrote; take its line out of runs.csv to make the run again"
            ) from error
    users = files[0]["users"]
    if any(not np.array_equal(users, file["users"]) for file in files):
        raise DataError(f"{out}: the seeds of {runs[0]['run']} were tested on different users")
    return ArmRuns(
        runs[0],
        users,
        np.stack([file["activity"] for file in files]),
        {
            name: np.stack([file[name].astype(np.float64) for file in files])
            for name in files[0]
            if name not in ("users", "activity")
        },
    )


def _chosen(suite: Suite, rows: Sequence[Row], target: str, encoder: str) -> str | None:
    if not suite.sources_of(encoder, target):
        return None
    try:
        source = best_source(suite, rows, target, encoder)
    except ConfigError:  # several sources, all of them run everywhere, and nothing validated
        return None
    return None if source is None else "+".join(source)


def _buckets(activity: np.ndarray) -> list[str]:
    """The names of the buckets that hold a user in some seed, as in `gnnrec.metrics.by_bucket`."""
    return [str(row["bucket"]) for row in by_bucket({}, activity.ravel(), EDGES)]


def _inside(activity: np.ndarray, bucket: str) -> np.ndarray:
    """(n_seeds, n_users) bool."""
    if bucket == "all":
        return np.ones(activity.shape, dtype=bool)
    low, _, high = bucket.removesuffix("+").partition("-")
    top = np.inf if bucket.endswith("+") else float(high or low)
    return (activity >= float(low)) & (activity <= top)


def _per_user(arm: ArmRuns, metric: str, inside: np.ndarray) -> np.ndarray:
    """(n,) mean over the seeds that are inside, of the users with any."""
    counts = inside.sum(axis=0)
    sums = (arm.values[metric] * inside).sum(axis=0)
    means: np.ndarray = sums[counts > 0] / counts[counts > 0]
    return means
