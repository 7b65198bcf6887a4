"""A training that is stopped anywhere and started again ends with the same bits."""

from __future__ import annotations

import hashlib
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TRAIN, make_log

from gnnrec import resume, train
from gnnrec.config import ModelConfig, PretrainConfig, TrainConfig
from gnnrec.episodes import Source
from gnnrec.errors import ConfigError
from gnnrec.interactions import Interactions
from gnnrec.items import ItemTable
from gnnrec.ledger import alone
from gnnrec.pretrain import pretrain
from gnnrec.resume import folder_of, resumable
from gnnrec.runs import transfer_run
from gnnrec.signals import StoppedError, held, listening
from gnnrec.sources import Log, fingerprint

SMALL = {"dim": 4, "n_layers": 1, "spectral_rank": 4}
FAN_OUT = TRAIN.model_copy(update={"fan_out": (3,)})
MODELS = {
    "lightgcn": (ModelConfig(**SMALL), TRAIN),
    "graphsage": (ModelConfig(encoder="graphsage", **SMALL), FAN_OUT),
    "channels": (ModelConfig(encoder="channels"), TRAIN),
    "neumf": (ModelConfig(encoder="neumf", text_dim=4, **SMALL), TRAIN),
    "graph-filter": (ModelConfig(encoder="graph-filter", spectral_rank=4), TRAIN),
}


class Killed(BaseException):
    """Stands for a kill: nothing that handles errors handles it."""


@pytest.fixture(autouse=True)
def at_every_step(monkeypatch):
    monkeypatch.setattr(resume, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(resume, "_SHARE", 0)


def digest(state):
    parts = [name.encode() + state[name].detach().numpy().tobytes() for name in sorted(state)]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def kill_at(patch, event, at):
    """Let the at-th write of a state, or step of Adam, be the last thing that happens."""
    count = 0
    place, name = {"write": (resume, "_write"), "step": (torch.optim.Adam, "step")}[event]
    inner = getattr(place, name)

    def counted(*args):
        nonlocal count
        inner(*args)
        count += 1
        if count == at:
            raise Killed

    patch.setattr(place, name, counted)


def ends_the_same(make, out, monkeypatch, every, least):
    """Compare a run without a break with one that is killed again and again until it ends."""
    whole, kills, lines = make(), 0, []
    while True:
        with monkeypatch.context() as patch:
            kill_at(patch, ("write", "step")[kills % 2], every)
            try:
                with resumable(out, {"of": "test"}, lines.append):
                    found = make()
                break
            except Killed:
                kills += 1
                assert kills < 50, lines
    assert found == whole
    assert kills >= least, lines
    assert any("goes on at step" in line for line in lines)
    assert not folder_of(out).exists()


@pytest.mark.parametrize("name", MODELS)
def test_a_pretraining_that_is_killed_ends_the_same(name, tmp_path, monkeypatch):
    """A search takes its finished evaluations from the state; it has no steps to be killed at."""
    model, settings = MODELS[name]
    log = Interactions.from_frame(make_log(40, 30, 400, seed=1))
    text = torch.randn(log.n_items, 4, generator=torch.Generator().manual_seed(0)).numpy()
    text = text if model.text_dim else None
    source = Source("books", log.users, log.items, log.n_users, log.n_items, text)
    config = PretrainConfig(
        model=model,
        train=settings,
        weigh=settings,
        n_validation_episodes=1,
        n_lessons=3,
        min_users=20,
        search_evaluations=7,
    )

    def make():
        made, result = pretrain([source], config)
        history = [(r["step"], r["value"]) for r in result.history]
        return digest(made.state_dict()), result.best_step, result.steps, history

    ends_the_same(make, tmp_path / "out", monkeypatch, 3, 1 if name == "graph-filter" else 2)


def test_a_transfer_and_its_refit_that_are_killed_end_the_same(
    checkpoint, frame, transfer_config, tmp_path, monkeypatch
):
    log = Log("shop", Interactions.from_frame(frame), None)
    config = transfer_config.model_copy(update={"retrain": "full"})
    files = iter(range(100))

    def make():
        written = tmp_path / f"{next(files)}.jsonl"
        made, report = transfer_run(checkpoint, log, config, device="cpu", log_file=written)
        lines = [line.split(', "seconds"')[0] for line in written.read_text().splitlines()]
        return digest(made.model.state_dict()), report["best_steps"], report["metrics"], lines

    ends_the_same(make, tmp_path / "out", monkeypatch, 8, 3)


def test_a_retrained_text_encoder_ends_the_same(tmp_path, monkeypatch):
    pytest.importorskip("sentence_transformers")
    from made_text import WORDS, tiny_encoder

    from gnnrec import text_tuning
    from gnnrec.text import TextEncoder
    from gnnrec.text_tuning import TextTask, tune_text

    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, 3)) for _ in range(20)]
    users, items = rng.integers(0, 15, 120), rng.integers(0, 20, 120)
    task = TextTask(texts, users, items, (users[:20], items[:20]), 15)
    folder = str(tiny_encoder(tmp_path))
    few = TrainConfig(max_steps=5, evaluate_every=2, batch_size=16, n_negatives=8)
    monkeypatch.setattr(text_tuning, "_CALIBRATE", few)

    def make():
        delta, result, _, _ = tune_text([task], TextEncoder(folder, "cpu"), 1, few, 0)
        return digest(delta), [(r["step"], r["value"]) for r in result.history]

    ends_the_same(make, tmp_path / "out", monkeypatch, 4, 2)


