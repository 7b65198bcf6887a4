"""NeuMF, GMF and MLP equal He et al.'s forward pass written densely, and transfer as others do."""

import numpy as np
import pytest
import torch
from dense import centred, double_parameters, graph_input, layers_summed, random_graph, unit
from hypothesis import given, settings
from hypothesis import strategies as st

from gnnrec.checkpoint import Checkpoint
from gnnrec.config import ModelConfig, TrainConfig
from gnnrec.errors import CheckpointError, ConfigError
from gnnrec.features import GraphInput
from gnnrec.graph import BipartiteGraph
from gnnrec.ncf import NCF, NeuMF
from gnnrec.sampling import Episode
from gnnrec.train import batch_loss, fit, held_out_loss

N_USERS, N_ITEMS = 9, 14


def config_of(name="neumf", n_layers=3, text_dim=6):
    return ModelConfig(
        encoder=name, dim=2, n_layers=n_layers, text_dim=text_dim, text_model="some model"
    )


def model_of(name="neumf", seed=0, n_items=N_ITEMS, **sizes):
    torch.manual_seed(seed)
    model = NeuMF(config_of(name, **sizes), n_items)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def embeddings(p, part, matrix, texts):
    """p_u and q_i: what the heads make of texts, and the residual ids."""
    root = matrix / matrix.sum(dim=1, keepdim=True).clamp_min(1.0).sqrt()
    users, items = torch.zeros(len(matrix), 1), torch.zeros(matrix.shape[1], 1)
    if f"residual.{part}.of_users" in p:
        users, items = root @ p[f"residual.{part}.of_users"], p[f"residual.{part}.of_items"]
    if texts is not None:
        users = users + texts[0] @ p[f"heads.{part}.user.weight"].T
        items = items + texts[1] @ p[f"heads.{part}.item.weight"].T
    return users, items


def logit(p, parts, user, item):
    """He et al. 2017: h . [p * q; the tower of [p'; q']], equations 9 to 12, for one pair."""
    fused = []
    for part in parts:
        own, other = user[part], item[part]
        if part == "gmf":
            fused.append((own * other) @ p["fusion.gmf"])
            continue
        first = torch.cat([p["tower.user.weight"], p["tower.item.weight"]], dim=1)
        hidden = (first @ torch.cat([own, other]) + p["tower.item.bias"]).relu()
        layer = 0
        while f"tower.layers.{layer}.weight" in p:
            weight, bias = p[f"tower.layers.{layer}.weight"], p[f"tower.layers.{layer}.bias"]
            hidden, layer = (weight @ hidden + bias).relu(), layer + 1
        fused.append(hidden @ p["fusion.mlp"])
    return torch.stack(fused).sum()


def dense_scores(p, x, text):
    matrix = torch.from_numpy(x.graph.user_items.toarray()).double()
    texts = None
    if text is not None:
        text = centred(text)
        users, _ = layers_summed([0.0, 1.0, 0.0, 1.0], matrix, text)
        _, items = layers_summed([1.0, 0.0, 1.0, 0.0], matrix, text)
        texts = unit(users), unit(items)
    parts = [part for part in ("gmf", "mlp") if f"fusion.{part}" in p]
    tables = {part: embeddings(p, part, matrix, texts) for part in parts}
    known = matrix.sum(dim=1) > 0
    rows = []
    for u in range(len(matrix)):
        user = {part: tables[part][0][u] for part in parts}
        row = [
            logit(p, parts, user, {part: tables[part][1][i] for part in parts})
            for i in range(matrix.shape[1])
        ]
        rows.append(torch.stack(row) * known[u] * p["log_scale"].exp())
    prior = p["bias.log_prior"].clamp(-8.0, 6.0).exp()
    bias = torch.log(matrix.sum(dim=0) + prior) - torch.log(matrix.sum() / matrix.shape[1])
    return torch.stack(rows) + p["bias.slope"] * bias


