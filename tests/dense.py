"""The whole score written once more, dense and in double precision: what the package must equal."""

import math

import numpy as np
import torch

from gnnrec.config import ModelConfig
from gnnrec.features import GraphInput
from gnnrec.graph import BipartiteGraph
from gnnrec.model import Model


def random_graph(seed, n_users=9, n_items=14, density=0.4):
    """A random graph whose last user and last item are isolated."""
    rng = np.random.default_rng(seed)
    matrix = rng.random((n_users, n_items)) < density
    matrix[np.arange(n_users), np.arange(n_users) % n_items] = True
    matrix[-1], matrix[:, -1] = False, False
    users, items = np.nonzero(matrix)
    return BipartiteGraph(users, items, n_users, n_items)


def random_text(seed, n_items=14, dim=6):
    """Random text; item 1 has none."""
    vectors = np.random.default_rng(seed).standard_normal((n_items, dim)).astype(np.float32)
    vectors[1] = 0.0
    return torch.from_numpy(vectors)


def random_model(encoder, seed=0, text_dim=6, n_target_items=None, n_layers=3, dim=5, rank=16):
    """A model with every parameter moved off its start, so that no part is a no-op."""
    config = ModelConfig(
        encoder=encoder, dim=dim, n_layers=n_layers, text_dim=text_dim, spectral_rank=rank
    )
    torch.manual_seed(seed)
    model = Model(config, n_target_items)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def graph_input(seed, text=True, rank=16, **sizes):
    graph = random_graph(seed, **sizes)
    vectors = random_text(seed, graph.n_items) if text else None
    return GraphInput(graph, vectors, spectral_rank=rank)


def double_parameters(model):
    """Name -> a float64 leaf copy of the parameter."""
    return {name: p.detach().double().requires_grad_(True) for name, p in model.named_parameters()}


def unit(rows):
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)


def power(degrees, exponent):
    return torch.where(degrees > 0, degrees.clamp_min(1.0) ** exponent, torch.zeros_like(degrees))


def centred(text):
    text = text.double()
    present = (text != 0).any(dim=1)
    if present.sum() < 2:
        return text
    return unit(text - text[present].mean(dim=0)) * present[:, None]


def layers_summed(weights, matrix, items):
    """A^k applied to the stacked (users, items) table, weighted and summed; users start at zero."""
    n_users = len(matrix)
    a = torch.zeros(sum(matrix.shape), sum(matrix.shape), dtype=torch.float64)
    a[:n_users, n_users:], a[n_users:, :n_users] = matrix, matrix.T
    scale = power(a.sum(dim=1), -0.5)
    a = scale[:, None] * a * scale
    layer = torch.cat([torch.zeros(n_users, items.shape[1], dtype=torch.float64), items])
    out = weights[0] * layer
    for weight in weights[1:]:
        layer = a @ layer
        out = out + weight * layer
    return out[:n_users], out[n_users:]


def lightgcn(p, matrix, text, n_layers):
    weights = [p[f"encoder.layer_weights.{number}"] for number in range(n_layers + 1)]
    return layers_summed(weights, matrix, text @ p["encoder.input.weight"].T)


def graphsage(p, matrix, text, n_layers):
    def linear(name, x):
        y = x @ p[f"encoder.{name}.weight"].T
        return y + p[f"encoder.{name}.bias"] if f"encoder.{name}.bias" in p else y

    def degree_features(d):
        return torch.stack([torch.log1p(d) / 10.0, (d > 0).double()], dim=1)

    user_degrees, item_degrees = matrix.sum(dim=1), matrix.sum(dim=0)
    users = linear("user_degree", degree_features(user_degrees))
    items = linear("item_degree", degree_features(item_degrees))
    if text is not None:
        items = items + linear("input", text)
    user_mean = matrix * power(user_degrees, -1.0)[:, None]
    item_mean = matrix.T * power(item_degrees, -1.0)[:, None]
    for k in range(n_layers):
        users, items = (
            linear(f"layers.{k}.user_self", users)
            + linear(f"layers.{k}.user_neighbour", user_mean @ items),
            linear(f"layers.{k}.item_self", items)
            + linear(f"layers.{k}.item_neighbour", item_mean @ users),
        )
        if k + 1 < n_layers:
            users, items = users.relu(), items.relu()
    return unit(users), unit(items)


