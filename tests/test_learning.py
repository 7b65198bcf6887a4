"""On a real log, every trained model ranks better than popularity does."""

import pytest
import torch

from gnnrec.checkpoint import Checkpoint
from gnnrec.config import ModelConfig, TrainConfig, TransferConfig
from gnnrec.errors import DownloadError
from gnnrec.model import build_model
from gnnrec.runs import popularity_arm, prepare, run_arm
from gnnrec.sources import open_log
from gnnrec.stats import paired_bootstrap


@pytest.fixture(scope="module")
def films():
    try:
        return open_log("ml-latest-small")
    except DownloadError as error:
        pytest.skip(f"ml-latest-small is not to be had: {error}")


@pytest.mark.parametrize(
    ("encoder", "loss"),
    [
        ("lightgcn", "softmax"),
        ("lightgcn", "bpr"),
        ("graphsage", "softmax"),
        ("graphsage", "bpr"),
        ("graph-filter", "softmax"),  # searched, not trained: the loss plays no part
    ],
)
def test_a_text_free_model_from_scratch_beats_popularity(films, encoder, loss):
    size = ModelConfig(encoder=encoder, dim=32, n_layers=2, spectral_rank=32)
    torch.manual_seed(0)
    checkpoint = Checkpoint("fresh", size, build_model(size).state_dict())
    short = TrainConfig(loss=loss, max_steps=60, evaluate_every=20, n_negatives=500)
    settings = TransferConfig(
        retrain="scratch",
        calibrate=short.model_copy(update={"learning_rate": 2e-2}),
        train=short,
        n_folds=3,
        search_evaluations=10,
    )
    prepared = prepare(films, None, settings)
    trained, popular = run_arm(prepared, checkpoint, settings), popularity_arm(prepared)
    assert trained.adapted.steps > 0
    difference = paired_bootstrap(
        trained.results.per_user["ndcg@20"], popular.results.per_user["ndcg@20"], 1000
    )
    assert difference["low"] > 0
    assert difference["relative"] > 0.1


def test_a_text_free_blend_from_scratch_beats_popularity(films):
    size = ModelConfig(encoder="channels", spectral_rank=64)
    checkpoint = Checkpoint("fresh", size, build_model(size).state_dict())
    settings = TransferConfig(retrain="scratch", n_weigh_folds=3)
    prepared = prepare(films, None, settings)
    trained, popular = run_arm(prepared, checkpoint, settings), popularity_arm(prepared)
    assert trained.adapted.choice == "scratch" and trained.adapted.steps > 0
    difference = paired_bootstrap(
        trained.results.per_user["ndcg@20"], popular.results.per_user["ndcg@20"], 1000
    )
    assert difference["low"] > 0
    assert difference["relative"] > 0.5


@pytest.mark.parametrize(
    ("encoder", "loss", "steps", "rate"),
    [("gmf", "softmax", 60, 1e-2), ("mlp", "softmax", 100, 3e-2), ("neumf", "binary", 60, 1e-2)],
)
def test_collaborative_filtering_of_ids_beats_popularity(encoder, loss, steps, rate):
    try:
        few_films = open_log("ml-100k")  # a tower ranks a small catalogue in little time
    except DownloadError as error:
        pytest.skip(f"ml-100k is not to be had: {error}")
    size = ModelConfig(encoder=encoder)
    torch.manual_seed(0)
    checkpoint = Checkpoint("fresh", size, build_model(size).state_dict())
    short = TrainConfig(
        loss=loss, max_steps=steps, evaluate_every=20, n_negatives=100, learning_rate=rate,
        pull_to_start=1e-4,
    )  # fmt: skip
    settings = TransferConfig(
        retrain="scratch",
        calibrate=short.model_copy(update={"max_steps": 20}),
        train=short,
        n_folds=3,
    )
    prepared = prepare(few_films, None, settings)
    trained, popular = run_arm(prepared, checkpoint, settings), popularity_arm(prepared)
    difference = paired_bootstrap(
        trained.results.per_user["ndcg@20"], popular.results.per_user["ndcg@20"], 1000
    )
    assert difference["low"] > 0
    assert difference["relative"] > 0.1
