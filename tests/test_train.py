import json

import numpy as np
import pytest
import torch
from dense import double_parameters, random_graph, random_model, random_text, scores
from torch.nn.functional import logsigmoid

from gnnrec.config import ModelConfig, TrainConfig
from gnnrec.errors import ConfigError, GnnrecError
from gnnrec.features import GraphInput
from gnnrec.graph import BipartiteGraph
from gnnrec.loop import optimise
from gnnrec.model import build_model
from gnnrec.sampling import Episode
from gnnrec.train import batch_loss, fit, held_out_loss

NAMES = ["graphsage", "lightgcn"]


def settings(**changes):
    values = dict(
        loss="softmax",
        n_negatives=100,
        batch_size=12,
        learning_rate=0.01,
        pull_to_start=0.0,
        max_steps=4,
        evaluate_every=1,
        patience=50,
        user_balance=0.5,
    )
    return TrainConfig(**{**values, **changes})


def episode_of(seed=0):
    """Every fourth edge is hidden; every user keeps some, so the matrix keeps its rank."""
    users, items = random_graph(seed).edges()
    hidden = np.arange(len(users)) % 4 == 1
    visible = BipartiteGraph(users[~hidden], items[~hidden], 9, 14)
    x = GraphInput(visible, random_text(seed), spectral_rank=16)
    return Episode(x, users[hidden], items[hidden])


def positives(episode):
    dense = episode.input.graph.user_items.toarray().astype(bool)
    dense[episode.users, episode.items] = True
    return torch.from_numpy(dense)


def dense_loss(p, model, episode, users, items, kind="softmax"):
    """Full softmax (or pairwise) loss of some hidden edges, over all items that are no positive."""
    matrix = torch.from_numpy(episode.input.graph.user_items.toarray())
    table = scores(p, model.config, matrix, random_text(0))
    known, losses = positives(episode), []
    for u, i in zip(users.tolist(), items.tolist(), strict=True):
        others = table[u][~known[u]]
        if kind == "bpr":
            losses.append(-logsigmoid(table[u, i] - others))
        else:
            everything = torch.cat([table[u, i][None], others])
            losses.append(-torch.log_softmax(everything, dim=0)[:1])
    return torch.cat(losses).mean()


def run(model, episode, trained=None, evaluate=None, seed=0, **changes):
    names = model.trained_parameters("full") if trained is None else trained
    rng = np.random.default_rng(seed)
    return fit(model, lambda step: episode, names, evaluate, settings(**changes), rng)


