"""Pretraining a blend, weighing it on a target, and the guard that may prefer a fresh one."""

import dataclasses
import json
from typing import get_args

import numpy as np
import pytest
import torch
from conftest import make_log
from test_pretrain import block_log

from gnnrec.blend import START
from gnnrec.calibrate import weigh
from gnnrec.channels import NAMES
from gnnrec.checkpoint import Checkpoint
from gnnrec.config import ModelConfig, PretrainConfig, TrainConfig, TransferConfig
from gnnrec.lessons import lessons_of, user_ndcg
from gnnrec.loop import optimise
from gnnrec.model import build_model
from gnnrec.pretrain import pretrain
from gnnrec.sampling import Episode
from gnnrec.target import Target
from gnnrec.transfer import adapt

STEPS = TrainConfig(learning_rate=2e-2, pull_to_start=0.0, max_steps=40, evaluate_every=10)
# Of items that all logs share: in each of them item i has one rank of popularity and one group.
TEXTS = np.random.default_rng(9).standard_normal((60, 24)).astype(np.float32)
TEXTS /= np.linalg.norm(TEXTS, axis=1, keepdims=True)


def config(seed=0, text_dim=24, **changes):
    values = dict(
        model=ModelConfig(encoder="channels", text_dim=text_dim, spectral_rank=16),
        weigh=STEPS,
        n_lessons=8,
        min_users=40,
        max_users=100,
        bridge_items=50,
        seed=seed,
    )
    return PretrainConfig(**{**values, **changes})


def sources(text=True):
    logs = [block_log(seed, text=False) for seed in (0, 1)]
    return [dataclasses.replace(log, item_text=TEXTS.copy() if text else None) for log in logs]


@pytest.fixture(scope="module")
def pretrained():
    return pretrain(sources(), config(seed=3))


@pytest.fixture(scope="module")
def text_free():
    return pretrain(sources(text=False), config(text_dim=0))


def test_pretraining_ranks_better_than_its_start_on_sub_graphs_held_out(pretrained, text_free):
    for _, result in (pretrained, text_free):
        values = [record["value"] for record in result.history]
        assert [record["step"] for record in result.history] == [0, 10, 20, 30, 40]
        assert -1 < result.best_value == min(values) <= values[0] < 0
    assert pretrained[1].best_value < pretrained[1].history[0]["value"] - 0.01


def test_a_pretrained_blend_carries_each_sources_items_with_a_text(pretrained):
    model, _ = pretrained
    assert model.config.bridges == (50, 50) and not model.training
    for bridge, source in zip(model.bridges, sources(), strict=True):
        counts = np.bincount(source.items, minlength=source.n_items)
        chosen = np.sort(np.argsort(-counts, kind="stable")[:50])
        np.testing.assert_allclose(bridge.text, TEXTS[chosen], rtol=2e-3, atol=1e-4)
        np.testing.assert_allclose(bridge.popularity, counts[chosen] / counts.mean(), rtol=1e-5)
        # In the source's own graph the chosen items find themselves, and the others nobody.
        found = bridge.match(torch.from_numpy(TEXTS)).found
        assert np.flatnonzero(found).tolist() == chosen.tolist()


@pytest.mark.parametrize("change", [{"bridge_items": 0}, {"text_dim": 0}])
def test_there_may_be_no_item_tables(change):
    short = STEPS.model_copy(update={"max_steps": 2})
    with_text = "text_dim" not in change
    model, _ = pretrain(sources(with_text), config(weigh=short, n_lessons=2, **change))
    assert model.config.bridges == () and not model.bridges


def test_drawn_back_all_the_way_nothing_of_the_sources_is_left_but_their_items():
    short = STEPS.model_copy(update={"max_steps": 3})
    model, _ = pretrain(sources(), config(weigh=short, n_lessons=2, draw_back=1.0))
    some, _ = pretrain(sources(), config(weigh=short, n_lessons=2))
    start = torch.tensor([START[name] for name in NAMES])
    assert torch.equal(model.log_weight, start) and not torch.equal(some.log_weight, start)
    assert model.config.bridges == some.config.bridges == (50, 50)


def test_an_item_without_a_text_is_not_in_the_table():
    source = sources()[0]
    source.item_text[source.items[:100]] = 0.0
    n_left = len(np.setdiff1d(source.items, source.items[:100]))
    short = STEPS.model_copy(update={"max_steps": 2})
    model, _ = pretrain([source], config(weigh=short, n_lessons=2))
    assert model.config.bridges == (n_left,) and 0 < n_left < 50
    assert model.bridges[0].text.abs().sum(dim=1).min() > 0


