"""What is exported recommends what the Recommender does, where there is no gnnrec."""

import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp
import torch
from conftest import make_log
from dense import random_model, random_text
from dense_blend import blend_of

from gnnrec.catalogue import Catalogue
from gnnrec.checkpoint import Checkpoint
from gnnrec.config import ModelConfig
from gnnrec.errors import ConfigError, DataError
from gnnrec.export import export_recommender
from gnnrec.export.index import KINDS, build_index, levelled, queries_of, recall_of
from gnnrec.export.program import Lists
from gnnrec.export.tables import _at
from gnnrec.filters import GraphFilter
from gnnrec.interactions import Interactions
from gnnrec.ncf import NeuMF
from gnnrec.recommender import Recommender
from gnnrec.scores import ScoreVectors

ENCODERS = ("lightgcn", "gmf", "mlp", "neumf", "channels", "graph-filter")
NOWHERE = """
import contextlib, io, json, os, sys

class Gone:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"gnnrec", *MORE}:
            raise ImportError(name + " is not here")

sys.meta_path.insert(0, Gone())
for folder, script in json.load(sys.stdin):
    os.chdir(folder)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(script, {"__name__": "__main__"})
    print(json.dumps(printed.getvalue()))
"""
PROGRAM = """
import json
import torch

program = torch.export.load("program.pt2").module()
answers = []
for users, seen, k in ASKED:
    seen = torch.tensor(seen, dtype=torch.int64).reshape(len(users), -1)
    scores, items = program(torch.tensor(users), seen, k)
    answers.append([scores.numpy().tolist(), items.tolist()])  # numpy: nothing to train is in it
print(json.dumps(answers))
"""


def model_of(family, n_items):
    """A model of random weights; every family says its scores in its own way."""
    if family == "lightgcn":
        return random_model(family, n_target_items=n_items)
    if family == "channels":
        return blend_of(3)
    torch.manual_seed(0)
    if family == "graph-filter":
        return GraphFilter(ModelConfig(encoder=family, spectral_rank=16))
    config = ModelConfig(encoder=family, dim=4, n_layers=2, text_dim=6)
    model = NeuMF(config, n_items)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def recommenders():
    made = {}

    def make(family: str) -> Recommender:
        if family not in made:
            log = Interactions.from_frame(make_log(40, 90, 500, text=family != "gmf"))
            model = model_of(family, log.n_items)
            text = random_text(0, log.n_items).numpy() if model.config.text_dim else None
            recommender = Recommender(Checkpoint("made", model.config, {}), device="cpu")
            recommender._serve(Catalogue(log, [""] * log.n_items, text), model.eval())
            made[family] = recommender
        return made[family]

    return make


