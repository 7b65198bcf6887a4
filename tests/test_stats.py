import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gnnrec import stats
from gnnrec.errors import ConfigError, DataError
from gnnrec.stats import holm, paired_bootstrap, seed_spread


def arms(shift, n=400, seed=0):
    rng = np.random.default_rng(seed)
    base = rng.random(n)
    return base + shift + 0.1 * rng.standard_normal(n), base


def test_a_known_shift_is_found():
    a, b = arms(0.05)
    got = paired_bootstrap(a, b, 2000)
    assert got["mean_difference"] == pytest.approx((a - b).mean())
    assert got["relative"] == pytest.approx(a.mean() / b.mean() - 1)
    assert 0 < got["low"] < got["mean_difference"] < got["high"]
    assert 0 < got["relative_low"] < got["relative"] < got["relative_high"]
    assert got["p"] == pytest.approx(2 / 2001)
    # The interval has the width that the normal approximation gives.
    error = (a - b).std(ddof=1) / np.sqrt(len(a))
    assert got["high"] - got["low"] == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_pairing_is_used():
    # The spread between users is 30 times that of the differences: unpaired, nothing is found.
    rng = np.random.default_rng(0)
    base = 3 * rng.standard_normal(200)
    got = paired_bootstrap(base + 0.05 + 0.1 * rng.standard_normal(200), base, 1000)
    assert got["low"] > 0 and got["high"] - got["low"] < 0.05


def test_swapping_the_arms_mirrors_the_result():
    a, b = arms(0.01)
    forth, back = paired_bootstrap(a, b, 500), paired_bootstrap(b, a, 500)
    assert forth["low"] == pytest.approx(-back["high"])
    assert forth["p"] == back["p"]


def test_identical_arms_cover_zero():
    a, _ = arms(0.0)
    got = paired_bootstrap(a, a, 200)
    assert got["low"] == got["high"] == got["mean_difference"] == got["relative"] == 0.0
    assert got["p"] == 1.0


def test_the_interval_covers_the_truth_about_19_times_in_20():
    covered = 0
    for seed in range(300):
        a, b = arms(0.0, n=60, seed=seed)
        got = paired_bootstrap(a, b, 400, seed=seed)
        covered += got["low"] <= 0 <= got["high"]
    assert 0.89 <= covered / 300 <= 0.98


def test_seeds_and_chunks(monkeypatch):
    a, b = arms(0.01)
    whole = paired_bootstrap(a, b, 300, seed=1)
    assert whole == paired_bootstrap(a, b, 300, seed=1)
    assert whole["low"] != paired_bootstrap(a, b, 300, seed=2)["low"]
    monkeypatch.setattr(stats, "_CHUNK_CELLS", 7 * len(a))
    assert whole == pytest.approx(paired_bootstrap(a, b, 300, seed=1))


def test_a_base_of_zero_has_no_relative_difference():
    got = paired_bootstrap(np.ones(5), np.zeros(5), 50)
    assert np.isnan([got["relative"], got["relative_low"], got["relative_high"]]).all()
    assert got["low"] == got["high"] == 1.0
    rare = np.zeros(40)
    rare[0] = 1.0  # about a third of the resamples miss this user
    got = paired_bootstrap(np.ones(40), rare, 500)
    assert np.isinf(got["relative_high"]) and np.isfinite(got["relative_low"])


def test_what_cannot_be_compared_is_refused():
    for a, b in (
        (np.ones(3), np.ones(2)),
        (np.ones(0), np.ones(0)),
        (np.array([np.nan]), np.ones(1)),
    ):
        with pytest.raises(DataError):
            paired_bootstrap(a, b)
    with pytest.raises(ConfigError):
        paired_bootstrap(np.ones(2), np.ones(2), 0)


def test_holm_by_hand():
    # Sorted: 0.005 x 4, 0.01 x 3, 0.03 x 2, 0.04 x 1 -> 0.04 rises to 0.06 to stay in order.
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.9, 0.6]), [1.0, 1.0])
    assert len(holm([])) == 0
    for wrong in ([1.1], [-0.1], [np.nan]):
        with pytest.raises(DataError):
            holm(wrong)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_keeps_order_and_lies_between_raw_and_bonferroni(p):
    p = np.array(p)
    adjusted = holm(p)
    assert (adjusted >= p).all()
    assert (adjusted <= np.minimum(1, p * len(p)) + 1e-12).all()
    assert (np.diff(adjusted[np.argsort(p, kind="stable")]) >= 0).all()


def test_seed_spread():
    mean, deviation = seed_spread([1.0, 2.0, 4.0])
    assert mean == pytest.approx(7 / 3) and deviation == pytest.approx(np.sqrt(7 / 3))
    mean, deviation = seed_spread([0.5])
    assert mean == 0.5 and np.isnan(deviation)
    with pytest.raises(DataError):
        seed_spread([])
