"""The log and the items file: round trips, collapsing, times, and every broken file by name."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gnnrec.errors import DataError
from gnnrec.interactions import (
    Columns,
    Interactions,
    ItemTable,
    read_interactions,
    read_items,
    read_table,
)

TINY = Path(__file__).parent.parent / "data" / "tiny"
HEADER = "user_id,item_id,weight,timestamp\n"
GOOD = "a,x,1,100\n"


def frame(**columns: object) -> pd.DataFrame:
    return pd.DataFrame({"user_id": ["a", "b"], "item_id": ["x", "y"], **columns})


# Round trips.

text_ids = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1).filter(
    lambda s: s.strip() != ""
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.one_of(st.integers(-(2**63), 2**63 - 1), text_ids), st.integers(0, 2**63 - 1)),
        min_size=1,
        max_size=20,
    )
)
def test_ids_round_trip_typed_and_as_text(pairs: list[tuple[object, int]]) -> None:
    table = pd.DataFrame(pairs, columns=["user_id", "item_id"], dtype=object)
    log = Interactions.from_frame(table)
    for raw, codes, ids in (
        ([p[0] for p in pairs], log.user_codes, log.user_ids),
        ([p[1] for p in pairs], log.item_codes, log.item_ids),
    ):
        assert len(set(ids.tolist())) == len(ids)
        assert (codes(ids) == np.arange(len(ids))).all()
        assert (codes([str(i) for i in ids]) == np.arange(len(ids))).all()
        assert [str(ids[c]) for c in codes(raw)] == [str(r).strip() for r in raw]
    back = Interactions.from_frame(log.to_frame())
    assert back.user_ids.tolist() == log.user_ids.tolist()
    assert back.items.tolist() == log.items.tolist()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.text(" 09aé\"',;", min_size=1), text_ids), min_size=1))
def test_csv_round_trip(tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple]) -> None:
    pairs = [(u, i.replace("\0", "_").replace("\r", "_")) for u, i in pairs if u.strip()]
    pairs = pairs or [("u", "i")]
    path = tmp_path_factory.mktemp("csv") / "log.csv"
    table = pd.DataFrame(pairs, columns=["user_id", "item_id"])
    table.to_csv(path, index=False)
    log = read_interactions(path)
    assert set(log.user_ids) == {u.strip() for u, _ in pairs}
    assert set(log.item_ids) == {i.strip() for _, i in pairs}


def test_integers_survive_a_float_column_and_leading_zeros_survive_csv(tmp_path: Path) -> None:
    log = Interactions.from_frame(frame(user_id=[7.0, 8.0]))
    assert log.user_ids.tolist() == [7, 8] and log.user_ids.dtype == np.int64
    assert log.user_codes(["8", "7", "07", "", None, 7.5]).tolist() == [1, 0, -1, -1, -1, -1]
    path = tmp_path / "log.csv"
    path.write_text("user_id,item_id\n007,x\n7,x\n")
    log = read_interactions(path)
    assert log.user_ids.tolist() == ["007", "7"]
    assert log.user_codes([7, "007"]).tolist() == [1, 0]


# Collapsing, filtering, vocabularies.


def test_repeated_pairs_keep_latest_time_largest_weight_first_place() -> None:
    log = Interactions.from_frame(
        pd.DataFrame(
            {
                "user_id": ["b", "a", "b", "b "],
                "item_id": [1, 1, 1, 2],
                "weight": [5, 1, 2, 0.5],
                "timestamp": [10, 20, 30, 40],
            }
        )
    )
    assert log.user_ids.tolist() == ["b", "a"]  # "b " is "b"
    assert log.users.tolist() == [0, 1, 0] and log.items.tolist() == [0, 0, 1]
    assert log.weights is not None and log.weights.tolist() == [5, 1, 0.5]
    assert log.timestamps is not None and log.timestamps.tolist() == [30, 20, 40]
    assert log.n_dropped_duplicates == 1
    assert log.weights.dtype == np.float32 and log.timestamps.dtype == np.float64


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 4), st.integers(0, 9), st.integers(0, 9)),
        min_size=1,
        max_size=60,
    )
)
def test_collapsing_equals_a_dictionary(rows: list[tuple[int, int, int, int]]) -> None:
    expected: dict[tuple[int, int], tuple[int, int]] = {}
    for user, item, weight, time in rows:
        before = expected.get((user, item), (0, 0))
        expected[user, item] = max(weight, before[0]), max(time, before[1])
    table = pd.DataFrame(rows, columns=["user_id", "item_id", "weight", "timestamp"])
    given_rows = table.copy()
    log = Interactions.from_frame(table)
    pairs = zip(log.user_ids[log.users].tolist(), log.item_ids[log.items].tolist(), strict=True)
    assert list(pairs) == list(expected)
    assert log.weights is not None and log.timestamps is not None
    assert list(zip(log.weights.tolist(), log.timestamps.tolist(), strict=True)) == list(
        expected.values()
    )
    assert log.n_dropped_duplicates == len(rows) - len(expected)
    pd.testing.assert_frame_equal(table, given_rows)


def test_collapsing_one_user_of_many_rows_keeps_first_places() -> None:
    items = np.random.default_rng(0).integers(0, 60, 1000)
    log = Interactions.from_frame(pd.DataFrame({"user_id": 1, "item_id": items}))
    assert log.item_ids[log.items].tolist() == pd.unique(items).tolist()
    assert (np.diff(log.items) == 1).all()
    both = pd.DataFrame(
        {
            "user_id": np.repeat(["b", "a"], 500),
            "item_id": np.r_[items[:500], 60:0:-1, items[60:500]],
        }
    )
    log = Interactions.from_frame(both)
    expected = both.drop_duplicates()
    assert log.item_ids[log.items].tolist() == expected["item_id"].tolist()
    assert log.user_ids[log.users].tolist() == expected["user_id"].tolist()


def test_min_weight_comes_before_collapsing() -> None:
    table = frame(weight=[1, 5])
    log = Interactions.from_frame(table, min_weight=4)
    assert (log.n_interactions, log.n_below_min_weight, log.user_ids.tolist()) == (1, 1, ["b"])
    with pytest.raises(DataError, match="weight column"):
        Interactions.from_frame(frame(), min_weight=4)
    with pytest.raises(DataError, match="lower --min-weight"):
        Interactions.from_frame(table, min_weight=6)


def test_vocabularies_extend_without_moving() -> None:
    log = Interactions.from_frame(frame()).with_items(["y", "z", "z"]).with_users([3])
    assert log.item_ids.tolist() == ["x", "y", "z"] and log.user_ids.tolist() == ["a", "b", "3"]
    part = log.select(np.array([1]))
    assert (part.n_interactions, part.n_items) == (1, 3)
    other = Interactions.from_frame(pd.DataFrame({"user_id": ["b"], "item_id": ["z"]}))
    assert other.recoded(log).items.tolist() == [2]
    with pytest.raises(DataError, match="'z' is not in the vocabulary"):
        other.recoded(Interactions.from_frame(frame()))


@pytest.mark.parametrize(
    "values",
    [
        [1e9, 1e9 + 1],
        [1e12, 1e12 + 1000],
        [1e15, 1e15 + 1e6],
        [10**18, 10**18 + 10**9],
        pd.to_datetime([10**9, 10**9 + 1], unit="s"),
        pd.to_datetime([10**9, 10**9 + 1], unit="s", utc=True).tz_convert("Asia/Tokyo"),
        ["2001-09-09T01:46:40Z", "2001-09-09 03:46:41+02:00"],
        ["1000000000", " 1000000001"],
    ],
)
def test_times_become_seconds(values: object) -> None:
    log = Interactions.from_frame(frame(timestamp=values))
    assert log.timestamps is not None
    assert log.timestamps.tolist() == [1e9, 1e9 + 1]


# What is refused, with its one line.


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"user_id": ["a", None]}, "row 2, column user_id: found no id"),
        ({"user_id": ["a", " "]}, "row 2, column user_id: found ' '"),
        ({"user_id": [1.0, np.inf]}, "row 2, column user_id: found inf"),
        ({"user_id": [1.0, 2.0**60]}, "row 2, column user_id"),
        ({"user_id": [True, False]}, "row 1, column user_id: found a boolean"),
        ({"user_id": ["a", True]}, "row 2, column user_id: found a bool"),
        ({"item_id": ["x", ["y"]]}, "row 2, column item_id: found a list"),
        ({"item_id": ["x", {"y": 1}]}, "row 2, column item_id: found a dict"),
        ({"weight": [1.0, np.nan]}, "row 2, column weight: found nan"),
        ({"weight": [1.0, -np.inf]}, "row 2, column weight: found -inf"),
        ({"weight": [1.0, -1.0]}, "row 2, column weight: found -1.0"),
        ({"weight": [1.0, 1e300]}, "row 2, column weight: found 1e+300"),
        ({"weight": ["1", "many"]}, "row 2, column weight: found 'many'"),
        ({"weight": [1, [2]]}, "row 2, column weight: found [2]"),
        ({"timestamp": [1.0, np.nan]}, "row 2, column timestamp: found no time"),
        ({"timestamp": ["1", "soon"]}, "row 2, column timestamp: found 'soon'"),
        ({"timestamp": ["2020-01-01", "soon"]}, "row 2, column timestamp: found 'soon'"),
        ({"timestamp": ["soon", "2020-01-01"]}, "row 1, column timestamp: found 'soon'"),
        ({"timestamp": [True, False]}, "row 1, column timestamp: found True"),
        ({"timestamp": pd.to_datetime(["2020-01-01", None])}, "row 2, column timestamp: found no"),
    ],
)
def test_bad_values_name_their_row(columns: dict[str, object], expected: str) -> None:
    with pytest.raises(DataError) as caught:
        Interactions.from_frame(frame(**columns))
    message = str(caught.value)
    assert message.startswith("DataFrame, ") and expected in message
    assert "expected" in message and ";" in message and "\n" not in message


@pytest.mark.parametrize(
    ("names", "columns", "expected"),
    [
        (["userid", "item_id"], Columns(), r"columns=gnnrec\.Columns\(user='userid'\)"),
        (["user_id", "ItemID"], Columns(), r"an item column .*Columns\(item='ItemID'\)"),
        (
            ["Kunde", "SKU"],
            Columns(),
            "user column .* and an item column .*user='NAME', item='NAME'",
        ),
        (["user_id", "item_id"], Columns(timestamp="time"), "timestamp='NAME'"),
        (["user_id", "item_id"], Columns(weight="stars"), "weight='NAME'"),
        (["user_id", "item_id", "item_id"], Columns(), "twice"),
    ],
)
def test_missing_columns_name_what_was_found(
    names: list[str], columns: Columns, expected: str
) -> None:
    with pytest.raises(DataError, match=expected):
        Interactions.from_frame(pd.DataFrame([["a"] * len(names)], columns=names), columns)


def test_empty_frame_is_refused() -> None:
    with pytest.raises(DataError, match="no rows"):
        Interactions.from_frame(frame().iloc[:0])


def parquet(path: Path, table: pd.DataFrame) -> None:
    table.to_parquet(path)


BROKEN: list[tuple[str, bytes | str | Callable[[Path], object] | None, str]] = [
    ("missing.csv", None, "no such file"),
    ("folder.csv", lambda p: p.mkdir(), "a folder"),
    ("log.xlsx", "x", "suffix '.xlsx'"),
    ("log.parquet.gz", "x", "suffix '.gz'"),
    ("empty.csv", "", "an empty file"),
    ("blank.csv", "\n \n", "an empty file"),
    ("header.csv", HEADER, "no rows"),
    ("latin.csv", HEADER.encode() + GOOD.encode() + b"\xe9,x,1,1\n", "row 3: found the byte 0xe9"),
    ("latin_header.csv", b"user_id,item_id,caf\xe9\na,x,1\n", "row 1: found the byte 0xe9"),
    ("utf16.csv", (HEADER + GOOD).encode("utf-16"), "UTF-16"),
    ("nul.csv", HEADER + GOOD + "a\0,x,1,1\n", "row 3: found a NUL byte"),
    ("ragged.csv", HEADER + GOOD + "\na,x,1\n" + GOOD, "row 4: found 3 cells, expected 4 cells"),
    ("long.tsv", "user_id\titem_id\na\tx\nb\ty\tz\n", "row 3: found 3 cells, expected 2 cells"),
    ("ragged.dat", "user_id::item_id\na::x\nb\n", "row 3: found 1 cells, expected 2 cells"),
    ("numeric.dat", "1::2::3::4\n1::2::3\n", "row 2: found 3 cells, expected 4 cells"),
    ("quote.csv", HEADER + GOOD + '"a,x,1,1\n', "row 3"),
    ("open.csv", 'user_id,item_id\na,x\nb,"y\nc,z\n', "row 3: found a quote that is never closed"),
    ("no_rows.csv", "user_id,item_id", "found no rows"),
    ("twice.csv", "user_id,item_id,item_id\na,x,y\n", "row 1: found the column name 'item_id'"),
    ("bar.csv", "user_id|item_id\na|x\n", "row 1: found one column 'user_id|item_id'"),
    ("comma.tsv", "user_id,item_id\na,x\n", "row 1: found one column"),
    ("headless.csv", "1,2,3\n1,3,4\n", "row 1: found numbers"),
    ("corrupt.parquet", "PAR1 and then nothing", "damaged Parquet"),
    ("corrupt.csv.gz", "not gzip", "damaged gzip"),
    ("short.csv.gz", gzip.compress((HEADER + GOOD * 99).encode())[:-9], "damaged gzip"),
    ("bad.jsonl", '{"user_id": 1, "item_id": 2}\n\n{"user_id": 1\n', "row 3: found bad JSON"),
    ("list.ndjson", "[1, 2]\n", "row 1: found a JSON list"),
    ("null.jsonl", '{"user_id": 1, "item_id": 2}\n\n{"item_id": 2}\n', "row 3, column user_id"),
    ("no_id.csv", HEADER + "\n" + GOOD + ",x,1,1\n", "row 4, column user_id: found ''"),
    ("break.csv", HEADER + '"a\nb",x,1,1\na,x,-1,1\n', "row 4, column weight: found '-1'"),
    ("weight.csv", HEADER + GOOD + "a,y,,1\n", "row 3, column weight: found ''"),
    ("time.dat", "1::2::3::4\n1::3::4::x\n", "row 2, column timestamp: found 'x'"),
    ("column.csv", "user,item_id\na,x\n", "--user-column user"),
    (
        "no_id.parquet",
        lambda p: parquet(p, pd.DataFrame({"user_id": [1, None], "item_id": [1, 2]})),
        "row 2, column user_id: found no id",
    ),
]


@pytest.mark.parametrize(("name", "content", "expected"), BROKEN, ids=[b[0] for b in BROKEN])
def test_broken_files_get_one_clear_line(
    tmp_path: Path, name: str, content: bytes | str | Callable[[Path], object] | None, expected: str
) -> None:
    path = tmp_path / name
    if callable(content):
        content(path)
    elif content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataError) as caught:
        read_interactions(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and expected in message
    assert "expected" in message and "\n" not in message


# Formats that are accepted.


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("log.csv", "\ufeffuser_id, item_id,weight,timestamp\r\n1,2,3,4\r\n\r\n"),
        ("log.tsv", "user_id\titem_id\tweight\ttimestamp\n1\t2\t3\t4"),
        ("log.dat", "1::2::3::4\n"),
        ("log.txt", "user_id;item_id;weight;timestamp\n1;2;3;4\n"),
        ("log.jsonl", json.dumps({"user_id": 1, "item_id": 2, "weight": 3, "timestamp": 4})),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_formats_agree(tmp_path: Path, name: str, content: str, packed: bool) -> None:
    path = tmp_path / (name + ".gz" if packed else name)
    data = content.encode()
    path.write_bytes(gzip.compress(data) if packed else data)
    log = read_interactions(path)
    assert log.user_codes([1]).tolist() == log.item_codes(["2"]).tolist() == [0]
    assert log.weights is not None and log.weights.tolist() == [3]
    assert log.timestamps is not None and log.timestamps.tolist() == [4]


def test_tiny_log_and_items() -> None:
    log = read_interactions(TINY / "shop.csv")
    assert (log.n_users, log.n_items, log.n_interactions) == (40, 30, 300)
    texts, titles = read_items(TINY / "items.csv").align(log.item_ids)
    assert all(texts) and all(
        text.startswith(title) for text, title in zip(texts, titles, strict=True)
    )


def test_item_texts_leave_out_numbers_addresses_and_ids() -> None:
    table = pd.DataFrame(
        {
            "item_id": [1, 2, 2],
            "name": ["Kettle", None, "again"],
            "genres": ["A|B", "C", ""],
            "year": ["1999", "", "2000"],
            "price": [1.0, 2.0, 3.0],
            "url": ["http://a", "https://b", ""],
            "sku": ["1", "2", "2"],
            "tags": [["x", "y"], None, []],
        }
    )
    items = ItemTable.from_frame(table)
    assert items.texts == ["Kettle A B x y", "C"]
    assert items.titles == ["Kettle", ""] and items.n_duplicates == 1
    assert items.align(["2", 1, 9]) == (["C", "Kettle A B x y", ""], ["", "Kettle", ""])
    only = ItemTable.from_frame(pd.DataFrame({"sku": ["a"], "text": ["1984"]}), "sku")
    assert only.texts == ["1984"]
    with pytest.raises(DataError, match="--item-column"):
        ItemTable.from_frame(table, "asin")


def test_read_table_keeps_quoted_cells(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('item_id,title\n1,"a, ""b""\nc"\n')
    assert read_table(path)["title"].tolist() == ['a, "b"\nc']
