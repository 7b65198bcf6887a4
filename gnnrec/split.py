"""Which rows of an interaction log train, validate and test.

Everything works on arrays of codes and returns row indices, so no interaction is ever copied. The
log is expected to hold each (user, item) pair once: a pair that is present twice could land on
both sides.

Three seeds are kept apart. The test rows depend on `split_seed` alone, so that every arm, every
training seed and every fraction is scored on the same rows; the kept fraction and the validation
rows depend on `seed`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from gnnrec.device import numpy_generator
from gnnrec.errors import ConfigError, DataError

SplitKind = Literal["ratio", "time", "given", "none"]
RawIds = Sequence[str] | Sequence[int] | np.ndarray

_HASH_CHUNK = 100_000  # lines per update of the digest


@dataclass(frozen=True, eq=False)
class Split:
    """The rows of one log, divided; the three parts are sorted int64 and share no row.

    Attributes:
        train: (n_train,) rows to fit on: the kept fraction without its validation part.
        validation: (n_validation,) rows carved out of the kept fraction.
        test: (n_test,) held-out rows.
        kind: How the test rows were chosen.
        seed: Seed of the kept fraction and of the validation rows.
        fraction: Share of the training rows that was kept.
        n_train_full: Training rows before the fraction was applied.
        split_seed: Seed of the test rows.

    Raises:
        DataError: Two parts share a row.
    """

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    kind: SplitKind
    seed: int
    fraction: float
    n_train_full: int
    split_seed: int = 0

    def __post_init__(self) -> None:
        """Sort the parts and refuse overlapping ones: a leak here would void every result."""
        parts = {name: np.sort(np.asarray(rows, dtype=np.int64)) for name, rows in self._parts()}
        everything = np.sort(np.concatenate(list(parts.values())))
        n_repeated = int((everything[1:] == everything[:-1]).sum())
        if n_repeated:
            raise DataError(
                f"train, validation and test must share no row; found {n_repeated} rows more "
                "than once"
            )
        for name, rows in parts.items():
            object.__setattr__(self, name, rows)

    def _parts(self) -> tuple[tuple[str, np.ndarray], ...]:
        # In the order of the sorted lines that `sha256` hashes.
        return (("test", self.test), ("train", self.train), ("validation", self.validation))

    @property
    def kept(self) -> np.ndarray:
        """(n_train + n_validation,) int64: every row whose label may be used, sorted."""
        return np.sort(np.concatenate([self.train, self.validation]))

    def sha256(self, users_raw: RawIds, items_raw: RawIds) -> str:
        """Return the digest of the lines "part<TAB>user<TAB>item", sorted by part, user and item.

        Raw ids are compared as text, so the digest depends neither on the order of the rows nor
        on the codes, and ids that were read as numbers hash like the same ids read as text.

        Args:
            users_raw: (n_rows,) raw user id of every row of the log.
            items_raw: (n_rows,) raw item id of every row of the log.

        Returns:
            64 hexadecimal digits. Costs O(n log n) time and three int64 per row.
        """
        user_rank, user_text = _text_rank(users_raw)
        item_rank, item_text = _text_rank(items_raw)
        digest = hashlib.sha256()
        for part, rows in self._parts():
            ordered = rows[np.lexsort((item_rank[rows], user_rank[rows]))]
            for start in range(0, len(ordered), _HASH_CHUNK):
                chunk = ordered[start : start + _HASH_CHUNK]
                pairs = zip(user_text[user_rank[chunk]], item_text[item_rank[chunk]], strict=True)
                digest.update("".join(f"{part}\t{u}\t{i}\n" for u, i in pairs).encode())
        return digest.hexdigest()


def split_per_user(
    users: np.ndarray, n_users: int, test: float = 0.2, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Hold out a random share of every user's rows.

    A user with n rows gives floor(test * n + U) of them, U uniform in [0, 1): the expected share
    is exactly `test` at every activity, where rounding would always or never test the users with
    few rows.

    Args:
        users: (n_rows,) integer user codes.
        n_users: Size of the user side.
        test: Share to hold out, in [0, 1).
        seed: Seed of the held-out rows; use one for all arms, training seeds and fractions.

    Returns:
        (train, test): sorted int64 rows that together cover the log. Costs O(n log n).

    Raises:
        ConfigError: The share lies outside [0, 1).
    """
    _check_share("test", test)
    n = len(users)
    degrees = np.bincount(users, minlength=n_users)
    thresholds = numpy_generator(seed, "split", "count").random(n_users)
    n_held = np.floor(test * degrees + thresholds).astype(np.int64)
    keys = numpy_generator(seed, "split", "rows").random(n)
    order = np.lexsort((keys, users))  # rows by user, in random order within a user
    starts = np.cumsum(degrees) - degrees
    place = np.arange(n) - np.repeat(starts, degrees)
    held = np.zeros(n, dtype=bool)
    held[order] = place < np.repeat(n_held, degrees)
    return np.flatnonzero(~held), np.flatnonzero(held)


