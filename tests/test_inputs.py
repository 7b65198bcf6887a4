"""What each kind of input gets: it is read, read with a note, or refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import make_log

from gnnrec.console import text_table
from gnnrec.doubts import doubts
from gnnrec.interactions import Interactions
from gnnrec.items import read_items
from gnnrec.sources import Log
from gnnrec.tables import data_error

PAIR = "user_id,item_id\n"
TIME = "user_id,item_id,timestamp\n"
WEIGHT = "user_id,item_id,weight\n"
LINES = "".join(f"u{n},i{n}\n" for n in range(4))  # four users, four items, nothing odd
LONG = "x" * 1_000_000
WIDE = ",".join(f"column{n}" for n in range(5_000))
MANY = "".join(f'{{"c{n}": 1}}\n' for n in range(3_000))

# name -> content: (users, items, pairs); no note is said.
ACCEPTED = {
    "bom.csv": (b"\xef\xbb\xbf" + PAIR.encode() + b"a,x\nb,y\n", (2, 2, 2)),
    "crlf.csv": (PAIR.replace("\n", "\r\n") + "a,x\r\nb,y\r\n", (2, 2, 2)),
    "old-mac.csv": ("user_id,item_id\ra,x\rb,y\r", (2, 2, 2)),
    "blank-lines.csv": (PAIR + "\na,x\n\nb,y\n\n", (2, 2, 2)),
    "quoted.csv": ('"user_id","item_id"\n"a,b",x\n"c""d",y\n', (2, 2, 2)),
    "index-column.csv": (",user_id,item_id\n0,a,x\n1,b,y\n", (2, 2, 2)),
    "separator.txt": ("user_id;item_id\na;x\nb;y\n", (2, 2, 2)),
    "semicolons.csv": ("user_id;item_id\na, b;x\nb;y\n", (2, 2, 2)),
    "semicolons-quoted.csv": ('"user_id";"item_id"\n"a;b";x\n"c,d";y\n', (2, 2, 2)),
    "tabs.csv": ("user_id\titem_id\na\tx\nb\ty\n", (2, 2, 2)),
    "huge-integers.csv": (PAIR + f"{10**30},1\n{2**63},2\n{2**63 - 1},3\n", (3, 3, 3)),
    "huge-integers.jsonl": (
        f'{{"user_id":{10**30},"item_id":1}}\n{{"user_id":2,"item_id":3}}\n', (2, 2, 2),
    ),
    "zero-weights.csv": (WEIGHT + "a,x,0\nb,y,0\n", (2, 2, 2)),
    "seconds.csv": (TIME + "a,x,1600000000\nb,y,1600000001\n", (2, 2, 2)),
    "milliseconds.csv": (TIME + "a,x,1600000000000\nb,y,1600000001000\n", (2, 2, 2)),
    "iso.csv": (TIME + "a,x,2020-01-01\nb,y,2020-01-02T03:04:05+02:00\n", (2, 2, 2)),
    "before-1970.csv": (TIME + "a,x,1935-01-01\nb,y,1970-01-01\n", (2, 2, 2)),
    "repeated.csv": (PAIR + "a,x\nb,y\n" * 500_000, (2, 2, 2)),
    "accents.csv": (PAIR + "é,x\ne\u0301,y\n", (2, 2, 2)),  # two ways to write é are two ids
}  # fmt: skip

# name -> content, and a piece of the only note
NOTED = {
    "trimmed.csv": (PAIR + LINES + " u1 ,i2\n", "1 ids differ from another one only"),
    "trimmed-repeats.csv": (PAIR + LINES + "u1 ,i1\n" * 200_000, "1 ids differ from another one"),
    "number-and-text.jsonl": (
        '{"user_id":1,"item_id":"a"}\n{"user_id":"1","item_id":"b"}\n{"user_id":2,"item_id":"c"}\n',
        "in being a number",
    ),
    "missing-word.csv": (PAIR + LINES + "NULL,i1\n", "user_id: 'NULL' is an id like any other"),
    "line-break.csv": (PAIR + LINES + '"a\nb",i1\n', "user_id: 1 ids contain a line break"),
    "long-id.csv": (PAIR + LINES + f"{LONG},i1\n", "user_id: an id has 1000000 characters"),
    "long-line.csv": (PAIR + LINES + "u1," + "y" * 10_000_000 + "\n", "an id has 10000000"),
    "swallowed-rows.csv": (PAIR + LINES + '"a,i1\nb",i2\n', "look for a quote left open"),
    "future.csv": (TIME + "a,x,2020-01-01\nb,y,2999-01-01\n", "1 of 2 timestamps are in"),
    "beyond-time.csv": (TIME + "a,x,1e300\nb,y,1e300\n", "in the future; check their unit"),
    "mixed-units.csv": (
        TIME + "a,x,1600000000000\nb,y,1600000001\nc,z,1600000002000\n",
        "1 of 3 timestamps are of early 1970",
    ),
    "zero-times.csv": (TIME + "a,x,0\nb,y,1600000001\nc,z,1600000002\n", "zeros for missing ones"),
    "one-pair.csv": (PAIR + "a,x\n", "every user has every item (1 x 1)"),
    "one-user.csv": (PAIR + "a,x\na,y\na,z\n", "every user has every item (1 x 3)"),
    "one-item.csv": (PAIR + "a,x\nb,x\nc,x\n", "every user has every item (3 x 1)"),
    "all-alike.csv": (PAIR + "a,x\na,y\nb,x\nb,y\n", "nothing is left to recommend"),
    "saw-everything.csv": (PAIR + "a,x\na,y\nb,x\n", "1 users have every item"),
}  # fmt: skip

# name -> content, and pieces of the line
REFUSED = {
    "empty.csv": ("", ["an empty file", "a header and rows"]),
    "blank.csv": ("\n\n", ["an empty file"]),
    "header.csv": (PAIR, ["no rows", "at least one row"]),
    "header-cut.csv": (PAIR.strip(), ["no rows"]),
    "bars.csv": ("user_id|item_id\na|x\n", ["row 1", "'user_id|item_id'", "','", ".txt"]),
    "commas.tsv": ("user_id,item_id\na,x\n", ["row 1", "separated by '\\t'"]),
    "utf16.csv": ((PAIR + "a,x\n").encode("utf-16"), ["row 1", "UTF-16", "save it as UTF-8"]),
    "utf16-no-mark.csv": ((PAIR + "a,x\n").encode("utf-16-le"), ["row 1", "NUL", "UTF-8"]),
    "latin1.csv": ((PAIR + "é,x\n").encode("latin-1"), ["row 2", "0xe9", "UTF-8"]),
    "latin1-header.csv": ("é,item_id\na,x\n".encode("latin-1"), ["row 1", "0xe9"]),
    "no-utf8.csv": (PAIR.encode() + b"a,x\nb,\xff\n", ["row 3", "0xff", "UTF-8"]),
    "nul.csv": (PAIR + "a,x\nb\0,y\n", ["row 3", "a NUL byte"]),
    "long-row.csv": (PAIR + "a,x\nb,y,z\n", ["row 3", "3 cells", "2 cells", "','"]),
    "short-row.csv": (PAIR + "a,x\n\nb\n", ["row 4", "1 cells", "2 cells"]),
    "long-cell-then-ragged.csv": (PAIR + f"{LONG},x\nb\n", ["row 3", "1 cells"]),
    "many-cells.csv": (PAIR + "a,x\n" + "y," * 1_000_000 + "\n", ["row 3", "1000001 cells"]),
    "open-quote.csv": (PAIR + 'a,x\n"b,y\nc,z\n', ["row 3", "quote"]),
    "open-quote-last.csv": (PAIR + 'a,x\nb,"y\nc,z\n', ["row 3", "a quote that is never closed"]),
    "numbers-only.csv": ("1,2\n3,4\n", ["row 1", "numbers", "add a header line"]),
    "named-twice.csv": ("user_id,item_id,item_id\na,x,y\n", ["row 1", "'item_id' twice"]),
    "long-header.csv": ("u" * 1_000_000 + "\na\n", ["a user column 'user_id'", "--user-column"]),
    "wide.csv": (f"{WIDE}\n{','.join('1' * 5_000)}\n", ["a user column", "--user-column"]),
    "blank-id.csv": (PAIR + "a,x\n ,y\n", ["row 3", "column user_id", "' '", "drop the row"]),
    "negative.csv": (WEIGHT + "a,x,1\nb,y,-1\n", ["row 3", "column weight", "'-1'", "from 0"]),
    "nan.csv": (WEIGHT + "a,x,1\nb,y,NaN\n", ["row 3", "column weight", "'NaN'"]),
    "infinite.csv": (WEIGHT + "a,x,1\n\nb,y,inf\n", ["row 4", "column weight", "'inf'"]),
    "too-heavy.csv": (WEIGHT + "a,x,1\nb,y,1e39\n", ["row 3", "'1e39'", "3.4e38", "correct it"]),
    "no-number.csv": (WEIGHT + "a,x,1\nb,y,good\n", ["row 3", "column weight", "'good'"]),
    "huge-weight.jsonl": (
        f'{{"user_id":1,"item_id":2,"weight":{"9" * 400}}}\n', ["row 1", "column weight", "999"],
    ),
    "huge-time.jsonl": (
        f'{{"user_id":1,"item_id":2,"timestamp":{"9" * 400}}}\n', ["row 1", "column timestamp"],
    ),
    "infinite-time.csv": (TIME + "a,x,1\nb,y,inf\n", ["row 3", "column timestamp", "'inf'"]),
    "mixed-times.csv": (
        TIME + "a,x,1600000000\nb,y,2020-01-02\n",
        ["row 3", "column timestamp", "'2020-01-02'", "a number, as most of the column is"],
    ),
    "no-date.csv": (TIME + "a,x,2020-01-01\nb,y,2020-13-01\n", ["row 3", "'2020-13-01'", "ISO"]),
    "day-first.csv": (TIME + "a,x,31/12/2020\n", ["row 2", "'31/12/2020'", "ISO 8601"]),
    "boolean.jsonl": ('{"user_id":true,"item_id":2}\n', ["row 1", "column user_id", "True"]),
    "nested.jsonl": ('{"user_id":{"a":1},"item_id":2}\n', ["row 1", "column user_id", "dict"]),
    "list.jsonl": ("[1,2]\n", ["row 1", "a JSON list", "a JSON object"]),
    "cut.jsonl": ('{"user_id":1,"item_id":2}\n{"user_id":\n', ["row 2", "bad JSON"]),
    "deep.jsonl": ("[" * 100_000 + "\n", ["row 1", "bad JSON"]),
    "half-a-pair.jsonl": ('{"user_id":"\\ud800","item_id":2}\n', ["row 1", "bad JSON"]),
    "other-names.jsonl": (MANY, ["3000 different names", "the same names on every line"]),
    "unit-separator.dat": ("1::2::3\n1::2\x1f2::3\n", ["row 2", "0x1f"]),
    "unit-separator-below-a-header.dat": ("user_id::item_id\na::x\x1f\n", ["row 2", "0x1f"]),
    "cut.parquet": (b"PAR1" + b"\0" * 40 + b"PAR1", ["damaged Parquet", "write it again"]),
}  # fmt: skip


def put(folder: Path, name: str, content: str | bytes) -> None:
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def notes_of(err: str) -> list[str]:
    return [line for line in err.splitlines() if line.startswith("note: ")]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def checked(here, run, name, content):
    """What `data check` finds in a file that can be used, and what it says."""
    put(here, name, content)
    code, out, err = run("data", "check", name, "--json")
    assert code == 0, err
    return json.loads(out), err


@pytest.mark.parametrize("name", ACCEPTED)
def test_it_is_read_without_a_word(here, run, name):
    content, counts = ACCEPTED[name]
    found, err = checked(here, run, name, content)
    assert (found["n_users"], found["n_items"], found["n_interactions"]) == counts
    assert found["notes"] == [] and not notes_of(err)


@pytest.mark.parametrize("name", NOTED)
def test_it_is_read_and_what_is_odd_is_said(here, run, name):
    content, piece = NOTED[name]
    found, err = checked(here, run, name, content)
    (note,) = notes_of(err)
    assert piece in note and found["notes"] == [note.removeprefix("note: ")]
    assert len(note) < 300


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_in_one_line(here, run, name):
    content, pieces = REFUSED[name]
    put(here, name, content)
    code, out, err = run("data", "check", name, "--json")
    assert (code, out) == (2, ""), err
    assert err.startswith(f"error: {name}") and err.count("\n") == 1 and len(err) < 1600
    assert ": found " in err and ", expected " in err and "; " in err
    for piece in pieces:
        assert piece in err


@pytest.mark.parametrize(
    ("items", "piece"),
    [
        ("item_id,title\ni1,One\n", "the items file has 1 of the 4 items"),
        ("item_id,price\ni0,3\ni1,4\ni2,5\n", "no text"),
        ("item_id,title\ni0,A\ni1,B\ni2,C\ni2,D\n", "1 rows of the items file repeat an id"),
    ],
)
def test_an_odd_items_file_is_said(here, run, items, piece):
    put(here, "log.csv", PAIR + LINES)
    put(here, "items.csv", items)
    code, _, err = run("data", "check", "log.csv", "--items", "items.csv")
    assert code == 0 and len(notes_of(err)) == 1 and piece in err


def test_an_items_file_of_other_ids_is_refused(here, run):
    put(here, "log.csv", "user_id,item_id\n1,1\n2,2\n")
    put(here, "items.csv", f"item_id,title\n{LONG},One\n")
    code, _, err = run("data", "check", "log.csv", "--items", "items.csv")
    assert code == 2 and "no id that is an item of log.csv" in err and len(err) < 400
    assert "--item-column" in err


@pytest.mark.parametrize("name", [n for n in NOTED if n.startswith(("one", "all", "saw", "line"))])
@pytest.mark.parametrize("retrain", ["final:1", "zero-shot"])
def test_tiny_and_odd_targets_can_be_served(work, run, name, retrain):
    content, piece = NOTED[name]
    put(work, name, content)
    options = ["--config", "few.toml", "--retrain", retrain, "--device", "cpu"]
    code, _, err = run("transfer", "ck", "--target", name, "--out", "o", *options)
    assert code == 0, err
    assert any(piece in note for note in notes_of(err))
    code, _, err = run("recommend", "o", "--out", "lists.csv", "--device", "cpu")
    assert code == 0, err
    seen = pd.read_csv(name).drop_duplicates()
    lists = pd.read_csv("lists.csv")
    assert len(lists.merge(seen, on=["user_id", "item_id"])) == 0
    assert len(lists) + len(seen) <= seen.user_id.nunique() * seen.item_id.nunique()


def test_doubts_are_of_the_log_and_the_clock(tmp_path):
    frame = make_log(30, 25, 200)
    plain = Log("log", Interactions.from_frame(frame), None)
    assert doubts(plain) == []
    assert "in the future" in doubts(plain, now=0.0)[0]
    late = frame.assign(timestamp=np.where(frame.index < 3, 0, 1_600_000_000))
    assert doubts(Log("log", Interactions.from_frame(late), None))[0].startswith("3 of ")


def test_an_error_is_short_whatever_the_file_says():
    error = str(data_error("a.csv", LONG, LONG, LONG, row=3, column=LONG))
    assert len(error) < 1700 and "\n" not in error and error.startswith("a.csv, row 3, column xxx")


def test_a_table_in_a_terminal_has_no_control_signs():
    table = text_table([{"user": "a\x1b[31m\nb", "item": LONG, "score": 0.5}])
    assert table.count("\n") == 1 and "\x1b" not in table and "0.5000" in table
    assert max(map(len, table.splitlines())) < 230


def test_control_signs_of_a_file_do_not_reach_the_terminal(here, run):
    put(here, "a.csv", "\x1b[31mred,b\n1,2\n")
    code, _, err = run("data", "check", "a.csv")
    assert code == 2 and "\x1b" not in err and "red" in err


def test_pandas_metadata_that_is_no_text_is_not_read(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"item_id": [1, 2], "title": ["A", "B"]})
    pq.write_table(table.replace_schema_metadata({b"pandas": b"\x91{"}), tmp_path / "i.parquet")
    assert read_items(tmp_path / "i.parquet").titles == ["A", "B"]
