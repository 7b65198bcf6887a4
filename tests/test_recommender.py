"""The object a user keeps: lists, ids, saving, folding in and forgetting."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from gnnrec.config import TransferConfig
from gnnrec.errors import CheckpointError, ConfigError, DataError
from gnnrec.interactions import Columns
from gnnrec.recommender import Recommender
from gnnrec.storage import seal
from gnnrec.tensors import read_tensors


def pairs(frame: pd.DataFrame) -> set[tuple]:
    return set(map(tuple, frame[["user_id", "item_id"]].to_numpy().tolist()))


def test_fit_save_load_same_bits(fitted, tmp_path):
    fitted.save(tmp_path / "r")
    loaded = Recommender.load(tmp_path / "r", "cpu")
    pd.testing.assert_frame_equal(loaded.recommend(k=7), fitted.recommend(k=7), check_exact=True)
    assert torch.equal(loaded.vectors.items, fitted.vectors.items)
    assert loaded.config == fitted.config


def test_lists(fitted, frame):
    lists = fitted.recommend(k=5)
    assert list(lists.columns) == ["user_id", "item_id", "score", "rank", "known"]
    assert set(lists.user_id) == set(frame.user_id) and lists.known.all()
    assert not pairs(lists) & pairs(frame)
    for _, rows in lists.groupby("user_id"):
        assert rows["rank"].tolist() == list(range(1, len(rows) + 1))
        assert (np.diff(rows.score) <= 0).all() and rows.item_id.is_unique
    everything = fitted.recommend(k=10**6, include_seen=True)
    assert len(everything) == frame.user_id.nunique() * frame.item_id.nunique()


def test_one_user_gets_what_they_get_among_all(fitted):
    everyone = fitted.recommend(k=5)
    for user, rows in everyone.groupby("user_id"):
        alone = fitted.recommend([user], k=5)
        assert set(alone.user_id) == {user} and alone.known.all()
        assert alone["rank"].tolist() == rows["rank"].tolist()
        np.testing.assert_allclose(alone.score, rows.score, rtol=1e-5)


ids = st.one_of(
    st.lists(st.integers(-(2**62), 2**62), min_size=2, max_size=8, unique=True),
    st.lists(
        st.text(st.characters(codec="utf-8", categories=["L", "N", "S"]), min_size=1, max_size=6),
        min_size=2,
        max_size=8,
        unique=True,
    ),
)


@settings(max_examples=25, deadline=None)
@given(users=ids, items=ids, data=st.data())
def test_ids_come_back_and_nothing_seen_is_recommended(checkpoint, users, items, data):
    chosen = data.draw(
        st.sets(st.tuples(st.sampled_from(users), st.sampled_from(items)), min_size=1)
    )
    log = pd.DataFrame(sorted(chosen, key=repr), columns=["user_id", "item_id"])
    recommender = Recommender(checkpoint, TransferConfig(retrain="zero-shot"), "cpu").fit(log)
    lists = recommender.recommend(k=20)
    assert not pairs(lists) & pairs(log)
    assert pairs(recommender.recommend(k=20, include_seen=True)) == {
        (u, i) for u in log.user_id.unique() for i in log.item_id.unique()
    }


def test_unknown_users_get_popularity(fitted, frame):
    lists = fitted.recommend(["nobody", frame.user_id[0]], k=6, include_seen=True)
    assert lists.groupby("user_id").known.first().to_dict() == {
        "nobody": False,
        frame.user_id[0]: True,
    }
    counts = frame.item_id.value_counts()
    degrees = [counts[i] for i in lists[~lists.known].item_id]
    assert degrees == sorted(counts, reverse=True)[:6]
    unseen = fitted.recommend(["nobody", frame.user_id[0]], k=6)  # nobody has nothing
    assert unseen[~unseen.known].item_id.tolist() == lists[~lists.known].item_id.tolist()


def test_allow_and_exclude(fitted):
    assert set(fitted.recommend(allow=["i1", "i2"], include_seen=True).item_id) == {"i1", "i2"}
    lists = fitted.recommend(allow=["i1", "i2"], exclude=["i1", "none"], include_seen=True)
    assert set(lists.item_id) == {"i2"}
    assert fitted.recommend(allow=["i1"], exclude=["i1"]).empty
    with pytest.raises(DataError, match="allow"):
        fitted.recommend(allow=["none"])
    with pytest.raises(DataError, match="k must be"):
        fitted.recommend(k=0)


def test_similar_items(fitted):
    found = fitted.similar_items(["i1", "i2"], k=4)
    assert list(found.columns) == ["item_id", "similar_item", "score", "rank"]
    assert (found.item_id != found.similar_item).all()
    assert found.groupby("item_id").size().tolist() == [4, 4]
    assert (found.score <= 1 + 1e-5).all()
    with pytest.raises(DataError, match="'none'"):
        fitted.similar_items(["none"])


def test_update_folds_new_users_and_items_in(fitted, frame, tmp_path):
    fitted.save(tmp_path / "r")
    for recommender in (fitted, Recommender.load(tmp_path / "r", "cpu")):
        before = recommender.log
        fresh = pd.DataFrame({"user_id": ["new", "new", "u1"], "item_id": ["i1", "j1", "j2"]})
        recommender.update(fresh, items=pd.DataFrame({"item_id": ["j3"], "title": ["Three"]}))
        assert recommender.vectors.users.shape[0] == before.n_users + 1
        assert recommender.vectors.items.shape[0] == before.n_items + 3
        lists = recommender.recommend(k=100)
        assert not pairs(lists) & (pairs(frame) | pairs(fresh))
        assert lists[lists.user_id == "new"].known.all()
        assert {"j2", "j3"} <= set(lists[lists.user_id == "new"].item_id)
        assert recommender.titles(["j3", "i1", "none"]) == ["Three", "", ""]
        recommender.update(fresh)  # known pairs change nothing
        assert recommender.log.n_interactions == before.n_interactions + 3
        recommender.save(tmp_path / "updated")
        again = Recommender.load(tmp_path / "updated", "cpu").recommend(k=100)
        pd.testing.assert_frame_equal(again, recommender.recommend(k=100), check_exact=True)


def test_forget_user(fitted, frame):
    fitted.forget_user("u1")
    assert fitted.log.n_interactions == (frame.user_id != "u1").sum()
    lists = fitted.recommend(["u1", "u2"], k=3)
    assert lists.groupby("user_id").known.first().to_dict() == {"u1": False, "u2": True}
    assert not pairs(fitted.recommend(k=100)) & pairs(frame[frame.user_id != "u1"])
    with pytest.raises(DataError, match="not in the log"):
        fitted.forget_user("u1")


def test_the_only_user_cannot_be_forgotten(checkpoint):
    recommender = Recommender(checkpoint, TransferConfig(retrain="zero-shot"), "cpu")
    with pytest.raises(ConfigError, match="call fit"):
        recommender.recommend()
    recommender.fit(pd.DataFrame({"user_id": ["a"], "item_id": ["x"]}))
    with pytest.raises(DataError, match="only one"):
        recommender.forget_user("a")


def test_items_without_interactions_are_candidates(checkpoint, frame, transfer_config):
    items = pd.DataFrame({"item_id": ["i1", "cold"], "title": ["One", None]})
    recommender = Recommender(checkpoint, transfer_config, "cpu").fit(frame, items)
    assert "cold" in set(recommender.recommend(k=100).item_id)
    assert recommender.titles(["i1", "cold"]) == ["One", ""]


# A saved folder that lies, under a fresh seal.


def edit_json(**values: object):
    def change(folder: Path) -> None:
        path = folder / "recommender.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def edit_table(name: str, **columns: object):
    def change(folder: Path) -> None:
        path = folder / name
        pd.read_parquet(path).assign(**columns).to_parquet(path, index=False)

    return change


def edit_vectors(change):
    def apply(folder: Path) -> None:
        tensors = read_tensors(folder / "vectors.safetensors")
        tensors["users"] = change(tensors["users"]).contiguous()
        save_file(tensors, folder / "vectors.safetensors")

    return apply


LIES = {
    "format": edit_json(format=9),
    "model": edit_json(model="x"),
    "residual text": edit_json(n_residual_items="x"),
    "residual negative": edit_json(n_residual_items=-1),
    "columns": edit_json(columns=None),
    "record": edit_json(record="x"),
    "code negative": edit_table("log.parquet", user=-1),
    "code beyond": edit_table("log.parquet", item=10**6),
    "code text": edit_table("log.parquet", item="a"),
    "code fraction": edit_table("log.parquet", item=0.5),
    "ids repeated": edit_table("users.parquet", id="a"),
    "vectors NaN": edit_vectors(lambda v: v * float("nan")),
    "vectors flat": edit_vectors(lambda v: v[:, 0]),
    "vectors narrow": edit_vectors(lambda v: v[:, :2]),
    "vectors integer": edit_vectors(lambda v: v.long()),
    "vectors short": edit_vectors(lambda v: v[1:]),
    "weights": lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 50),
    "table": lambda folder: (folder / "items.parquet").write_bytes(b"PAR1"),
}


@pytest.mark.parametrize("lie", LIES)
def test_inconsistent_folders_are_refused(saved_folder, tmp_path, lie):
    folder = Path(shutil.copytree(saved_folder, tmp_path / "r"))
    LIES[lie](folder)
    with pytest.raises(CheckpointError, match="sha256"):
        Recommender.load(folder, "cpu")
    seal(folder)
    with pytest.raises(CheckpointError, match=str(folder)):
        Recommender.load(folder, "cpu")


def test_a_checkpoint_is_no_recommender(checkpoint_folder):
    with pytest.raises(CheckpointError, match="found a checkpoint, expected a recommender"):
        Recommender.load(checkpoint_folder)


def test_one_id_or_a_table_is_not_a_list_of_ids(fitted, frame):
    user, item = frame.user_id[0], frame.item_id[0]
    for ask in (
        lambda: fitted.recommend(user),
        lambda: fitted.recommend(7),
        lambda: fitted.recommend(frame[["user_id"]]),
        lambda: fitted.recommend([user], allow=item),
        lambda: fitted.recommend([user], exclude=item),
        lambda: fitted.similar_items(item),
        lambda: fitted.recommend_to_histories([item]),
        lambda: fitted.titles(item),
    ):
        with pytest.raises(DataError, match="expected a list of ids; "):
            ask()
    assert len(fitted.recommend(frame["user_id"].iloc[:1], k=2)) == 2
    assert len(fitted.recommend_to_histories(np.array([[item]]), k=2)) == 2


def test_it_says_what_it_is_and_folds_in_without_times(checkpoint, frame, transfer_config):
    recommender = Recommender(checkpoint, transfer_config, "cpu")
    assert "no data yet" in repr(recommender)
    names = {"user_id": "who", "item_id": "what", "timestamp": "when"}
    recommender.fit(frame.rename(columns=names), columns=Columns("who", "what", "when"))
    assert f"{frame.user_id.nunique()} users" in repr(recommender)
    recommender.update(pd.DataFrame({"who": ["new"], "what": [frame.item_id[0]]}))
    assert recommender.recommend(["new"], k=1).known.all()
