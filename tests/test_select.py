"""Choosing a checkpoint: shared work changes no number, and noise is called noise."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace

import made_logs
import numpy as np
import pandas as pd
import pytest
import torch

from gnnrec import blend, select, zoo
from gnnrec.checkpoint import Checkpoint
from gnnrec.config import ModelConfig
from gnnrec.errors import ConfigError, DataError
from gnnrec.interactions import Interactions
from gnnrec.items import ItemTable
from gnnrec.model import build_model
from gnnrec.select import rank_checkpoints, selection_lines
from gnnrec.sources import Log

N_WORDS = len(made_logs.WORDS)


def clustered(n_users=120, n_items=60, n_rows=1500, seed=0) -> pd.DataFrame:
    """Four groups of users who stay among their quarter of the items, popular ones first."""
    rng = np.random.default_rng(seed)
    users = rng.integers(0, n_users, n_rows)
    near = (rng.random(n_rows) ** 2 * (n_items // 4)).astype(np.int64) * 4 + users % 4
    far = (rng.random(n_rows) ** 2 * n_items).astype(np.int64)
    items = np.where(rng.random(n_rows) < 0.85, near, far)
    frame = pd.DataFrame({"user_id": users, "item_id": items})
    return frame.drop_duplicates(ignore_index=True)


def log_of(text=False, **sizes) -> Log:
    interactions, items = Interactions.from_frame(clustered(**sizes)), None
    if text:
        titles = [f"{made_logs.WORDS[i % 4]} {made_logs.WORDS[i % 7]}" for i in range(62)]
        items = ItemTable.from_frame(pd.DataFrame({"item_id": range(62), "title": titles}))
    return Log("shop", interactions, items)


def checkpoint_of(name, text=False, seed=0, moved=0.1, change=None, **settings) -> Checkpoint:
    """A blend near its start, or changed by `change(parameters)`."""
    config = ModelConfig(
        encoder="channels",
        spectral_rank=16,
        text_dim=N_WORDS if text else 0,
        text_model="made-up" if text else None,
        **settings,
    )
    torch.manual_seed(seed)
    model = build_model(config)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if not key.startswith("filter."):
                parameter.add_(moved * torch.randn_like(parameter))
        if change is not None:
            change(dict(model.named_parameters()))
    return Checkpoint(name, config, {k: v.detach().clone() for k, v in model.state_dict().items()})


def broken(name="broken", **settings) -> Checkpoint:
    """It hears none of its channels, which leaves popularity."""
    return checkpoint_of(name, change=lambda p: p["log_weight"].fill_(-30.0), **settings)


@pytest.fixture
def words(monkeypatch, tmp_path) -> None:
    """Texts are encoded by the words in them."""
    made_logs.stand_in(monkeypatch, tmp_path)
    monkeypatch.setattr(select, "text_available", lambda: True)


def rows_by_name(report):
    return {row["name"]: row for row in report["candidates"]}


def test_a_broken_checkpoint_is_last_and_not_by_noise():
    found = rank_checkpoints(log_of(), [broken(), checkpoint_of("a"), checkpoint_of("b", seed=1)])
    last = found["candidates"][-1]
    assert last["name"] == "broken" and not last["tied"] and last["strength"] == 1.0
    assert last["difference"] < -5 * last["difference_error"]
    assert last["ndcg@20"] == pytest.approx(found["popularity"]["ndcg@20"])
    assert found["best"] == found["candidates"][0]["name"] in ("a", "b")
    assert [row["ndcg@20"] for row in found["candidates"]] == sorted(
        (row["ndcg@20"] for row in found["candidates"]), reverse=True
    )


def test_shared_work_changes_no_number(words):
    log = log_of(text=True)
    every = [
        checkpoint_of("graph", seed=1),
        checkpoint_of("text", text=True, seed=2),
        checkpoint_of("more", text=True, seed=3),
        checkpoint_of("bridged", text=True, seed=4, bridges=(5,)),
        checkpoint_of("other filter", seed=1, change=lambda p: p["filter.log2_ridge"].fill_(-1.0)),
        Checkpoint("filter", *filter_of()),
    ]
    together = rows_by_name(rank_checkpoints(log, every, n_seeds=2))
    for one in every:
        alone = rank_checkpoints(log, [one], n_seeds=2)["candidates"][0]
        for key in ("ndcg@20", "standard_error", "text"):
            assert together[one.name][key] == pytest.approx(alone[key], abs=1e-12), one.name
    values = {row["ndcg@20"] for row in together.values()}
    assert len(values) == len(every)
    assert {name: row["text"] for name, row in together.items()} == {
        **dict.fromkeys(("text", "more", "bridged"), "used"),
        **dict.fromkeys(("graph", "other filter", "filter"), "not read"),
    }


def filter_of():
    config = ModelConfig(encoder="graph-filter", spectral_rank=16)
    return config, dict(build_model(config).state_dict())


def test_channel_rows_rank_as_the_whole_model_does(words, monkeypatch):
    log = log_of(text=True)
    every = [checkpoint_of("text", text=True, seed=2), checkpoint_of("graph", seed=1)]
    fast = rows_by_name(rank_checkpoints(log, every))
    monkeypatch.setattr(select, "_CHUNK_SCORES", 200)  # three users at a time
    chunked = rows_by_name(rank_checkpoints(log, every))
    monkeypatch.setattr(select, "_shared", lambda model: None)
    whole = rows_by_name(rank_checkpoints(log, every))
    for name, row in whole.items():  # float32: two nearly equal scores may swap
        assert fast[name]["ndcg@20"] == pytest.approx(row["ndcg@20"], abs=2e-3)
        assert chunked[name] == pytest.approx(fast[name], abs=2e-3)


def test_how_far_a_checkpoint_leaves_popularity_is_not_held_against_it(words, monkeypatch):
    log = log_of(text=True)
    mixed = [checkpoint_of("text", text=True, seed=2), Checkpoint("filter", *filter_of())]
    at = {}
    for strength in (0.25, 1.0):
        monkeypatch.setattr(select, "STRENGTHS", (strength,))
        at[strength] = rows_by_name(rank_checkpoints(log, mixed))
        assert {row["strength"] for row in at[strength].values()} == {strength}
    monkeypatch.setattr(select, "STRENGTHS", (0.25, 1.0))
    for name, row in rows_by_name(rank_checkpoints(log, mixed)).items():
        best = max(at.values(), key=lambda rows: rows[name]["ndcg@20"])[name]
        assert (row["ndcg@20"], row["strength"]) == (best["ndcg@20"], best["strength"])
    # Four times as sure, and counted by a quarter: the same scores.
    monkeypatch.setattr(select, "STRENGTHS", (0.25,))
    sure = checkpoint_of(
        "text", text=True, seed=2, change=lambda p: p["log_weight"].add_(math.log(4))
    )
    again = rank_checkpoints(log, [sure])["candidates"][0]
    assert again["ndcg@20"] == pytest.approx(at[1.0]["text"]["ndcg@20"], abs=1e-3)
    assert at[0.25]["text"]["ndcg@20"] != at[1.0]["text"]["ndcg@20"]


@pytest.mark.parametrize("text", [False, True])
def test_blends_share_one_graph_and_its_part(words, monkeypatch, text):
    made = []

    class Counted(blend.Channels):
        def __init__(self, *arguments: object, **options: object) -> None:
            made.append(1)
            super().__init__(*arguments, **options)

    monkeypatch.setattr(blend, "Channels", Counted)
    every = [checkpoint_of(f"{n}", text=text and n % 2 == 0, seed=n) for n in range(5)]
    rank_checkpoints(log_of(text=text), every, n_seeds=2)
    assert len(made) == 2 * 2


def test_equal_checkpoints_are_tied_and_the_first_is_taken():
    report = rank_checkpoints(log_of(), [checkpoint_of("a"), checkpoint_of("b"), broken()])
    assert report["best"] == "a" and report["tied"] == ["b"]
    second = rows_by_name(report)["b"]
    assert second["tied"] and second["difference"] == second["difference_error"] == 0.0
    table, verdict, *_ = selection_lines(report)
    assert "a is first, and within the noise of b" in verdict
    assert [line.split()[0] for line in table.splitlines()[1:4]] == ["a", "b", "broken"]
    lines = selection_lines(rank_checkpoints(log_of(), [broken(), checkpoint_of("a")]))
    assert "a is better than every other" in lines[1]


def test_the_error_is_that_of_a_mean_of_paired_differences():
    rng = np.random.default_rng(0)
    a, b = rng.random(50), rng.random(50)
    found = select._compared(a, b)
    gap = a - b
    error = math.sqrt(sum((gap - gap.mean()) ** 2) / 49 / 50)
    assert found["difference"] == pytest.approx(gap.mean())
    assert found["difference_error"] == pytest.approx(error)
    assert found["tied"] == (gap.mean() >= -2 * error)
    assert select._compared(np.array([0.5]), np.array([0.7]))["tied"]  # one user says nothing


def test_popularity_that_is_as_good_is_said():
    report = rank_checkpoints(log_of(), [broken()])
    lines = selection_lines(report)
    assert "only candidate" in lines[1] and "popularity alone is as good as broken" in lines[2]


def test_a_checkpoint_that_saw_the_target_is_named():
    log = replace(log_of(), licence="CC0")  # a registered one
    data = log.interactions
    counts = dict(n_users=data.n_users, n_items=data.n_items, n_interactions=data.n_interactions)
    sources = {
        "by-name": {"name": "shop"},
        "by-counts": {"name": "copy"} | counts,
        "other": {"name": "other"} | counts | {"n_users": 1},
    }
    every = [replace(checkpoint_of(n), training={"sources": [s]}) for n, s in sources.items()]
    report = rank_checkpoints(log, every, n_seeds=1)
    saw = {name for name, row in rows_by_name(report).items() if row["saw_target"]}
    assert saw == {"by-name", "by-counts"}
    own = rank_checkpoints(replace(log, licence=None), every, n_seeds=1)
    assert not rows_by_name(own)["by-name"]["saw_target"]  # any file may be called so
    assert any("very log" in line and "other" not in line for line in selection_lines(report))


def test_the_same_seed_gives_the_same_report():
    every = [checkpoint_of("a"), checkpoint_of("b", seed=1)]
    first, again, other = (rank_checkpoints(log_of(), every, seed=s) for s in (0, 0, 1))
    for report in (first, again, other):
        report.pop("seconds")
    assert first == again and first["candidates"] != other["candidates"]


def test_what_cannot_be_ranked_is_refused():
    with pytest.raises(ConfigError, match="found the checkpoints none"):
        rank_checkpoints(log_of(), [])
    with pytest.raises(ConfigError, match="none twice"):
        rank_checkpoints(log_of(), [checkpoint_of("a"), checkpoint_of("a")])
    with pytest.raises(ConfigError, match="0 seeds"):
        rank_checkpoints(log_of(), [checkpoint_of("a")], n_seeds=0)
    one = Interactions.from_frame(pd.DataFrame({"user_id": [1], "item_id": [2]}))
    with pytest.raises(DataError, match="too few to hide"):
        rank_checkpoints(Log("one", one, None), [checkpoint_of("a")], n_seeds=1)


# The command


def test_the_command_ranks_what_is_shipped(tmp_path, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(zoo, "ZOO", tmp_path / "zoo")
    clustered().to_csv("log.csv", index=False)
    code, out, err = run("select", "--target", "log.csv")
    assert code == 2 and "no shipped checkpoint" in err
    for made in (checkpoint_of("good.text", text=True), broken("bad.graph")):
        made.save(tmp_path / "zoo" / made.name)
    code, out, err = run("select", "--target", "log.csv", "--seeds", "1", "--json")
    report = json.loads(out)
    assert code == 0 and report["best"] == "good.text" and report["n_seeds"] == 1
    assert rows_by_name(report)["good.text"]["text"] == "silent"
    assert "stays silent (give --items)" in err and "bad.graph" in err
    shutil.copytree("zoo/good.text", "mine")
    code, out, _ = run(
        *("select", "--target", "log.csv", "--checkpoint", "mine"),
        *("--checkpoint", "bad.graph", "--json"),
    )
    assert code == 0 and list(rows_by_name(json.loads(out))) == ["mine", "bad.graph"]
    code, _, err = run("select", "--target", "log.csv", "--checkpoint", "bad.grph")
    assert code == 2 and "did you mean 'bad.graph'" in err
