"""A search looks at no test interaction, goes on where it was, keeps defaults that are as good."""

import importlib.util
import json

import numpy as np
import pandas as pd
import pytest
from conftest import TRAIN

from gnnrec import tune as tune_module
from gnnrec.arms import prepare
from gnnrec.blend import ChannelBlend
from gnnrec.config import ModelConfig, TransferConfig, load_config, with_settings
from gnnrec.errors import ConfigError, DataError
from gnnrec.filters import GraphFilter
from gnnrec.interactions import Interactions
from gnnrec.model import build_model
from gnnrec.sources import Log
from gnnrec.space import Choice, Range, defaults_of, space_of
from gnnrec.tune import N_REPEATS, repeats_of, tune

CONFIG = TransferConfig(calibrate=TRAIN, train=TRAIN)

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("optuna") is None, reason="the [tune] extra is not installed"
)


@pytest.fixture
def log(frame):
    return Log("shop", Interactions.from_frame(frame), None)


def test_a_search_goes_on_where_it_was_and_writes_what_a_transfer_takes(checkpoint, log, tmp_path):
    first = tune(checkpoint, log, CONFIG, tmp_path, n_trials=2, device="cpu")
    assert first.report["n_trials"] == 2
    second = tune(checkpoint, log, CONFIG, tmp_path, n_trials=5, device="cpu")
    assert second.report["n_trials"] == 5
    assert second.report["defaults"] == first.report["defaults"]
    assert second.report["best"]["value"] >= first.report["best"]["value"]
    again = tune(checkpoint, log, CONFIG, tmp_path, n_trials=5, device="cpu")
    assert again.report["n_trials"] == 5 and again.settings == second.settings
    assert load_config(TransferConfig, tmp_path / "tuned.toml", {}) == second.config
    assert len((tmp_path / "trials.csv").read_text().splitlines()) == 6
    assert json.loads((tmp_path / "tuned.json").read_text())["kept"] in ("best", "defaults")


def test_a_search_that_is_killed_draws_what_it_would_have_drawn(
    checkpoint, log, tmp_path, monkeypatch
):
    class Killed(BaseException):
        pass

    calls = 0

    def measured(checkpoint, repeat, config, device):
        nonlocal calls
        calls += 1
        if calls in deadly:
            raise Killed
        rng = np.random.default_rng([len(repeat.train), round(1e6 * config.train.learning_rate)])
        return 0.4 + 0.1 * rng.standard_normal(30)

    monkeypatch.setattr(tune_module, "measured", measured)
    found = []
    for deadly in (set(), {2, 9, 21}):
        out, calls = tmp_path / str(len(deadly)), 0
        for _ in range(len(deadly)):
            with pytest.raises(Killed):
                tune(checkpoint, log, CONFIG, out, n_trials=10, device="cpu")
            with (out / "journal.log").open("a") as file:
                file.write('{"op_code": 5, "half')
            (out / "values" / ".1.npy.gnnrec-ab12cd34.npy").touch()
        report = tune(checkpoint, log, CONFIG, out, n_trials=10, device="cpu").report
        frame = pd.read_csv(out / "trials.csv").drop(columns=["number", "duration"])
        found.append((report | {"seconds": 0}, frame.to_csv()))
        assert not list((out / "values").glob(".*"))
    assert found[0] == found[1]


def test_the_same_seed_finds_the_same(checkpoint, log, tmp_path):
    found = [
        tune(checkpoint, log, CONFIG, tmp_path / str(n), n_trials=3, device="cpu").report
        for n in range(2)
    ]
    for report in found:
        del report["seconds"]
    assert found[0] == found[1]


def test_what_is_measured_was_held_out_of_the_training_part_alone(checkpoint, log):
    prepared = prepare(log, None, CONFIG)
    repeats = repeats_of(prepared, CONFIG)
    assert len(repeats) == N_REPEATS
    for repeat in repeats:
        parts = (repeat.train, repeat.validation, repeat.measured)
        assert all(map(len, parts))
        rows = np.concatenate(parts)
        assert sorted(rows) == sorted(prepared.split.kept)
        assert not np.isin(rows, prepared.split.test).any()
    assert len({repeat.measured.tobytes() for repeat in repeats}) == N_REPEATS


@pytest.mark.parametrize(("gain", "kept"), [(0.0, "defaults"), (0.001, "defaults"), (0.2, "best")])
def test_the_defaults_stay_unless_something_is_clearly_better(
    checkpoint, log, tmp_path, monkeypatch, gain, kept
):
    def measured(checkpoint, repeat, config, device):
        rng = np.random.default_rng([len(repeat.train), round(1e6 * config.train.learning_rate)])
        better = gain if config.train.learning_rate > 2e-3 else 0.0
        return 0.4 + better + 0.1 * rng.standard_normal(30)

    monkeypatch.setattr(tune_module, "measured", measured)
    found = tune(checkpoint, log, CONFIG, tmp_path, n_trials=12, device="cpu")
    assert found.report["kept"] == kept
    assert (found.settings == {}) == (kept == "defaults")
    assert (found.config == CONFIG) == (kept == "defaults")
    if kept == "best":
        assert found.config.train.learning_rate > 2e-3


