"""Parts add up to the score for every family; linear parts are split as a dense sum says."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from dense import centred, power, random_graph, random_model
from dense_blend import blend_of, near_texts
from hypothesis import given, settings
from hypothesis import strategies as st

from gnnrec.catalogue import Catalogue
from gnnrec.config import ModelConfig
from gnnrec.errors import DataError
from gnnrec.evaluate import plain
from gnnrec.explain import Explainer
from gnnrec.filters import GraphFilter
from gnnrec.graph import BipartiteGraph
from gnnrec.interactions import Interactions
from gnnrec.ncf import NeuMF
from gnnrec.terms import Bent
from gnnrec.two_tower import TwoTower

N_USERS, N_ITEMS, RANK = 9, 14, 16
FAMILIES = (
    "lightgcn",
    "graphsage",
    "graph-filter",
    "channels",
    "gmf",
    "mlp",
    "neumf",
    "two-tower",
)
BENT = ("graphsage", "mlp", "neumf")


def moved(model, seed):
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def model_of(family, seed=0, text=True):
    dim = 6 if text else 0
    torch.manual_seed(seed)
    if family == "channels":
        return blend_of(seed, dim)
    if family == "graph-filter":
        return moved(GraphFilter(ModelConfig(encoder=family, spectral_rank=RANK)), seed)
    if family == "two-tower":
        config = ModelConfig(encoder=family, dim=4, text_dim=dim, text_model="made up")
        return moved(TwoTower(config), seed)
    if family in ("gmf", "mlp", "neumf"):
        config = ModelConfig(encoder=family, dim=2, n_layers=3, text_dim=dim)
        return moved(NeuMF(config, N_ITEMS), seed)
    return random_model(family, seed, dim, n_target_items=N_ITEMS - 1)


def explainer_of(model, graph, text, rank=RANK):
    users, items = graph.edges()
    log = Interactions(users, items, np.arange(graph.n_users), np.arange(graph.n_items))
    text = None if text is None else text.numpy()
    catalogue = Catalogue(log, [f"Title {code}" for code in range(graph.n_items)], text)
    x = catalogue.target().graph_input(rank=rank)
    with torch.no_grad():
        vectors = model(x)
    return Explainer(catalogue, model, vectors, graph.user_items, rank)


@pytest.mark.parametrize("text", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_parts_add_up_to_the_score_and_the_shares_to_the_parts(family, text):
    if family == "two-tower" and not text:
        pytest.skip("a two-tower is text")
    explainer = explainer_of(
        model_of(family, text=text), random_graph(3), near_texts() if text else None
    )
    dense = explainer.vectors.rows(0, N_USERS).detach()
    size = float(dense.abs().max())
    for user in range(N_USERS):
        for found in explainer.explain(user, np.arange(N_ITEMS)):
            assert found.score == pytest.approx(float(dense[user, found.item]), abs=1e-5 * size)
            total = sum(part.value for part in found.parts)
            assert total == pytest.approx(found.score, abs=1e-5 * size)
            for part in found.parts:
                assert part.value == pytest.approx(sum(part.shares) + part.rest, abs=1e-6 * size)
                linear = family not in BENT or part.name not in ("encoder", "tower")
                assert part.exact or not linear or not found.known, (family, part.name)
                assert linear or not part.exact or not found.known
            totals = [sum(shares) for shares in zip(*(p.shares for p in found.parts), strict=True)]
            assert [own.share for own in found.own] == pytest.approx(totals)
            assert totals == sorted(totals, reverse=True)
            assert {own.item for own in found.own} == set(explainer.seen[[user]].indices.tolist())
            assert json.loads(json.dumps(found.plain(), allow_nan=False))["item"] == found.item


@pytest.mark.parametrize("family", FAMILIES)
def test_an_exact_split_has_nothing_left_but_what_belongs_to_nobody(family):
    """Silencing all items leaves `rest`: it does not depend on which items they are."""
    explainer = explainer_of(model_of(family), random_graph(3), near_texts())
    for found in explainer.explain(0, np.arange(N_ITEMS)):
        for part in found.parts:
            if part.name in ("product", "filter") and family != "channels":
                assert part.rest == pytest.approx(0.0, abs=1e-4)
            if family == "two-tower" and part.name == "text":
                assert part.rest == pytest.approx(0.0, abs=1e-5)
            if part.kind == "popularity":
                assert part.rest == part.value and not any(part.shares)


@pytest.mark.parametrize("family", BENT)
def test_what_is_left_out_one_by_one_starts_from_the_served_scores(family):
    """With all items it is the part itself, and the shares lead there from where there is none."""
    explainer = explainer_of(model_of(family), random_graph(3), near_texts())
    (piece,) = [p for part in explainer.parts for p in part.pieces if isinstance(p, Bent)]
    every = torch.arange(N_ITEMS)
    for user in range(0, N_USERS - 1, 3):
        own = torch.from_numpy(explainer.seen[[user]].indices.astype(np.int64))
        mine = explainer.vectors.of(np.array([user]))
        served, weights = piece.values(mine).double(), torch.ones(1, len(own))
        found = piece.bend(own, weights, every)[0].double()
        factor = float(found @ served / (found @ found)) if piece.fitted else 1.0
        torch.testing.assert_close(factor * found, served, rtol=1e-4, atol=1e-4)
        nothing = factor * piece.bend(own, 0.0 * weights, every)[0]
        split = piece.split(mine, own, every)
        torch.testing.assert_close(split.shares.sum(0) + nothing, served, rtol=1e-4, atol=1e-4)
        assert not split.exact


@pytest.mark.parametrize("family", ["lightgcn", "graph-filter", "channels"])
def test_a_truncated_spectrum_is_split_exactly_too(family):
    graph = random_graph(2, n_users=40, n_items=50, density=0.15)
    if family == "channels":
        model = blend_of(0, 0, rank=6)
    elif family == "graph-filter":
        model = moved(GraphFilter(ModelConfig(encoder=family, spectral_rank=6)), 0)
    else:
        model = random_model(family, 0, 0, rank=6)
    explainer = explainer_of(model, graph, None, rank=6)
    for user in range(0, 39, 5):
        for found in explainer.explain(user, [0, 17, 30]):
            assert found.exact and any(abs(own.share) > 1e-3 for own in found.own)


def test_a_split_that_does_not_meet_the_served_scores_is_not_called_exact():
    explainer = explainer_of(model_of("two-tower"), random_graph(5), near_texts())
    assert explainer.explain(2, [5])[0].exact
    explainer.vectors.users[2, :2] += 0.5
    (found,) = explainer.explain(2, [5])
    assert not found.exact
    assert sum(part.value for part in found.parts) == pytest.approx(found.score, abs=1e-5)


def test_text_layer_one_is_split_by_the_texts_of_the_items_by_hand():
    model, graph, text = model_of("two-tower"), random_graph(5), near_texts()
    with torch.no_grad():
        model.user.weight.copy_(torch.eye(4, 6))
        model.item.weight.copy_(torch.eye(4, 6))
    explainer = explainer_of(model, graph, text)
    matrix = torch.from_numpy(graph.user_items.toarray()).double()
    rows = centred(text) * power(matrix.sum(0), -0.5)[:, None]
    users, user = matrix @ rows, 2
    degree = float(matrix[user].sum())
    gate = np.exp(model.log_scale.item() + model.degree_slope.item() * np.log1p(degree))
    short = lambda table: table[..., :4]  # noqa: E731
    for found in explainer.explain(user, [0, 5, 9]):
        item = short(centred(text)[found.item])
        item = item / item.norm().clamp_min(1e-12)
        (part,) = [p for p in found.parts if p.name == "text"]
        for own, share in zip(found.own, part.shares, strict=True):
            expected = gate * short(rows[own.item]) @ item / short(users[user]).norm()
            assert share == pytest.approx(float(expected), abs=1e-5)


def test_the_filter_is_split_by_the_rows_of_the_dense_filter():
    model, graph = model_of("graph-filter"), random_graph(6)
    with torch.no_grad():
        model.cosine_weight.zero_()
    explainer = explainer_of(model, graph, None)
    n = {name: p.item() for name, p in model.named_parameters()}
    matrix = torch.from_numpy(graph.user_items.toarray()).double()
    users, items = matrix.sum(1), matrix.sum(0)
    a = power(users, -n["user_exponent"])[:, None] * matrix * power(items, -n["item_exponent"])
    gram = a.T @ a
    ridge = 2.0 ** n["log2_ridge"] * torch.linalg.eigvalsh(gram)[-1]
    between = gram @ torch.linalg.inv(gram + ridge * torch.eye(len(gram)))
    between = (
        power(items, -n["row_exponent"])[:, None] * between * power(items, n["output_exponent"])
    )
    for user in (0, 4):
        for found in explainer.explain(user, np.arange(N_ITEMS)):
            (part,) = [p for p in found.parts if p.name == "filter"]
            expected = [float(between[own.item, found.item]) for own in found.own]
            np.testing.assert_allclose(part.shares, expected, rtol=2e-3, atol=1e-4)


def test_the_paths_of_a_walk_are_the_walk():
    """All two-hop paths of the filter, by hand, are the walk's part of its score."""
    model, graph = model_of("graph-filter"), random_graph(6)
    explainer = explainer_of(model, graph, None)
    walk = explainer.vectors.walk
    a, start = walk.operator.scipy().toarray(), walk.start.toarray()
    (found,) = explainer.explain(4, [int(np.flatnonzero(graph.user_items.toarray()[4] == 0)[0])])
    item = found.item
    every = {
        (own, other): start[4, own] * a[other, own] * a[other, item] * float(walk.out[item])
        for own in graph.user_items[[4]].indices
        for other in range(N_USERS)
    }
    heaviest = sorted(every.values(), reverse=True)
    assert found.paths and all(path.exact for path in found.paths)
    for path, weight in zip(found.paths, heaviest, strict=False):
        assert path.weight == pytest.approx(every[path.own, path.user], rel=1e-5)
        assert path.weight == pytest.approx(weight, rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 999))