def test_processes_killed_at_random_moments_end_the_same():
    """The script exits with 1 at the first thing that is lost, half-written or different."""
    script = Path(__file__).parents[1] / "benchmarks" / "reliability" / "kill.py"
    arguments = ["--only", "pretrain", "transfer", "--kills", "2", "--minutes", "2"]
    environment = os.environ | {"PYTHONPATH": str(script.parents[2]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(script), *arguments], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("kills=") == 2 and "kills=0" not in done.stderr


def test_an_early_stop_counts_the_misses_before_a_kill(tmp_path, monkeypatch):
    more = {"max_steps": 6, "evaluate_every": 1, "patience": 3}

    def make():
        layer = torch.nn.Linear(2, 1, bias=False)
        with torch.no_grad():
            layer.weight.fill_(1.0)
        result = train.optimise(
            layer,
            lambda step: layer(torch.ones(2)).square().sum(),
            ["weight"],
            lambda model: float(model.weight[0, 0] != 1.0),  # only the start is good
            TRAIN.model_copy(update=more),
        )
        return layer.weight.tolist(), result.steps, result.best_step

    assert make()[1:] == (3, 0)
    ends_the_same(make, tmp_path / "out", monkeypatch, 3, 1)


# In a command


def pretrain_arguments(out):
    few = ("--config", "few.pretrain.toml", "--no-text", "--device", "cpu")
    return ("pretrain", "--source", "log.csv", "--out", out, *few)


@pytest.fixture(autouse=True)
def _interrupts():
    """A shell gives its background jobs a SIGINT that is ignored; here it is Python's own."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def shop(work):
    few = "max_steps = 6\nevaluate_every = 2\nbatch_size = 16\nn_negatives = 8\n"
    (work / "few.pretrain.toml").write_text(
        "n_validation_episodes = 1\nmin_users = 10\n[model]\ndim = 4\nn_layers = 1\n"
        f"spectral_rank = 4\n[train]\n{few}"
    )
    return work


def test_a_signal_keeps_the_state_and_the_same_command_goes_on(shop, run, monkeypatch):
    assert run(*pretrain_arguments("whole"))[0] == 0
    step = torch.optim.Adam.step
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        count = 0

        def signalled(self, number=number):
            nonlocal count
            step(self)
            count += 1
            if count == 2:
                signal.raise_signal(number)

        with monkeypatch.context() as patch:
            patch.setattr(torch.optim.Adam, "step", signalled)
            found, out, err = run(*pretrain_arguments("out"))
        assert (found, out) == (code, "")
        assert err.splitlines()[-1] == (
            "error: stopped; the state is kept in out.resume; the same command again goes on from "
            "there"
        )
        assert not (shop / "out").exists()
    code, _, err = run(*pretrain_arguments("out"))
    assert code == 0 and "pretraining goes on at step 4" in err
    for name in ("model.safetensors", "golden.safetensors"):
        assert (shop / "out" / name).read_bytes() == (shop / "whole" / name).read_bytes()
    hidden = {p.name for p in shop.iterdir() if p.name.startswith((".out", "out."))}
    assert hidden == {"out.toml", "out.log.jsonl"}
    whole, again = (
        len((shop / f"{n}.log.jsonl").read_text().splitlines()) for n in ("whole", "out")
    )
    assert whole == again


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_loss_that_is_no_number_says_where_the_last_good_state_is(shop, run, monkeypatch, wrong):
    inner, count = train.batch_loss, 0

    def loss(*args):
        nonlocal count
        count += 1
        return inner(*args) * (wrong if count == 4 else 1.0)

    monkeypatch.setattr(train, "batch_loss", loss)
    code, out, err = run(*pretrain_arguments("out"))
    assert (code, out) == (3, "")
    assert f"error: pretraining: the loss became {wrong} at step 3 with the learning rate" in err
    assert "its last good state, of step 3, is in out.resume/001.state" in err
    assert (shop / "out.resume" / "001.state").is_file() and not (shop / "out").exists()


def test_parameters_that_are_no_numbers_are_not_kept_and_no_result(shop, run, monkeypatch):
    step = torch.optim.Adam.step

    def broken(self):
        step(self)
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.fill_(torch.nan)

    monkeypatch.setattr(torch.optim.Adam, "step", broken)
    code, _, err = run(*pretrain_arguments("out"))
    assert code == 3 and "the loss became nan at step 1" in err and "of step 0" in err


def half_done(out, key, monkeypatch, at=3):
    lines = []
    parameter = torch.nn.Linear(2, 1)

    def make(label="training"):
        with torch.no_grad():
            parameter.weight.fill_(1.0)
        return train.optimise(
            parameter, lambda n: parameter(torch.ones(2)).square().sum(), ["weight"], None, TRAIN,
            label=label,
        )  # fmt: skip

    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, "write", at)
        with resumable(out, key, lines.append):
            make()
    return make


def test_the_state_of_another_run_is_not_taken(tmp_path, monkeypatch):
    lines, out = [], tmp_path / "out"
    make = half_done(out, {"seed": 0}, monkeypatch)
    with resumable(out, {"seed": 1}, lines.append):
        make()
    assert len(lines) == 1 and "out.resume: is of another run" in lines[0]
    make = half_done(out, {"seed": 0}, monkeypatch)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    with resumable(out, {"seed": 0}, lines.append):
        make()
    assert len(lines) == 2 and "is of another run" in lines[1]


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "label"])
def test_a_damaged_state_is_left_out_with_a_line(tmp_path, monkeypatch, damage):
    lines, out = [], tmp_path / "out"
    make = half_done(out, {}, monkeypatch)
    path = out.with_name("out.resume") / "001.state"
    data = path.read_bytes()
    flipped = data[:-3] + bytes([data[-3] ^ 1]) + data[-2:]
    path.write_bytes({"cut": data[:90], "flip": flipped, "empty": b"", "label": data}[damage])
    with resumable(out, {}, lines.append):
        result = make("weighing" if damage == "label" else "training")
    assert result.steps == TRAIN.max_steps
    assert len(lines) == 1 and "001.state: not usable" in lines[0] and "begins anew" in lines[0]


def test_a_state_that_cannot_be_written_stops_no_training(tmp_path, monkeypatch):
    lines, out = [], tmp_path / "out"

    def full(path, state):
        raise ConfigError(f"{path}: no room")

    make = half_done(out, {}, monkeypatch)
    monkeypatch.setattr(resume, "_write", full)
    with resumable(out, {}, lines.append):
        assert make().steps == TRAIN.max_steps
    assert "could not be kept: " in lines[-1]


def test_files_of_others_and_a_second_process_are_refused(tmp_path):
    folder = tmp_path / "out.resume"
    folder.mkdir()
    (folder / "mine").write_text("keep")
    with (
        pytest.raises(ConfigError, match="found other files"),
        resumable(tmp_path / "out", {}, print),
    ):
        pass
    assert (folder / "mine").read_text() == "keep"
    with (
        alone(tmp_path / "two.resume"),
        pytest.raises(ConfigError, match="another run"),
        resumable(tmp_path / "two", {}, print),
    ):
        pass


def test_an_error_before_any_state_leaves_nothing(tmp_path):
    with pytest.raises(ConfigError), resumable(tmp_path / "out", {}, print):
        raise ConfigError
    assert list(tmp_path.iterdir()) == []


def test_all_that_a_training_reads_is_in_the_fingerprint(frame):
    items = ItemTable(np.array(["i1", "i2"], dtype=object), ["a", "b"], ["", ""])
    logs = [
        Log("x", Interactions.from_frame(frame), None),
        Log("x", Interactions.from_frame(frame), items),
        Log("x", Interactions.from_frame(frame[::-1]), None),
        Log("x", Interactions.from_frame(frame.assign(timestamp=1)), None),
        Log("x", Interactions.from_frame(frame.assign(text="fine")), None),
        Log("x", Interactions.from_frame(frame.assign(user_id="x" + frame.user_id)), None),
    ]
    assert len({fingerprint(log) for log in logs}) == len(logs)
    assert fingerprint(logs[0]) == fingerprint(Log("y", Interactions.from_frame(frame), None))


def test_the_first_signal_waits_for_a_held_block_and_the_second_does_not(capfd):
    reached = []
    with pytest.raises(StoppedError) as stop, listening(), held():
        signal.raise_signal(signal.SIGTERM)
        reached.append("end")
    assert reached == ["end"] and stop.value.exit_code == 143
    with pytest.raises(StoppedError), listening(), held():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        reached.append("never")
    assert reached == ["end"]
    with pytest.raises(StoppedError), listening():
        signal.raise_signal(signal.SIGINT)
    assert capfd.readouterr().err.count("stopping after this step") == 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
