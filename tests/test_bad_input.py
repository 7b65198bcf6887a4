"""Every mistake of a user: one error line that says what and where, code 2, nothing left behind."""

from __future__ import annotations

import gzip
import importlib.util
import os
import shutil
from pathlib import Path

import pandas as pd
import pytest

T = "transfer ck --target log.csv --out o --config few.toml"
P = "pretrain --source log.csv --out o"
R = "recommend rec"
E = "evaluate rec --test"

# (command, fragments of the message)
CASES = [
    (f"{T} --retrain final:9", ["--retrain", "final:9"]),
    (f"{T} --retrain final:0", ["--retrain", "final:0", "zero-shot"]),
    (f"{T} --retrain nope", ["--retrain", "nope", "zero-shot"]),
    (f"{T} --fraction 0", ["fraction", "0"]),
    (f"{T} --fraction 1.5", ["fraction", "1.5"]),
    (f"{T} --fraction abc", ["--fraction"]),
    (f"{T} --split sometimes", ["split", "sometimes", "ratio"]),
    (f"{T} -k 0", ["-k"]),
    (f"{T} --device nonsense", ["--device", "nonsense", "cpu"]),
    (f"{T} --test no.csv", ["--test", "no.csv", "none"]),
    (f"{T} --test inside.csv", ["all 3 test pairs", "--target"]),
    (f"{T} --items no.csv", ["no.csv", "no such file"]),
    (f"{T} --items strange.csv", ["strange.csv", "q1", "--item-column"]),
    ("export nowhere --out o", ["nowhere", "no such folder"]),
    ("export ck --out o", ["ck", "found a checkpoint"]),
    ("export rec --out rec", ["--out rec", "the recommender itself"]),
    ("export rec --out foreign", ["foreign", "other files"]),
    ("export rec --out o --index cube", ["--index cube", "flat, hnsw, ivf"]),
    ("export rec --out o --lists 0", ["--lists", "greater than or equal to 1"]),
    ("explore nowhere --no-open", ["nowhere", "no such folder"]),
    ("explore ck --no-open", ["ck", "found a checkpoint", "gnnrec transfer"]),
    ("explore rec --no-open --port 70000", ["--port", "65535"]),
    ("explore rec --no-open --items no.csv", ["no.csv", "no such file"]),
    ("explore rec --no-open --items strange.csv", ["strange.csv", "no column", "genre"]),
    ("explore rec --no-open --beside ck", ["ck", "found a checkpoint"]),
    (f"{T} --user-column wer", ["log.csv", "'wer'", "--user-column user_id"]),
    (f"{T} --user-column item_id", ["'item_id'", "--user-column"]),
    (f"{T} --text-column item_id", ["log.csv", "'item_id'", "--text-column"]),
    (f"{T} --text-column note", ["log.csv", "'note'", "--text-column"]),
    ("transfer ck --target ifdb --text-column review --out o", ["ifdb", "--text-column"]),
    (f"{T} --min-weight 3", ["log.csv", "weight", "--weight-column"]),
    ("transfer ck --target notime.csv --split time --out o", ["timestamps", "ratio"]),
    ("transfer ck --target hole.csv --out o", ["hole.csv", "row 3", "timestamp"]),
    ("transfer ck --target ragged.csv --out o", ["ragged.csv", "row 3", "4 cells"]),
    ("transfer ck --target rank.csv --user-column rank --out o", ["rank.csv", "'rank'", "rename"]),
    ("transfer ck --target empty.csv --out o", ["empty.csv", "an empty file"]),
    ("transfer ck --target head.csv --out o", ["head.csv", "no rows"]),
    ("transfer ck --target cut.parquet --out o", ["cut.parquet", "Parquet"]),
    ("transfer ck --target cut.csv.gz --out o", ["cut.csv.gz", "gzip"]),
    ("transfer ck --target nolog.csv --out o", ["nolog.csv", "registered"]),
    ("transfer ck --target foreign --out o", ["foreign", "a folder"]),
    ("transfer ck --target log.csv --out o --config no.toml", ["no.toml"]),
    ("transfer ck --target log.csv --out o --config bad.toml", ["bad.toml", "TOML"]),
    ("transfer ck --target log.csv --out o --config typo.toml", ["retrian", "'retrain'"]),
    ("transfer ck --target log.csv --out o --config range.toml", ["train.max_steps", "-3"]),
    ("transfer ck --target log.csv --out few --config few.toml", ["--config few.toml"]),
    ("transfer ck --target log.csv --out foreign", ["foreign", "other files"]),
    ("transfer ck --target log.csv --out log.csv", ["log.csv", "found a file"]),
    ("transfer ck --target log.csv --out log.csv/x", ["log.csv", "found a file"]),
    ("transfer ck --target log.csv --out ck", ["--out ck", "checkpoint itself"]),
    ("transfer rec --target log.csv --out o", ["rec", "found a recommender", "checkpoint"]),
    ("transfer no --target log.csv --out o", ["no:", "no such folder"]),
    ("transfer log.csv --target log.csv --out o", ["log.csv", "found a file"]),
    ("transfer foreign --target log.csv --out o", ["foreign", "manifest.json"]),
    ("transfer changed --target log.csv --out o", ["model.safetensors", "sha256"]),
    ("transfer ck", ["--target"]),
    (f"{P} --encoder foo", ["encoder", "foo", "lightgcn"]),
    (f"{P} --config typo.toml", ["typo.toml", "retrian"]),
    (f"{P} --device nonsense", ["--device", "nonsense"]),
    (f"{P} --items items.csv --items items.csv", ["--items", "2 items files for 1"]),
    ("pretrain --source inside.csv --out o", ["inside.csv", "3 interactions", "50"]),
    ("recommend ck", ["found a checkpoint", "gnnrec transfer"]),
    ("recommend no", ["no such folder"]),
    ("recommend foreign", ["foreign", "manifest.json"]),
    (f"{R} -k 0", ["-k"]),
    (f"{R} --user=", ["--user", "empty id"]),
    (f"{R} --users no.txt", ["no.txt", "no such file"]),
    (f"{R} --users foreign", ["foreign", "directory"]),
    (f"{R} --users none.txt", ["none.txt", "no id"]),
    (f"{R} --users blank.csv", ["blank.csv", "no id"]),
    (f"{R} --users latin.txt", ["latin.txt", "0xe9", "UTF-8"]),
    (f"{R} --users columns.csv", ["columns.csv", "a, b", "'user_id'"]),
    (f"{R} --allow none.txt", ["none.txt", "no id"]),
    (f"{R} --allow strange.txt", ["strange.txt", "'q1'", "catalogue"]),
    (f"{R} --exclude no.csv", ["no.csv", "no such file"]),
    (f"{R} --out lists.xlsx", ["--out lists.xlsx", ".parquet"]),
    (f"{R} --out lists", ["--out lists", ".parquet"]),
    (f"{R} --out no/lists.csv", ["no/lists.csv", "cannot write"]),
    (f"{R} --out folder.csv", ["folder.csv", "found a folder"]),
    (f"{R} --device nonsense", ["--device", "nonsense"]),
    (f"{E} no.csv", ["no.csv", "no such file"]),
    (f"{E} inside.csv", ["all 3 test pairs"]),
    (f"{E} columns.csv", ["columns.csv", "user column"]),
    (f"{E} log.csv --min-weight 2", ["log.csv", "weight"]),
    ("data check no.csv", ["no.csv", "no such file"]),
    ("data check latin.txt", ["latin.txt", "0xe9"]),
    ("data check log.csv --for no", ["no", "no such folder"]),
    ("data check log.csv --for foreign", ["foreign", "gnnrec pretrain"]),
    ("data fetch nothing", ["nothing", "ml-100k"]),
    ("data convert log.csv --to foo --out o.csv", ["--to foo", "recbole"]),
    ("data convert no.csv --to recbole --out o.inter", ["no.csv", "no such file"]),
    ("data convert notime.csv --to movielens --out o.dat", ["movielens", "no timestamps"]),
    ("data convert log.csv --to implicit --out o.csv", ["o.csv", ".npz"]),
    ("data convert columns.csv --to recbole --out o.inter", ["columns.csv", "user column"]),
    ("data convert ragged.csv --to recbole --out o.inter", ["ragged.csv", "row 3"]),
    ("data convert latin.txt --from surprise --to recbole --out o.inter", ["latin.txt", "0xe9"]),
    ("data convert no.dat --from movielens --to recbole --out o.inter", ["no.dat", "no such file"]),
    (
        "data convert log.csv --to recbole --out o.inter --items items.csv --items-out o.csv",
        ["o.csv", ".item"],
    ),
    (
        "data convert log.csv --to recbole --out o.csv --items items.csv --items-out o.item",
        ["o.csv", ".inter"],
    ),
    ("data convert log.csv --from recbole --to lenskit --out o.csv", ["log.csv", "row 1"]),
    ("tune no --target log.csv --trials 1 --out o", ["no", "no such folder"]),
    ("tune ck --target no.csv --trials 1 --out o", ["no.csv"]),
    ("tune ck --target log.csv --trials 1 --retrain foo --out o", ["--retrain", "foo"]),
    ("tune ck --target log.csv --trials 0 --out o", ["--trials"]),
    ("tune ck --target inside.csv --trials 1 --out o", ["inside.csv", "too few"]),
    ("models push ck nowhere", ["nowhere", "hf-hub:OWNER/NAME"]),
    ("models push foreign hf-hub:a/b", ["foreign", "manifest.json"]),
    ("foo", ["No such command 'foo'", "gnnrec --help"]),
    ("doctor --foo", ["--foo"]),
]


