import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from gnnrec.config import (
    ModelConfig,
    PretrainConfig,
    TrainConfig,
    TransferConfig,
    load_config,
    parse_retrain,
    validate,
    write_toml,
)
from gnnrec.errors import ConfigError

TRAIN = TrainConfig(
    loss="bpr",
    n_negatives=3,
    batch_size=7,
    learning_rate=0.25,
    pull_to_start=0.5,
    max_steps=11,
    evaluate_every=2,
    patience=9,
    user_balance=0.75,
)
MODEL = ModelConfig(
    encoder="graphsage", dim=12, n_layers=2, text_dim=5, text_model="some/model", spectral_rank=8
)


@pytest.mark.parametrize(
    ("kind", "data", "key", "nearest"),
    [
        (TrainConfig, {"batchsize": 3}, "batchsize", "batch_size"),
        (ModelConfig, {"layers": 3}, "layers", "n_layers"),
        (PretrainConfig, {"train": {"learningrate": 0.1}}, "train.learningrate", "learning_rate"),
        (TransferConfig, {"retrian": "full"}, "retrian", "retrain"),
    ],
)
def test_an_unknown_key_names_the_nearest(kind, data, key, nearest):
    with pytest.raises(ConfigError, match=f"here: unknown setting '{key}'.*mean '{nearest}'"):
        validate(kind, data, "here")


def test_a_key_near_to_nothing_lists_what_is_known():
    with pytest.raises(ConfigError, match="unknown setting 'zzz'; known: .*spectral_rank"):
        validate(ModelConfig, {"zzz": 1}, "here")


@pytest.mark.parametrize(
    ("kind", "data", "message"),
    [
        (ModelConfig, {"dim": 0}, "dim is 0; .*greater than or equal to 1"),
        (ModelConfig, {"encoder": "transformer"}, "encoder is 'transformer'; .*lightgcn"),
        (TrainConfig, {"learning_rate": 0}, "learning_rate is 0; .*greater than 0"),
        (TrainConfig, {"max_steps": "many"}, "max_steps is 'many'; .*integer"),
        (TransferConfig, {"n_folds": 1}, "n_folds is 1; "),
        (TransferConfig, {"train": {"patience": 0}}, r"train\.patience is 0; "),
        (TransferConfig, {"fraction": 1.5}, r"fraction is 1\.5; "),
    ],
)
def test_a_value_out_of_range_is_one_line_with_key_and_value(kind, data, message):
    with pytest.raises(ConfigError, match=message) as caught:
        validate(kind, data, "here")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "config",
    [
        MODEL,
        ModelConfig(text_model=None),
        TRAIN,
        PretrainConfig(model=MODEL, train=TRAIN, keep_low=0.125, seed=4),
        TransferConfig(retrain="final:2", train=TRAIN, split="time", fraction=0.5, seed=3),
    ],
)
def test_written_settings_read_back_equal(tmp_path, config):
    path = tmp_path / "config.toml"
    write_toml(config, path)
    assert load_config(type(config), path, {}) == config


def test_options_lie_over_the_file_and_none_is_no_option(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text('retrain = "heads"\nseed = 5\n[train]\nmax_steps = 17\nbatch_size = 2\n')
    config = load_config(
        TransferConfig, path, {"retrain": "full", "seed": None, "train.max_steps": 3}
    )
    assert (config.retrain, config.seed) == ("full", 5)
    assert (config.train.max_steps, config.train.batch_size) == (3, 2)


def test_options_alone_make_a_configuration():
    config = load_config(PretrainConfig, None, {"model.dim": 3, "train.loss": "bpr"})
    assert (config.model.dim, config.train.loss) == (3, "bpr")
    with pytest.raises(ConfigError, match="^options: unknown setting 'train.los'"):
        load_config(PretrainConfig, None, {"train.los": "bpr"})


def test_a_file_that_is_not_toml_or_not_there_is_refused(tmp_path):
    path = tmp_path / "config.toml"
    for content in (b"retrain = \n", b"seed = 1\nseed = 2\n", b"\xff\xfe\x00"):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="config.toml: not a readable TOML file"):
            load_config(TransferConfig, path, {})
    with pytest.raises(ConfigError, match="absent.toml"):
        load_config(TransferConfig, tmp_path / "absent.toml", {})
    with pytest.raises(ConfigError, match="not a readable"):
        load_config(TransferConfig, tmp_path, {})


def test_an_option_inside_a_value_that_is_no_table_is_refused(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text("train = 3\n")
    with pytest.raises(ConfigError, match="train"):
        load_config(TransferConfig, path, {"train.max_steps": 3})


def test_settings_cannot_be_changed_in_place():
    with pytest.raises(ValidationError):
        TRAIN.max_steps = 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("zero-shot", ("zero-shot", 0)),
        ("heads", ("heads", 0)),
        ("final:1", ("final", 1)),
        ("final:12", ("final", 12)),
        ("full", ("full", 0)),
        ("scratch", ("scratch", 0)),
    ],
)
def test_retraining_modes(text, expected):
    assert parse_retrain(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", "final", "final:", "final:0", "final:-1", "final:x", "final:1.5", "final:1:1"),
        *("final:²", "heads:", "heads:1", "full:2", "Full", "zero", " heads"),
    ],
)
def test_other_retraining_modes_are_refused(text):
    with pytest.raises(ConfigError, match="zero-shot, heads, final:K"):
        parse_retrain(text)


@given(st.text(max_size=12))
def test_no_text_breaks_the_parser(text):
    try:
        kind, count = parse_retrain(text)
    except ConfigError:
        return
    assert kind in ("zero-shot", "heads", "final", "full", "scratch")
    assert (count > 0) == (kind == "final")