def split_by_time(
    timestamps: np.ndarray | None, test: float = 0.2
) -> tuple[np.ndarray, np.ndarray]:
    """Hold out everything after one global moment.

    The cut is the time of the last of the earliest (1 - test) n rows; rows at the cut train,
    strictly later ones test. Where so many rows share the latest time that nothing lies after the
    cut, it moves back to the next earlier time, and more than the share is held out.

    Args:
        timestamps: (n_rows,) numbers or datetime64.
        test: Share to hold out, in (0, 1).

    Returns:
        (train, test): sorted int64 rows, neither of them empty. Costs O(n log n).

    Raises:
        DataError: There are no timestamps, some are missing, or all are equal.
        ConfigError: The share lies outside (0, 1).
    """
    _check_share("test", test)
    if test == 0:
        raise ConfigError("a split by time needs a test share above 0; use the kind none")
    if timestamps is None or len(timestamps) == 0:
        raise DataError(
            "a split by time needs timestamps and the log has none; name the column with "
            "--timestamp-column, or split by ratio"
        )
    times = np.asarray(timestamps)
    n_missing = int((times != times).sum())  # NaN and NaT are the values unequal to themselves
    if n_missing:
        raise DataError(
            f"a split by time needs a timestamp in every row; {n_missing} of {len(times)} rows "
            "have none; drop them or split by ratio"
        )
    ordered = np.sort(times)
    if ordered[0] == ordered[-1]:
        raise DataError(
            f"a split by time needs at least two different timestamps; all {len(times)} rows "
            f"have {ordered[0]}; split by ratio instead"
        )
    n_train = min(max(len(times) - round(test * len(times)), 1), len(times) - 1)
    cut = ordered[n_train - 1]
    if cut == ordered[-1]:
        cut = ordered[np.searchsorted(ordered, cut, side="left") - 1]
    later = times > cut
    return np.flatnonzero(~later), np.flatnonzero(later)


def share_with_history(users: np.ndarray, train: np.ndarray, test: np.ndarray) -> float:
    """Return the share of the users in `test` that have any row in `train`; 0 without test rows.

    After a cut in time it is often a fifth to a third, and a result is worth little without it.

    Args:
        users: (n_rows,) integer user codes.
        train: Training rows.
        test: Test rows.
    """
    test_users = np.unique(users[test])
    if not len(test_users):
        return 0.0
    return float(np.isin(test_users, users[train]).mean())