@pytest.fixture
def mistakes(work: Path, frame: pd.DataFrame, checkpoint_folder: Path) -> Path:
    def write(name: str, text: str | bytes) -> None:
        (work / name).write_bytes(text.encode() if isinstance(text, str) else text)

    head = "user_id,item_id,timestamp\n"
    write("inside.csv", frame.head(3).to_csv(index=False))
    write("strange.csv", "item_id,title\nq1,Q\n")
    write("items.csv", "item_id,title\ni1,One\n")
    write("notime.csv", frame[["user_id", "item_id"]].to_csv(index=False))
    write("hole.csv", head + "a,x,5\nb,y,\n")
    write("ragged.csv", head + "a,x,5\nb,y,5,7\n")
    write("rank.csv", "rank,item_id\na,x\n")
    write("empty.csv", "")
    write("head.csv", head)
    frame.to_parquet(work / "whole.parquet")
    write("cut.parquet", (work / "whole.parquet").read_bytes()[:-20])
    write("cut.csv.gz", gzip.compress(b"user_id,item_id\na,x\n" * 50)[:-12])
    write("bad.toml", "a = [1")
    write("typo.toml", "retrian = 'full'")
    write("range.toml", "[train]\nmax_steps = -3")
    write("none.txt", "\n")
    write("blank.csv", "user_id,x\n,1\n,2\n")
    write("latin.txt", b"user_id,item_id\n\xe9,x\n")
    write("columns.csv", "a,b\nu1,u2\n")
    write("strange.txt", "q1\nq2\n")
    (work / "foreign").mkdir()
    write("foreign/mine.txt", "keep")
    (work / "folder.csv").mkdir()
    shutil.copytree(checkpoint_folder, work / "changed")
    model = work / "changed" / "model.safetensors"
    data = bytearray(model.read_bytes())
    data[-2] ^= 1
    model.write_bytes(data)
    return work


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize(("command", "fragments"), CASES, ids=[case[0] for case in CASES])
def test_a_mistake_is_named_and_leaves_nothing(mistakes, run, command, fragments):
    for words, module in (("tune", "optuna"), ("models push", "huggingface_hub")):
        if command.startswith(words) and importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    before = contents(mistakes)
    code, out, err = run(*command.split(), *([] if command == "foo" else ["--json"]))
    lines = err.strip().splitlines()
    assert code == 2, err
    assert out == ""
    # What was read is said before the error; the error itself is the last line and the only one.
    assert lines[-1].startswith("error: ")
    assert sum(line.startswith("error:") for line in lines) == 1 and len(lines) <= 2
    for fragment in fragments:
        assert fragment in lines[-1]
    assert contents(mistakes) == before
    assert not (mistakes / "o").exists()


def test_a_missing_extra_is_named_with_its_command(mistakes, run, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *rest: None if "sentence" in name else found(name, *rest),
    )
    before = contents(mistakes)
    code, out, err = run(*P.split(), "--text")
    assert code == 2 and out == ""
    assert "pip install 'gnnrec[text]'" in err.splitlines()[-1]
    assert contents(mistakes) == before


def test_a_folder_without_the_right_to_write(mistakes, run, monkeypatch):
    monkeypatch.setattr("gnnrec.storage.os.access", lambda path, mode: mode != os.W_OK)
    code, _, err = run(*T.split())
    assert code == 2
    assert "without the right to write" in err.splitlines()[-1]


def test_an_unexpected_failure_has_its_own_code(mistakes, run, monkeypatch):
    monkeypatch.chdir(mistakes)
    monkeypatch.setattr("gnnrec.doctor.examine", lambda: 1 / 0)
    code, out, err = run("doctor")
    assert code == 3 and out == ""
    assert err.startswith("error: unexpected ZeroDivisionError") and err.count("\n") == 1
