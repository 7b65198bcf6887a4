"""Several processes train one model: what each computes adds up to what one process computes."""

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import make_log

from gnnrec.cli import app
from gnnrec.errors import ConfigError
from gnnrec.ranks import ALONE, Ranks
from gnnrec.train import check_together

COMMANDS = Path(__file__).parent / "ranks_commands.py"


def alone(*arguments):
    """Run the command line in this process; returns what it printed on stdout."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
        assert not app(list(map(str, arguments)), standalone_mode=False)
    return printed.getvalue()


def curve(out):
    lines = out.with_suffix(".log.jsonl").read_text(encoding="utf-8").splitlines()
    return [(r["label"], r["step"], r["value"], r["loss"]) for r in map(json.loads, lines)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with what one process makes, and what two make by the same commands.

    The first command of the two is killed and started again.
    """
    folder = tmp_path_factory.mktemp("ranks")
    log, steps = folder / "log.csv", folder / "steps.toml"
    make_log(120, 60, 2000).to_csv(log, index=False)
    steps.write_text("[calibrate]\nmax_steps = 20\n[train]\nmax_steps = 20\n", encoding="utf-8")
    pretraining = ["pretrain", "--source", log, "--encoder", "graphsage", "--no-text"]
    pretraining += ["--max-steps", 150, "--out"]
    adapting = ["transfer", folder / "one", "--target", log, "--retrain", "final:1"]
    adapting += ["--config", steps, "--json", "--out"]
    listing = ["recommend", folder / "adapted-two", "-k", 5, "--out"]

    alone(*pretraining, folder / "one")
    commands = [
        [*pretraining, folder / "killed"],
        [*pretraining, folder / "two"],
        [*adapting, folder / "adapted-two"],
        [*listing, folder / "lists-two.csv"],
    ]
    lines = json.dumps([list(map(str, command)) for command in commands])
    (folder / "commands.json").write_text(lines, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(COMMANDS), str(folder / "commands.json")],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "stderr").write_text(done.stderr, encoding="utf-8")
    (folder / "two.json").write_text(done.stdout, encoding="utf-8")
    (folder / "one.json").write_text(alone(*adapting, folder / "adapted-one"), encoding="utf-8")
    alone(*listing, folder / "lists-one.csv")
    return folder


def test_parts_add_up_to_the_whole(made):
    """Sums, tables, the graph's operators, its spectrum, models and gradients, of three."""
    assert (made / "stderr").read_text(encoding="utf-8").count("all parts add up") == 3


def test_the_loss_curve_is_that_of_one_process(made):
    one, several = curve(made / "one"), curve(made / "two")
    assert len(one) >= 4
    assert [record[:2] for record in several] == [record[:2] for record in one]
    for mine, theirs in zip(several, one, strict=True):
        assert mine[2:] == pytest.approx(theirs[2:], rel=1e-4)


def test_transfer_and_its_metrics_are_those_of_one_process(made):
    # Each printed is one object, whoever computed it.
    one, two = (json.loads((made / f"{n}.json").read_text("utf-8")) for n in ("one", "two"))
    assert two["best_steps"] == one["best_steps"]
    for name, value in one["metrics"].items():
        assert two["metrics"][name] == pytest.approx(value, rel=1e-3), name


def test_lists_that_two_processes_write_are_those_of_one(made):
    files = sorted(made.glob("lists-two.*.csv"))
    assert [f.name for f in files] == ["lists-two.000-of-002.csv", "lists-two.001-of-002.csv"]
    together = pd.concat([pd.read_csv(f) for f in files], ignore_index=True)
    expected = pd.read_csv(made / "lists-one.csv")
    assert list(together.columns) == list(expected.columns)
    assert (together["item_id"] == expected["item_id"]).mean() > 0.99  # ties may turn
    np.testing.assert_allclose(together["score"], expected["score"], rtol=1e-5)


def test_a_killed_process_is_started_again_and_changes_nothing(made):
    """The agent of torchrun starts all again, and they go on from the step that all had kept."""
    said = (made / "stderr").read_text(encoding="utf-8")
    # Told by itself: the agent names the first that it sees end, which may be who missed it.
    assert (made / "killed.was").is_file()
    assert len(re.findall(r"pretraining goes on at step [1-9]", said)) == 1
    files = [made / name / "model.safetensors" for name in ("two", "killed")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert not list(made.glob("*.resume"))


@pytest.mark.parametrize(
    ("command", "expected"),
    [(["data", "list"], "start it without torchrun"), (["recommend", "o"], "give --out")],
)
def test_a_command_that_processes_cannot_share_says_so(run, monkeypatch, command, expected):
    for name, value in (("TORCHELASTIC_RUN_ID", "x"), ("WORLD_SIZE", "2"), ("RANK", "0")):
        monkeypatch.setenv(name, value)
    code, out, err = run(*command)
    assert (code, out) == (2, "") and expected in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("encoder", "more", "found"),
    [
        ("channels", {}, "the encoder channels"),
        ("graph-filter", {}, "the encoder graph-filter"),
        ("lightgcn", {"text_layers": 1}, "layers of a text encoder"),
        ("lightgcn", {"written": True}, "a log with a text column"),
    ],
)
def test_what_cannot_be_shared_is_refused(encoder, more, found):
    check_together(ALONE, encoder, **more)
    check_together(Ranks(0, 2), "lightgcn")
    with pytest.raises(ConfigError, match=found):
        check_together(Ranks(1, 2), encoder, **more)
