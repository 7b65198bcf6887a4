import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gnnrec.errors import ConfigError, DataError
from gnnrec.split import (
    Split,
    carve_validation,
    cold_items,
    cold_users,
    keep_fraction,
    make_split,
    rows_of,
    share_with_history,
    split_by_time,
    split_per_user,
)

logs = st.lists(st.integers(0, 7), min_size=1, max_size=80).map(np.array)


@given(users=logs, test=st.sampled_from([0.0, 0.1, 0.2, 0.5, 0.9]), seed=st.integers(0, 99))
@settings(max_examples=100, deadline=None)
def test_per_user_covers_and_every_user_gives_a_neighbour_of_the_share(users, test, seed):
    train, held = split_per_user(users, 8, test, seed)
    assert sorted(np.concatenate([train, held]).tolist()) == list(range(len(users)))
    assert train.dtype == held.dtype == np.int64
    n, n_held = np.bincount(users, minlength=8), np.bincount(users[held], minlength=8)
    assert (np.abs(n_held - test * n) < 1).all()


@pytest.mark.parametrize("n_rows", [1, 3, 7, 10])
def test_expected_share_is_exact_at_every_activity(n_rows):
    n_users = 20_000
    users = np.tile(np.arange(n_users), n_rows)  # one user's rows are far apart
    _, held = split_per_user(users, n_users, 0.2, seed=3)
    assert len(held) / len(users) == pytest.approx(0.2, abs=0.01)
    # Every position of a user's rows is as likely as any other.
    positions = np.bincount(held // n_users, minlength=n_rows) / n_users
    np.testing.assert_allclose(positions, 0.2, atol=0.015)


def test_per_user_depends_on_the_split_seed_alone():
    users = np.random.default_rng(0).integers(0, 50, 1000)
    base = make_split(users, 50, fraction=1.0, seed=0)
    other = make_split(users, 50, fraction=0.1, seed=5)
    assert np.array_equal(base.test, other.test)
    assert not np.array_equal(base.test, make_split(users, 50, split_seed=1).test)
    assert not np.array_equal(base.validation, make_split(users, 50, seed=1).validation)
    assert other.n_train_full == len(base.kept) == 1000 - len(base.test)


@given(
    users=logs,
    kind=st.sampled_from(["ratio", "given", "none", "time"]),
    fraction=st.sampled_from([0.01, 0.3, 1.0]),
    validation=st.sampled_from([0.0, 0.1, 0.9]),
    seed=st.integers(0, 99),
)
@settings(max_examples=150, deadline=None)
def test_parts_are_disjoint_sorted_and_train_is_never_empty(
    users, kind, fraction, validation, seed
):
    if kind in ("time", "given") and len(users) < 2:
        return
    split = make_split(
        users,
        8,
        timestamps=np.arange(len(users))[::-1],
        kind=kind,
        fraction=fraction,
        validation=validation,
        seed=seed,
        test=0.2 if len(users) > 1 else 0.0,
        test_rows=np.array([0]),
    )
    parts = [split.train, split.validation, split.test]
    rows = np.concatenate(parts)
    assert len(np.unique(rows)) == len(rows)
    assert all((np.diff(part) > 0).all() for part in parts)
    assert len(split.train) >= 1
    assert split.n_train_full + len(split.test) == len(users)
    assert len(split.kept) == max(1, round(fraction * split.n_train_full))
    if kind == "given":
        assert split.test.tolist() == [0]
    if kind == "none":
        assert not len(split.test)


def test_overlapping_parts_are_refused():
    rows = np.arange(3)
    with pytest.raises(DataError, match="share no row"):
        Split(rows, rows[:1], rows[:0], "given", 0, 1.0, 3)


def test_fractions_are_nested_and_uniform():
    train = np.arange(0, 4000, 2)
    kept = [keep_fraction(train, f, seed=4) for f in (0.0001, 0.1, 0.2, 0.5, 1.0)]
    assert [len(rows) for rows in kept] == [1, 200, 400, 1000, 2000]
    for small, large in zip(kept, kept[1:], strict=False):
        assert np.isin(small, large).all()
    assert np.array_equal(kept[-1], train)
    assert kept[2].mean() == pytest.approx(train.mean(), rel=0.1)  # not the first rows
    assert not np.array_equal(kept[1], keep_fraction(train, 0.1, seed=5))


def test_validation_leaves_a_row_to_train_on():
    for n in (1, 2, 9, 100):
        train, validation = carve_validation(np.arange(n), 0.99, 0)
        assert len(train) >= 1
        assert sorted([*train, *validation]) == list(range(n))
    assert len(carve_validation(np.arange(100), 0.1, 0)[1]) == 10
    assert len(carve_validation(np.arange(4), 0.1, 0)[1]) == 0


@given(
    times=st.lists(st.integers(0, 12), min_size=2, max_size=60), test=st.sampled_from([0.1, 0.2])
)
@settings(max_examples=100, deadline=None)
def test_time_cut_is_global_and_ties_train(times, test):
    times = np.array(times)
    if len(set(times.tolist())) == 1:
        with pytest.raises(DataError, match="different timestamps"):
            split_by_time(times, test)
        return
    train, held = split_by_time(times, test)
    assert len(train) + len(held) == len(times)
    assert times[train].max() < times[held].min()
    if times[held].min() < times.max():
        assert len(held) <= max(round(test * len(times)), 1)


def test_time_cut_takes_the_share_when_times_are_distinct():
    times = np.random.default_rng(0).permutation(100)
    assert sorted(times[split_by_time(times, 0.2)[1]].tolist()) == list(range(80, 100))
    stamps = times.astype("datetime64[s]")
    assert np.array_equal(split_by_time(stamps, 0.2)[1], split_by_time(times, 0.2)[1])


def test_time_cut_refuses_missing_times():
    for times in (None, np.array([]), np.array([1.0, np.nan]), np.array(["NaT"], "datetime64[s]")):
        with pytest.raises(DataError, match="timestamp"):
            split_by_time(times)


def test_share_with_history():
    users = np.array([0, 0, 1, 2, 2])
    assert share_with_history(users, np.array([0, 3]), np.array([1, 2, 4])) == pytest.approx(2 / 3)
    assert share_with_history(users, np.arange(5), np.array([], dtype=int)) == 0.0


@given(order_seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_sha256_ignores_row_order_codes_and_number_or_text(order_seed):
    rng = np.random.default_rng(order_seed)
    pairs = rng.permutation(200)[:60]
    users, items = pairs // 10, 100 + pairs % 10
    split = make_split(users, 20, seed=1)
    expected = split.sha256(users, items)

    order = rng.permutation(60)
    new_row = np.argsort(order)
    moved = Split(
        new_row[split.train],
        new_row[split.validation],
        new_row[split.test],
        "given",
        9,
        0.5,
        1,
    )
    assert moved.sha256(users[order].astype(str), items[order].astype(str)) == expected
    assert moved.sha256(users[order].astype(str).astype(object), items[order]) == expected
    assert moved.sha256(users, items) != expected or np.array_equal(order, np.arange(60))
    # A row that moves from training to test is another split.
    other = Split(
        split.train[1:], split.validation, [*split.test, split.train[0]], "given", 0, 1, 1
    )
    assert other.sha256(users, items) != expected


def test_sha256_hashes_the_sorted_lines(monkeypatch):
    monkeypatch.setattr("gnnrec.split._HASH_CHUNK", 2)
    users, items = ["b", "a", "a", "é", "10", "9"], ["x", "y", "x", "z", "x", "x"]
    split = Split(np.array([0, 1, 2, 4]), np.array([5]), np.array([3]), "given", 0, 1.0, 5)
    parts = ["train", "train", "train", "test", "train", "validation"]
    lines = sorted(f"{p}\t{u}\t{i}\n" for p, u, i in zip(parts, users, items, strict=True))
    assert split.sha256(users, items) == hashlib.sha256("".join(lines).encode()).hexdigest()


@pytest.mark.parametrize("choose", [cold_items, cold_users])
def test_cold_codes_have_rows_and_lose_all_of_them(choose):
    codes = np.repeat(np.arange(0, 200, 2), 3)
    cold = choose(codes, 200, 0.2, seed=1)
    assert len(cold) == 20 and (cold % 2 == 0).all()
    split = make_split(codes, 200, kind="given", test_rows=rows_of(codes, cold))
    assert set(codes[split.test]) == set(cold.tolist())
    assert not set(codes[split.kept]) & set(cold.tolist())
    assert len(split.test) == 60
    assert not np.array_equal(cold, choose(codes, 200, 0.2, seed=2))
    assert len(choose(codes, 200, 0.999, seed=1)) == 99


@pytest.mark.parametrize(
    "options",
    [
        {"test": 1.0},
        {"test": -0.1},
        {"fraction": 0.0},
        {"fraction": 1.1},
        {"validation": 1.0},
        {"kind": "given"},
        {"kind": "other"},
        {"kind": "time", "test": 0.0},
    ],
)
def test_wrong_options_are_refused(options):
    with pytest.raises(ConfigError):
        make_split(np.arange(5), 5, timestamps=np.arange(5), **options)


def test_nothing_left_to_train_on_is_refused():
    with pytest.raises(DataError, match="train on"):
        make_split(np.arange(3), 3, kind="given", test_rows=np.arange(3))
    with pytest.raises(DataError, match="lie in"):
        make_split(np.arange(3), 3, kind="given", test_rows=np.array([3]))