def keep_fraction(train: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Keep a uniform random share of the training rows.

    For one seed the kept rows are nested: those of 10 % lie inside those of 20 %, so a learning
    curve adds labels and never exchanges them.

    Args:
        train: (n,) training rows.
        fraction: Share to keep, in (0, 1].
        seed: Seed of the choice.

    Returns:
        Sorted rows, at least one where `train` has any. Costs O(n log n).

    Raises:
        ConfigError: The fraction lies outside (0, 1].
    """
    if not 0 < fraction <= 1:
        raise ConfigError(f"fraction must lie in (0, 1]; found {fraction}")
    order = numpy_generator(seed, "fraction").permutation(len(train))
    n_kept = max(1, round(fraction * len(train)))
    return np.sort(train[order[:n_kept]])


def carve_validation(
    kept: np.ndarray, share: float = 0.1, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Take validation rows out of the kept rows, so that the fraction counts every label used.

    Args:
        kept: (n,) kept training rows.
        share: Share to validate on, in [0, 1).
        seed: Seed of the choice.

    Returns:
        (train, validation), both sorted. Training keeps at least one row; the validation rows may
        be none when fewer than 1 / share rows are kept.

    Raises:
        ConfigError: The share lies outside [0, 1).
    """
    _check_share("validation", share)
    order = numpy_generator(seed, "validation").permutation(len(kept))
    n_validation = min(round(share * len(kept)), max(len(kept) - 1, 0))
    return np.sort(kept[order[n_validation:]]), np.sort(kept[order[:n_validation]])


def make_split(
    users: np.ndarray,
    n_users: int,
    timestamps: np.ndarray | None = None,
    kind: SplitKind = "ratio",
    test: float = 0.2,
    fraction: float = 1.0,
    validation: float = 0.1,
    seed: int = 0,
    split_seed: int = 0,
    test_rows: np.ndarray | None = None,
) -> Split:
    """Divide a log: hold out the test rows, keep a fraction of the others, carve validation.

    Args:
        users: (n_rows,) integer user codes.
        n_users: Size of the user side.
        timestamps: (n_rows,) times; used by the kind "time".
        kind: "ratio" per user, "time" for a global cut, "given" for `test_rows`, "none".
        test: Share of the rows to hold out, for "ratio" and "time".
        fraction: Share of the training rows to keep.
        validation: Share of the kept rows to validate on.
        seed: Seed of the fraction and of the validation rows.
        split_seed: Seed of the test rows.
        test_rows: The rows to hold out, for "given" (a test file, cold items, cold users).

    Returns:
        The split. Costs O(n log n).

    Raises:
        ConfigError: An unknown kind or a share out of range.
        DataError: No row is left to train on, or see `split_by_time`.
    """
    if kind == "ratio":
        train, held = split_per_user(users, n_users, test, split_seed)
    elif kind == "time":
        train, held = split_by_time(timestamps, test)
    elif kind == "given":
        if test_rows is None:
            raise ConfigError("a given split needs test_rows; pass them or use another kind")
        train, held = _without(len(users), test_rows)
    elif kind == "none":
        train, held = _without(len(users), np.empty(0, dtype=np.int64))
    else:
        raise ConfigError(f"split kind must be one of {get_args(SplitKind)}; found {kind!r}")
    if not len(train):
        raise DataError(
            f"no row is left to train on: all {len(held)} rows are held out; add interactions or "
            "use a smaller test share"
        )
    kept = keep_fraction(train, fraction, seed)
    fitted, validated = carve_validation(kept, validation, seed)
    return Split(fitted, validated, held, kind, seed, fraction, len(train), split_seed)


def cold_items(items: np.ndarray, n_items: int, share: float, seed: int) -> np.ndarray:
    """Choose items at random whose rows are all to be held out.

    Args:
        items: (n_rows,) integer item codes.
        n_items: Size of the item side.
        share: Share of the items with any row, in (0, 1).
        seed: Seed of the choice.

    Returns:
        Sorted int64 codes, each with at least one row; at least one item, and never all of them
        where there are two or more. `rows_of` turns them into test rows.

    Raises:
        ConfigError: The share lies outside (0, 1).
    """
    return _cold(items, n_items, share, seed, "cold items")


def cold_users(users: np.ndarray, n_users: int, share: float, seed: int) -> np.ndarray:
    """Choose users at random whose rows are all to be held out; see `cold_items`."""
    return _cold(users, n_users, share, seed, "cold users")


def rows_of(codes: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Return the sorted int64 rows whose code is one of the chosen, O(n log n)."""
    return np.flatnonzero(np.isin(codes, chosen))


def _cold(codes: np.ndarray, n_codes: int, share: float, seed: int, name: str) -> np.ndarray:
    if not 0 < share < 1:
        raise ConfigError(f"the share of {name} must lie in (0, 1); found {share}")
    # A key for every code, present or not: what the log lacks does not reshuffle the rest.
    keys = numpy_generator(seed, name).random(n_codes)
    present = np.flatnonzero(np.bincount(codes, minlength=n_codes))
    n_cold = min(max(1, round(share * len(present))), max(len(present) - 1, 1))
    return np.sort(present[np.argsort(keys[present], kind="stable")[:n_cold]])


def _without(n_rows: int, test_rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rows = np.asarray(test_rows, dtype=np.int64)
    if len(rows) and not 0 <= rows.min() <= rows.max() < n_rows:
        raise DataError(f"test rows must lie in [0, {n_rows}); found {rows.min()} to {rows.max()}")
    held = np.zeros(n_rows, dtype=bool)
    held[rows] = True
    return np.flatnonzero(~held), np.flatnonzero(held)


def _text_rank(raw: RawIds) -> tuple[np.ndarray, np.ndarray]:
    """Return per row the place of its id among the sorted texts, and those texts."""
    import pandas as pd

    # Distinct values first: turning every row into text would cost a string per row.
    codes, distinct = pd.factorize(np.asarray(raw), use_na_sentinel=False)
    texts, place = np.unique(np.array([str(value) for value in distinct]), return_inverse=True)
    return place[codes], texts


def _check_share(name: str, share: float) -> None:
    if not 0 <= share < 1:
        raise ConfigError(f"the {name} share must lie in [0, 1); found {share}")
