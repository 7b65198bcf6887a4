"""Several processes train one model: what each computes adds up to what one process computes."""

import contextlib
import io
import json
import os
import re
import signal
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

PARTS = Path(__file__).parent / "ranks_parts.py"
KILLED = Path(__file__).parent / "ranks_killed.py"


def torchrun(n, *arguments, restarts=0, check=True):
    """Run a script, or the command line, in n processes on this machine."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(n), "--max-restarts", str(restarts), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done


def alone(*arguments):
    """Run the command line in this process; returns what it printed on stdout."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
        assert not app(list(arguments), standalone_mode=False)
    return printed.getvalue()


def curve(out):
    lines = out.with_suffix(".log.jsonl").read_text(encoding="utf-8").splitlines()
    return [(r["label"], r["step"], r["value"], r["loss"]) for r in map(json.loads, lines)]


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    path = tmp_path_factory.mktemp("ranks") / "log.csv"
    make_log(120, 60, 2000).to_csv(path, index=False)
    return path


def pretraining(log, out):
    command = ["pretrain", "--source", str(log), "--encoder", "graphsage", "--no-text"]
    return [*command, "--max-steps", "150", "--out", str(out)]


@pytest.fixture(scope="module")
def pretrained(log):
    """A checkpoint of one process and one of two, by the same command."""
    outs = {n: log.parent / f"pretrained{n}" for n in (1, 2)}
    alone(*pretraining(log, outs[1]))
    torchrun(2, "-m", "gnnrec", *pretraining(log, outs[2]))
    return outs


def test_parts_add_up_to_the_whole():
    """Sums, tables, the graph's operators, its spectrum, models and gradients."""
    done = torchrun(3, str(PARTS))
    assert done.stdout.count("all parts add up") == 3


def test_the_loss_curve_is_that_of_one_process(pretrained):
    one, several = curve(pretrained[1]), curve(pretrained[2])
    assert len(one) >= 4
    assert [record[:2] for record in several] == [record[:2] for record in one]
    for mine, theirs in zip(several, one, strict=True):
        assert mine[2:] == pytest.approx(theirs[2:], rel=1e-4)


def test_transfer_and_its_metrics_are_those_of_one_process(pretrained, log):
    steps = log.parent / "steps.toml"
    steps.write_text("[calibrate]\nmax_steps = 20\n[train]\nmax_steps = 20\n", encoding="utf-8")
    command = ["transfer", str(pretrained[1]), "--target", str(log), "--retrain", "final:1"]
    command += ["--config", str(steps)]
    reports = {}
    for n in (1, 2):
        out = log.parent / f"adapted{n}"
        arguments = [*command, "--json", "--out", str(out)]
        if n == 1:
            printed = alone(*arguments)
        else:
            printed = torchrun(n, "-m", "gnnrec", *arguments).stdout
        reports[n] = json.loads(printed)  # one object, whoever computed it
    assert reports[2]["best_steps"] == reports[1]["best_steps"]
    for name, value in reports[1]["metrics"].items():
        assert reports[2]["metrics"][name] == pytest.approx(value, rel=1e-3), name

    whole, parts = log.parent / "lists.csv", log.parent / "shared.csv"
    folder = str(log.parent / "adapted2")
    alone("recommend", folder, "-k", "5", "--out", str(whole))
    torchrun(2, "-m", "gnnrec", "recommend", folder, "-k", "5", "--out", str(parts))
    files = sorted(log.parent.glob("shared.*.csv"))
    assert [f.name for f in files] == ["shared.000-of-002.csv", "shared.001-of-002.csv"]
    together = pd.concat([pd.read_csv(f) for f in files], ignore_index=True)
    expected = pd.read_csv(whole)
    assert list(together.columns) == list(expected.columns)
    assert (together["item_id"] == expected["item_id"]).mean() > 0.99  # ties may turn
    np.testing.assert_allclose(together["score"], expected["score"], rtol=1e-5)


def test_a_killed_process_is_started_again_and_changes_nothing(pretrained, log):
    """The agent of torchrun starts all again, and they go on from the step that all had kept."""
    out = log.parent / "killed"
    done = torchrun(2, str(KILLED), *pretraining(log, out), restarts=1)
    assert f"exitcode: -{signal.SIGKILL.value}" in done.stderr
    assert re.search(r"pretraining goes on at step [1-9]", done.stderr)
    files = [folder / "model.safetensors" for folder in (pretrained[2], out)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert not list(log.parent.glob("*.resume"))


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