def test_the_same_seed_gives_the_same_blend(tmp_path):
    short = STEPS.model_copy(update={"max_steps": 4, "evaluate_every": 2})
    states = [
        pretrain(sources(), config(seed, weigh=short, n_lessons=3), log=tmp_path / f"{n}.jsonl")[
            0
        ].state_dict()
        for n, seed in enumerate((1, 1, 2))
    ]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not all(torch.equal(states[0][name], states[2][name]) for name in states[0])
    first, second = (
        [json.loads(line)["value"] for line in (tmp_path / f"{n}.jsonl").read_text().splitlines()]
        for n in (0, 1)
    )
    assert first == second and len(first) == 3


# Weighing


def test_a_source_whose_users_are_all_in_every_sub_graph():
    # Nobody is left to say something of the items: bridges without a twin.
    short = STEPS.model_copy(update={"max_steps": 6})
    model, _ = pretrain(
        sources(), config(weigh=short, n_lessons=6, min_users=120, max_users=120, thinned_share=0.0)
    )
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


def target_of(seed=5, per_user=6):
    """A log of the sources' items, which few users have rated."""
    log = block_log(seed, n_users=60, n_items=60, per_user=per_user, text=False)
    return Target(log.users, log.items, log.n_users, log.n_items, torch.from_numpy(TEXTS))


def absurd(state):
    """Weights that listen to no channel at all."""
    return {n: torch.full_like(v, -40.0) if n == "log_weight" else v for n, v in state.items()}


def adapted(model, retrain="heads", *, change=None, target=None, seed=0, **changes):
    state = {name: value.clone() for name, value in model.state_dict().items()}
    checkpoint = Checkpoint("c", model.config, change(state) if change else state)
    target = target_of() if target is None else target
    rows = np.random.default_rng(0).permutation(len(target.users))
    steps = STEPS.model_copy(update={"max_steps": 100})
    values = dict(retrain=retrain, seed=seed, weigh=steps, n_weigh_folds=3)
    return adapt(checkpoint, target, rows[40:], rows[:40], TransferConfig(**{**values, **changes}))


@pytest.mark.parametrize("retrain", ["heads", "final:1", "full"])
def test_the_guard_keeps_a_good_source_and_drops_an_absurd_one(pretrained, retrain):
    model, _ = pretrained
    good, bad = adapted(model, retrain), adapted(model, retrain, change=absurd)
    assert good.choice == "transferred" and good.model.config.bridges == (50, 50)
    assert bad.choice == "scratch" and bad.model.config.bridges == ()
    off = adapted(model, retrain, change=absurd, guard=False)
    assert off.choice == "transferred" and off.model.config.bridges == (50, 50)
    assert off.model.log_weight.max() < -30


def test_what_the_guard_kept_is_what_scratch_gives(pretrained):
    model, _ = pretrained
    bad, scratch = adapted(model, change=absurd), adapted(model, "scratch")
    assert scratch.choice == "scratch"
    for name, value in scratch.model.state_dict().items():
        assert torch.equal(bad.model.state_dict()[name], value), name
    assert bad.steps == scratch.steps == 100


def test_arms_of_one_comparison_share_lessons_and_change_nothing(pretrained, monkeypatch):
    model, _ = pretrained
    made = []

    def spy(*args, **more):
        made.append(args)
        return lessons_of(*args, **more)

    twins = []

    def spy_fit(*args, label, **more):
        twins.extend([label] * (label == "guard, from scratch"))
        return optimise(*args, label=label, **more)

    monkeypatch.setattr("gnnrec.calibrate.lessons_of", spy)
    monkeypatch.setattr("gnnrec.calibrate.optimise", spy_fit)
    shared, counts, fits = target_of(), [], []
    for retrain, changes in (("heads", {}), ("final:1", {}), ("scratch", {}), ("final:1", {}),
                             ("final:1", {"seed": 3})):  # fmt: skip
        made.clear()
        twins.clear()
        found = adapted(model, retrain, target=shared, **changes)
        counts.append(len(made))
        fits.append(len(twins))
        alone = adapted(model, retrain, target=target_of(), **changes)
        for name, value in alone.model.state_dict().items():
            assert torch.equal(found.model.state_dict()[name], value), (retrain, name)
    # Three folds and the validation rows; a fresh model has no bridges, another seed other folds.
    assert counts == [4, 0, 4, 4, 4]
    assert fits == [2, 0, 0, 0, 2]  # one of each half, for all modes
    made.clear()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    rows = np.arange(len(shared.users))
    values = dict(retrain="final:1", seed=3, weigh=STEPS, n_weigh_folds=3)
    adapt(Checkpoint("c", model.config, state), shared, rows[40:], rows[:40],
          TransferConfig(**values))  # fmt: skip
    assert len(made) == 4  # other rows
    assert shared.kept and not dataclasses.replace(shared, item_text=None).kept


def test_a_mode_that_trains_nothing_has_no_choice(pretrained):
    model, _ = pretrained
    found = adapted(model, "zero-shot")
    assert found.choice == "" and found.steps == 0 and found.trained == []