def test_renumbering_items_changes_nothing(family, seed):
    """The catalogue in another order: the same parts, shares, paths and words."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(N_ITEMS)
    graph, text, model = random_graph(seed % 5), near_texts(), without_codes(model_of(family))
    users, items = graph.edges()
    other = BipartiteGraph(users, order[items], N_USERS, N_ITEMS)
    moved_text = torch.empty_like(text)
    moved_text[order] = text
    first = explainer_of(model, graph, text).explain(1, [0, 7])
    second = explainer_of(model, other, moved_text).explain(1, order[[0, 7]])
    for a, b in zip(first, second, strict=True):
        scale = max(abs(p.value) for p in a.parts)
        ours = {order[own.item]: own.share for own in a.own}
        theirs = {own.item: own.share for own in b.own}
        assert ours.keys() == theirs.keys()
        for code, share in ours.items():
            assert theirs[code] == pytest.approx(share, abs=3e-3 * scale)
        for p, q in zip(a.parts, b.parts, strict=True):
            assert (p.name, p.exact) == (q.name, q.exact)
            assert q.value == pytest.approx(p.value, abs=3e-3 * scale)
        assert (a.people, a.place) == (b.people, b.place)


def without_codes(model):
    """Leave out what depends on codes: residual ids, and the edges a blend hides by their place."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("residual.") or "_network." in name:
                parameter.zero_()
    return model