def snapshot(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("loss", ["softmax", "bpr"])
@pytest.mark.parametrize("mode", ["full", "final", "heads"])
def test_one_step_equals_a_dense_step_by_hand(name, loss, mode):
    episode, model = episode_of(), random_model(name, 3)
    trained = model.trained_parameters(mode, 1)
    batch = episode.batch(12, 100, 0.5, np.random.default_rng(5))  # what fit will draw
    p = double_parameters(model)
    value = dense_loss(p, model, episode, batch.users, batch.items, loss)
    with torch.no_grad():
        found = batch_loss(model, episode, batch, settings(loss=loss))
    assert float(found) == pytest.approx(value.item(), abs=1e-4)
    gradients = dict(
        zip(
            trained,
            torch.autograd.grad(value, [p[n] for n in trained], allow_unused=True),
            strict=True,
        )
    )
    result = run(model, episode, trained, seed=5, max_steps=1, loss=loss, pull_to_start=0.1)
    assert result.steps == 1
    n_checked = n_all = 0
    for parameter_name, after in snapshot(model).items():
        start, g = p[parameter_name].detach(), gradients.get(parameter_name)
        if g is None:
            assert torch.equal(after.double(), start), parameter_name
            continue
        # Adam's first step; at the start there is nothing to pull back from.
        expected = start - 0.01 * g / (g.abs() + 1e-8)
        # Below this a gradient is rounding error, of which Adam sees only the sign.
        clear = g.abs() > 1e-5
        n_checked, n_all = n_checked + int(clear.sum()), n_all + int((g != 0).sum())
        torch.testing.assert_close(after.double()[clear], expected[clear], atol=1e-4, rtol=0)
    assert n_checked >= 0.95 * n_all > 30


@pytest.mark.parametrize("name", NAMES)
def test_gradients_equal_dense_autograd(name):
    episode, model = episode_of(), random_model(name, 4)
    batch = episode.batch(12, 100, 0.5, np.random.default_rng(0))
    batch_loss(model, episode, batch, settings()).backward()
    p = double_parameters(model)
    dense_loss(p, model, episode, batch.users, batch.items).backward()
    for parameter_name, parameter in model.named_parameters():
        torch.testing.assert_close(
            parameter.grad.double(), p[parameter_name].grad, atol=2e-4, rtol=2e-3
        )


@pytest.mark.parametrize("residual", [None, 14])
@pytest.mark.parametrize("loss", ["softmax", "bpr"])
def test_with_full_fan_out_a_sampled_batch_has_the_same_loss_and_gradients(loss, residual):
    episode, model = episode_of(), random_model("graphsage", 4, n_target_items=residual)
    batches = [
        episode.batch(12, 6, 0.5, np.random.default_rng(0), fan_out)
        for fan_out in (None, (14, 14, 14))
    ]
    found = []
    for batch in batches:
        model.zero_grad()
        value = batch_loss(model, episode, batch, settings(loss=loss))
        value.backward()
        found.append({n: p.grad.clone() for n, p in model.named_parameters()} | {"loss": value})
    assert batches[0].blocks is None and batches[1].blocks is not None
    for parameter_name, gradient in found[0].items():
        torch.testing.assert_close(found[1][parameter_name], gradient, atol=2e-5, rtol=1e-3)


def test_training_on_sampled_neighbours_lowers_the_whole_graphs_loss():
    episode, model = episode_of(), random_model("graphsage", 8)
    result = run(
        model, episode, evaluate=lambda m: held_out_loss(m, episode), max_steps=30,
        evaluate_every=10, fan_out=(3, 2, 2),
    )  # fmt: skip
    assert result.best_value < result.history[0]["value"] - 0.1


@pytest.mark.parametrize("name", NAMES)
def test_a_fan_out_that_does_not_suit_the_model_is_an_error(name):
    with pytest.raises(ConfigError, match="train.fan_out is"):
        run(random_model(name), episode_of(), fan_out=(3, 3))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("chunk", [3, 512])
def test_held_out_loss_equals_the_dense_softmax(name, chunk):
    episode, model = episode_of(), random_model(name, 5)
    with torch.no_grad():
        found = held_out_loss(model, episode, chunk=chunk)
        some = held_out_loss(model, episode, max_edges=4, chunk=chunk)
    p = double_parameters(model)
    expected = dense_loss(p, model, episode, episode.users, episode.items)
    assert found == pytest.approx(expected.item(), abs=1e-4)
    expected = dense_loss(p, model, episode, episode.users[:4], episode.items[:4])
    assert some == pytest.approx(expected.item(), abs=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_parameters_that_are_not_trained_keep_their_bits(name):
    episode, model = episode_of(), random_model(name)
    before, trained = snapshot(model), model.trained_parameters("final", 1)
    run(model, episode, trained, evaluate=lambda m: held_out_loss(m, episode), pull_to_start=0.1)
    run(model, episode, trained)
    after = snapshot(model)
    assert {n for n in before if not torch.equal(before[n], after[n])} <= set(trained)
    moved = [n for n in trained if not torch.equal(before[n], after[n])]
    assert len(moved) > len(trained) // 2


def test_no_trained_parameters_train_nothing():
    episode, model = episode_of(), random_model("lightgcn")
    before = snapshot(model)
    assert run(model, episode, []).steps == 0
    assert all(torch.equal(before[n], p) for n, p in snapshot(model).items())


class Script:
    """Returns the scripted values in turn and remembers the parameters that it saw."""

    def __init__(self, values):
        self.values, self.seen = values, []

    def __call__(self, model):
        assert not torch.is_grad_enabled()
        self.seen.append(snapshot(model))
        return self.values[len(self.seen) - 1]


def same(left, right):
    return all(torch.equal(left[n], right[n]) for n in left)


def test_early_stopping_keeps_the_best_parameters():
    model = random_model("lightgcn")
    script = Script([5.0, 3.0, 4.0, 2.0, 2.5, 2.0, 9.0, 1.0])
    result = run(model, episode_of(), evaluate=script, max_steps=7, patience=3)
    assert (result.steps, result.best_step, result.best_value) == (6, 3, 2.0)
    assert len(script.seen) == 7  # the third miss in a row ends it before the 1.0
    assert same(snapshot(model), script.seen[3])
    assert not same(script.seen[3], script.seen[6])
    assert [r["step"] for r in result.history] == list(range(7))
    assert [r["value"] for r in result.history] == script.values[:7]


def test_a_better_value_starts_the_patience_anew():
    script = Script([5.0, 6.0, 4.0, 6.0, 3.0, 6.0])
    model = random_model("lightgcn")
    result = run(model, episode_of(), evaluate=script, max_steps=5, patience=2)
    assert (result.steps, result.best_step) == (5, 4)
    assert same(snapshot(model), script.seen[4])


def test_the_starting_point_stays_where_nothing_is_better():
    model = random_model("lightgcn")
    before, script = snapshot(model), Script([1.0, 1.0, 2.0, 1.5, 1.0])
    result = run(model, episode_of(), evaluate=script)
    assert (result.best_step, result.best_value) == (0, 1.0)
    assert same(snapshot(model), before) and not same(script.seen[4], before)


def test_evaluations_come_at_their_steps_and_at_the_end():
    model = random_model("lightgcn")
    script = Script([5.0, 4.0, 3.0, 2.0])
    result = run(model, episode_of(), evaluate=script, max_steps=7, evaluate_every=3)
    assert [r["step"] for r in result.history] == [0, 3, 6, 7]
    assert result.best_step == 7 and same(snapshot(model), script.seen[3])


def test_without_evaluation_all_steps_run_and_the_last_parameters_stay():
    model = random_model("lightgcn")
    before = snapshot(model)
    result = run(model, episode_of())
    assert result.steps == 4 and result.history == []
    assert not same(snapshot(model), before)


def test_each_step_asks_for_its_episode_and_the_log_holds_each_evaluation(tmp_path):
    model, episode, asked = random_model("lightgcn"), episode_of(), []

    def episode_at(step):
        asked.append(step)
        return episode

    fit(
        model,
        episode_at,
        model.trained_parameters("heads"),
        Script([3.0, 2.0, 1.0]),
        settings(evaluate_every=2),
        np.random.default_rng(0),
        log=tmp_path / "log.jsonl",
        label="here",
    )
    assert asked == [0, 1, 2, 3]
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(r["label"], r["step"], r["value"]) for r in lines] == [
        ("here", 0, 3.0),
        ("here", 2, 2.0),
        ("here", 4, 1.0),
    ]


def test_a_loss_that_is_not_finite_is_an_error():
    model = random_model("lightgcn")
    with torch.no_grad():
        model.bias.slope.fill_(torch.nan)
    with pytest.raises(
        GnnrecError,
        match=r"became nan at step 0 .* rate 0\.01; lower the stage's learning_rate in --config",
    ):
        run(model, episode_of())


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_bits(name):
    ends = []
    for seed in (1, 1, 2):
        model = random_model(name)
        run(model, episode_of(), seed=seed, n_negatives=5)
        ends.append(snapshot(model))
    assert same(ends[0], ends[1]) and not same(ends[0], ends[2])


def test_the_pull_keeps_parameters_near_their_start():
    distances = []
    for pull in (0.0, 1.0, 1000.0):
        model = random_model("graphsage")
        before = snapshot(model)
        run(model, episode_of(), max_steps=40, pull_to_start=pull)
        after = snapshot(model)
        distances.append(sum(float((after[n] - before[n]).square().sum()) for n in before))
    assert distances[0] > 2 * distances[1] > 4 * distances[2]


def test_the_second_step_is_pulled_by_the_distance_of_the_first():
    # Adam's second step by hand, for one parameter: the pull enters through its gradient.
    episode, weight, rate = episode_of(), 3.0, 0.01
    model = random_model("lightgcn", 6)
    start, rng = model.bias.slope.detach().clone().double(), np.random.default_rng(0)
    value, first, second = start, 0.0, 0.0
    for step in (1, 2):
        batch = episode.batch(12, 100, 0.5, rng)
        p = double_parameters(model)
        p["bias.slope"] = value.clone().requires_grad_(True)
        loss = dense_loss(p, model, episode, batch.users, batch.items)
        (g,) = torch.autograd.grad(loss, p["bias.slope"])
        g = g + 2 * weight * (value - start)
        first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g * g
        root = (second / (1 - 0.999**step)).sqrt() + 1e-8
        value = value - rate * first / (1 - 0.9**step) / root
    run(model, episode, ["bias.slope"], max_steps=2, pull_to_start=weight)
    assert float(model.bias.slope) == pytest.approx(value.item(), abs=1e-5)


def test_the_learning_rate_decays_to_zero_by_a_cosine():
    # With one trained scalar and a steep bias, Adam's steps are close to the learning rate.
    moves = {}
    for decay in (False, True):
        model, script = random_model("lightgcn"), Script([1.0] * 9)
        fit(model, lambda step: episode_of(), ["bias.slope"], script,
            settings(max_steps=8, learning_rate=1e-4), np.random.default_rng(0),
            decay_learning_rate=decay)  # fmt: skip
        path = torch.stack([s["bias.slope"] for s in script.seen])
        moves[decay] = path.diff().abs().numpy()
    shares = 0.5 * (1 + np.cos(np.pi * np.arange(8) / 8))
    np.testing.assert_allclose(moves[True] / moves[False], shares, atol=0.02)


@pytest.mark.parametrize("name", NAMES)
def test_training_lowers_the_loss(name):
    episode, model = episode_of(), random_model(name, 8)
    result = run(
        model, episode, evaluate=lambda m: held_out_loss(m, episode), max_steps=30,
        evaluate_every=10,
    )  # fmt: skip
    assert result.best_value < result.history[0]["value"] - 0.1
    with torch.no_grad():
        assert held_out_loss(model, episode) == pytest.approx(result.best_value, abs=1e-6)
    assert result.summary()["best_step"] == result.best_step


def quadratic(depths, **changes):
    """Two numbers pulled to zero, b two layers below a."""
    model = torch.nn.Module()
    model.a = torch.nn.Parameter(torch.tensor(3.0))
    model.b = torch.nn.Parameter(torch.tensor(3.0))
    path = []

    def loss(step):
        path.append((model.a.item(), model.b.item()))
        return 0.5 * (model.a.square() + model.b.square())

    config = settings(learning_rate=0.1, **changes)
    optimise(model, loss, ["a", "b"], None, config, depths=depths)
    return [*path, (model.a.item(), model.b.item())]


def test_lower_layers_learn_more_slowly_and_later():
    depths = {"b": 2}
    plain = quadratic(depths)
    assert all(a == b for a, b in plain)  # the defaults know no depth
    slower = quadratic(depths, layer_decay=0.5)
    assert [a for a, _ in slower] == [a for a, _ in plain]
    # Adam's first step is the learning rate, whatever the gradient.
    assert slower[1][1] == pytest.approx(3.0 - 0.1 * 0.25, abs=1e-6)
    later = quadratic(depths, unfreeze_every=1)
    assert [b for _, b in later[:3]] == [3.0, 3.0, 3.0]
    # From its first step on it is as if training had begun there.
    assert [b for _, b in later[2:]] == [b for _, b in plain[:3]]
    assert [a for a, _ in later] == [a for a, _ in plain]


@pytest.mark.parametrize("encoder", ["lightgcn", "graphsage", "neumf", "two-tower", "channels"])
def test_every_family_says_how_deep_its_parameters_are(encoder):
    text = {"text_dim": 6, "text_model": "made-up"}
    model = build_model(ModelConfig(encoder=encoder, **text), 5 if encoder != "channels" else None)
    everything = model.trained_parameters("full")
    depths = model.depths(everything)
    assert set(depths) == set(everything) and min(depths.values()) == 0
    assert not any(depths[name] for name in model.trained_parameters("heads"))
    if encoder == "channels":
        assert max(depths.values()) == 2
        return
    total = model.n_retrained_layers()
    for layer in range(1, total + 1):
        for name in model.layer_parameters(layer):
            assert depths[name] == total - layer
    last = set(model.trained_parameters("final", 1))
    assert {name for name in everything if depths[name] == 0} <= last
