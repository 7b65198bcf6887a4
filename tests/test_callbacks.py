"""Callbacks are told what the log of a training says, by every kind of training, and its end."""

import contextlib
import json
import runpy
import sys
import types
from pathlib import Path

import pytest
from conftest import TRAIN, make_log

from gnnrec.callbacks import TensorBoard, watched
from gnnrec.config import ModelConfig, PretrainConfig
from gnnrec.errors import ConfigError
from gnnrec.interactions import Interactions
from gnnrec.recommender import Recommender
from gnnrec.runs import pretrain_run
from gnnrec.sources import Log

EXAMPLES = Path(__file__).parent.parent / "examples"
TINY = Path(__file__).parent.parent / "data" / "tiny" / "shop.csv"


class Listener:
    def __init__(self):
        self.evaluations, self.ends = [], []

    def on_evaluation(self, evaluation):
        self.evaluations.append(evaluation)

    def on_end(self, label, summary):
        self.ends.append((label, dict(summary)))


def source():
    return Log("source", Interactions.from_frame(make_log(80, 60, 1500, seed=1)), None)


@pytest.mark.parametrize("encoder", ["lightgcn", "graph-filter", "channels"])
def test_it_hears_what_the_log_says(encoder, tmp_path):
    config = PretrainConfig(
        model=ModelConfig(encoder=encoder, dim=8, n_layers=2, spectral_rank=8),
        train=TRAIN,
        weigh=TRAIN,
        n_validation_episodes=2,
        min_users=20,
        n_lessons=4,
        search_evaluations=3,
    )
    heard, also = Listener(), Listener()
    with watched(heard), watched(also):
        pretrain_run([source()], config, name="tiny", device="cpu", log_file=tmp_path / "log")
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert len(lines) >= 3
    assert [(e.label, e.step, e.value) for e in heard.evaluations] == [
        (line["label"], line["step"], line["value"]) for line in lines
    ]
    for evaluation, line in zip(heard.evaluations, lines, strict=True):
        assert evaluation.loss == (line.get("loss") if line["step"] else None)
        assert evaluation.seconds == line.get("seconds")
    assert (encoder == "graph-filter") == (heard.evaluations[-1].loss is None)
    label, summary = heard.ends[-1]
    assert label == lines[-1]["label"]
    best = min(lines, key=lambda line: line["value"])
    assert (summary["best_step"], summary["best_value"]) == (best["step"], best["value"])
    assert also.evaluations == heard.evaluations and also.ends == heard.ends


def test_outside_nothing_is_told(checkpoint, frame, transfer_config):
    heard = Listener()
    with watched(heard):
        Recommender(checkpoint, transfer_config, "cpu").fit(frame)
    n = len(heard.evaluations), len(heard.ends)
    assert n[0] and n[1]
    assert all(e.label.startswith("final:1 ") for e in heard.evaluations)
    Recommender(checkpoint, transfer_config, "cpu").fit(frame)
    assert (len(heard.evaluations), len(heard.ends)) == n


def test_an_exception_of_a_callback_ends_the_training(checkpoint, frame, transfer_config):
    class Stops(Listener):
        def on_evaluation(self, evaluation):
            if evaluation.step >= 3:
                raise RuntimeError("enough")

    with watched(Stops()), pytest.raises(RuntimeError, match="enough"):
        Recommender(checkpoint, transfer_config, "cpu").fit(frame)


def scalars(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder))
    read.Reload()
    return {name: read.Scalars(name) for name in read.Tags()["scalars"]}


def test_the_commands_write_for_tensorboard(run, work):
    pytest.importorskip("tensorboard")
    log = "log.csv --out o --config few.toml --tensorboard board"
    code, _, err = run(*f"transfer ck --target {log}".split())
    assert code == 0, err
    lines = [json.loads(line) for line in (work / "o.log.jsonl").read_text().splitlines()]
    found = scalars(work / "board")
    for label in {line["label"] for line in lines}:
        mine = [line for line in lines if line["label"] == label]
        assert [s.step for s in found[f"{label}/value"]] == [line["step"] for line in mine]
        values = [line["value"] for line in mine]
        assert [s.value for s in found[f"{label}/value"]] == pytest.approx(values)
        losses = [line["loss"] for line in mine if line["step"]]
        assert [s.value for s in found[f"{label}/loss"]] == pytest.approx(losses)
    code, _, err = run("transfer", "ck", "--target", "no.csv", "--out", "p", "--tensorboard", "q")
    assert code == 2 and not (work / "q").exists()


def test_a_second_training_of_a_label_has_a_name_of_its_own(
    checkpoint, frame, transfer_config, tmp_path
):
    pytest.importorskip("tensorboard")
    board = TensorBoard(tmp_path / "board")
    with watched(board):
        for _ in range(2):
            Recommender(checkpoint, transfer_config, "cpu").fit(frame)
    board.close()
    found = scalars(tmp_path / "board")
    first, second = found["final:1 training/value"], found["final:1 training 2/value"]
    assert [(s.step, s.value) for s in first] == [(s.step, s.value) for s in second]
    assert not any(" 3/" in name for name in found)


def test_a_missing_tensorboard_is_one_line(run, work, monkeypatch):
    monkeypatch.setattr("gnnrec.callbacks.importlib.util.find_spec", lambda name: None)
    code, _, err = run(
        "transfer", "ck", "--target", "log.csv", "--out", "o", "--tensorboard", "board"
    )
    assert code == 2 and not (work / "o").exists()
    assert err.startswith("error: --tensorboard needs") and err.count("\n") == 1
    assert "pip install 'gnnrec[tensorboard]'" in err
    with pytest.raises(ConfigError):
        TensorBoard("board")


def test_the_mlflow_example_logs_each_evaluation(monkeypatch, capsys):
    metrics, params = [], {}
    stand_in = types.ModuleType("mlflow")
    stand_in.start_run = contextlib.nullcontext
    stand_in.log_params = params.update
    stand_in.log_metric = lambda name, value, step=None: metrics.append((name, value, step))
    monkeypatch.setitem(sys.modules, "mlflow", stand_in)
    monkeypatch.setattr(sys, "argv", ["mlflow_log.py", str(TINY)])
    runpy.run_path(str(EXAMPLES / "mlflow_log.py"), run_name="__main__")
    assert params == {"checkpoint": "channels.graph", "retrain": "final:1"}
    steps = [step for name, _, step in metrics if name == "final:1 weighing/value"]
    assert steps == sorted(set(steps)) and len(steps) > 1
    assert [step for name, _, step in metrics if name == "final:1 weighing/loss"] == steps[1:]
    assert "user_id" in capsys.readouterr().out