def test_words_name_items_people_texts_and_popularity(fitted, frame):
    lists = fitted.recommend(["u1"], k=3)
    found = fitted.explain("u1", lists.item_id[0])
    assert found.score == pytest.approx(float(lists.score[0]), abs=1e-4)
    counts = frame.item_id.value_counts()
    assert found.people == counts[found.item]
    assert found.place == 1 + int((counts > found.people).sum())
    have = set(frame.item_id[frame.user_id == "u1"])
    assert {own.item for own in found.own} == have
    for own in found.own:
        both = set(frame.user_id[frame.item_id == own.item]) & set(
            frame.user_id[frame.item_id == found.item]
        )
        assert own.people == len(both)
    said = " ".join(found.words)
    assert str(found.people) in said and "people have it" in said
    for path in found.paths:
        theirs = set(frame.item_id[frame.user_id == path.user])
        assert {path.own, found.item} <= theirs and path.own in have


def test_a_user_nobody_knows_gets_popularity_and_is_told_so(fitted):
    found = fitted.explain("nobody", "i1")
    assert not found.known and found.user == "nobody" and found.own == () and found.paths == ()
    assert found.words[0].startswith("Nothing is known")
    assert [p.value for p in found.parts if p.kind != "popularity"] == pytest.approx(
        [0.0] * (len(found.parts) - 1)
    )
    assert found.score == pytest.approx(found.parts[-1].value, abs=1e-6)
    with pytest.raises(DataError, match="'none' is not in the catalogue"):
        fitted.explain("u1", "none")


def test_what_is_folded_in_is_explained_too(fitted):
    fitted.explain("u1", "i1")
    fitted.update(pd.DataFrame({"user_id": ["new", "new"], "item_id": ["i1", "j1"]}))
    found = fitted.explain("new", "i2")
    assert found.known and {own.item for own in found.own} == {"i1", "j1"}


def test_the_command_says_why(work, run):
    code, out, err = run("recommend", "rec", "--user", "u1", "-k", "2", "--explain", "--json")
    assert code == 0, err
    told = json.loads(out)
    assert [e["item"] for e in told["explanations"]] == [
        row["item_id"] for row in told["recommendations"]
    ]
    for row, why in zip(told["recommendations"], told["explanations"], strict=True):
        assert sum(p["value"] for p in why["parts"]) == pytest.approx(row["score"], abs=1e-4)
        assert row["why"] == " ".join(why["words"]) and row["why"] in err
    code, out, err = run("recommend", "rec", "--user", "u1", "--explain", "--out", "lists.csv")
    assert code == 0, err
    assert list(pd.read_csv("lists.csv").columns) == ["user_id", "item_id", "score", "rank", "why"]
    assert plain(told) == told
