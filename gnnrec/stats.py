"""Is one arm better than another: paired bootstrap over users, Holm's correction, seed spread."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gnnrec.device import numpy_generator
from gnnrec.errors import ConfigError, DataError

_CHUNK_CELLS = 4_000_000  # resampled values in memory at a time: about 32 MB an array


def paired_bootstrap(
    a: np.ndarray, b: np.ndarray, n_resamples: int = 10_000, seed: int = 0
) -> dict[str, float]:
    """Compare two arms user by user with a 95 % percentile bootstrap (Efron and Tibshirani 1993).

    Users are drawn with replacement, both arms with the same draw. With several training seeds,
    average each arm over its seeds per user first: users are what the interval generalises over,
    and the spread over seeds is reported apart (`seed_spread`).

    Args:
        a: (n_users,) metric of the first arm.
        b: (n_users,) metric of the second, same users in the same order.
        n_resamples: Number of resamples. The smallest p is 2 / (n_resamples + 1): take at least
            20 times as many as there are tests in a Holm family, and more for a strict level.
        seed: Seed of the draws.

    Returns:
        `mean_difference` = mean(a - b) with `low`, `high`; `relative` = mean(a) / mean(b) - 1
        with `relative_low`, `relative_high` (NaN where mean(b) is 0; a bound is infinite where
        the mean of b is 0 in that many resamples); `p`, two-sided: twice the smaller share of
        resampled differences on either side of 0, with one added to both counts, at most 1;
        `n_users`, `n_resamples`. Costs O(n_resamples n_users) time and bounded memory.

    Raises:
        DataError: The arms differ in shape, have no users, or hold NaN.
        ConfigError: Fewer than one resample.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape or first.ndim != 1 or not len(first):
        raise DataError(
            "both arms must hold one value for each of the same users; found shapes "
            f"{first.shape} and {second.shape}"
        )
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise DataError("an arm holds a value that is not a finite number; score every user")
    if n_resamples < 1:
        raise ConfigError(f"n_resamples must be at least 1; found {n_resamples}")
    difference = first - second
    shifts, bases = _resampled_means(difference, second, n_resamples, seed)
    ratios = np.full(n_resamples, np.inf)
    np.divide(shifts, bases, out=ratios, where=bases != 0)
    bounds = percentile_bounds(shifts, ratios)
    base = float(second.mean())
    mean_difference = float(difference.mean())
    if not base:
        bounds |= {"relative_low": float("nan"), "relative_high": float("nan")}
    return {
        "mean_difference": mean_difference,
        "relative": mean_difference / base if base else float("nan"),
        **bounds,
        "p": two_sided(shifts),
        "n_users": len(first),
        "n_resamples": n_resamples,
    }


def percentile_bounds(shifts: np.ndarray, ratios: np.ndarray) -> dict[str, float]:
    """Return the 95 % bounds of resampled differences and of resampled relative differences.

    Args:
        shifts: (n_resamples,) differences: `low`, `high`.
        ratios: (n_resamples,) relative ones, which may be infinite: `relative_low`,
            `relative_high`.
    """
    low, high = np.quantile(shifts, (0.025, 0.975))
    # No interpolation: between a number and infinity it would give NaN.
    relative_low, relative_high = np.quantile(ratios, (0.025, 0.975), method="inverted_cdf")
    return {
        "low": float(low),
        "high": float(high),
        "relative_low": float(relative_low),
        "relative_high": float(relative_high),
    }


def two_sided(shifts: np.ndarray) -> float:
    """Return the two-sided p of resampled differences, one added to both counts."""
    side = min(int((shifts <= 0).sum()), int((shifts >= 0).sum()))
    return min(1.0, 2.0 * (side + 1) / (len(shifts) + 1))


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Adjust the p-values of one family of tests (Holm 1979); controls the family-wise error.

    The i-th smallest of m values becomes the largest (m - j + 1) p_(j) over j <= i, at most 1.

    Args:
        p_values: (m,) values in [0, 1].

    Returns:
        (m,) float64 in the order given; reject where it does not exceed the level.

    Raises:
        DataError: A value lies outside [0, 1].
    """
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise DataError(f"p-values must be a list of numbers in [0, 1]; found {p.tolist()}")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    return np.minimum(adjusted, 1.0)


def seed_spread(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """Return the mean over training seeds and the sample standard deviation (n - 1).

    The deviation of a single seed is NaN: one run says nothing about the spread.

    Raises:
        DataError: There are no values.
    """
    x = np.asarray(values, dtype=np.float64)
    if not x.size:
        raise DataError("the spread over seeds needs at least one value; found none")
    return float(x.mean()), float(x.std(ddof=1)) if x.size > 1 else float("nan")


def _resampled_means(
    x: np.ndarray, y: np.ndarray, n_resamples: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the means of x and of y under the same draws of users, each (n_resamples,)."""
    generator = numpy_generator(seed, "bootstrap")
    n = len(x)
    means = np.empty((2, n_resamples))
    chunk = max(1, _CHUNK_CELLS // n)
    for start in range(0, n_resamples, chunk):
        stop = min(start + chunk, n_resamples)
        drawn = generator.integers(0, n, size=(stop - start, n))
        means[0, start:stop] = x[drawn].mean(axis=1)
        means[1, start:stop] = y[drawn].mean(axis=1)
    return means[0], means[1]
