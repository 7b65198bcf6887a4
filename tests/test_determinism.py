"""The same seed gives the same bits; other thread counts, and other machines, nearly the same."""

import functools
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_log

from gnnrec.config import ModelConfig, PretrainConfig, TrainConfig, TransferConfig
from gnnrec.interactions import Interactions
from gnnrec.runs import pretrain_run, transfer_run
from gnnrec.sources import Log

GOLDEN = Path(__file__).parent / "golden" / "run.json"
ENCODERS = ("lightgcn", "graphsage", "channels")
# Large enough for more than one thread to have a part of the products.
SOURCE = make_log(400, 300, 9_000, seed=1)
TARGET = make_log(300, 250, 5_000, seed=2)


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def one_run(encoder, n_threads, max_steps=12):
    """Pretrain, transfer, measure: (checkpoint's weights, recommender, what the report says)."""
    torch.set_num_threads(n_threads)
    few = TrainConfig(max_steps=max_steps, evaluate_every=4, n_negatives=100, batch_size=128)
    pretraining = PretrainConfig(
        model=ModelConfig(encoder=encoder, dim=16, n_layers=2, spectral_rank=16),
        train=few,
        weigh=PretrainConfig().weigh.model_copy(update={"max_steps": 6, "evaluate_every": 3}),
        n_validation_episodes=2,
        min_users=100,
    )
    source, target = (
        Log(name, Interactions.from_frame(frame), None)
        for name, frame in (("source", SOURCE), ("target", TARGET))
    )
    checkpoint = pretrain_run([source], pretraining, name="made", device="cpu")
    config = TransferConfig(
        calibrate=few,
        train=few,
        weigh=TransferConfig().weigh.model_copy(update={"max_steps": 6, "evaluate_every": 3}),
        n_weigh_folds=2,
        retrain="final:1",
    )
    recommender, report = transfer_run(checkpoint, target, config, device="cpu")
    return checkpoint.state, recommender, report


def measured(run):
    """NDCG@20 and recall@20 of a run."""
    return {name: run[2]["metrics"][name] for name in ("ndcg@20", "recall@20")}


@functools.cache
def first_run(encoder):
    """A run of one thread, which several tests look at. Read only."""
    return one_run(encoder, 1)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_same_seed_and_threads_give_the_same_bits(encoder):
    if encoder == "lightgcn":
        runs = [one_run(encoder, 2, 4) for _ in range(2)]  # threads that wait for a core are slow
    else:
        runs = [first_run(encoder), one_run(encoder, 1)]
    (state, recommender, report), (again, other, second) = runs
    assert state.keys() == again.keys()
    assert all(torch.equal(state[name], again[name]) for name in state)
    assert torch.equal(recommender.vectors.users, other.vectors.users)
    assert torch.equal(recommender.vectors.items, other.vectors.items)
    for key in ("metrics", "split", "steps"):
        assert report[key] == second[key]
    pd.testing.assert_frame_equal(recommender.recommend(k=5), other.recommend(k=5))


@pytest.mark.parametrize("encoder", ENCODERS)
def test_other_thread_counts_change_hardly_anything(encoder):
    recommender = first_run(encoder)[1]
    users = torch.arange(recommender.log.n_users)
    items = torch.arange(recommender.log.n_items)
    scores = {}
    for n_threads in (1, 2):
        torch.set_num_threads(n_threads)
        x = recommender.catalogue.target().graph_input(
            rank=recommender.checkpoint.config.spectral_rank
        )
        with torch.no_grad():  # one fixed model, its propagation and scores made again
            scores[n_threads] = recommender.model(x).score(users, items).numpy()
    scale = np.abs(scores[1]).max()
    np.testing.assert_allclose(scores[2], scores[1], rtol=1e-5, atol=1e-5 * scale)
    if encoder == "graphsage":  # on real logs: benchmarks/reliability/threads.py
        expected = measured(first_run(encoder))
        assert measured(one_run(encoder, 2)) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_run_reaches_what_it_reached_before(encoder):
    """Golden runs: what a change of the code, or of a library, moves has to be meant."""
    expected = json.loads(GOLDEN.read_text(encoding="utf-8"))[encoder]
    assert measured(first_run(encoder)) == pytest.approx(expected, abs=1e-3)


if __name__ == "__main__":  # python tests/test_determinism.py writes the golden file again
    GOLDEN.parent.mkdir(exist_ok=True)
    golden = {encoder: measured(first_run(encoder)) for encoder in ENCODERS}
    GOLDEN.write_text(json.dumps(golden, indent=2) + "\n", encoding="utf-8")
