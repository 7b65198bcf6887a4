"""Histories sent along: exact against the log as it is, near to what `update` would compute."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from conftest import make_log
from dense import graph_input, random_model
from dense_blend import blend_of, input_of
from hypothesis import given
from hypothesis import strategies as st

from gnnrec.catalogue import Catalogue
from gnnrec.checkpoint import Checkpoint
from gnnrec.config import ModelConfig
from gnnrec.errors import DataError
from gnnrec.filters import GraphFilter
from gnnrec.histories import Histories, history_rows
from gnnrec.ids import Vocabulary
from gnnrec.interactions import Interactions
from gnnrec.ncf import NeuMF
from gnnrec.newcomers import Newcomers
from gnnrec.recommender import Recommender
from gnnrec.scores import ScoreVectors
from gnnrec.two_tower import TwoTower

N_ITEMS = 14


def moved(model, seed):
    torch.manual_seed(seed + 50)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def model_of(family, seed, n_items, text_dim=6):
    torch.manual_seed(seed)
    if family in ("lightgcn", "graphsage"):
        return random_model(family, seed, text_dim, n_target_items=n_items).eval()
    if family == "graph-filter":
        return moved(GraphFilter(ModelConfig(encoder=family, spectral_rank=16)), seed)
    if family == "channels":
        return blend_of(seed, text_dim).eval()
    config = ModelConfig(encoder=family, dim=4, n_layers=2, text_dim=text_dim, spectral_rank=16)
    return moved(TwoTower(config) if family == "two-tower" else NeuMF(config, n_items), seed)


FAMILIES = [
    (family, text_dim)
    for family in ("lightgcn", "graphsage", "channels", "gmf", "mlp", "neumf")
    for text_dim in (0, 6)
] + [("graph-filter", 0), ("two-tower", 6)]

TOLERANCES = {
    **dict.fromkeys(("gmf", "mlp", "neumf", "two-tower"), 0.03),
    **dict.fromkeys(("lightgcn", "graphsage", "graph-filter"), 0.25),
    "channels": 0.45,
}


def close(found, expected, tolerance):
    spread = float(expected.std())
    assert spread > 1e-3
    assert float((found - expected).abs().max()) <= tolerance * spread


@pytest.mark.parametrize(("family", "text_dim"), FAMILIES)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_history_of_a_user_of_the_log_gets_that_users_scores(family, text_dim, seed):
    make = input_of if family == "channels" else graph_input
    x = make(seed, text=text_dim > 0)
    model = model_of(family, seed, N_ITEMS, text_dim)
    if text_dim and seed:  # singular vectors that have not converged
        x.spectral_rank = 3
    with torch.no_grad():
        scores = model(x)
    n_users = x.graph.n_users
    new = Newcomers(x.graph.user_items, x.graph.item_degrees, x.device)
    found = model.newcomers(x)(new).beside(scores)
    assert found.users.shape == scores.users.shape
    close(found.rows(0, n_users), scores.rows(0, n_users), 2e-4)
    # The last user has nothing: nobody known, who gets the item bias alone.
    nobody = scores.of(np.array([-1])).rows(0, 1)
    assert torch.allclose(found.rows(n_users - 1, n_users), nobody, atol=1e-5)
    assert torch.equal(found.items, scores.items)


def recommender_of(family, text_dim, seed, n_users=600, n_items=40):
    """A recommender over a made log, with random weights and nothing trained."""
    log = Interactions.from_frame(make_log(n_users, n_items, 14 * n_users, seed=seed))
    model = model_of(family, seed, log.n_items, text_dim)
    text = None
    if text_dim:
        text = np.random.default_rng(seed).standard_normal((log.n_items, text_dim))
        text = (text / np.linalg.norm(text, axis=1, keepdims=True)).astype(np.float32)
    recommender = Recommender(Checkpoint("made", model.config, {}), device="cpu")
    recommender._serve(Catalogue(log, [""] * log.n_items, text), model)
    return recommender


@pytest.mark.parametrize(("family", "text_dim"), FAMILIES)
def test_a_history_scores_nearly_as_after_an_update(family, text_dim):
    """Root mean square difference against the spread of the user's scores, 600 users and one more.

    A log without structure is the hard case: its singular values are alike, so one user turns the
    directions of what reads them.
    """
    recommender = recommender_of(family, text_dim, 3)
    log = recommender.log
    rng = np.random.default_rng(0)
    histories = [list(rng.choice(log.item_ids, n, replace=False)) for n in (3, 9, 15)]
    for history in histories:
        lists = recommender.recommend_to_histories([history], k=100, include_seen=True)
        after = recommender_of(family, text_dim, 3)
        after.update(pd.DataFrame({"user_id": ["new"] * len(history), "item_id": history}))
        expected = after.recommend(["new"], k=100, include_seen=True)
        assert expected.known.all() and lists.known.all() and (lists.history == 0).all()
        both = lists.set_index("item_id").score, expected.set_index("item_id").score
        found, wanted = (s.reindex(log.item_ids).to_numpy() for s in both)
        off = (found - found.mean()) - (wanted - wanted.mean())
        assert np.sqrt(np.mean(off**2)) < TOLERANCES[family] * wanted.std()
    assert recommender.log is log  # nothing was added


def test_lists_for_histories(fitted, frame):
    own = frame[frame.user_id == "u1"].item_id.tolist()
    lists = fitted.recommend_to_histories([own, ["none"], [], own + ["none"] + own], k=5)
    assert list(lists.columns) == ["history", "item_id", "score", "rank", "known"]
    assert lists.groupby("history").size().tolist() == [5, 5, 5, 5]
    assert lists.groupby("history").known.first().tolist() == [True, False, False, True]
    groups = [rows.item_id.tolist() for _, rows in lists.groupby("history")]
    assert groups[0] == groups[3] == fitted.recommend(["u1"], k=5).item_id.tolist()
    assert not set(groups[0]) & set(own)
    assert groups[1] == groups[2] == fitted.recommend(["nobody"], k=5).item_id.tolist()
    seen = fitted.recommend_to_histories([own], k=100, include_seen=True, exclude=["i1"])
    assert set(own) - {"i1"} <= set(seen.item_id) and "i1" not in set(seen.item_id)
    assert set(fitted.recommend_to_histories([own], allow=own, include_seen=True).item_id) == set(
        own
    )
    assert fitted.recommend_to_histories([]).empty
    for wrong in ({"k": 0}, {"allow": ["none"]}):
        with pytest.raises(DataError):
            fitted.recommend_to_histories([own], **wrong)


def test_histories_follow_an_update(fitted):
    before = fitted.recommend_to_histories([["i1", "fresh"]], k=100)
    fitted.update(pd.DataFrame({"user_id": ["u1", "u2"], "item_id": ["fresh", "fresh"]}))
    after = fitted.recommend_to_histories([["i1", "fresh"]], k=100, include_seen=True)
    assert "fresh" not in set(before.item_id) and "fresh" in set(after.item_id)


@pytest.mark.parametrize("family", ["lightgcn", "graph-filter", "mlp"])
def test_where_this_machines_directions_differ_its_own_items_are_used(family):
    recommender = recommender_of(family, 0, 1)
    vectors = recommender.vectors
    parts = (recommender.catalogue, recommender.model)
    rank = recommender.checkpoint.config.spectral_rank
    rows = history_rows(recommender.log, [recommender.log.item_ids[:5]])
    shared = Histories(*parts, vectors, rank, torch.device("cpu"))
    assert shared.scores(rows).items is vectors.items
    turned = ScoreVectors(-vectors.users, -vectors.items, vectors.walk, vectors.part)
    own = Histories(*parts, turned, rank, torch.device("cpu"))
    assert torch.equal(own.scores(rows).rows(0, 1), shared.scores(rows).rows(0, 1))
    assert own.scores(rows).items is not turned.items


def test_rows_of_histories(fitted):
    rows = history_rows(fitted.log, [["i1", "i1", "none"], [], ["i2", "i1"]])
    assert rows.shape == (3, fitted.log.n_items)
    assert np.diff(rows.indptr).tolist() == [1, 0, 2] and (rows.data == 1).all()
    assert sp.csr_array(rows).has_sorted_indices


# Eight threads at once.


def asked(recommender, number):
    users = recommender.log.user_ids[number % 20 : number % 20 + 2].tolist() + ["nobody"]
    items = recommender.log.item_ids[number % 15 : number % 15 + 2].tolist()
    return [
        recommender.recommend(users, k=5, exclude=items),
        recommender.similar_items(items, k=4),
        recommender.recommend_to_histories([items, ["none"]], k=5),
    ]


@pytest.mark.parametrize("text", [True, False])
def test_eight_threads_get_the_answers_of_one(checkpoint, transfer_config, tmp_path, text):
    frame = make_log(30, 25, 200, text=text)
    Recommender(checkpoint, transfer_config, "cpu").fit(frame).save(tmp_path / "r")
    alone = Recommender.load(tmp_path / "r", "cpu")
    expected = [asked(alone, number) for number in range(20)]
    together = Recommender.load(tmp_path / "r", "cpu")  # fresh: all threads meet it unused
    start = Barrier(8)

    def work(thread):
        start.wait()
        return [(n, asked(together, n)) for n in np.roll(np.arange(20), thread).tolist()]

    with ThreadPoolExecutor(8) as pool:
        answers = [pair for pairs in pool.map(work, range(8)) for pair in pairs]
    assert len(answers) == 160
    for number, frames in answers:
        for found, wanted in zip(frames, expected[number], strict=True):
            pd.testing.assert_frame_equal(found, wanted, check_exact=True)


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="reads the kernel's map")
@pytest.mark.parametrize("family", ["lightgcn", "mlp"])
def test_processes_share_the_vectors_of_a_folder(family, tmp_path):
    recommender_of(family, 6, 1).save(tmp_path / "r")
    loaded = Recommender.load(tmp_path / "r", "cpu")
    asked(loaded, 3)
    regions = re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text())
    mapped = [r for r in regions if str(tmp_path / "r" / "vectors.safetensors") in r]
    assert mapped and all(re.search(r"Anonymous:\s+0 kB", region) for region in mapped)
    bounds = [[int(x, 16) for x in region.split(" ")[0].split("-")] for region in mapped]
    tables = [loaded.vectors.users, loaded.vectors.items]
    tables.append(torch.from_numpy(loaded.catalogue.text))
    if family == "mlp":
        tables += [loaded.vectors.part.users, loaded.vectors.part.items]
    for table in tables:
        assert any(low <= table.data_ptr() < high for low, high in bounds)


def test_a_loaded_tower_ranks_on_the_processor_wherever_the_model_goes(tmp_path):
    recommender_of("neumf", 6, 1).save(tmp_path / "r")
    loaded = Recommender.load(tmp_path / "r", "cpu")
    expected = loaded.recommend(k=3)
    loaded.model.to("meta")  # in place, as to a GPU
    pd.testing.assert_frame_equal(loaded.recommend(k=3), expected)


@given(st.lists(st.sampled_from(["1", " 1 ", "01", "a", "", " ", "nan", "None", "1.0"])))
def test_texts_alone_find_what_they_find_among_others(texts):
    for ids in (np.array([1, 2]), np.array(["1", "a", "nan"], dtype=object)):
        vocabulary = Vocabulary(ids)
        mixed = vocabulary.codes([*texts, 1.5])[:-1]
        assert vocabulary.codes(texts).tolist() == mixed.tolist()
