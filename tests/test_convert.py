"""Other libraries' layouts are read as they write them, and a round trip changes nothing."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from gnnrec.convert import LAYOUTS, convert, guess_layout, read_layout, write_layout
from gnnrec.errors import ConfigError, DataError
from gnnrec.interactions import read_interactions

SUFFIX = {"gnnrec": ".csv", "recbole": ".inter", "movielens": ".dat", "lenskit": ".csv",
          "surprise": ".data", "implicit": ".npz"}  # fmt: skip
EXAMPLES = {
    "recbole": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    "u1\tToy Story (1995)\t4\t9",
    "movielens": "u1::Toy Story (1995)::4::9",
    "surprise": "u1\tToy Story (1995)\t4\t9",
    "gnnrec": "user_id,item_id,weight,timestamp\nu1,Toy Story (1995),4,9",
}


def write(path, text):
    path.write_text(text + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("layout", EXAMPLES)
def test_a_layout_is_read_as_its_library_writes_it(tmp_path, layout):
    path = write(tmp_path / f"log{SUFFIX[layout]}", EXAMPLES[layout])
    assert guess_layout(path) == layout
    frame = read_layout(path, layout)
    assert frame.astype(str).values.tolist() == [["u1", "Toy Story (1995)", "4", "9"]]


@pytest.mark.parametrize(
    "names", ["user,item,rating,timestamp", "user_id,item_id,rating,timestamp"]
)
def test_lenskits_two_ways_to_name_columns(tmp_path, names):
    frame = read_layout(write(tmp_path / "log.csv", f"{names}\n7,8,3.5,11"), "lenskit")
    assert list(frame.columns) == ["user_id", "item_id", "weight", "timestamp"]


def test_a_matrix_is_read_with_and_without_its_ids(tmp_path):
    matrix = sp.csr_array(np.array([[0, 2, 0], [1, 0, 3]], dtype=np.float32))
    sp.save_npz(tmp_path / "log.npz", matrix)
    bare = read_layout(tmp_path / "log.npz", "implicit")
    assert bare.values.tolist() == [["0", "1", 2.0], ["1", "0", 1.0], ["1", "2", 3.0]]
    write(tmp_path / "log.users.csv", "id\nann\nbob")
    named = read_layout(tmp_path / "log.npz", "implicit")
    assert named.user_id.tolist() == ["ann", "bob", "bob"]
    write(tmp_path / "log.items.csv", "id\nx")
    with pytest.raises(DataError, match="log.items.csv: found 1 ids, expected 3"):
        read_layout(tmp_path / "log.npz", "implicit")


IDS = st.text(st.characters(categories=("L", "N"), include_characters="-. '"), min_size=1).filter(
    lambda text: text.strip() == text
)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(IDS, IDS, st.integers(1, 5), st.integers(1, 10**9)),
        min_size=1,
        max_size=12,
        unique_by=lambda row: row[:2],
    ),
    st.sampled_from(LAYOUTS),
)
def test_a_round_trip_keeps_every_row(tmp_path_factory, rows, layout):
    folder = tmp_path_factory.mktemp("convert")
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "weight", "timestamp"]).astype(str)
    frame.user_id, frame.item_id = "u" + frame.user_id, "i" + frame.item_id
    path = folder / f"log{SUFFIX[layout]}"
    write_layout(frame, path, layout)
    back = read_layout(path, layout)
    expected = frame.drop(columns="timestamp") if layout == "implicit" else frame
    for table in (back, expected):
        table["weight"] = table["weight"].astype(float)
    order = ["user_id", "item_id"]
    pd.testing.assert_frame_equal(
        back.sort_values(order, ignore_index=True),
        expected.sort_values(order, ignore_index=True),
        check_dtype=False,
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_log_is_the_same_after_it_came_from_another_library(tmp_path, frame, layout):
    own = tmp_path / "own.csv"
    frame.assign(weight=1).to_csv(own, index=False)
    there, back = tmp_path / f"there{SUFFIX[layout]}", tmp_path / "back.csv"
    convert(own, there, layout, "gnnrec")
    done = convert(there, back, "gnnrec", layout)
    assert done["n_rows"] == len(frame)
    first, second = read_interactions(own), read_interactions(back)
    pairs = [
        set(zip(log.user_ids[log.users], log.item_ids[log.items], strict=True))
        for log in (first, second)
    ]
    assert pairs[0] == pairs[1]


def test_what_a_layout_cannot_hold_is_refused_and_nothing_is_written(tmp_path):
    log = write(tmp_path / "log.csv", 'user_id,item_id\nu1,"a\tb"\nu2,c::d')
    for layout, message in (
        ("surprise", r"found 'a\\tb' in row 1, column item_id"),
        ("recbole", r"found 'a\\tb' in row 1"),
        ("movielens", "found no timestamps"),
    ):
        out = tmp_path / f"out{SUFFIX[layout]}"
        with pytest.raises(ConfigError, match=message):
            convert(log, out, layout)
        assert not out.exists()
    with pytest.raises(ConfigError, match=r"expected \.inter for recbole"):
        convert(log, tmp_path / "out.csv", "recbole")
    with pytest.raises(ConfigError, match="--to nowhere: expected one of gnnrec, recbole"):
        convert(log, tmp_path / "out.csv", "nowhere")
    with pytest.raises(ConfigError, match="--items and --items-out go together"):
        convert(log, tmp_path / "out.csv", "gnnrec", items=log)


def test_what_is_not_in_the_layout_is_said_in_one_line(tmp_path):
    plain = write(tmp_path / "log.inter", "user_id\titem_id\nu\ti")
    with pytest.raises(DataError, match=r"row 1: found the column 'user_id', expected name:type"):
        read_layout(plain, "recbole")
    ragged = write(tmp_path / "u.data", "1\t2\t3\n1\t2")
    with pytest.raises(DataError, match="row 2: found 2 columns, expected 3 as in row 1"):
        read_layout(ragged, "surprise")
    with pytest.raises(DataError, match="found no sparse matrix"):
        read_layout(write(tmp_path / "x.npz", "no"), "implicit")
    with pytest.raises(DataError, match="no such file"):
        convert(tmp_path / "none.csv", tmp_path / "out.csv", "gnnrec")


def test_items_tables_come_along(run, tmp_path):
    log = write(tmp_path / "ml.dat", "1::10::5::100\n2::20::3::200")
    items = write(tmp_path / "movies.dat", "10::Heat (1995)::Crime|Drama\n20::Toy Story::Comedy")
    code, _, error = run(
        "data", "convert", log, "--to", "recbole", "--out", tmp_path / "ml.inter",
        "--items", items, "--items-out", tmp_path / "ml.item",
    )  # fmt: skip
    assert code == 0, error
    assert (tmp_path / "ml.item").read_text().splitlines() == [
        "item_id:token\ttitle:token_seq\tgenres:token_seq",
        "10\tHeat (1995)\tCrime|Drama",
        "20\tToy Story\tComedy",
    ]
    code, _, error = run(
        "data", "convert", tmp_path / "ml.inter", "--to", "gnnrec", "--out", tmp_path / "own.csv",
        "--items", tmp_path / "ml.item", "--items-out", tmp_path / "items.csv",
    )  # fmt: skip
    assert code == 0, error
    assert (tmp_path / "own.csv").read_text().splitlines()[1] == "1,10,5,100"
    code, _, error = run("data", "check", tmp_path / "own.csv", "--items", tmp_path / "items.csv")
    assert code == 0 and "n_items_with_text: 2" in error
