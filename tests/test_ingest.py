"""The fast way in: what it reads, the careful way reads the same; the rest it leaves alone."""

from __future__ import annotations

import gzip
import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gnnrec import ids, ingest
from gnnrec.errors import DataError
from gnnrec.graph import BipartiteGraph
from gnnrec.ids import CodeBook, text_words, words_text
from gnnrec.ingest import CodedLog, stream_log
from gnnrec.interactions import Columns, Interactions, read_interactions, read_table

NAMES = ["user_id", "item_id", "weight", "timestamp", "text"]
SETTINGS = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several batches out of few rows, in which a line may still be long."""
    monkeypatch.setattr(ingest, "_BATCH_ROWS", 5)
    monkeypatch.setattr(ingest, "_BATCH_BYTES", 700)


def streamed(path: Path) -> CodedLog | None:
    return stream_log(path, *NAMES)


def careful(path: Path, **options: object) -> Interactions:
    return Interactions.from_frame(read_table(path), where=str(path), **options)


def assert_same(one: Interactions, other: Interactions) -> None:
    for name in ("users", "items", "user_ids", "item_ids", "weights", "timestamps", "texts"):
        mine, theirs = getattr(one, name), getattr(other, name)
        assert (mine is None) == (theirs is None), name
        if mine is not None:
            assert mine.dtype == theirs.dtype, name
            assert mine.tolist() == theirs.tolist(), name
            assert {type(v) for v in mine.tolist()} == {type(v) for v in theirs.tolist()}, name
    assert one.columns == other.columns
    assert one.n_dropped_duplicates == other.n_dropped_duplicates
    assert one.n_below_min_weight == other.n_below_min_weight


def outcome(read: Callable[[], Interactions]) -> Interactions | str:
    try:
        return read()
    except DataError as error:
        return str(error)


def assert_same_outcome(path: Path, **options: object) -> None:
    mine = outcome(lambda: read_interactions(path, **options))
    theirs = outcome(lambda: careful(path, **options))
    if isinstance(mine, str) or isinstance(theirs, str):
        assert mine == theirs
    else:
        assert_same(mine, theirs)


# Logs, as columns of cells.

letters = st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"], exclude_characters=',"')
plain_texts = st.text(letters, min_size=1, max_size=20).filter(lambda s: s.strip() == s)
any_texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
text_ids = st.one_of(
    plain_texts,
    st.from_regex(r"user_0{1,3}[0-9]{1,3}", fullmatch=True),
    st.from_regex(r"0{0,3}[0-9]{1,3}", fullmatch=True),
    st.integers(-(2**70), 2**70).map(str),
)
weight_texts = [
    st.integers(0, 5).map(str),
    st.sampled_from(["0.5", "4.50", "3", "1e-3", ".25", "+2"]),
    st.floats(0, 1e9, width=32).map(repr),
]
time_texts = [
    st.integers(10**9, 2 * 10**9).map(str),
    st.integers(10**12, 2 * 10**12).map(str),
    st.integers(10**18, 2 * 10**18).map(str),
    st.floats(0, 2e9).map(lambda v: f"{v:.3f}"),
    st.datetimes().map(lambda v: v.isoformat()),
    st.dates().map(str),
]


def repeated(values: st.SearchStrategy) -> st.SearchStrategy:
    """Cells of which some come more than once."""
    return st.lists(values, min_size=1, max_size=8).flatmap(
        lambda pool: st.lists(st.sampled_from(pool), min_size=40, max_size=40)
    )


@st.composite
def text_logs(draw: st.DrawFn) -> dict[str, list[str]]:
    n_rows = draw(st.integers(1, 40))
    columns = {"user_id": draw(repeated(text_ids)), "item_id": draw(repeated(text_ids))}
    if draw(st.booleans()):
        columns["weight"] = draw(repeated(draw(st.sampled_from(weight_texts))))
    if draw(st.booleans()):
        columns["timestamp"] = draw(repeated(draw(st.sampled_from(time_texts))))
    if draw(st.booleans()):
        columns["text"] = draw(repeated(st.one_of(st.just(""), plain_texts)))
    order = draw(st.permutations([*columns, "extra"]))
    columns["extra"] = ["-"] * 40
    return {name: columns[name][:n_rows] for name in order}


@SETTINGS
@given(text_logs(), st.sampled_from([",", "\t", ";"]), st.booleans(), st.booleans())
def test_plain_text_is_streamed_and_reads_the_same(
    tmp_path: Path, log: dict[str, list[str]], mark: str, packed: bool, marked: bool
) -> None:
    lines = [mark.join(log), *(mark.join(cells) for cells in zip(*log.values(), strict=True))]
    data = ("\ufeff" * marked + "\n".join(lines) + "\n").encode()
    name = {",": "log.csv", "\t": "log.tsv", ";": "log.txt"}[mark] + (".gz" if packed else "")
    path = tmp_path / name
    path.write_bytes(gzip.compress(data, 1) if packed else data)
    if mark not in "".join(itertools.chain(*log.values())):
        assert streamed(path) is not None
    assert_same_outcome(path)
    if "weight" in log:
        assert_same_outcome(path, min_weight=2.0)


@SETTINGS
@given(
    st.lists(st.tuples(any_texts, any_texts, any_texts), min_size=1, max_size=12),
    st.sampled_from(["\n", "\r\n"]),
)
def test_any_text_comes_out_the_same(tmp_path: Path, rows: list[tuple], line_break: str) -> None:
    path = tmp_path / "log.csv"
    table = pd.DataFrame(rows, columns=["user_id", "text", "item_id"])
    table.to_csv(path, index=False, lineterminator=line_break)
    assert_same_outcome(path)


integers = {
    kind: st.integers(np.iinfo(kind).min, min(np.iinfo(kind).max, 2**63 - 1))
    for kind in ("int8", "int32", "int64", "uint16", "uint64")
}


@st.composite
def id_columns(draw: st.DrawFn) -> pa.Array:
    kind = draw(st.sampled_from(["string", "large_string", "dictionary", *integers]))
    cells = draw(repeated(integers.get(kind, text_ids)))
    if kind == "dictionary":
        return pa.array(cells).dictionary_encode()
    return pa.array(cells, getattr(pa, kind)())


@st.composite
def tables(draw: st.DrawFn) -> pa.Table:
    columns = {"user_id": draw(id_columns()), "item_id": draw(id_columns())}
    if draw(st.booleans()):
        kind = draw(st.sampled_from(["int64", "float32", "float64", "string", "bool_"]))
        cells = draw(repeated(st.integers(0, 5)))
        columns["weight"] = pa.array(cells).cast(getattr(pa, kind)())
    if draw(st.booleans()):
        kind = draw(
            st.sampled_from(
                [
                    pa.int64(),
                    pa.float64(),
                    pa.string(),
                    pa.timestamp("us"),
                    pa.timestamp("ns", "Asia/Tokyo"),
                ]
            )
        )
        cells = draw(repeated(st.integers(10**12, 2 * 10**12)))
        columns["timestamp"] = pa.array(cells).cast(kind)
    if draw(st.booleans()):
        cells = draw(repeated(st.one_of(st.none(), any_texts)))
        columns["text"] = pa.array(cells, draw(st.sampled_from([pa.string(), pa.large_string()])))
    return pa.table(columns)


@SETTINGS
@given(tables(), st.integers(1, 40), st.integers(1, 20))
def test_plain_parquet_is_streamed_and_reads_the_same(
    tmp_path: Path, table: pa.Table, n_rows: int, group: int
) -> None:
    path = tmp_path / "log.parquet"
    pq.write_table(table.slice(0, n_rows), path, row_group_size=group)
    assert streamed(path) is not None
    assert_same_outcome(path)


# What is left to the careful way, which accepts or explains it.

HEAD = "user_id,item_id,weight,timestamp\n"
ROWS = "".join(f"u{n % 7},i{n % 5},1,{n}\n" for n in range(60))
ODD_TEXT = {
    "blank id": (",x,1,1\n", True),
    "id to trim": (" u1,x,1,1\n", False),
    "id in another space": ("u1\u2003,x,1,1\n", False),
    "long id": (f"{'u' * 200},x,1,1\n", False),
    "quoted id to trim": ('"u1 ",x,1,1\n', False),
    "one quote": ('u"1,x,1,1\n', False),
    "open quote": ('"u1,x,1,1\n', True),
    "too few cells": ("u1,x,1\n", True),
    "too many cells": ("u1,x,1,1,1\n", True),
    "NUL": ("u\0,x,1,1\n", True),
    "no weight": ("u1,x,,1\n", True),
    "negative weight": ("u1,x,-1,1\n", True),
    "endless weight": ("u1,x,1e39,1\n", True),
    "word as weight": ("u1,x,many,1\n", True),
    "no time": ("u1,x,1,\n", True),
    "word as time": ("u1,x,1,soon\n", True),
    "date among numbers": ("u1,x,1,2020-01-01\n", True),
}


@pytest.mark.parametrize("place", ["first", "last"])
@pytest.mark.parametrize("name", ODD_TEXT)
def test_odd_text_is_left_to_the_careful_way(tmp_path: Path, name: str, place: str) -> None:
    odd, refused = ODD_TEXT[name]
    path = tmp_path / "log.csv"
    path.write_text(HEAD + (odd + ROWS if place == "first" else ROWS + odd), encoding="utf-8")
    assert streamed(path) is None
    assert_same_outcome(path)
    assert isinstance(outcome(lambda: read_interactions(path)), str) == refused


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("log.csv", b""),
        ("log.csv", HEAD.encode()),
        ("log.csv", (HEAD + ROWS).encode("utf-16")),
        ("log.csv", (HEAD + ROWS + "é,x,1,1\n").encode("latin-1")),
        ("log.csv", (HEAD + ROWS + "é").encode()[:-1]),
        ("log.csv", b"user_id,item_id,title\n" + b"a,x,t\n" * 300 + b"a,y,\0\n"),
        ("log.csv", b"user_id,item_id,title\n" + b"a,x,t\n" * 300 + b"a,y,\xe9\n"),
        ("log.csv", b"user_id,item_id,title\n" + b"a,x,t\n" * 300 + b"a,y,\xc3"),
        ("log.csv", (HEAD + ROWS).replace("weight", "item_id", 1).encode()),
        ("log.csv", b"user,item_id\na,x\n"),
        ("log.csv", b"1,2\n3,4\n"),
        ("log.csv", b'user_id,"item_id"\na,x\n'),
        ("log.csv", b"\nuser_id,item_id\na,x\n"),
        ("log.csv", b"user_id|item_id\na|x\n"),
        ("log.dat", b"user_id::item_id\na::x\n"),
        ("log.jsonl", b'{"user_id": 1, "item_id": 2}\n'),
        ("log.csv.gz", b"no gzip"),
        ("log.csv.gz", gzip.compress((HEAD + ROWS).encode())[:-9]),
        ("log.parquet", b"PAR1 and then nothing"),
        ("log.xlsx", b"x"),
    ],
)
def test_odd_files_are_left_to_the_careful_way(tmp_path: Path, name: str, data: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    assert streamed(path) is None
    assert_same_outcome(path)


def test_missing_file_and_folder_are_left_to_the_careful_way(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    for path in (tmp_path / "none.csv", tmp_path / "none.parquet", tmp_path / "folder.csv"):
        assert streamed(path) is None
        assert_same_outcome(path)


@pytest.mark.parametrize(
    "users",
    [
        pa.array(["a", None]),
        pa.array([1, None]),
        pa.array(["a\0", "a"]),
        pa.array([1.0, 2.0]),
        pa.array([True, False]),
        pa.array([1, 2**64 - 1], pa.uint64()),
        pa.array([["a"], ["b"]]),
        pa.array([{"a": 1}, {"a": 2}]),
        pa.array([b"a", b"b"]),
        pa.array(["a", None]).dictionary_encode(),
        pa.array([], pa.string()),
    ],
    ids=str,
)
def test_odd_parquet_ids_are_left_to_the_careful_way(tmp_path: Path, users: pa.Array) -> None:
    path = tmp_path / "log.parquet"
    pq.write_table(pa.table({"user_id": users, "item_id": ["x", "y"][: len(users)]}), path)
    assert streamed(path) is None
    assert_same_outcome(path)


@pytest.mark.parametrize(
    ("name", "cells"),
    [
        ("weight", [1.0, None]),
        ("weight", [1.0, float("nan")]),
        ("weight", [1.0, -1.0]),
        ("timestamp", [1, None]),
        ("timestamp", [1.0, float("inf")]),
        ("timestamp", [True, False]),
        ("timestamp", pd.to_datetime(["2020-01-01", None])),
    ],
)
def test_odd_parquet_numbers_are_left_to_the_careful_way(
    tmp_path: Path, name: str, cells: object
) -> None:
    path = tmp_path / "log.parquet"
    pq.write_table(pa.table({"user_id": [1, 2], "item_id": [1, 2], name: pa.array(cells)}), path)
    assert streamed(path) is None
    assert_same_outcome(path)


def test_columns_under_other_names(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("user_id,item_id,stars\na,x,1\nb,y,2\n")
    for columns in (
        Columns(weight="stars"),
        Columns(weight="star"),
        Columns(timestamp="stars"),
        Columns(user="item_id"),
        Columns(user="item_id", item="user_id"),
        Columns(weight="user_id"),
        Columns(item="rank"),
    ):
        assert_same_outcome(path, columns=columns)
    path.write_text("rank,item_id\na,x\n")
    assert stream_log(path, "rank", "item_id") is not None
    assert_same_outcome(path, columns=Columns(user="rank"))


def test_a_line_longer_than_a_batch_is_left_to_the_careful_way(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(f"user_id,item_id,title\na,x,{'t' * 3000}\n" + "b,y,t\n" * 300)
    assert streamed(path) is None
    assert_same_outcome(path)


def test_graph_of_a_streamed_log_counts_a_pair_once(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("user_id,item_id\nb,y\n" + "a,x\n" * 256 + "a,y\n")
    log = stream_log(path, "user_id", "item_id")
    assert log is not None and log.names == ("user_id", "item_id")
    graph = BipartiteGraph(log.users, log.items, len(log.user_ids), len(log.item_ids))
    assert log.user_ids.tolist() == ["b", "a"] and log.item_ids.tolist() == ["y", "x"]
    assert graph.user_items.toarray().tolist() == [[1, 0], [1, 1]]


# Codes, batch by batch.


def batches_of(values: list, sizes: Iterator[int]) -> Iterator[list]:
    values = list(values)
    while values:
        size = next(sizes)
        yield values[:size]
        values = values[size:]


@SETTINGS
@given(
    st.lists(st.one_of(plain_texts, text_ids), min_size=1, max_size=60).flatmap(
        lambda pool: st.lists(st.sampled_from(pool), min_size=1, max_size=120)
    ),
    st.integers(1, 50),
)
def test_codes_of_texts_are_those_of_factorize(texts: list[str], size: int) -> None:
    book, codes = CodeBook(), []
    for part in batches_of(texts, itertools.cycle([size, 1, 7])):
        words = text_words(pa.array(part))
        assert words is not None
        codes.extend(book.encode(words).tolist())
    expected, distinct = pd.factorize(np.array(texts, dtype=object))
    assert codes == expected.tolist()
    assert words_text(book.words()).to_pylist() == distinct.tolist()


@pytest.mark.parametrize("step", [1, 10, 2**32, 2**44, 3**25])
def test_codes_of_many_integers_are_those_of_factorize(step: int) -> None:
    rng = np.random.default_rng(0)
    with np.errstate(over="ignore"):
        values = (rng.zipf(1.3, 60_000) % 2**16).astype(np.int64) * np.int64(step)
    book = CodeBook()
    parts = np.array_split(values, 9)
    codes = np.concatenate([book.encode([part.view(np.uint64)]) for part in parts])
    expected, distinct = pd.factorize(values)
    assert codes.dtype == np.int32 and (codes == expected).all()
    assert (book.words()[0].view(np.int64) == distinct).all()
    assert len(book) == len(distinct) > 1000


def test_ids_of_one_hash_are_told_apart() -> None:
    mix = int(ids._MIX)
    words = np.array([[5, 7], [(5 - mix) % 2**64, 8], [5, 7], [(5 - mix) % 2**64, 8]], np.uint64)
    columns = list(words.T)
    assert len(set(ids._hashes(columns).tolist())) == 1
    for parts in ([columns], [[c[:1] for c in columns], [c[1:] for c in columns]]):
        book = CodeBook()
        assert np.concatenate([book.encode(part) for part in parts]).tolist() == [0, 1, 0, 1]


def test_a_wider_batch_changes_no_code() -> None:
    book = CodeBook()
    for texts, expected in (
        (["a", "12345678"], [0, 1]),
        (["123456789", "12345678", "a"], [2, 1, 0]),
        (["a", "12345678"], [0, 1]),
    ):
        words = text_words(pa.array(texts))
        assert words is not None and book.encode(words).tolist() == expected


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_words_of_a_slice(kind: pa.DataType) -> None:
    for texts in (
        ["é" * n for n in range(9)],
        ["seven77"] * 4,
        ["eight888"] * 4,
        [""] * 3,
        ["", "a"],
    ):
        for start in range(len(texts)):
            words = text_words(pa.array(["before", *texts, "after"], kind)[start + 1 : -1])
            assert words is not None
            assert words_text(words).to_pylist() == texts[start:]


def test_texts_with_a_nul_or_too_long_have_no_words() -> None:
    assert text_words(pa.array(["a", "a\0"])) is None
    assert text_words(pa.array(["a" * 129])) is None
    assert text_words(pa.array(["a\0", "b"])[1:]) is not None


def test_arrow_and_python_agree_on_white_space() -> None:
    """The fast way asks Arrow, the careful way `str.strip`."""
    characters = [chr(n) for n in range(sys.maxunicode + 1) if not 0xD800 <= n <= 0xDFFF]
    texts = [f"{c}x{c}" for c in characters]
    trimmed = pc.utf8_trim_whitespace(pa.array(texts)).to_pylist()
    assert trimmed == [text.strip() for text in texts]