@pytest.fixture(scope="module")
def exports(recommenders, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports")

    def make(encoder: str, lists: int | None = 7):
        out = folder / f"{encoder}-{lists}"
        if not out.exists():
            export_recommender(recommenders(encoder), out, lists=lists)
        return out

    return make


def elsewhere(jobs, without=()):
    """Run scripts, each in its folder, in one Python that has no gnnrec: what each of them prints.

    One for all: loading torch takes longer than what is checked.
    """
    done = subprocess.run(
        [sys.executable, "-I", "-c", NOWHERE.replace("MORE", repr(without))],
        input=json.dumps([(str(folder), script) for folder, script in jobs]),
        capture_output=True,
        text=True,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def lines_of(folder):
    """The Python that an export's own page shows."""
    return (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]


def seen_of(recommender, codes):
    rows = [recommender.seen[[c]].indices.tolist() if c >= 0 else [] for c in codes]
    width = max(map(len, rows), default=0)
    return [row + [-1] * (width - len(row)) for row in rows]


def same_lists(scores, items, expected_scores, expected_items):
    """Scores agree, and so do items but where neighbours' scores are equal to rounding."""
    finite = np.isfinite(expected_scores)
    assert (np.isfinite(scores) == finite).all() and ((items >= 0) == finite).all()
    size = np.abs(expected_scores[finite]).max()
    np.testing.assert_allclose(scores[finite], expected_scores[finite], atol=1e-5 * size)
    for row in np.argwhere((items != expected_items).any(axis=1))[:, 0]:
        mine = expected_scores[row]
        for place in np.flatnonzero(items[row] != expected_items[row]):
            gaps = np.abs(mine - mine[place])
            gaps[place] = np.inf
            last = place == len(mine) - 1
            assert gaps.min() <= 2e-5 * size or last, "another order and no tie"


def calls_of(recommender):
    n = recommender.log.n_items
    groups = [(np.arange(recommender.log.n_users), 10), ([3], 1), ([-1, 2], n), ([5], 4)]
    return [(np.array(codes), k) for codes, k in groups]


@pytest.fixture(scope="module")
def programs(recommenders, exports):
    """Encoder -> what its program answers to `calls_of`; tower: what a page of no lists prints."""
    jobs = []
    for encoder in ENCODERS:
        recommender = recommenders(encoder)
        asked = [[c.tolist(), seen_of(recommender, c), k] for c, k in calls_of(recommender)]
        jobs.append((exports(encoder), PROGRAM.replace("ASKED", repr(asked))))
    tower = exports("neumf", None)
    *answers, printed = elsewhere([*jobs, (tower, lines_of(tower))])
    return dict(zip(ENCODERS, map(json.loads, answers), strict=True)) | {"tower": printed}


@pytest.fixture(scope="module")
def pages(exports):
    """Encoder -> what the lines of its page print for user 0 and for user 11."""
    jobs = [
        (exports(e), lines_of(exports(e)).replace("place, k = 0, 10", f"place, k = {place}, 6"))
        for e in ENCODERS
        for place in (0, 11)
    ]
    printed = iter(elsewhere(jobs, without=("torch", "pandas", "scipy")))
    return {encoder: {0: next(printed), 11: next(printed)} for encoder in ENCODERS}


@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_program_recommends_the_same_without_gnnrec(encoder, recommenders, programs):
    recommender, n = recommenders(encoder), recommenders(encoder).log.n_items
    for (codes, k), (scores, items) in zip(calls_of(recommender), programs[encoder], strict=True):
        own = seen_of(recommender, codes)
        mask = np.zeros((len(codes), n), dtype=np.float32)
        for row, mine in enumerate(own):
            mask[row, [item for item in mine if item >= 0]] = 1
        expected = recommender.vectors.of(codes).top_k(k, seen=sp.csr_array(mask))
        same_lists(np.array(scores), np.array(items), *expected)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_lists_are_those_of_recommend(encoder, recommenders, exports):
    recommender = recommenders(encoder)
    found = pq.read_table(exports(encoder) / "lists.parquet").to_pandas()
    expected = recommender.recommend(k=7).drop(columns="known")
    expected.columns = found.columns
    pd.testing.assert_frame_equal(found, expected)
    kinds = {"user_id": found.user_id.dtype, "item_id": found.item_id.dtype}
    assert (kinds["user_id"] == np.int64) == (encoder == "gmf")


@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_lines_in_the_readme_recommend_the_same(encoder, recommenders, pages):
    recommender = recommenders(encoder)
    for place, out in pages[encoder].items():
        rows = [line.split("\t") for line in out.splitlines()]
        user = recommender.log.user_ids[place]
        expected = recommender.recommend([user], 6)
        np.testing.assert_allclose(
            [float(score) for _, score in rows], expected.score, atol=1e-4, rtol=1e-4
        )
        close = np.diff(expected.score, append=-np.inf) > -1e-4
        wrong = [item for item, _ in rows] != expected[recommender.log.columns.item].astype(str)
        assert not (wrong & ~close & ~np.roll(close, 1)).any()


def test_a_tower_without_lists_is_read_by_its_program(recommenders, exports, programs):
    recommender = recommenders("neumf")
    assert "program.pt2" in lines_of(exports("neumf", None))
    assert all(p.requires_grad for p in recommender.model.parameters())  # nor is the model changed
    expected = recommender.recommend([recommender.log.user_ids[0]], 10)
    assert [float(line.split("\t")[1]) for line in programs["tower"].splitlines()] == pytest.approx(
        expected.score.tolist(), rel=1e-4
    )


def test_tables_hold_the_vectors_in_groups_of_rows(recommenders, tmp_path, monkeypatch):
    recommender = recommenders("lightgcn")
    monkeypatch.setattr("gnnrec.export.tables._ROWS", 16)
    monkeypatch.setattr("gnnrec.export.tables._CELLS", 300)
    about = export_recommender(recommender, tmp_path / "out", lists=5, program=False)
    assert set(about["parts"]) == {f"{n}.parquet" for n in ("users", "items", "seen", "lists")}
    for name in ("users", "items", "seen", "lists"):
        file = pq.ParquetFile(tmp_path / "out" / f"{name}.parquet")
        assert file.num_row_groups > 1
        assert file.metadata.num_rows == about["parts"][f"{name}.parquet"]["rows"]
    items = pq.read_table(tmp_path / "out" / "items.parquet")
    table = np.array(items["vector"].to_pylist(), dtype=np.float32)
    assert np.array_equal(table, recommender.vectors.items[:, :-1].numpy())
    assert np.array_equal(items["bias"].to_numpy(), recommender.vectors.items[:, -1].numpy())
    assert items["item_id"].to_pylist() == recommender.log.item_ids.tolist()
    seen = pq.read_table(tmp_path / "out" / "seen.parquet").to_pandas()
    log = recommender.log.to_frame()
    assert set(map(tuple, seen.to_numpy())) == set(
        map(tuple, log[["user_id", "item_id"]].to_numpy())
    )
    assert len(seen) == len(log)


def test_weights_of_a_walk_stand_at_their_pairs(recommenders, tmp_path):
    recommender = recommenders("channels")
    walk = recommender.vectors.walk
    whole = walk.start.sorted_indices()
    start = whole.copy()
    start.data[:3] = 0
    start.eliminate_zeros()  # what a multiplication may do
    export_recommender(recommender, tmp_path / "out", program=False)
    pairs = pq.read_table(tmp_path / "out" / "seen.parquet").to_pandas()
    users = recommender.log.user_codes(pairs.user_id)
    items = recommender.log.item_codes(pairs.item_id)
    for name, matrix in (("start", walk.start), ("step", walk.operator.scipy())):
        assert np.array_equal(pairs[name], matrix.toarray()[users, items]) and pairs[name].all()
    values = _at(whole, start)
    assert not values[:3].any() and np.array_equal(values[3:], whole.data[3:])


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_holds_the_items_and_says_what_it_finds(kind, recommenders, tmp_path):
    faiss = pytest.importorskip("faiss")
    recommender = recommenders("lightgcn")
    about = export_recommender(recommender, tmp_path / "out", index=kind, program=False)
    found = about["index"]
    assert found["n_users"] == recommender.log.n_users and found["kind"] == kind
    assert found["recall@20"] == 1.0 if kind == "flat" else found["recall@20"] > 0.5
    index = faiss.read_index(str(tmp_path / "out" / "items.faiss"))
    vectors = recommender.vectors
    scores, items = index.search(queries_of(vectors)[:3], 5)
    expected = (vectors.users[:3] @ vectors.items.T).gather(1, torch.from_numpy(items))
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-5)
    if kind == "flat":
        np.testing.assert_allclose(scores, vectors.of(np.arange(3)).top_k(5)[0], rtol=1e-5)


def test_levelled_items_are_of_one_length_and_score_the_same(recommenders):
    vectors = recommenders("lightgcn").vectors
    items = levelled(vectors.items.numpy())
    lengths = np.linalg.norm(items, axis=1)
    np.testing.assert_allclose(lengths, np.linalg.norm(vectors.items, axis=1).max(), rtol=1e-5)
    expected = vectors.users @ vectors.items.T
    np.testing.assert_allclose(queries_of(vectors) @ items.T, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_items_of_a_large_bias_hide_no_others(kind):
    """Biases of popular items are larger than what users differ by; found by a real log."""
    pytest.importorskip("faiss")
    rng = np.random.default_rng(0)
    items = 0.2 * rng.standard_normal((4000, 17)).astype(np.float32)
    items[:, -1] = 2.0 * rng.exponential(size=4000)
    users = np.ones((50, 17), dtype=np.float32)
    users[:, :-1] = 4.0 * rng.standard_normal((50, 16))
    vectors = ScoreVectors(torch.from_numpy(users), torch.from_numpy(items))
    index, _ = build_index(items, kind)
    assert recall_of(index, vectors, sp.csr_array((50, 4000)))["recall@20"] > 0.9


def test_recall_counts_what_is_missing(recommenders):
    pytest.importorskip("faiss")
    recommender = recommenders("lightgcn")
    vectors, seen = recommender.vectors, recommender.seen
    worse = vectors.items.numpy().copy()
    lists = vectors.top_k(20, seen=seen)[1]
    gone = np.unique(lists)[:10]
    worse[gone, -1] -= 1e6  # the index does not find these
    index, _ = build_index(worse, "flat")
    expected = 1 - np.isin(lists, gone).sum(axis=1) / (lists >= 0).sum(axis=1)
    assert recall_of(index, vectors, seen)["recall@20"] == pytest.approx(expected.mean())
    some = recall_of(index, vectors, seen, max_users=4)
    assert some["n_users"] == 4


@pytest.mark.parametrize(("encoder", "word"), [("neumf", "tower"), ("channels", "walk")])
def test_an_index_of_other_scores_is_refused(encoder, word, recommenders, tmp_path):
    with pytest.raises(ConfigError, match=f"--index hnsw: found scores.*{word}"):
        export_recommender(recommenders(encoder), tmp_path / "out", index="hnsw")
    assert not list(tmp_path.iterdir())


def test_a_part_that_no_program_knows_is_refused(recommenders):
    class Other:
        pass

    vectors = recommenders("lightgcn").vectors
    with pytest.raises(ConfigError, match="Other.*--no-program"):
        Lists(type(vectors)(vectors.users, vectors.items, part=Other()))


@pytest.mark.parametrize("step", ["write_tables", "write_program", "write_json"])
def test_an_interrupted_export_leaves_what_was_there(step, recommenders, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(f"gnnrec.export.{step}", stop)
        export_recommender(recommenders("lightgcn"), tmp_path / "out")
    assert not list(tmp_path.iterdir())
    with pytest.raises(DataError, match="k must be at least 1"):
        export_recommender(recommenders("lightgcn"), tmp_path / "out", lists=0)


def test_the_command_writes_and_describes(run, work):
    code, out, err = run("export", "rec", "--out", "elsewhere", "--lists", 3, "--json")
    about = json.loads(out)
    assert code == 0 and about["n_users"] == 30
    parts = about["parts"]
    assert set(parts) | {"export.json", "README.md", "manifest.json"} == {
        path.name for path in (work / "elsewhere").iterdir()
    }
    for name, part in parts.items():
        data = (work / "elsewhere" / name).read_bytes()
        assert part["sha256"] == hashlib.sha256(data).hexdigest() and part["bytes"] == len(data)
        assert len(part["use"]) >= 3 and name in err
    assert json.loads((work / "elsewhere" / "export.json").read_text())["parts"] == parts
    assert run("export", "rec", "--out", "elsewhere", "--no-program")[0] == 0
    assert not (work / "elsewhere" / "program.pt2").exists()


def test_the_command_says_the_recall(run, work):
    pytest.importorskip("faiss")
    code, _, err = run("export", "rec", "--out", "elsewhere", "--index", "flat", "--no-program")
    assert code == 0 and "flat: recall@20 1.0000 on 30 users" in err


def test_a_missing_faiss_is_one_line(run, work, monkeypatch):
    monkeypatch.setattr("gnnrec.export.index.importlib.util.find_spec", lambda name: None)
    code, _, err = run("export", "rec", "--out", "elsewhere", "--index", "flat")
    assert code == 2 and err.startswith("error: --index needs faiss")
    assert err.rstrip().endswith("pip install 'gnnrec[export]'") and err.count("\n") == 1
    assert not (work / "elsewhere").exists()
