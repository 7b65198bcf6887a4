"""Differences from per-user values, against the slow way and by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gnnrec import contrast
from gnnrec.contrast import (
    ArmRuns,
    Pair,
    interval,
    pairs_of,
    resample,
    resampled_means,
    write_differences,
)
from gnnrec.errors import DataError
from gnnrec.ledger import Row, read_rows
from gnnrec.metrics import by_bucket
from gnnrec.plan import Task, part_sha256, plan, run_id
from gnnrec.stats import holm, paired_bootstrap
from gnnrec.suite import Suite
from gnnrec.suite_file import make_suite


def runs_of(
    arm: str, family: str, values: np.ndarray, activity: np.ndarray, **more: str
) -> ArmRuns:
    row = {"arm": arm, "family": family, "encoder": "", "source": ""} | more
    table = np.asarray(values, dtype=np.float64)
    return ArmRuns(
        row, np.arange(table.shape[1]), activity, {"ndcg@20": table, "recall@20": table / 2}
    )


@given(seed=st.integers(0, 50), n=st.integers(1, 30), cells=st.sampled_from([1, 40, 4_000_000]))
@settings(deadline=None, max_examples=30)
def test_an_interval_is_that_of_the_paired_bootstrap(seed, n, cells):
    rng = np.random.default_rng(seed)
    table = rng.random((3, n)).round(1)  # ties and zeros
    arms = [runs_of(str(i), "", row[None], np.ones((1, n), int)) for i, row in enumerate(table)]
    pairs = [Pair(arms[a], arms[b], "", "ndcg@20") for a, b in ((0, 1), (2, 1), (1, 2), (1, 1))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contrast, "_CELLS", cells)
        patch.setattr("gnnrec.stats._CHUNK_CELLS", cells)
        found = [interval(resampled) for _, resampled in resample(pairs, "all", 200, seed)]
        for pair, one in zip(pairs, found, strict=True):
            values = [arm.values["ndcg@20"][0] for arm in (pair.arm, pair.against)]
            expected = paired_bootstrap(*values, n_resamples=200, seed=seed)
            # A resample that is 0 in one way and 1e-17 in the other counts on both sides or one.
            assert one.pop("p") == pytest.approx(expected.pop("p"), abs=0.1)
            assert one == pytest.approx(expected, rel=1e-9, abs=1e-12, nan_ok=True)


def test_equal_arms_do_not_differ():
    values = np.random.default_rng(0).random((2, 40))
    one, other = (runs_of(name, "", values, np.ones((2, 40), int)) for name in "ab")
    ((_, resampled),) = resample([Pair(one, other, "", "ndcg@20")], "all", 500, 3)
    found = interval(resampled)
    assert (found["low"], found["high"], found["p"]) == (0.0, 0.0, 1.0)


def test_a_bucket_holds_users_with_the_seeds_that_fall_into_it():
    activity = np.array([[0, 3, 30, 3], [0, 30, 30, 0]])
    a = np.array([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]])
    arm, zero = runs_of("a", "", a, activity), runs_of("z", "", np.ones_like(a), activity)
    expected = {"0": [3.0, 8.0], "1-4": [2.0, 4.0], "20-99": [6.0, 5.0], "all": [3, 4, 5, 6]}
    assert contrast._buckets(activity) == ["0", "1-4", "20-99"]
    for bucket, means in expected.items():
        ((_, found),) = resample([Pair(arm, zero, "", "ndcg@20")], bucket, 10, 0)
        assert found.n_users == len(means)
        assert found.mean_difference == pytest.approx(np.mean(means) - 1)


@given(activity=st.lists(st.integers(0, 300), min_size=1, max_size=30))
def test_buckets_are_those_of_the_metrics(activity):
    table = np.array([activity])
    counted = {row["bucket"]: row["n_users"] for row in by_bucket({}, np.array(activity))}
    found = {name: int(contrast._inside(table, name).sum()) for name in contrast._buckets(table)}
    assert found == counted


def test_pairs_are_with_the_twin_popularity_the_best_and_the_control():
    activity = np.ones((1, 3), int)

    def arm(name: str, family: str, value: float, **more: str) -> ArmRuns:
        return runs_of(name, family, np.full((1, 3), value), activity, **more)

    arms = [
        arm("popularity", "baseline", 0.1),
        arm("ease", "baseline", 0.5),
        arm("scratch", "scratch", 0.2, encoder="one"),
        arm("scratch", "scratch", 0.3, encoder="two"),
        arm("final:1", "transfer", 0.4, encoder="one", source="books"),
        arm("shuffled-text", "control", 0.9, encoder="one", source="books"),
        arm("shuffled-text", "control", 0.9, encoder="one", source="films"),
    ]
    found = [
        (p.kind, p.against.row["arm"], p.against.row["encoder"], p.against.row["source"])
        for p in pairs_of(arms, "final:1")
        if p.metric == "ndcg@20"
    ]
    assert sorted(found) == [
        ("control", "shuffled-text", "one", "books"),
        ("popularity", "popularity", "", ""),
        ("scratch", "scratch", "one", ""),
        ("the best without a source", "ease", "", ""),
    ]
    assert "control" not in {p.kind for p in pairs_of(arms, "heads")}


def test_resampled_means_share_the_draws():
    table = np.random.default_rng(1).random((7, 2))
    means = resampled_means(np.hstack([table, table.sum(axis=1, keepdims=True)]), 50, 9)
    assert means[:, 2] == pytest.approx(means[:, 0] + means[:, 1])


@pytest.fixture
def made(tmp_path: Path) -> tuple[Suite, Path, list[Row]]:
    """Rows and per-user values of a suite with two targets, without running anything."""
    suite = make_suite(
        {
            "name": "s",
            "targets": ["ml-100k", "ifdb"],
            "sources": ["goodbooks-10k", "online-retail"],
            "fractions": [0.1, 1.0],
            "seeds": [0, 1],
            "encoders": ["graph-filter"],
            "arms": ["popularity", "scratch", "full"],
        },
        "s.toml",
    )
    (tmp_path / "per_user").mkdir()
    rows = []
    for task in plan(suite, []):
        assert isinstance(task, Task)
        run = run_id(task, part_sha256(suite, task))
        worse = 0.1 * (task.source == "online-retail")
        rows.append(task.keys() | {"run": run, "best_value": str(worse) if task.source else ""})
        n = 30 if task.target == "ifdb" else 20
        rng = np.random.default_rng([task.seed, n])  # the same users for all arms
        values = rng.random(n) + {"popularity": 0.0, "scratch": 0.1, "full": 0.2}[task.arm]
        activity = rng.integers(0, 9, n)
        np.savez(
            tmp_path / "per_user" / f"{run}.npz",
            users=np.arange(n),
            activity=activity,
            **{"ndcg@20": np.float32(values - worse), "recall@20": np.float32(values)},
        )
    return suite, tmp_path, rows


def test_averages_over_targets_are_of_the_sources_that_validate_best(made):
    suite, out, rows = made
    found = write_differences(suite, out, rows)
    assert len(read_rows(out / "differences.csv")) == len(found)
    averages = [row for row in found if row["target"] == "all"]
    assert len(averages) == 2 * 3 * 2  # fractions, kinds, metrics
    for row in averages:
        parts = [
            r
            for r in found
            if r["chosen"] == "yes"
            and r["bucket"] == "all"
            and r["target"] != "all"
            and r["family"].startswith(f"main: against {row['against']}, {row['metric']}")
            and r["fraction"] == row["fraction"]
        ]
        assert {r["source"] for r in parts} == {"goodbooks-10k"} and len(parts) == 2
        assert row["relative"] == pytest.approx(np.mean([r["relative"] for r in parts]))
        assert row["n_users"] == 50 and row["n_targets"] == 2
        assert row["relative_low"] <= row["relative"] <= row["relative_high"]
        # Every resample shows the same gain of every user.
        assert row["p"] == pytest.approx(2 / 10_001)
    best = {r["against"] for r in found if "the best without a source" in r["family"]}
    assert best == {"scratch", "the best without a source"}


def test_families_are_corrected_apart(made):
    suite, out, rows = made
    found = write_differences(suite, out, rows)
    families: dict[str, list[dict[str, object]]] = {}
    for row in found:
        families.setdefault(row["family"], []).append(row)
    name = "main: against popularity, ndcg@20, users all"
    assert len(families[name]) == 2 * 2 * 2  # targets, fractions, sources
    for members in families.values():
        expected = holm([row["p"] for row in members])
        assert [row["p_holm"] for row in members] == expected.tolist()
        assert all(row["n_resamples"] >= 20 * len(members) for row in members)


def test_an_arm_is_compared_when_all_its_seeds_are_there(made):
    suite, out, rows = made
    some = [r for r in rows if not (r["arm"] == "scratch" and r["seed"] == "1")]
    against = {row["against"] for row in write_differences(suite, out, some)}
    assert against == {"popularity", "the best without a source"}
    assert write_differences(suite, out, [r for r in rows if r["seed"] == "0"]) == []
    assert read_rows(out / "differences.csv") == []


def test_lost_or_strange_values_are_said(made):
    suite, out, rows = made
    path = out / "per_user" / f"{rows[0]['run']}.npz"
    np.savez(path, users=np.arange(3), activity=np.ones(3), **{"ndcg@20": [1], "recall@20": [1]})
    with pytest.raises(DataError, match="different users"):
        write_differences(suite, out, rows)
    path.write_bytes(b"no")
    with pytest.raises(DataError, match="no readable values"):
        write_differences(suite, out, rows)
    path.unlink()
    with pytest.raises(DataError, match=path.name):
        write_differences(suite, out, rows)