@pytest.mark.parametrize("retrain", ["heads", "scratch"])
def test_weighing_is_decided_by_its_seed(pretrained, retrain):
    model, _ = pretrained
    ends = [adapted(model, retrain, seed=seed).model.state_dict() for seed in (1, 1, 2)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert not all(torch.equal(ends[0][name], ends[2][name]) for name in ends[0])


def episodes_of(target, n_folds=3):
    rows = np.random.default_rng(1).permutation(len(target.users))
    found = []
    for fold in range(n_folds):
        hidden = rows[fold::n_folds]
        x = target.graph_input(np.setdiff1d(rows, hidden), rank=16)
        found.append(Episode(x, target.users[hidden], target.items[hidden]))
    return found


def test_weighing_ranks_better_than_the_start_on_edges_it_never_saw(pretrained):
    target = target_of(per_user=12)
    rows = np.random.default_rng(2).permutation(len(target.users))
    train, test = rows[200:], rows[:200]
    part = Target(
        target.users[train], target.items[train], target.n_users, target.n_items, target.item_text
    )
    held_out = Episode(part.graph_input(rank=16), target.users[test], target.items[test])
    model, _ = pretrained
    start = build_model(model.config)
    start.load_state_dict(model.state_dict())
    with torch.no_grad():  # a source where nothing but popularity mattered
        start.log_weight.fill_(-3.0)
    found = list(lessons_of(start, held_out, 0))
    before = user_ndcg(start, found).mean()
    names = start.trained_parameters("heads")
    fast = STEPS.model_copy(update={"learning_rate": 0.1, "max_steps": 100})
    settings = TransferConfig(retrain="heads", guard=False, weigh=fast)
    end = weigh(
        lambda: None, start, names, episodes_of(part), None, part.graph_input(rank=16), settings
    )
    assert end.model is start and end.choice == "transferred" and end.result.steps == 100
    assert user_ndcg(end.model, found).mean() > before + 0.1
    assert end.result.best_value < 0


def test_the_start_weighs_as_much_as_so_many_users(pretrained, monkeypatch):
    model, _ = pretrained
    pulls = []

    def spy(model, loss, names, value, settings, **more):
        pulls.append(settings.pull_to_start)
        return optimise(model, loss, names, value, settings, **more)

    monkeypatch.setattr("gnnrec.calibrate.optimise", spy)
    target, settings = target_of(), STEPS.model_copy(update={"pull_to_start": 0.6, "max_steps": 1})
    adapted(model, target=target, weigh=settings, guard=False)
    told = sum(part.n_told for fold in target.kept["lessons"][1] for part in fold)
    assert 60 < told <= 180 and pulls == [0.6 * 3000 / told]
    adapted(model, target=target, weigh=settings)
    *guard, every = pulls[1:]
    one, one_twin, two, two_twin = guard  # of the three folds, then of them the other way round
    assert one == one_twin > two == two_twin > every == pulls[0]


def test_folds_share_the_context_of_the_whole_log(pretrained):
    model, _ = pretrained
    target = target_of()
    whole, episodes = target.graph_input(rank=16), episodes_of(target)
    seen = []
    about = type(model).about

    class Spy(type(model)):
        def about(self, x):
            seen.append(x)
            return about(self, x)

    spy = Spy(model.config)
    spy.load_state_dict(model.state_dict())
    short = STEPS.model_copy(update={"max_steps": 1})
    settings = TransferConfig(retrain="heads", guard=False, weigh=short)
    weigh(lambda: None, spy, ["log_weight"], episodes, None, whole, settings)
    assert seen and all(x is whole for x in seen)


# From the command line


def test_a_text_free_blend_from_the_command_line(work, run):
    make_log(80, 60, 1500, seed=1).to_csv("source.csv", index=False)
    (work / "p.toml").write_text(
        "n_lessons = 3\nmin_users = 20\n[model]\nspectral_rank = 16\n"
        "[weigh]\nmax_steps = 4\nevaluate_every = 2\n"
    )
    (work / "t.toml").write_text("[weigh]\nmax_steps = 4\n")
    code, out, err = run(
        *("pretrain", "--source", "source.csv", "--out", "new", "--config", "p.toml"),
        *("--encoder", "channels", "--json"),
    )
    assert code == 0, err
    assert json.loads(out)["steps"] == 4
    for retrain in ("zero-shot", "heads", "scratch"):
        code, out, err = run(
            *("transfer", "new", "--target", "log.csv", "--out", f"o-{retrain}", "--json"),
            *("--retrain", retrain, "--config", "t.toml"),
        )
        assert code == 0, err
        assert json.loads(out)["steps"] == (0 if retrain == "zero-shot" else 4)
        code, out, err = run("recommend", f"o-{retrain}", "--json", "-k", 3)
        assert code == 0 and json.loads(out)["recommendations"], err


def test_the_help_names_every_encoder(run):
    code, out, _ = run("pretrain", "--help")
    assert code == 0
    for name in get_args(ModelConfig.model_fields["encoder"].annotation):
        assert name in out
