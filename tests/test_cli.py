"""The commands end to end: the JSON contract, the output files, what is never recommended."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import TOML, make_log

from gnnrec.checkpoint import Checkpoint
from gnnrec.text import text_available

PROMISED = (
    "arm metrics n_users n_items n_interactions split seconds peak_memory_bytes parameters steps "
    "source retrain seed versions"
).split()


def one_object(out: str) -> dict:
    assert out.count("\n") == 1
    return json.loads(out)


def check_report(report: dict) -> None:
    assert set(PROMISED) <= set(report)
    assert {"recall@20", "ndcg@20"} <= set(report["metrics"])
    assert {"kind", "sha256"} <= set(report["split"])
    assert {"features", "train", "evaluate", "total"} <= set(report["seconds"])
    assert {"total", "trained"} <= set(report["parameters"])


def pairs(frame: pd.DataFrame) -> set[tuple[str, str]]:
    return set(map(tuple, frame[["user_id", "item_id"]].astype(str).to_numpy().tolist()))


def test_the_files_text_model_counts_and_no_text_outweighs_it(work, run):
    model = '[model]\ndim = 8\nspectral_rank = 8\ntext_dim = 8\ntext_model = "./nowhere"\n'
    Path("p.toml").write_text("n_validation_episodes = 2\nmin_users = 20\n" + model + TOML)
    make_log(80, 60, 1500, seed=1).to_csv("source.csv", index=False)
    pretrain = ("pretrain", "--source", "source.csv", "--out", "new", "--config", "p.toml")
    code, _, err = run(*pretrain, "--no-text")
    assert code == 0, err
    assert Checkpoint.load(Path("new")).config.text_dim == 0
    code, _, err = run(*pretrain, "--no-text", "--text-layers", 1)
    assert code == 2 and "expected 0 with --no-text" in err
    if text_available():
        code, _, err = run(*pretrain, "--text")
        assert code == 2 and "'./nowhere': no such folder" in err


def test_pretrain_transfer_evaluate_recommend(work, run):
    make_log(80, 60, 1500, seed=1).to_csv("source.csv", index=False)
    Path("p.toml").write_text(
        "n_validation_episodes = 2\nmin_users = 20\n[model]\ndim = 8\nspectral_rank = 8\n" + TOML
    )
    code, out, err = run(
        *("pretrain", "--source", "source.csv", "--out", "new", "--config", "p.toml", "--json")
    )
    assert code == 0, err
    assert one_object(out)["steps"] == 6
    assert "gnnrec transfer" in Path("new/README.md").read_text()

    code, out, err = run(
        *("transfer", "new", "--target", "log.csv", "--out", "a b/é", "--config", "few.toml"),
        "--json",
    )
    assert code == 0, err
    report = one_object(out)
    check_report(report)
    assert report["retrain"] == report["arm"] == "final:1" and report["source"] == "new"
    assert Path("a b/é.toml").read_text().startswith('retrain = "final:1"')

    pd.DataFrame({"user_id": ["u1", "new"], "item_id": ["i24", "i1"]}).to_csv("t.csv", index=False)
    code, out, err = run("evaluate", "a b/é", "--test", "t.csv", "--json")
    assert code == 0, err
    check_report(one_object(out))
    assert "1 test users are unknown" in err

    code, out, err = run("recommend", "a b/é", "--out", "lists.csv", "--json")
    assert code == 0, err
    log, lists = pd.read_csv("log.csv"), pd.read_csv("lists.csv")
    assert list(lists.columns) == ["user_id", "item_id", "score", "rank"]
    assert set(lists.user_id) == set(log.user_id)
    assert not pairs(log) & pairs(lists)  # also nothing of the part that was held out
    assert one_object(out)["n_rows"] == len(lists)
    assert not list(work.rglob(".*"))


@pytest.mark.parametrize("retrain", ["zero-shot", "heads", "final:2", "full", "scratch"])
def test_every_mode_of_retraining(work, run, retrain):
    code, out, err = run(
        *("transfer", "ck", "--target", "log.csv", "--out", "o", "--config", "few.toml"),
        *("--retrain", retrain, "--json"),
    )
    assert code == 0, err
    report = one_object(out)
    check_report(report)
    assert report["arm"] == retrain
    if retrain == "zero-shot":
        assert report["steps"] == report["parameters"]["trained"] == 0


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".jsonl"])
def test_integer_ids_and_own_columns_in_every_format(work, run, suffix):
    log = make_log(20, 15, 120, text=False).rename(columns={"user_id": "who", "item_id": "what"})
    file = work / f"own{suffix}"
    if suffix == ".parquet":
        log.to_parquet(file)
    elif suffix == ".jsonl":
        log.to_json(file, orient="records", lines=True)
    else:
        log.to_csv(file, index=False, sep="," if suffix == ".csv" else "\t")
    code, _, err = run(
        *("transfer", "ck", "--target", file, "--out", "o", "--config", "few.toml"),
        *("--user-column", "who", "--item-column", "what", "--retrain", "zero-shot"),
    )
    assert code == 0, err
    code, _, err = run("recommend", "o", "--out", "lists.parquet")
    assert code == 0, err
    lists = pd.read_parquet("lists.parquet")
    assert list(lists.columns) == ["who", "what", "score", "rank"]
    typed = suffix in (".parquet", ".jsonl")  # cells of a text file stay text
    assert pd.api.types.is_integer_dtype(lists.who.dtype) == typed
    assert set(lists.who.astype(str)) == set(log.who.astype(str))


def test_leading_zeros_and_unicode_come_back(work, run):
    log = make_log(12, 15, 90)
    log["user_id"], log["item_id"] = "007" + log.user_id.str[1:], '用,"😀' + log.item_id
    log.to_csv("u.csv", index=False)
    code, *_ = run(
        *("transfer", "ck", "--target", "u.csv", "--out", "o", "--config", "few.toml"),
    )
    assert code == 0
    code, out, _ = run("recommend", "o", "--json", "-k", "1")
    assert code == 0
    rows = pd.DataFrame(one_object(out)["recommendations"])
    assert set(rows.user_id) == set(log.user_id) and set(rows.item_id) <= set(log.item_id)
    code, *_ = run("recommend", "o", "--out", "l.csv")
    assert set(pd.read_csv("l.csv", dtype=str).item_id) <= set(log.item_id)


@pytest.mark.parametrize(
    ("users", "items"), [(["a"], ["x"]), (["a"] * 9, range(9)), (range(9), ["x"] * 9)]
)
def test_the_smallest_logs(work, run, users, items):
    items = [f"x{i}" for i in items]
    log = pd.DataFrame({"user_id": [f"a{u}" for u in users], "item_id": items})
    log.to_csv("s.csv", index=False)
    code, out, err = run(
        *("transfer", "ck", "--target", "s.csv", "--out", "o", "--config", "few.toml", "--json")
    )
    assert code == 0, err
    assert set(PROMISED) <= set(one_object(out))
    if len(log) == 1:
        assert "too small to hold anything out" in err
    code, out, err = run("recommend", "o", "--json")
    assert code == 0, err
    assert one_object(out)["recommendations"] == [] and "no item left" in err
    code, out, _ = run("recommend", "o", "--json", "--include-seen")
    assert len(one_object(out)["recommendations"]) == log.user_id.nunique() * min(
        10, log.item_id.nunique()
    )


def test_min_weight_items_table_and_test_file(work, run, frame):
    log = frame.assign(weight=np.arange(len(frame)) % 5 + 1)
    log.to_csv("w.csv", index=False)
    items = pd.DataFrame({"item_id": [f"i{i}" for i in range(40)], "title": ["T", None] * 20})
    items.to_csv("items.csv", index=False)
    held = pd.concat([frame[log.weight >= 4].head(3), frame[log.weight < 4].head(9)])
    held.to_csv("held.csv", index=False)
    code, out, err = run(
        *("transfer", "ck", "--target", "w.csv", "--items", "items.csv", "--min-weight", "4"),
        *("--test", "held.csv", "--out", "o", "--config", "few.toml", "--json"),
    )
    assert code == 0, err
    report = one_object(out)
    assert report["n_interactions"] == (log.weight >= 4).sum()
    assert report["n_items"] == 40 and report["split"]["kind"] == "given"
    assert (report["n_test"], report["n_test_already_in_log"]) == (9, 3)


def test_time_split_and_no_test(work, run):
    arguments = ("transfer", "ck", "--target", "log.csv", "--config", "few.toml", "--json")
    code, out, err = run(*arguments, "--out", "o", "--split", "time")
    assert code == 0, err
    report = one_object(out)
    assert report["split"]["kind"] == "time" and "test_users_with_history" in report["split"]
    code, out, err = run(*arguments, "--out", "o", "--test", "none")  # an earlier output
    assert code == 0, err
    report = one_object(out)
    assert report["metrics"] == {} and report["n_test"] == 0


def test_users_and_lists(work, run):
    Path("us.txt").write_text("u1\nu2\n\nu1\n")
    Path("al.csv").write_text("item_id\ni1\ni2\nnope\n")
    Path("ex.txt").write_text("i1\n")
    code, out, err = run(
        *("recommend", "rec", "--users", "us.txt", "--user", " u3 ", "--user", "zzz", "--json"),
        *("--allow", "al.csv", "--exclude", "ex.txt", "--include-seen"),
    )
    assert code == 0, err
    summary = one_object(out)
    assert (summary["n_users"], summary["n_unknown_users"]) == (4, 1)
    rows = summary["recommendations"]
    assert [r["user_id"] for r in rows] == ["u3", "zzz", "u1", "u2"]
    assert {r["item_id"] for r in rows} == {"i2"}
    assert "1 of 3 ids in al.csv" in err and "1 of 4 users are unknown" in err


@pytest.mark.parametrize(("user", "kind"), [("zzz", "text"), ("999", "int"), ("007", "text")])
def test_an_unknown_user_among_integers_can_be_written(work, run, user, kind):
    make_log(20, 15, 120, text=False).to_parquet("n.parquet")
    run(*("transfer", "ck", "--target", "n.parquet", "--out", "o", "--retrain", "zero-shot"))
    code, _, err = run("recommend", "o", "--user", user, "--user", "3", "--out", "l.parquet")
    assert code == 0, err
    ids = pd.read_parquet("l.parquet").user_id
    assert pd.api.types.is_integer_dtype(ids.dtype) == (kind == "int")
    assert set(ids.astype(str)) == {user, "3"}


def test_data_commands_and_help(work, run):
    for arguments in (["list"], ["check", "log.csv"], ["stats", "log.csv"]):
        code, out, err = run("data", *arguments, "--json")
        assert code == 0, err
        assert one_object(out)
    code, out, _ = run("--help")
    assert code == 0 and "transfer" in out
    code, out, err = run()
    assert code == 2 and out == "" and "Usage" in err


def test_a_reader_that_leaves_is_no_accident(work):
    environment = os.environ | {"PYTHONUNBUFFERED": ""}
    process = subprocess.Popen(
        [sys.executable, "-m", "gnnrec", "data", "list", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    err = process.stderr.read().decode()
    assert process.wait() == 3
    assert "Traceback" not in err and "error:" not in err


def test_people_read_stderr_and_programs_stdout(work, run):
    """With --json stdout holds the object and no more; without it nothing."""
    code, out, err = run("recommend", "rec", "--user", "u1", "--user", "nobody", "-k", "2")
    assert code == 0 and not out and err.count("\n") == 6
    assert "'nobody'" in err and "\nuser_id" in f"\n{err}"
    code, out, err = run("recommend", "rec", "--user", "u1", "-k", "2", "--json")
    assert len(one_object(out)["recommendations"]) == 2 and "user_id" in err
    for words in ("doctor", "data list", "data stats log.csv", "models list", "data check log.csv"):
        code, out, err = run(*words.split())
        assert code == 0 and err and not out, words


def test_help_has_an_order_and_no_cut_line(run):
    code, out, _ = run("--help")
    commands = out.split("Commands:")[1]
    listed = re.findall(r"^  ([a-z]+) ", commands, flags=re.MULTILINE)
    assert code == 0 and listed[:2] == ["data", "models"] and listed[-1] == "doctor"
    assert listed.index("transfer") < listed.index("recommend") and "..." not in commands
    code, out, _ = run("--version")
    assert code == 0 and re.fullmatch(r"gnnrec \d+\.\d+\.\d+\n", out)


def test_check_names_the_columns_that_are_text(work, run, frame):
    items = pd.DataFrame({"item_id": frame.item_id.unique()})
    items.assign(Titel="Käse", Preis="1.5", Gruppe="a").to_csv("items.csv", index=False)
    code, _, err = run("data", "check", "log.csv", "--items", "items.csv")
    assert code == 0 and "text_columns: Titel, Gruppe\n" in err


def test_a_transfer_says_how_sure_it_is(work, run):
    words = "transfer ck --target log.csv --out o --config few.toml --retrain zero-shot".split()
    code, _, err = run(*words)
    lines = err.splitlines()[-4:]
    assert code == 0 and lines[1].startswith("popularity") and lines[2].startswith("zero-shot")
    assert re.match(
        r"zero-shot to popularity: ndcg@20 [+-][0-9.]+ % \[.*\], 95 % interval over \d+ users: "
        "(better|worse|no clear difference)$",
        lines[3],
    )
    code, out, _ = run(*words, "--json")
    report = one_object(out)
    found, choice = report["to_popularity"], report["choice"]
    gap = report["metrics"]["ndcg@20"] - report["popularity_metrics"]["ndcg@20"]
    assert found["mean_difference"] == pytest.approx(gap) and choice == ""
    assert found["low"] <= found["mean_difference"] <= found["high"]
