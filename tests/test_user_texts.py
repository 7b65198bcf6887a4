"""A log's text column from the file to a saved recommender and back."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TRAIN, make_log
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_logs import WORDS, stand_in

from gnnrec.config import ModelConfig, PretrainConfig, TransferConfig
from gnnrec.errors import CheckpointError, ConfigError, DataError
from gnnrec.interactions import Columns, Interactions, read_interactions
from gnnrec.items import ItemTable
from gnnrec.recommender import Recommender
from gnnrec.runs import pretrain_run, transfer_run
from gnnrec.sources import Log, open_log
from gnnrec.storage import seal
from gnnrec.text import TextEncoder

ROWS = [
    ("a", "x", "good"),
    ("b", "x", ""),
    ("a", "x", " very\n good, "),
    ("a", "y", None),
    ("a", "x", "good"),
    ("b", "x", "late"),
]
TABLE = pd.DataFrame(ROWS, columns=["user_id", "item_id", "text"])


def texts_of(log):
    return None if log.texts is None else log.texts.tolist()


def written_log(seed=0, share=0.5, sizes=(30, 25, 200)):
    rng = np.random.default_rng(seed)
    frame = make_log(*sizes, seed=seed)
    words = [" ".join(rng.choice(WORDS, rng.integers(1, 4))) for _ in range(len(frame))]
    return frame.assign(text=np.where(rng.random(len(frame)) < share, words, ""))


# The log.


def test_a_pairs_distinct_texts_are_joined_in_order():
    log = Interactions.from_frame(TABLE)
    assert texts_of(log) == ["good very good,", "late", ""]
    assert log.n_interactions == 3 and log.n_texts == 2
    assert log.text_codes[0].tolist() == [0, 1, -1]
    assert log.text_codes[1] == ["good very good,", "late"]
    # Rows that a smaller weight removes take their texts along.
    weighed = TABLE.assign(weight=[1, 5, 1, 5, 1, 1])
    assert texts_of(Interactions.from_frame(weighed, min_weight=5)) is None
    weighed["weight"] = [5, 5, 1, 5, 1, 1]
    assert texts_of(Interactions.from_frame(weighed, min_weight=5)) == ["good", "", ""]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".csv.gz", ".parquet", ".jsonl"])
@pytest.mark.parametrize("name", ["text", "note"])
def test_every_format_reads_the_same_texts(tmp_path, suffix, name):
    path, table = tmp_path / f"log{suffix}", TABLE.rename(columns={"text": name})
    if suffix == ".parquet":
        table.to_parquet(path)
    elif suffix == ".jsonl":
        table.to_json(path, orient="records", lines=True)
    else:
        table.to_csv(path, index=False, sep="\t" if suffix == ".tsv" else ",")
    log = read_interactions(path, Columns(text=name))
    assert texts_of(log) == ["good very good,", "late", ""]
    again = Interactions.from_frame(log.to_frame(), log.columns)
    assert texts_of(again) == texts_of(log)
    if name == "note":
        assert read_interactions(path).texts is None  # nobody asked for that column


def test_texts_follow_their_pairs():
    log = Interactions.from_frame(TABLE)
    assert texts_of(log.select(np.array([2, 0]))) == ["", "good very good,"]
    other = Interactions.from_frame(TABLE.iloc[::-1])
    assert texts_of(other.recoded(log.with_users(["c"]))) == texts_of(other)
    assert texts_of(log.with_items(["z"])) == texts_of(log)
    more = pd.DataFrame([("b", "x", "late"), ("a", "y", "dull"), ("b", "y", "")])
    more = Interactions.from_frame(more.set_axis(TABLE.columns, axis=1)).recoded(log)
    merged = log.merged(more)
    assert texts_of(merged) == ["good very good,", "late", "dull", ""]
    plain = Interactions.from_frame(TABLE[["user_id", "item_id"]])
    assert texts_of(plain.merged(plain)) is None and plain.n_texts == 0
    assert texts_of(plain.merged(more)) == ["", "late", "dull", ""]
    assert plain.text_codes[1] == [] and plain.text_codes[0].tolist() == [-1] * 3


def test_an_empty_column_is_none():
    empty = TABLE.assign(text=["", None, " ", "\t", np.nan, pd.NA])
    assert Interactions.from_frame(empty).texts is None
    named = Interactions.from_frame(empty.rename(columns={"text": "note"}), Columns(text="note"))
    assert named.texts is None
    assert Interactions.from_frame(named.to_frame(), named.columns).texts is None


def test_what_is_a_text():
    table = pd.DataFrame({"user_id": [1, 2, 3, 4], "item_id": [1, 1, 1, 1]})
    numbers = Interactions.from_frame(table.assign(text=[3.0, np.nan, 2.5, 1999.0]))
    assert texts_of(numbers) == ["3", "", "2.5", "1999"]
    for bad in (["a"], {"a": 1}, ("a",), b"a", np.array(["a"])):
        nested = pd.Series(["fine", "fine", bad, None], dtype=object)
        with pytest.raises(DataError, match="row 3, column text: found a"):
            Interactions.from_frame(table.assign(text=nested))
    # A name that another role has is that role's; asked for twice it is a mistake.
    ids = table.rename(columns={"item_id": "text"})
    assert Interactions.from_frame(ids, Columns(item="text")).texts is None
    with pytest.raises(DataError, match="--text-column"):
        Interactions.from_frame(table, Columns(text="item_id"))
    with pytest.raises(DataError, match=r"columns=gnnrec\.Columns\(text='NAME'\)"):
        Interactions.from_frame(table, Columns(text="nothing"))


# The recommender.


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """A checkpoint that reads text, pretrained on a log whose users wrote."""
    with pytest.MonkeyPatch.context() as patch:
        stand_in(patch, tmp_path_factory.mktemp("cache"))
        source = Interactions.from_frame(written_log(1, sizes=(80, 60, 1500)))
        config = PretrainConfig(
            model=ModelConfig(
                dim=8, n_layers=2, spectral_rank=8, text_dim=len(WORDS), text_model="made-up"
            ),
            train=TRAIN,
            n_validation_episodes=2,
            min_users=20,
        )
        yield pretrain_run([Log("source", source, None)], config, name="tiny", device="cpu")


@pytest.fixture(scope="module")
def items():
    rng = np.random.default_rng(5)
    table = pd.DataFrame({"item_id": [f"i{n}" for n in range(20)]})
    return table.assign(title=[f"{n} {' '.join(rng.choice(WORDS, 2))}" for n in range(20)])


def fitted(reader, frame, items=None, **options):
    config = TransferConfig(retrain="zero-shot", calibrate=TRAIN, train=TRAIN, **options)
    return Recommender(reader, config, "cpu").fit(frame, items)


def same(one, other):
    assert torch.equal(one.vectors.users, other.vectors.users)
    assert torch.equal(one.vectors.items, other.vectors.items)
    lists = one.recommend(k=7), other.recommend(k=7)
    pd.testing.assert_frame_equal(*lists, check_exact=True)


def test_texts_are_read_and_an_empty_column_is_as_none(reader, items):
    frame = written_log()
    plain = fitted(reader, frame.drop(columns="text"), items)
    same(plain, fitted(reader, frame.assign(text=""), items))
    read = fitted(reader, frame, items)
    assert not torch.allclose(read.vectors.users, plain.vectors.users, atol=1e-4)
    alone = fitted(reader, frame)  # without an items table
    assert alone.catalogue.text is None and len(alone.catalogue.written)
    assert not torch.allclose(alone.vectors.items, read.vectors.items, atol=1e-4)


ids = st.text(st.characters(codec="utf-8", categories=["L", "N"]), min_size=1, max_size=4)
words = st.one_of(
    st.just(""), st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
)


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(ids, ids, words), min_size=2, max_size=10))
def test_ids_and_texts_come_back_from_a_folder(reader, tmp_path_factory, rows):
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "text"])
    recommender = fitted(reader, frame)
    folder = tmp_path_factory.mktemp("saved") / "r"
    recommender.save(folder)
    loaded = Recommender.load(folder, "cpu")
    same(recommender, loaded)
    pd.testing.assert_frame_equal(loaded.log.to_frame(), recommender.log.to_frame())
    assert texts_of(loaded.log) == texts_of(recommender.log)
    assert loaded.log.text_codes[1] == recommender.log.text_codes[1]


def test_update_reads_new_texts_and_forgetting_takes_them_away(reader, items, tmp_path):
    frame = written_log()
    recommender = fitted(reader, frame, items)
    recommender.save(tmp_path / "r")
    before = recommender.log
    fresh = pd.DataFrame(
        {
            "user_id": ["new", "new", before.user_ids[before.users[0]]],
            "item_id": ["i1", "j1", before.item_ids[before.items[0]]],
            "text": ["king king ghost", "sea", "ship ship ship"],
        }
    )
    both = [recommender, Recommender.load(tmp_path / "r", "cpu")]
    for each in both:
        each.update(fresh)
        assert each.log.texts[0] == f"{before.texts[0]} ship ship ship".strip()
        assert "king king ghost" in each.log.text_codes[1]
    same(*both)
    whole = pd.concat([frame, fresh.assign(timestamp=0)])
    same(recommender, fitted(reader, whole, items))  # zero-shot: nothing was trained
    again = Recommender.load(tmp_path / "r", "cpu").update(fresh.drop(columns="text"))
    assert not torch.equal(again.vectors.users, recommender.vectors.users)
    for each in both:
        each.forget_user("new")
        assert "king king ghost" not in each.log.text_codes[1]
        assert len(each.catalogue.written) == len(each.log.text_codes[1])
        each.save(tmp_path / "after")
        assert b"king king ghost" not in (tmp_path / "after" / "log.parquet").read_bytes()
        known = TextEncoder("made-up").encode(each.log.text_codes[1])
        np.testing.assert_array_equal(each.catalogue.written, known)
    same(*both)


def test_a_saved_table_of_texts_must_fit_its_log(reader, tmp_path):
    fitted(reader, written_log()).save(tmp_path / "r")
    log = pd.read_parquet(tmp_path / "r" / "log.parquet")
    for texts, message in ((["other"] * len(log), "written"), ([None, *log.text[1:]], "text")):
        log.assign(text=texts).to_parquet(tmp_path / "r" / "log.parquet", index=False)
        seal(tmp_path / "r")
        with pytest.raises(CheckpointError, match=message):
            Recommender.load(tmp_path / "r", "cpu")


def test_the_test_parts_texts_change_no_measured_score(reader, items):
    frame, table = written_log(), ItemTable.from_frame(items)
    config = TransferConfig(retrain="final:1", calibrate=TRAIN, train=TRAIN)
    log = Log("shop", Interactions.from_frame(frame), table)
    reports = []
    plain = transfer_run(reader, log, config, device="cpu")[1]
    from gnnrec.arms import prepare

    test = prepare(log, TextEncoder("made-up"), config).split.test
    for rows in (test, np.setdiff1d(np.arange(len(frame)), test)):
        changed = frame.copy()
        changed.loc[rows, "text"] = "ghost ghost war"
        other = Log("shop", Interactions.from_frame(changed), table)
        reports.append(transfer_run(reader, other, config, device="cpu")[1])
    assert reports[0]["metrics"] == plain["metrics"] != reports[1]["metrics"]
    # A test file's texts are not even read.
    given = Interactions.from_frame(frame.iloc[test])
    rest = Log("shop", Interactions.from_frame(frame.drop(index=test)), table)
    first = transfer_run(reader, rest, config, test=given, device="cpu")[1]
    given = Interactions.from_frame(frame.iloc[test].assign(text="king"))
    second = transfer_run(reader, rest, config, test=given, device="cpu")[1]
    assert first["metrics"] == second["metrics"]


# The command line, and the registry.


def test_the_check_counts_texts(run, tmp_path):
    frame = written_log()
    frame.rename(columns={"text": "note"}).to_csv(tmp_path / "log.csv", index=False)
    n = int((frame.text != "").sum())
    for options, expected in (((), 0), (("--text-column", "note"), n)):
        code, out, err = run("data", "check", tmp_path / "log.csv", *options, "--json")
        assert code == 0 and json.loads(out)["n_interactions_with_text"] == expected
        assert f"n_interactions_with_text: {expected}" in err


def test_tags_are_read_only_where_they_are_asked_for():
    try:
        log = open_log("ml-latest-small", columns=Columns(text="tag"))
    except Exception as error:
        pytest.skip(f"ml-latest-small is not to be had: {error}")
    plain = open_log("ml-latest-small")
    assert plain.interactions.texts is None and plain.n_texts_left_out == 0
    mine, theirs = log.interactions, plain.interactions
    for name in ("users", "items", "user_ids", "item_ids", "weights", "timestamps"):
        np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name))
    assert (mine.n_texts, log.n_texts_left_out) == (1635, 207)
    texts = dict(zip(zip(mine.user_ids[mine.users], mine.item_ids[mine.items], strict=True),
                     mine.texts, strict=True))  # fmt: skip
    assert texts[2, 60756] == "will ferrell funny Highly quotable"  # by time
    with pytest.raises(ConfigError, match="expected tag"):
        open_log("ml-latest-small", columns=Columns(text="review"))
    with pytest.raises(ConfigError, match="ml-latest-small"):
        open_log("gowalla", columns=Columns(text="tag"))
