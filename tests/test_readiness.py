"""What is said of a user's files: the counts are right, and each lack has its own words."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest

from gnnrec.interactions import Interactions
from gnnrec.items import ItemTable
from gnnrec.readiness import readiness
from gnnrec.sources import Log
from gnnrec.text import text_available

READS = {"name": "tiny", "encoder": "channels", "reads_text": True, "text_model": "MiniLM"}
pytestmark = pytest.mark.skipif(not text_available(), reason="the [text] extra is not installed")
PLAIN = {"name": "tiny", "encoder": "lightgcn", "reads_text": False, "text_model": None}


def log_of(n_users=40, n_each=20, with_text=1.0, times=True):
    rng = np.random.default_rng(0)
    rows = [(f"u{u}", f"i{i}") for u in range(n_users) for i in rng.permutation(50)[:n_each]]
    frame = pd.DataFrame(rows, columns=["user_id", "item_id"])
    if times:
        frame["timestamp"] = np.arange(len(frame)) + 1_000_000
    items = None
    if with_text is not None:
        names = [f"words of {n}" if n < 50 * with_text else "" for n in range(50)]
        table = pd.DataFrame({"item_id": [f"i{n}" for n in range(50)], "title": names})
        items = ItemTable.from_frame(table)
    return Log("shop", Interactions.from_frame(frame), items)


def found(checkpoint, log):
    return {finding.subject: finding for finding in readiness(checkpoint, log)}


def test_a_log_with_everything_gets_no_note():
    findings = found(READS, log_of())
    assert all(finding.good for finding in findings.values())
    assert "50 of 50 items of the log have one (100 %, 100 % of the interactions)" in (
        findings["texts"].found
    )
    assert findings["interactions"].found == "800 distinct pairs"
    assert "40 users with 20.0 interactions on average, 0 of them" in findings["users"].found


@pytest.mark.parametrize(
    ("log", "checkpoint", "subject", "words"),
    [
        (log_of(with_text=None), READS, "texts", "give --items"),
        (log_of(with_text=0.5), READS, "texts", "ids of both files are written alike"),
        (log_of(n_users=20), READS, "interactions", "--retrain zero-shot"),
        (log_of(n_each=1), READS, "users", "near popularity"),
        (log_of(n_each=1), PLAIN, "items", "a checkpoint that reads text"),
    ],
)
def test_each_lack_has_its_own_words(log, checkpoint, subject, words):
    finding = found(checkpoint, log)[subject]
    assert not finding.good and words in finding.effect
    assert finding.line().startswith(f"note {subject}: {finding.found}")


def test_what_users_wrote_is_counted():
    written = ["so it was", *[""] * 798, "so it is"]
    for log, words in ((log_of(), "All of it"), (log_of(with_text=None), "stands for the items")):
        data = dataclasses.replace(log.interactions, texts=np.array(written, dtype=object))
        finding = found(READS, dataclasses.replace(log, interactions=data))["texts"]
        assert finding.found.endswith("users wrote on 2 of 800 interactions")
        assert words in finding.effect


def test_a_checkpoint_without_text_asks_for_none():
    assert found(PLAIN, log_of(with_text=None))["texts"].good
    assert found(PLAIN, log_of(times=False))["timestamps"].good


def test_texts_that_nothing_here_can_read_are_noted(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    finding = found(READS, log_of())["texts"]
    assert not finding.good and "gnnrec[text]" in finding.effect


def test_the_command_says_it(run, checkpoint_folder, frame, tmp_path):
    frame.to_csv(tmp_path / "log.csv", index=False)
    code, out, error = run(
        "data", "check", tmp_path / "log.csv", "--for", checkpoint_folder, "--json"
    )
    assert code == 0, error
    findings = json.loads(out)["findings"]
    assert [f["subject"] for f in findings] == [
        "texts", "interactions", "users", "items", "timestamps",
    ]  # fmt: skip
    assert "note interactions: " in error and error.rstrip().endswith("usable")
    code, _, error = run("data", "check", tmp_path / "log.csv", "--for", "nowhere")
    assert code == 2 and "nowhere" in error
