"""The last layers of a sentence encoder: run alone they are the encoder, retrained they learn."""

import copy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import TRAIN
from made_logs import write_logs
from made_text import DIM, tiny_encoder

from gnnrec import datasets, text_layers
from gnnrec.checkpoint import Checkpoint
from gnnrec.config import ModelConfig, PretrainConfig, TransferConfig
from gnnrec.errors import CheckpointError, ConfigError
from gnnrec.loop import optimise
from gnnrec.recommender import Recommender
from gnnrec.runs import pretrain_run, transfer_run
from gnnrec.sources import open_file
from gnnrec.text import TextEncoder, text_available
from gnnrec.text_layers import TextTail, apply_delta, check_delta
from gnnrec.text_tuning import TextTask, _Log, _TwoTowers, tune_text

pytestmark = pytest.mark.skipif(not text_available(), reason="the [text] extra is not installed")
TEXTS = ["war and peace", "", "a ghost ship", "the sea", "stars of love", "title number 7", "king"]
FEW = TRAIN.model_copy(update={"max_steps": 4, "evaluate_every": 2, "learning_rate": 1e-2})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tiny_encoder(tmp_path_factory.mktemp("bert")))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv(datasets.CACHE_VARIABLE, str(tmp_path / "cache"))


def moved(tail, seed=0):
    """Give a tail differences that are not zero, rounded to half precision."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in tail.low_rank.parameters():
            part.copy_((0.2 * torch.randn(part.shape, generator=rng)).half())
    return tail


@pytest.mark.parametrize("n_layers", [1, 2, 3])
def test_the_last_layers_alone_give_what_the_whole_encoder_gives(folder, n_layers):
    encoder = TextEncoder(folder)
    texts = [text for text in TEXTS if text]
    tail = TextTail(encoder.base(), n_layers, rank=2)
    index = np.array([3, 0, 5])
    with torch.no_grad():
        found = tail(tail.hidden(texts), index)
    np.testing.assert_allclose(found, encoder.encode(texts)[index], atol=2e-3)
    moved(tail)
    with torch.no_grad():
        found = tail(tail.hidden(texts), np.arange(6))
    changed = TextEncoder(folder, delta=tail.delta())
    np.testing.assert_allclose(found, changed.encode(texts), atol=2e-3)
    assert np.abs(changed.encode(texts) - encoder.encode(texts)).max() > 0.05
    # A longer tail goes on from a shorter one's differences, and keeps those below its own.
    again = TextTail(encoder.base(), 1, rank=2, start=tail.delta())
    with torch.no_grad():
        np.testing.assert_allclose(again(again.hidden(texts), np.arange(6)), found, atol=2e-3)
    assert {k: v.tolist() for k, v in again.delta(tail.delta()).items()} == {
        k: v.tolist() for k, v in tail.delta().items()
    }


@pytest.mark.parametrize("kind", ["roberta", "distilbert"])
def test_other_encoders_of_the_family_work_alike(tmp_path, kind):
    encoder = TextEncoder(str(tiny_encoder(tmp_path, kind)))
    texts = [text for text in TEXTS if text]
    tail = moved(TextTail(encoder.base(), 2, rank=2))
    with torch.no_grad():
        found = tail(tail.hidden(texts), np.arange(6))
    changed = TextEncoder(encoder.model, delta=tail.delta()).encode(texts)
    np.testing.assert_allclose(found, changed, atol=2e-3)


def test_an_encoder_whose_layers_cannot_be_run_alone_is_refused(folder, monkeypatch):
    monkeypatch.setattr(text_layers, "_TOLERANCE", -1.0)
    with pytest.raises(ConfigError, match="bert encoder, whose last layers cannot be run alone"):
        TextTail(TextEncoder(folder).base(), 1)
    with pytest.raises(ConfigError, match="has 3 layers; expected text:1 to text:3"):
        TextTail(TextEncoder(folder).base(), 4)


def task_of(seed=0, n_users=12):
    rng = np.random.default_rng(seed)
    pairs = np.unique(rng.integers(0, [n_users, len(TEXTS)], (40, 2)), axis=0)
    users, items = rng.permutation(pairs).T
    return TextTask(TEXTS, users[:-6], items[:-6], (users[-6:], items[-6:]), n_users)


def test_two_steps_equal_dense_steps_by_hand(folder):
    """The loss by its formula on the whole encoder, with W + up down in each linear map."""
    task, config = task_of(), FEW.model_copy(update={"n_negatives": 4, "batch_size": 8})
    config = config.model_copy(update={"max_steps": 2, "pull_to_start": 0.1})
    tail = moved(TextTail(TextEncoder(folder).base(), 1, rank=2))
    model = _TwoTowers(tail)
    log = _Log(task, tail, 0)
    log.renew(tail)
    names = ["log_scale", *(f"tail.low_rank.{n}" for n, _ in tail.low_rank.named_parameters())]
    p = {n: dict(model.named_parameters())[n].detach().clone().double() for n in names}
    memory = log.memory.double().numpy().copy()
    centre = log.centre.double()
    start = {n: v.clone() for n, v in p.items()}
    m, v = ({n: torch.zeros_like(t) for n, t in p.items()} for _ in range(2))
    rng = np.random.default_rng(3)
    whole = copy.deepcopy(tail._whole[0]).double()
    layer = next(iter(whole)).auto_model.encoder.layer[2]
    given = whole.preprocess([TEXTS[i] for i in log.codes])
    frozen = {n: t.detach().clone() for n, t in layer.named_parameters()}
    for step in (1, 2):
        for tensor in p.values():
            tensor.requires_grad_(True).grad = None
        changed = dict(frozen)
        for name in tail.low_rank:
            short = name.replace("/", ".").partition(".")[2]
            up, down = (p[f"tail.low_rank.{name}.{half}"] for half in ("up", "down"))
            changed[f"{short}.weight"] = frozen[f"{short}.weight"] + up @ down
        whole_model = next(iter(whole)).auto_model
        tokens = {k: given[k] for k in ("input_ids", "attention_mask", "token_type_ids")}
        parameters = {f"encoder.layer.2.{n}": t for n, t in changed.items()}
        states = torch.func.functional_call(whole_model, parameters, kwargs=tokens)[0]
        mask = given["attention_mask"][..., None].double()
        vectors = (states * mask).sum(1) / mask.sum(1)
        vectors = vectors / vectors.norm(dim=1, keepdim=True)
        chosen = rng.choice(len(log.users), 8, p=log.weight)
        users, items = log.users[chosen], log.items[chosen]
        negatives = rng.choice(log.n_items, 4, replace=False)
        loss = 0.0
        visible = log.graph.user_items.toarray() > 0
        unit_memory = torch.nn.functional.normalize(torch.from_numpy(memory) - centre, dim=1)
        unit_vectors = torch.nn.functional.normalize(vectors - centre, dim=1)
        for user, item in zip(users, items, strict=True):
            others = np.array([i for i in np.flatnonzero(visible[user]) if i != item])
            n_others = min(len(others), int(np.exp(rng.uniform(0, np.log(21)))))
            others = rng.choice(others, n_others, replace=False)
            mine = torch.nn.functional.normalize(unit_memory[others].sum(0), dim=0)
            score = p["log_scale"].exp() * unit_vectors @ mine
            score = score + torch.log1p(torch.from_numpy(visible.sum(0)))
            free = [n for n in negatives if not visible[user][n]]
            shift = np.log(log.n_items / 4)
            total = score[item].exp() + sum((score[n] + shift).exp() for n in free)
            loss = loss + (total.log() - score[item]) / len(users)
        loss = loss + 0.1 * sum((p[n] - start[n]).square().sum() for n in names)
        loss.backward()
        asked = np.unique(np.concatenate([items, negatives]))
        memory[asked] = vectors.detach().numpy()[asked]
        with torch.no_grad():
            for n in names:
                m[n] = 0.9 * m[n] + 0.1 * p[n].grad
                v[n] = 0.999 * v[n] + 0.001 * p[n].grad.square()
                scaled = (v[n] / (1 - 0.999**step)).sqrt() + 1e-8
                p[n] = p[n].detach() - 1e-2 * (m[n] / (1 - 0.9**step)) / scaled
    rng = np.random.default_rng(3)
    optimise(model, lambda step: model.loss(log, config, rng), names, None, config)
    for name in names:
        np.testing.assert_allclose(
            dict(model.named_parameters())[name].detach(), p[name], atol=3e-3, err_msg=name
        )
    far = max(float((p[n] - start[n]).abs().max()) for n in names)
    assert far > 1.5e-2  # two steps of 1e-2 were made, many times the tolerance


def test_retraining_lowers_the_loss_and_repeats_itself(folder):
    config = FEW.model_copy(update={"max_steps": 80, "evaluate_every": 1, "patience": 99})
    runs = [tune_text([task_of()], TextEncoder(folder), 2, config, 0) for _ in range(2)]
    (delta, result, names, n_frozen), (other, *_) = runs
    assert all(torch.equal(delta[name], other[name]) for name in delta)
    losses = [record["loss"] for record in result.history[1:]]
    assert np.mean(losses[-20:]) < np.mean(losses[:20]) - 0.05
    assert result.best_value <= result.history[0]["value"]
    assert {name.split(".")[2] for name in names} == {"1", "2"} and n_frozen > 5_000
    check_delta(delta)
    nothing, result, _, _ = tune_text([task_of()], TextEncoder(folder), 2, config, 0, fixed_steps=0)
    assert not result.steps and not any(v.any() for k, v in nothing.items() if k.endswith(".up"))


def test_half_precision_is_near_has_its_own_vectors_and_is_trained_in_full(folder):
    texts = [text for text in TEXTS if text]
    full, half = TextEncoder(folder), TextEncoder(f"{folder}@bfloat16")
    found, expected = half.encode(texts), full.encode(texts)
    assert found.dtype == np.float32 and not np.array_equal(found, expected)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-6)
    assert (found * expected).sum(axis=1).min() > 0.999
    np.testing.assert_array_equal(full.encode(texts), expected)  # the cache holds both
    weights = {part.dtype for part in text_layers.transformer(half.base()).parameters()}
    assert weights == {torch.float32} and half.dim == full.dim == DIM
    deltas = [tune_text([task_of()], e, 1, FEW, 0, fixed_steps=4)[0] for e in (full, half)]
    assert all(torch.equal(deltas[0][name], deltas[1][name]) for name in deltas[0])


def test_the_frozen_layers_read_a_catalogue_once(folder, monkeypatch):
    """For another seed, another start of the trained layers, or a refit; not for other texts."""
    asked = []
    hidden = TextTail.hidden
    monkeypatch.setattr(
        TextTail, "hidden", lambda *args, **k: asked.append(len(args[1])) or hidden(*args, **k)
    )
    task = task_of()
    alone = tune_text([task_of()], TextEncoder(folder), 1, FEW, 1, fixed_steps=4)[0]
    first = tune_text([task], TextEncoder(folder), 1, FEW, 0)[0]
    again = tune_text([task], TextEncoder(folder, delta=first), 1, FEW, 1, fixed_steps=4)[0]
    n_texts, n_probe = len([text for text in task.texts if text]), 2
    assert asked.count(n_texts) == 2 and set(asked) == {n_texts, n_probe}
    same = tune_text([task], TextEncoder(folder), 1, FEW, 1, fixed_steps=4)[0]
    assert asked.count(n_texts) == 2
    assert all(torch.equal(alone[name], same[name]) for name in alone)
    assert any(not torch.equal(alone[name], again[name]) for name in alone)
    tune_text([task], TextEncoder(folder), 2, FEW, 0, fixed_steps=1)  # fewer are frozen
    other = replace(task, texts=[text and f"{text}!" for text in task.texts])
    tune_text([other], TextEncoder(folder), 2, FEW, 0, fixed_steps=1)
    assert asked.count(n_texts) == 4 and len(task.read) == 1


def logs(tmp_path):
    write_logs(tmp_path)
    return [
        open_file(tmp_path / f"{name}.csv", tmp_path / f"{name}.items.csv")
        for name in ("books", "shop")
    ]


@pytest.mark.parametrize("encoder", ["two-tower", "channels", "neumf"])
def test_a_text_encoder_is_pretrained_retrained_saved_and_used_on_new_items(
    folder, tmp_path, encoder
):
    source, target = logs(tmp_path)
    model = ModelConfig(encoder=encoder, text_dim=DIM, text_model=folder, text_layers=2)
    if encoder != "channels":
        model = model.model_copy(update={"dim": 8})
    pretraining = PretrainConfig(
        model=model, text=FEW, train=FEW, weigh=FEW, n_validation_episodes=2, min_users=20,
        n_lessons=4,
    )  # fmt: skip
    made = pretrain_run([source], pretraining, name="made", device="cpu")
    assert made.text and any(v.any() for k, v in made.text.items() if k.endswith(".up"))
    made.save(tmp_path / "checkpoint")
    checkpoint = Checkpoint.load(tmp_path / "checkpoint")
    assert all(torch.equal(checkpoint.text[name], part) for name, part in made.text.items())
    settings = TransferConfig(text=FEW, train=FEW, calibrate=FEW, weigh=FEW, n_weigh_folds=4)
    vectors = {}
    for retrain in ("zero-shot", "text:1", "scratch"):
        config = settings.model_copy(update={"retrain": retrain})
        recommender, report = transfer_run(checkpoint, target, config, device="cpu")
        texts = [name for name in report["trained"] if name.startswith("text_encoder.layers.")]
        assert {name.split(".")[2] for name in texts} == {
            "zero-shot": set(), "text:1": {"2"}, "scratch": {"1", "2"},
        }[retrain]  # fmt: skip
        vectors[retrain] = recommender.catalogue.text
        assert ("text_encoder" in report["parameters"]) == (retrain != "zero-shot")
        recommender.save(tmp_path / retrain)
        loaded = Recommender.load(tmp_path / retrain, device="cpu")
        pd.testing.assert_frame_equal(loaded.recommend(k=5), recommender.recommend(k=5))
        log, there = recommender.log, target.items
        new = pd.DataFrame({"user_id": [log.user_ids[0]], "item_id": ["new"]})
        text = there.align([log.item_ids[0]])[0]
        items = pd.DataFrame({"item_id": ["new"], "title": text})
        loaded.update(new, items)
        # The new item has the first one's text, so the retrained encoder gives the same vector.
        np.testing.assert_allclose(
            loaded.catalogue.text[-1], recommender.catalogue.text[0], atol=1e-5
        )
    base = TextEncoder(folder).encode(target.items.align(log.item_ids)[0])
    source_made = checkpoint.text_encoder().encode(target.items.align(log.item_ids)[0])
    np.testing.assert_allclose(vectors["zero-shot"], source_made, atol=1e-6)
    assert np.abs(vectors["zero-shot"] - base).max() > 1e-3
    assert np.abs(vectors["text:1"] - source_made).max() > 1e-3
    assert np.abs(vectors["scratch"] - source_made).max() > 1e-3


def test_held_out_edges_train_nothing(folder):
    """Text layers learn from training rows alone: other held-out edges, the same differences."""
    task = task_of()
    delta = tune_text([task], TextEncoder(folder), 1, FEW, 0, fixed_steps=4)[0]
    other = replace(task, held_out=(task.held_out[0][::-1].copy(), task.held_out[1]))
    same = tune_text([other], TextEncoder(folder), 1, FEW, 0, fixed_steps=4)[0]
    assert all(torch.equal(delta[name], same[name]) for name in delta)


def test_damage_is_refused(folder, tmp_path):
    source, target = logs(tmp_path)
    model = ModelConfig(encoder="two-tower", text_dim=DIM, text_model=folder, dim=4)
    config = PretrainConfig(model=model, train=FEW, n_validation_episodes=2, min_users=20)
    plain = pretrain_run([source], config, name="made", device="cpu")
    with pytest.raises(ConfigError, match="reads nothing but text"):
        free = config.model_copy(update={"model": ModelConfig(encoder="two-tower")})
        pretrain_run([source], free, name="made", device="cpu")
    with pytest.raises(ConfigError, match="text_layers are those of a text model"):
        layered = ModelConfig(encoder="lightgcn", text_layers=1)
        pretrain_run([source], config.model_copy(update={"model": layered}), name="made")
    delta = moved(TextTail(TextEncoder(folder).base(), 1)).delta()
    replace(plain, text=delta).save(tmp_path / "extra")
    with pytest.raises(CheckpointError, match="found a text.safetensors"):
        Checkpoint.load(tmp_path / "extra")
    name = next(iter(delta)).rpartition(".")[0]
    for wrong in (
        {f"{name}.up": delta[f"{name}.up"]},
        delta | {f"{name}.up": delta[f"{name}.up"].float()},
        delta | {f"{name}.up": delta[f"{name}.up"][:, :1]},
        delta | {f"{name}.up": delta[f"{name}.up"] * torch.inf},
        delta | {"other": delta[f"{name}.up"]},
    ):
        with pytest.raises(ConfigError, match="not a pair of finite|tensors for"):
            check_delta(wrong)
    with pytest.raises(ConfigError, match="made for another one"):
        apply_delta(TextEncoder(folder).base(), {"9.up.up": delta[f"{name}.up"]})
    few = pretrain_run(
        [source], PretrainConfig(model=ModelConfig(encoder="graph-filter")), name="f"
    )
    with pytest.raises(ConfigError, match="reads no text"):
        few.check_retrain("text:1")
    without = replace(target, items=None)
    with pytest.raises(ConfigError, match="a target without item texts"):
        transfer_run(plain, without, TransferConfig(retrain="text:1"), device="cpu")
