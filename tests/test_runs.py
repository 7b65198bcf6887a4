"""Whole runs: what is held out, what is measured, what is saved."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import TRAIN
from made_logs import WORDS, stand_in, write_logs

from gnnrec import arms, runs
from gnnrec.checkpoint import Checkpoint
from gnnrec.config import ModelConfig, PretrainConfig, TransferConfig
from gnnrec.errors import CheckpointError, DataError
from gnnrec.interactions import Interactions
from gnnrec.model import build_model
from gnnrec.recommender import Recommender
from gnnrec.runs import evaluate_run, pretrain_run, transfer_run
from gnnrec.sources import Log, open_file


def as_log(frame: pd.DataFrame) -> Log:
    return Log("shop", Interactions.from_frame(frame), None)


def pairs(log: Interactions) -> set[tuple[int, int]]:
    return set(zip(log.users.tolist(), log.items.tolist(), strict=True))


def test_held_out_rows_train_nothing_and_are_seen_afterwards(
    checkpoint, frame, transfer_config, monkeypatch
):
    calls = []
    adapt = arms.adapt
    monkeypatch.setattr(
        arms,
        "adapt",
        lambda c, target, *rest, **more: calls.append(rest) or adapt(c, target, *rest, **more),
    )
    log = as_log(frame)
    prepared = runs.prepare(log, None, transfer_config)
    recommender, report = transfer_run(checkpoint, log, transfer_config, device="cpu")
    (train, validation, _config), *_ = calls
    test = prepared.split.test
    assert len(test) == report["n_test"] > 0
    assert not set(test) & (set(train) | set(validation))
    assert len(train) + len(validation) + len(test) == log.interactions.n_interactions
    assert recommender.seen.nnz == log.interactions.n_interactions
    assert pairs(recommender.log) == pairs(log.interactions)
    assert report["split"]["sha256"] == prepared.split_sha256
    # Were the test rows in the graph, they would count as seen and nothing of them be found.
    for metrics in (report["metrics"], report["popularity_metrics"]):
        assert 0 < metrics["ndcg@20"] <= 1
    assert recommender.record["report"] == report


def test_evaluation_equals_the_lists_counted_by_hand(checkpoint, frame, transfer_config):
    kept = frame.sample(frac=0.7, random_state=0)
    held = frame.drop(kept.index)[["user_id", "item_id"]]
    strange = pd.DataFrame({"user_id": ["new", "u1"], "item_id": ["i1", "not sold"]})
    again = kept[["user_id", "item_id"]].head(4)
    recommender, _ = transfer_run(
        checkpoint, as_log(kept), transfer_config, test="none", device="cpu"
    )
    test = pd.concat([held, strange, again])
    report = evaluate_run(recommender, Interactions.from_frame(test), (5, 20))
    assert report["n_test"] == len(held) + 2 and report["n_test_already_in_log"] == 4
    assert report["n_unknown_users"] == len(set(test.user_id) - set(kept.user_id))
    assert report["n_unknown_items"] == len(set(test.item_id) - set(kept.item_id))
    for k in (5, 20):
        recalls, gains = [], []
        for user, rows in pd.concat([held, strange]).groupby("user_id"):
            wanted = set(rows.item_id)
            got = [i in wanted for i in recommender.recommend([user], k=k).item_id]
            recalls.append(sum(got) / len(wanted))
            ideal = sum(1 / math.log2(r + 2) for r in range(min(k, len(wanted))))
            gains.append(sum(h / math.log2(r + 2) for r, h in enumerate(got)) / ideal)
        assert report["metrics"][f"recall@{k}"] == pytest.approx(np.mean(recalls))
        assert report["metrics"][f"ndcg@{k}"] == pytest.approx(np.mean(gains))
    with pytest.raises(DataError, match="all 4 test pairs"):
        evaluate_run(recommender, Interactions.from_frame(again))


def test_time_split_tests_the_latest(checkpoint, frame, transfer_config):
    config = transfer_config.model_copy(update={"split": "time"})
    prepared = runs.prepare(as_log(frame), None, config)
    times = prepared.catalogue.log.timestamps
    assert times is not None
    assert times[prepared.split.kept].max() < times[prepared.split.test].min()
    _, report = transfer_run(checkpoint, as_log(frame), config, device="cpu")
    assert report["split"]["kind"] == "time"
    assert 0 < report["split"]["test_users_with_history"] <= 1


def test_given_test_pairs_that_the_log_holds_are_dropped(checkpoint, frame, transfer_config):
    kept, held = frame.iloc[20:], frame.iloc[:26]
    recommender, report = transfer_run(
        checkpoint,
        as_log(kept),
        transfer_config,
        test=Interactions.from_frame(held),
        device="cpu",
    )
    assert (report["n_test"], report["n_test_already_in_log"]) == (20, 6)
    assert report["split"]["kind"] == "given" and report["n_interactions"] == len(kept)
    assert recommender.log.n_interactions == len(kept)  # a given test part is never learned
    with pytest.raises(DataError, match="all 6 test pairs"):
        transfer_run(
            checkpoint,
            as_log(kept),
            transfer_config,
            test=Interactions.from_frame(held.tail(6)),
            device="cpu",
        )


@pytest.mark.parametrize("retrain", ["zero-shot", "final:1", "scratch"])
def test_a_graph_filter_is_pretrained_adapted_saved_and_loaded(frame, tmp_path, retrain):
    model = ModelConfig(encoder="graph-filter", spectral_rank=8)
    config = PretrainConfig(model=model, search_evaluations=6)
    checkpoint = pretrain_run([as_log(frame)], config, name="filter", device="cpu")
    checkpoint.save(tmp_path / "checkpoint")
    checkpoint = Checkpoint.load(tmp_path / "checkpoint")
    settings = TransferConfig(retrain=retrain, search_evaluations=6)
    recommender, report = transfer_run(checkpoint, as_log(frame), settings, device="cpu")
    assert report["steps"] == (0 if retrain == "zero-shot" else 6)
    assert 0 < report["metrics"]["ndcg@20"] <= 1
    chosen = {n: p.item() for n, p in recommender.model.named_parameters()}
    assert (retrain == "zero-shot") <= (
        chosen == {k: v.item() for k, v in checkpoint.state.items()}
    )
    recommender.save(tmp_path / "shop")
    loaded = Recommender.load(tmp_path / "shop", device="cpu")
    lists = recommender.recommend(k=5)
    pd.testing.assert_frame_equal(loaded.recommend(k=5), lists)
    owned = set(zip(frame.user_id, frame.item_id, strict=True))
    assert not owned & set(zip(lists.user_id, lists.item_id, strict=True))
    stranger = loaded.recommend(["nobody"], k=3)
    popular = frame.item_id.value_counts()
    assert not stranger.known.any() and popular[stranger.item_id[0]] == popular.max()
    loaded.update(pd.DataFrame({"user_id": ["new"], "item_id": [popular.index[0]]}))
    assert loaded.recommend(["new"], k=3).known.all()


@pytest.mark.parametrize("encoder", ["gmf", "mlp", "neumf"])
@pytest.mark.parametrize("retrain", ["zero-shot", "final:1"])
def test_collaborative_filtering_is_pretrained_adapted_saved_and_loaded(
    encoder, retrain, monkeypatch, tmp_path, transfer_config
):
    stand_in(monkeypatch, tmp_path / "cache")
    folder = tmp_path / "logs"
    folder.mkdir()
    write_logs(folder)
    source = open_file(folder / "books.csv", folder / "books.items.csv")
    target = open_file(folder / "shop.csv", folder / "shop.items.csv")
    model = ModelConfig(encoder=encoder, dim=4, text_dim=len(WORDS), text_model="made-up")
    config = PretrainConfig(model=model, train=TRAIN, n_validation_episodes=2, min_users=20)
    checkpoint = pretrain_run([source], config, name="ncf", device="cpu")
    checkpoint.save(tmp_path / "checkpoint")
    checkpoint = Checkpoint.load(tmp_path / "checkpoint")
    settings = transfer_config.model_copy(update={"retrain": retrain})
    recommender, report = transfer_run(checkpoint, target, settings, device="cpu")
    assert 0 < report["metrics"]["ndcg@20"] <= 1
    recommender.save(tmp_path / "served")
    loaded = Recommender.load(tmp_path / "served", device="cpu")
    lists = recommender.recommend(k=5)
    pd.testing.assert_frame_equal(loaded.recommend(k=5), lists)
    log = target.interactions
    owned = set(zip(log.user_ids[log.users], log.item_ids[log.items], strict=True))
    assert not owned & set(zip(lists.user_id, lists.item_id, strict=True))
    first = loaded.similar_items([log.item_ids[0]], k=3)
    assert len(first) == 3 and np.isfinite(first.score).all() and first.score.abs().max() > 0
    loaded.update(pd.DataFrame({"user_id": ["new"], "item_id": [log.item_ids[0]]}))
    assert loaded.recommend(["new"], k=3).known.all()
    if encoder != "gmf":
        tables = recommender.vectors.part
        short = replace(tables, users=tables.users[:-1])
        recommender._vectors = replace(recommender.vectors, part=short)
        recommender.save(tmp_path / "short")
        with pytest.raises(CheckpointError, match="tower_users"):
            Recommender.load(tmp_path / "short")


def test_a_saved_walk_of_another_length_is_refused(frame, tmp_path):
    model = ModelConfig(encoder="graph-filter", spectral_rank=4)
    checkpoint = Checkpoint("fresh", model, build_model(model).state_dict())
    settings = TransferConfig(retrain="zero-shot")
    recommender, _ = transfer_run(checkpoint, as_log(frame), settings, device="cpu")
    walk = recommender.vectors.walk
    recommender._vectors = replace(recommender.vectors, walk=replace(walk, out=walk.out[:-1]))
    recommender.save(tmp_path / "shop")
    with pytest.raises(CheckpointError, match="walk"):
        Recommender.load(tmp_path / "shop")
