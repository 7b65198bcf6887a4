"""Tables of any library make the log that pandas makes; lists come back in the library asked."""

import sys

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import scipy.sparse as sp
from conftest import make_log

from gnnrec.errors import ConfigError, DataError
from gnnrec.frames import as_kind, as_pandas
from gnnrec.interactions import Columns, Interactions
from gnnrec.items import ItemTable
from gnnrec.recommender import Recommender

WAYS = {
    "polars": pl.from_pandas,
    "polars categories": lambda frame: pl.from_pandas(frame).with_columns(
        pl.col(pl.String).cast(pl.Categorical)
    ),
    "pyarrow": lambda frame: pa.Table.from_pandas(frame),
    "pyarrow batch": lambda frame: pa.RecordBatch.from_pandas(frame),
    "pyarrow dictionary": lambda frame: pa.table(
        {n: pa.array(frame[n]).dictionary_encode() for n in frame}
    ),
}


def same(found, expected):
    for name in ("users", "items", "user_ids", "item_ids", "weights", "timestamps", "texts"):
        mine, theirs = getattr(found, name), getattr(expected, name)
        assert (mine is None) == (theirs is None), name
        if mine is not None:
            assert mine.dtype == theirs.dtype and np.array_equal(mine, theirs), name


@pytest.fixture(params=[True, False], ids=["text ids", "integer ids"])
def log(request):
    frame = make_log(12, 15, 60, text=request.param)
    words = np.array(["good", "", "not so good", None], dtype=object)
    return frame.assign(weight=np.arange(len(frame)) % 5 + 0.5, text=words[frame.index % 4])


@pytest.mark.parametrize("way", WAYS)
def test_a_log_of_any_library_is_the_log_of_pandas(way, log):
    expected = Interactions.from_frame(log, min_weight=1.0)
    same(Interactions.from_frame(WAYS[way](log), min_weight=1.0), expected)
    part = WAYS[way](log)[5:40] if way.startswith("polars") else WAYS[way](log).slice(5, 35)
    same(Interactions.from_frame(part), Interactions.from_frame(log[5:40]))


def test_dates_of_polars_and_arrow_are_times(log):
    log["timestamp"] = pd.to_datetime(log.timestamp, unit="s", utc=True)
    expected = Interactions.from_frame(log)
    same(Interactions.from_frame(pl.from_pandas(log)), expected)
    same(Interactions.from_frame(pa.Table.from_pandas(log)), expected)


@pytest.mark.parametrize("way", WAYS)
def test_items_of_any_library_are_the_items_of_pandas(way):
    frame = pd.DataFrame(
        {
            "item_id": ["a", "b", "c"],
            "title": ["First", "Second", None],
            "genres": [["x", "y"], [], ["z"]],
            "price": [1.0, 2.0, 3.0],
        }
    )
    if way == "pyarrow dictionary":  # lists have none
        frame = frame.drop(columns="genres")
    found, expected = ItemTable.from_frame(WAYS[way](frame)), ItemTable.from_frame(frame)
    assert found.texts == expected.texts and found.titles == expected.titles
    assert np.array_equal(found.item_ids, expected.item_ids)
    assert expected.texts[0].startswith("First")


@pytest.mark.parametrize("kind", [sp.csr_array, sp.csr_matrix, sp.csc_array, sp.coo_array])
def test_a_matrix_has_users_as_rows_items_as_columns_and_weights(kind):
    dense = np.array([[0, 2.5, 0, 1], [0, 0, 0, 0], [3, 0, 0, 4]], dtype=np.float32)
    found = Interactions.from_frame(kind(dense))
    assert found.user_ids.tolist() == [0, 2] and sorted(found.item_ids) == [0, 1, 3]
    back = np.zeros_like(dense)
    back[found.user_ids[found.users], found.item_ids[found.items]] = found.weights
    assert np.array_equal(back, dense)
    fewer = Interactions.from_frame(kind(dense), Columns(user="who", item="what"), min_weight=2.5)
    assert fewer.n_interactions == 3 and list(fewer.to_frame()) == ["who", "what", "weight"]