def test_the_setting_that_decides_is_the_important_one(checkpoint, log, tmp_path, monkeypatch):
    def measured(checkpoint, repeat, config, device):
        rng = np.random.default_rng(len(repeat.train))
        return 0.5 + 0.1 * np.log10(config.train.pull_to_start) + 0.01 * rng.standard_normal(30)

    monkeypatch.setattr(tune_module, "measured", measured)
    monkeypatch.setattr(tune_module, "_PRUNED", 0.0)
    found = tune(checkpoint, log, CONFIG, tmp_path, n_trials=30, device="cpu")
    importance = found.report["importance"]
    assert max(importance, key=importance.get) == "train.pull_to_start"
    assert found.config.train.pull_to_start > CONFIG.train.pull_to_start


def test_two_processes_share_a_search(checkpoint, log, tmp_path):
    found = tune(checkpoint, log, CONFIG, tmp_path, n_trials=4, workers=2, device="cpu")
    assert 4 <= found.report["n_trials"] <= 5  # one may begin while the last one ends


def test_another_search_in_the_same_folder_is_refused(checkpoint, log, tmp_path):
    tune(checkpoint, log, CONFIG, tmp_path, n_trials=1, device="cpu")
    with pytest.raises(ConfigError, match="a search with another config"):
        tune(checkpoint, log, CONFIG.model_copy(update={"seed": 1}), tmp_path, n_trials=2)


def test_a_search_without_a_limit_or_without_data_says_so(checkpoint, log, tmp_path):
    with pytest.raises(ConfigError, match="found no limit; expected --trials, --minutes"):
        tune(checkpoint, log, CONFIG, tmp_path)
    few = Log("few", log.interactions.select(np.arange(3)), None)
    with pytest.raises(DataError, match="few: found .* too few to hold some out"):
        tune(checkpoint, few, CONFIG, tmp_path / "few", n_trials=1, device="cpu")


def test_without_optuna_there_is_one_line(checkpoint, log, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'pip install "gnnrec\[tune\]"'):
        tune(checkpoint, log, CONFIG, tmp_path, n_trials=1)


ENCODERS = ("lightgcn", "graphsage", "graph-filter", "channels", "gmf", "mlp", "neumf")


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("retrain", [None, "heads"])
def test_every_corner_of_a_space_is_a_configuration_and_the_defaults_are_in_it(encoder, retrain):
    sizes = {} if encoder == "graph-filter" else {"text_dim": 6}
    model = build_model(ModelConfig(encoder=encoder, **sizes))
    space = space_of(model, retrain)
    config = TransferConfig()
    for end in (0, -1):
        corner = {
            name: part.values[end] if isinstance(part, Choice) else (part.low, part.high)[end]
            for name, part in space.items()
        }
        made = with_settings(config, corner)
        mode, _, layers = made.retrain.partition(":")
        if not isinstance(model, (GraphFilter, ChannelBlend)):
            model.trained_parameters(mode, int(layers or 0))  # raises where there is no such layer
    assert ("retrain" in space) == (retrain is None and encoder != "graph-filter")
    assert defaults_of(space, config.model_dump()).keys() == space.keys()
    assert all(part.low < part.high for part in space.values() if isinstance(part, Range))


def test_the_command(run, checkpoint_folder, frame, tmp_path):
    frame.to_csv(tmp_path / "log.csv", index=False)
    settings = tmp_path / "few.toml"
    few = "max_steps = 6\nevaluate_every = 3\nn_negatives = 20\nbatch_size = 32\n"
    settings.write_text(f"[train]\n{few}\n[calibrate]\n{few}")
    out = tmp_path / "tuned"
    code, stdout, stderr = run(
        "tune", checkpoint_folder, "--target", tmp_path / "log.csv", "--out", out,
        "--trials", 2, "--retrain", "heads", "--config", settings, "--json",
    )  # fmt: skip
    assert code == 0, stderr
    report = json.loads(stdout)
    assert report["n_trials"] == 2 and "retrain" not in report["best"]["settings"]
    assert "gnnrec transfer" in stderr
    code, _, stderr = run(
        "transfer", checkpoint_folder, "--target", tmp_path / "log.csv",
        "--out", tmp_path / "served", "--config", out / "tuned.toml",
    )  # fmt: skip
    assert code == 0, stderr
    code, _, stderr = run("tune", checkpoint_folder, "--target", tmp_path / "log.csv", "--out", out,
                          "--trials", 2, "--retrain", "final:9")  # fmt: skip
    assert code == 2 and "expected final:1 to final:2" in stderr