@pytest.mark.parametrize("name", NCF)
@pytest.mark.parametrize("n_layers", [1, 2, 3])
@pytest.mark.parametrize("kind", ["text and ids", "text", "ids"])
def test_scores_equal_the_papers_forward_pass(name, n_layers, kind):
    x = graph_input(3, text=kind != "ids")
    sizes = {"n_layers": n_layers, "text_dim": 0 if kind == "ids" else 6}
    model = model_of(name, n_items=None if kind == "text" else N_ITEMS, **sizes)
    with torch.no_grad():
        found = model(x)
        some = model(x, torch.tensor([3, 8, 3]))
    expected = dense_scores(double_parameters(model), x, x.item_text).float().detach()
    torch.testing.assert_close(found.rows(0, N_USERS), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(some.rows(0, 3), expected[[3, 8, 3]], atol=1e-4, rtol=1e-4)
    assert expected.std() > 0.1
    # The isolated user, and somebody unknown, get the item bias.
    torch.testing.assert_close(found.of(np.array([-1])).rows(0, 1)[0], expected[-1])


def test_the_forward_pass_with_unit_scale_and_no_bias_is_the_papers_logit():
    x, model = graph_input(1), model_of()
    with torch.no_grad():
        model.bias.slope.zero_()
        model.log_scale.zero_()
        found = model(x).rows(0, N_USERS)
    p = double_parameters(model)
    matrix = torch.from_numpy(x.graph.user_items.toarray()).double()
    text = centred(x.item_text)
    texts = (
        unit(layers_summed([0.0, 1.0, 0.0, 1.0], matrix, text)[0]),
        unit(layers_summed([1.0, 0.0, 1.0, 0.0], matrix, text)[1]),
    )
    tables = {part: embeddings(p, part, matrix, texts) for part in ("gmf", "mlp")}
    for u, i in ((0, 0), (2, 5), (4, 13)):
        user, item = (
            {part: t[side][row] for part, t in tables.items()} for side, row in ((0, u), (1, i))
        )
        expected = logit(p, ("gmf", "mlp"), user, item).item()
        assert found[u, i].item() == pytest.approx(expected, 1e-4)


def dense_loss(scores, matrix, batch, loss):
    values = []
    for u, i in zip(batch.users.tolist(), batch.items.tolist(), strict=True):
        others = scores[u][matrix[u] == 0]
        own = scores[u, i]
        if loss == "softmax":
            values.append(torch.log(own.exp() + others.exp().sum()) - own)
        else:
            log_sigmoid = torch.nn.functional.logsigmoid
            values.append(-log_sigmoid(own) - 4.0 * log_sigmoid(-others).mean())
    return torch.stack(values).mean()


@pytest.mark.parametrize("name", NCF)
@pytest.mark.parametrize("loss", ["softmax", "binary"])
def test_one_step_of_training_equals_a_dense_step_by_hand(name, loss):
    x, model = graph_input(2), model_of(name, 2)
    episode = Episode(x, *x.graph.edges())
    config = TrainConfig(
        loss=loss, batch_size=12, n_negatives=N_ITEMS, learning_rate=0.01, max_steps=1,
        pull_to_start=0.0, user_balance=0.0,
    )  # fmt: skip
    batch = episode.batch(12, N_ITEMS, 0.0, np.random.default_rng(4))
    p = double_parameters(model)
    matrix = torch.from_numpy(x.graph.user_items.toarray())
    value = dense_loss(dense_scores(p, x, x.item_text), matrix, batch, loss)
    with torch.no_grad():
        assert float(batch_loss(model, episode, batch, config)) == pytest.approx(value.item(), 1e-4)
    gradients = torch.autograd.grad(value, list(p.values()))
    names = model.trained_parameters("full")
    fit(model, lambda step: episode, names, None, config, np.random.default_rng(4))
    n_clear = 0
    for (key, start), g in zip(p.items(), gradients, strict=True):
        expected = start.detach() - 0.01 * g / (g.abs() + 1e-8)  # Adam's first step
        clear = g.abs() > 1e-5
        after = model.get_parameter(key).detach().double()
        torch.testing.assert_close(after[clear], expected[clear], atol=1e-4, rtol=0)
        n_clear += int(clear.sum())
    assert n_clear > 0.3 * sum(g.numel() for g in gradients)


def test_a_held_out_loss_counts_the_tower():
    x, model = graph_input(4), model_of()
    episode = Episode(x, *x.graph.edges())
    scores = dense_scores(double_parameters(model), x, x.item_text)
    matrix = torch.from_numpy(x.graph.user_items.toarray())
    losses = []
    for u, i in zip(*x.graph.edges(), strict=True):
        others = scores[u][matrix[u] == 0]
        losses.append(torch.log(scores[u, i].exp() + others.exp().sum()) - scores[u, i])
    with torch.no_grad():
        assert held_out_loss(model, episode) == pytest.approx(
            torch.stack(losses).mean().item(), 1e-4
        )


def test_what_a_mode_trains():
    model = model_of()
    everything = [name for name, _ in model.named_parameters()]
    heads = model.trained_parameters("heads")
    assert model.trained_parameters("zero-shot") == []
    assert model.trained_parameters("full") == everything
    assert not any(name.startswith(("tower.", "fusion.")) for name in heads)
    last = set(model.trained_parameters("final", 1)) - set(heads)
    assert last == {"fusion.gmf", "fusion.mlp", "tower.layers.1.weight", "tower.layers.1.bias"}
    assert set(model.trained_parameters("final", 3)) == set(everything)
    with pytest.raises(ConfigError, match="final:1 to final:3"):
        model.trained_parameters("final", 4)
    assert set(model_of("gmf").trained_parameters("final", 1)) == set(
        model_of("gmf").trained_parameters("full")
    )


def test_the_interaction_layers_are_carried_over_and_the_bias_and_the_ids_are_not():
    source, target = model_of(seed=1, n_items=None), model_of(seed=2, n_items=5)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    target.load_pretrained(source.state_dict())
    for name, value in target.state_dict().items():
        new = name.startswith(("bias.", "residual."))
        assert torch.equal(value, before[name] if new else source.state_dict()[name]), name


def test_neumf_starts_from_a_trained_product_and_a_trained_tower():
    x = graph_input(5)
    parts = {name: model_of(name, seed, None) for seed, name in enumerate(("gmf", "mlp"))}
    model = model_of(n_items=None)
    model.take(parts, 0.3)
    with torch.no_grad():
        for part in parts.values():
            part.bias.load_state_dict(parts["gmf"].bias.state_dict())
        found = model(x).rows(0, N_USERS)
        bias = model(x).items[:, -1]
        product, tower = (part(x).rows(0, N_USERS) - bias for part in parts.values())
    torch.testing.assert_close(found, 0.3 * product + 0.7 * tower + bias, atol=1e-5, rtol=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(NCF))
def test_renumbering_users_and_items_renumbers_the_scores(seed, name):
    rng = np.random.default_rng(seed)
    graph, model = random_graph(seed), model_of(name, seed)
    text = torch.from_numpy(rng.standard_normal((N_ITEMS, 6)).astype(np.float32))
    user_order, item_order = rng.permutation(N_USERS), rng.permutation(N_ITEMS)
    users, items = graph.edges()
    moved = BipartiteGraph(user_order[users], item_order[items], N_USERS, N_ITEMS)
    moved_text = torch.empty_like(text)
    moved_text[item_order] = text
    with torch.no_grad():
        expected = model(GraphInput(graph, text)).rows(0, N_USERS)
        for ids in model.residual.values():
            for table in ids.parameters():
                table[item_order] = table.clone()
        found = model(GraphInput(moved, moved_text)).rows(0, N_USERS)
    torch.testing.assert_close(found[user_order][:, item_order], expected, atol=1e-4, rtol=1e-4)


def test_a_checkpoint_comes_back_and_a_changed_one_does_not(tmp_path):
    model = model_of(n_items=None)
    with torch.no_grad():
        model.bias.slope.fill_(1.0)  # the bias is new on every target
        model.bias.log_prior.zero_()
    made = Checkpoint("some", model.config, model.state_dict())
    made.save(tmp_path / "some")
    read = Checkpoint.load(tmp_path / "some")
    x = graph_input(6)
    with torch.no_grad():
        assert torch.equal(read.model()(x).rows(0, N_USERS), model(x).rows(0, N_USERS))
    weights = tmp_path / "some" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\x00\x00\x80\x3f")
    with pytest.raises(CheckpointError):
        Checkpoint.load(tmp_path / "some")


def test_chunks_of_users_score_as_all_at_once(monkeypatch):
    x, model = graph_input(7), model_of()
    with torch.no_grad():
        vectors = model(x)
        expected = vectors.rows(0, N_USERS)
        monkeypatch.setattr("gnnrec.tower._CHUNK", 1)
        torch.testing.assert_close(vectors.rows(0, N_USERS), expected)
        torch.testing.assert_close(vectors.rows(2, 2), expected[2:2])


def test_beside_texts_residual_ids_start_without_effect():
    x = graph_input(8)
    torch.manual_seed(3)
    with_ids, without = NeuMF(config_of(), N_ITEMS), NeuMF(config_of())
    without.load_state_dict({n: v for n, v in with_ids.state_dict().items() if "residual" not in n})
    with torch.no_grad():
        assert torch.equal(with_ids(x).rows(0, N_USERS), without(x).rows(0, N_USERS))
    alone = NeuMF(config_of(text_dim=0), N_ITEMS)
    assert all(float(table.std()) > 0.05 for table in alone.residual.parameters())