def spectral(p, matrix, rank):
    user_degrees, item_degrees = matrix.sum(dim=1), matrix.sum(dim=0)
    normalised = power(user_degrees, -0.5)[:, None] * matrix * power(item_degrees, -0.5)
    u, sigma, vt = torch.linalg.svd(normalised, full_matrices=False)
    u, sigma, vt = u[:, :rank], sigma[:rank], vt[:rank]
    response = p["spectral.response"]
    knots = torch.linspace(0.0, 1.0, len(response), dtype=torch.float64)
    hats = (1.0 - (sigma[:, None] - knots).abs() * (len(response) - 1)).clamp_min(0.0)
    users = user_degrees.sqrt()[:, None] * u * (hats @ response)
    items = vt.T * torch.where(
        item_degrees > 0, item_degrees.clamp_min(1.0) ** p["spectral.item_exponent"], 0.0
    ).unsqueeze(1)
    return users, items


def scores(p, config, matrix, text):
    """(n_users, n_items) float64 scores, differentiable in the parameters `p`.

    Residual ids are added per channel; with them, `config.spectral_rank` may not exceed the
    smaller side of the matrix, where the basis of the spectral channel would be free.
    """
    matrix = matrix.double()
    text = None if text is None or not config.text_dim else centred(text)
    user_degrees, item_degrees = matrix.sum(dim=1), matrix.sum(dim=0)
    channels = []
    if config.encoder == "graphsage":
        channels.append((0, graphsage(p, matrix, text, config.n_layers)))
    elif text is not None:
        channels.append((0, lightgcn(p, matrix, text, config.n_layers)))
    if channels:
        users, items = channels[0][1]
        channels = [(0, (users @ p["user_head.weight"].T, items @ p["item_head.weight"].T))]
    channels.append((1, spectral(p, matrix, config.spectral_rank)))
    if text is not None and "text.layer_weights" in p:
        channels.append((2, layers_summed(p["text.layer_weights"], matrix, text)))

    context = torch.tensor(
        [
            math.log1p(float(matrix.sum()) / matrix.shape[0]) / 5.0,
            math.log1p(float(matrix.sum()) / matrix.shape[1]) / 5.0,
            math.log(matrix.shape[1]) / 5.0,
        ],
        dtype=torch.float64,
    )
    log_degree = torch.log1p(user_degrees)[:, None]
    inputs = torch.cat([log_degree / 3.0, context.expand(len(matrix), 3)], dim=1)
    hidden = torch.tanh(
        inputs @ p["calibration.context.0.weight"].T + p["calibration.context.0.bias"]
    )
    gates = torch.exp(
        p["calibration.log_weight"]
        + p["calibration.degree_slope"] * log_degree
        + hidden @ p["calibration.context.2.weight"].T
        + p["calibration.context.2.bias"]
    ) * (user_degrees > 0).unsqueeze(1)

    item_slope = p.get("calibration.item_slope", torch.zeros(3, dtype=torch.float64))
    item_gates = torch.exp(torch.log1p(item_degrees)[:, None] * item_slope)

    total = torch.zeros(matrix.shape, dtype=torch.float64)
    share = item_degrees / item_degrees.sum()
    active = user_degrees > 0
    for channel, (users, items) in channels:
        personal = users - (user_degrees / user_degrees.sum()) @ users
        raw = personal @ (items * item_gates[:, channel, None]).T
        raw = raw - (raw @ share)[:, None]  # the weighted mean over the items, user by user
        variance = (raw.square() @ share)[active].mean()
        scale = 1.0 / torch.sqrt(variance + 1e-8)
        if "residual.items" in p and channel == 0:
            raw = raw + personal @ (p["residual.gate"] * p["residual.items"]).T
        total = total + gates[:, channel, None] * scale * raw

    prior = p["bias.log_prior"].expand(matrix.shape[1])
    if text is not None:
        prior = prior + 4.0 * (text @ p["bias.text.weight"][0])
    bias = p["bias.slope"] * torch.log(item_degrees + prior.clamp(-8.0, 6.0).exp())
    return total + bias