def test_entries_of_one_place_are_added_and_stored_zeros_are_none():
    twice = sp.coo_array(([1, 2, 0], ([0, 0, 1], [3, 3, 2])), shape=(2, 4))
    found = Interactions.from_frame(twice)
    assert found.weights.tolist() == [3.0] and found.item_ids.tolist() == [3]
    likes = Interactions.from_frame(sp.csr_array(np.array([[True, False], [True, True]])))
    assert likes.n_interactions == 3 and set(likes.weights) == {1.0}


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ([{"user_id": 1}], "list.*pandas or polars.*scipy"),
        (pl.DataFrame({"user_id": [1]}).lazy(), r"LazyFrame.*collect\(\)"),
        (pd.Series([1]), "Series"),
        (np.ones((2, 2)), "ndarray"),
        (sp.csr_array(np.array([[0, -1.0]])), r"-1.0 at \[0, 1\]"),
        (sp.csr_array(np.array([[np.nan, 1.0]])), r"nan at \[0, 0\]"),
        (sp.csr_array(np.array([[1j, 1.0]])), "complex"),
        (sp.csr_array((3, 4)), "no rows"),
        (pl.DataFrame({"user_id": [1, None], "item_id": [1, 2]}), "row 2, column user_id"),
        (pa.table({"user_id": [1], "thing": [1]}), "thing.*item column 'item_id'"),
    ],
)
def test_what_is_no_log_is_said_in_one_line(table, words):
    with pytest.raises(DataError, match=words) as caught:
        Interactions.from_frame(table)
    assert "\n" not in str(caught.value)


def test_a_matrix_is_no_table_of_items():
    with pytest.raises(DataError, match="found a csr_array, expected a DataFrame"):
        ItemTable.from_frame(sp.csr_array(np.eye(2)))


def test_a_pandas_frame_is_not_copied(log):
    assert as_pandas(log, "DataFrame") is log


def test_a_recommender_takes_and_gives_any_of_them(checkpoint, transfer_config):
    frame = make_log(30, 25, 200)
    items = pd.DataFrame({"item_id": [f"i{i}" for i in range(27)], "title": "Some"})
    expected = Recommender(checkpoint, transfer_config, "cpu").fit(frame, items)
    polars, arrow = pl.from_pandas(frame), pa.Table.from_pandas(frame)
    lists = expected.recommend(k=4)
    assert isinstance(lists, pd.DataFrame)
    for log, table in ((polars, pl.from_pandas(items)), (arrow, pa.Table.from_pandas(items))):
        found = Recommender(checkpoint, transfer_config, "cpu").fit(log, table)
        pd.testing.assert_frame_equal(found.recommend(k=4), lists)
    more = pd.DataFrame({"user_id": ["new", "new"], "item_id": ["i1", "i3"]})
    pd.testing.assert_frame_equal(
        found.update(pl.from_pandas(more)).recommend(["new"]),
        expected.update(more).recommend(["new"]),
    )
    for kind, library in (("polars", pl.DataFrame), ("pyarrow", pa.Table)):
        assert found.set_output(kind) is found
        for ask in (
            lambda r: r.recommend(["u1", "nobody", "new"], k=3),
            lambda r: r.recommend_to_histories([["i1", "i2"]], k=3),
            lambda r: r.similar_items(["i1"], k=3),
        ):
            given = ask(found)
            assert isinstance(given, library)
            pd.testing.assert_frame_equal(given.to_pandas(), ask(expected), check_dtype=False)
    assert found.set_output("pyarrow").recommend([1, "u1"], k=1)[0].to_pylist() == ["1", "u1"]
    matrix = sp.random_array((30, 25), density=0.3, rng=np.random.default_rng(0))
    alone = Recommender(checkpoint, transfer_config, "cpu").fit(matrix)
    assert alone.recommend([3], k=2).user_id.tolist() == [3, 3]


def test_another_output_is_refused_and_a_missing_library_named(fitted, monkeypatch):
    with pytest.raises(ConfigError, match="'spark', expected pandas, polars, pyarrow"):
        fitted.set_output("spark")
    monkeypatch.setattr("gnnrec.frames.importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install polars"):
        fitted.set_output("polars")
    assert isinstance(fitted.recommend(k=1), pd.DataFrame)


def test_without_polars_nothing_is_missing(log, monkeypatch):
    monkeypatch.setitem(sys.modules, "polars", None)
    arrow = pa.Table.from_pandas(log)
    assert Interactions.from_frame(arrow).n_interactions == len(log)
    assert as_kind(log, "pyarrow").num_rows == len(log)
