"""What each scenario holds out, and that none of it is trained on."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_log
from hypothesis import given, settings
from hypothesis import strategies as st

from gnnrec.arms import Prepared, baseline_arm, recall_among, run_arm
from gnnrec.baselines import BASELINES
from gnnrec.catalogue import Catalogue
from gnnrec.config import TransferConfig
from gnnrec.errors import DataError
from gnnrec.interactions import Interactions
from gnnrec.scenarios import prepare_scenario, shuffled_text, with_text
from gnnrec.scores import ScoreVectors
from gnnrec.sources import Log

SCENARIOS = ("main", "cold-items", "cold-users")


def prepared_of(
    scenario: str, *, text: bool = False, frame: pd.DataFrame | None = None, **config: object
) -> Prepared:
    log = Interactions.from_frame(make_log(30, 25, 250) if frame is None else frame)
    vectors = None
    if text:
        vectors = np.arange(2.0 * log.n_items, dtype=np.float32).reshape(-1, 2) + 1
        vectors[3] = 0
    catalogue = Catalogue(log, [""] * log.n_items, vectors)
    settings_ = TransferConfig(**config)
    return prepare_scenario(Log("shop", log, None), catalogue, scenario, settings_, 0.0)


@given(
    scenario=st.sampled_from(SCENARIOS),
    seed=st.integers(0, 3),
    fraction=st.sampled_from([0.1, 0.5, 1.0]),
)
@settings(deadline=None, max_examples=25)
def test_the_test_part_is_fixed_and_apart(scenario, seed, fraction):
    prepared = prepared_of(scenario, seed=seed, fraction=fraction)
    base = prepared_of(scenario)
    assert prepared.split.test.tolist() == base.split.test.tolist()
    visible = prepared.visible_rows
    assert len(np.unique(visible)) == len(visible)
    assert not set(visible) & set(prepared.split.test)
    # Codes are new, pairs are not: those of the test are as many and as distinct as their rows.
    pairs = set(zip(prepared.test_users.tolist(), prepared.test_items.tolist(), strict=True))
    assert len(pairs) == len(prepared.split.test)
    target = prepared.at_test or prepared.target
    log = prepared.catalogue.log
    degrees = np.bincount(log.items, minlength=log.n_items)
    assert sorted(np.bincount(target.items, minlength=log.n_items)) == sorted(degrees)


def test_cold_items_have_no_visible_interaction_and_are_all_of_the_test():
    prepared = prepared_of("cold-items")
    cold = prepared.cold_items
    assert cold is not None and cold.sum() == round(0.2 * len(np.unique(prepared.target.items)))
    degrees = prepared.visible().item_degrees.numpy()
    assert (degrees[cold] == 0).all() and cold[prepared.test_items].all()
    kept = len(prepared.split.train) + len(prepared.split.validation)
    assert kept + len(prepared.test_items) == prepared.catalogue.log.n_interactions


def test_cold_users_are_unknown_to_training_and_join_at_the_test():
    prepared = prepared_of("cold-users")
    n_warm, n_users = prepared.target.n_users, prepared.catalogue.log.n_users
    assert n_users - n_warm == round(0.2 * n_users)
    assert prepared.at_test is not None and prepared.at_test.n_users == n_users
    assert prepared.target.users[prepared.split.kept].max() < n_warm <= prepared.test_users.min()
    degrees = prepared.visible().user_degrees.numpy()
    tested = np.unique(prepared.test_users)
    assert ((degrees[tested] >= 1) & (degrees[tested] <= 5)).all()
    # Every cold user with two interactions is tested on what is not visible.
    log = prepared.catalogue.log
    counts = np.bincount(prepared.at_test.users, minlength=n_users)
    left = counts[n_warm:] - degrees[n_warm:]
    assert (np.bincount(prepared.test_users, minlength=n_users)[n_warm:] == left).all()
    assert log.n_interactions == len(prepared.split.kept) + int(counts[n_warm:].sum())
    for part in (prepared.split.train, prepared.split.validation):
        assert not set(part) & set(prepared.folded_in)


def test_a_user_with_one_interaction_cannot_be_tested_cold():
    frame = pd.DataFrame({"user_id": range(20), "item_id": [i % 3 for i in range(20)]})
    with pytest.raises(DataError, match="none of 4 cold users has two interactions"):
        prepared_of("cold-users", frame=frame)


def test_ties_are_not_ranked_in_the_order_of_the_log():
    # A log that names its most popular item first: without scores its order would find it.
    frame = pd.DataFrame({"user_id": np.repeat(np.arange(60), 2), "item_id": 0})
    frame.loc[1::2, "item_id"] = np.arange(60) + 1
    codes = {int(prepared_of("main", frame=frame, seed=s).target.items[0]) for s in range(8)}
    assert len(codes) > 4


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_texts_stay_with_their_items(scenario):
    prepared = prepared_of(scenario, text=True)
    log, vectors = prepared.catalogue.log, prepared.catalogue.text
    for target in (prepared.target, prepared.at_test):
        if target is not None:
            assert torch.equal(target.item_text[target.items], torch.tensor(vectors[log.items]))


def test_shuffled_texts_are_the_same_vectors_of_other_items():
    prepared = prepared_of("cold-users", text=True)
    shuffled = shuffled_text(prepared, 1)
    before, after = prepared.target.item_text, shuffled.target.item_text
    assert sorted(before.tolist()) == sorted(after.tolist()) and not torch.equal(before, after)
    empty = before.abs().sum(dim=1) == 0
    assert torch.equal(empty, after.abs().sum(dim=1) == 0)
    assert torch.equal(after, shuffled.at_test.item_text)
    assert torch.equal(after, shuffled_text(prepared, 1).target.item_text)
    assert not torch.equal(after, shuffled_text(prepared, 2).target.item_text)
    plain = with_text(prepared, None)
    assert plain.target.item_text is None and plain.at_test.item_text is None
    assert shuffled_text(plain, 1) is plain


def test_recall_among_some_items_by_hand():
    scores = ScoreVectors(torch.ones(2, 1), torch.tensor([[9.0], [3.0], [2.0], [1.0]]))
    allowed = np.array([False, True, True, True])
    users, items = np.array([0, 0, 1]), np.array([1, 3, 3])
    # Of the allowed, 1 and 2 come first: user 0 has one of two, user 1 none.
    assert recall_among(scores, allowed, users, items, 2).tolist() == [0.5, 0.0]
    assert recall_among(scores, allowed, users, items, 3).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_arms_run_in_every_scenario(scenario, checkpoint, transfer_config):
    prepared = prepared_of(scenario)
    arm = run_arm(prepared, checkpoint, transfer_config.model_copy(update={"retrain": "heads"}))
    popularity = baseline_arm(prepared, "popularity", BASELINES["popularity"])
    assert arm.results.users.tolist() == popularity.results.users.tolist()
    for one in (arm, popularity):
        assert ("recall@20_cold" in one.results.metrics) == (scenario == "cold-items")
        assert 0 < one.results.metrics["recall@20"] <= 1
