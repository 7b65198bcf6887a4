"""The channels and their blend written once more, dense and in double precision."""

import numpy as np
import torch
from dense import centred, power, random_graph, random_text

from gnnrec.blend import ChannelBlend
from gnnrec.channels import NAMES
from gnnrec.config import ModelConfig
from gnnrec.features import GraphInput

RANK = 16


def blend_of(seed=0, text_dim=6, bridges=(11,), moved=0.2, rank=RANK):
    """A blend with every parameter moved off its start; its bridges know some of `random_text`."""
    config = ModelConfig(
        encoder="channels",
        text_dim=text_dim,
        spectral_rank=rank,
        bridges=bridges if text_dim else (),
    )
    torch.manual_seed(seed)
    model = ChannelBlend(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(moved * torch.randn_like(parameter))
        for number, bridge in enumerate(model.bridges):
            far = random_graph(seed + 90 + number, 13, 17)
            texts = far_texts(number, 17)
            bridge.take(GraphInput(far, texts, spectral_rank=RANK), torch.arange(len(bridge.text)))
    return model


def near_texts(n_items=14):
    """Unit rows; item 1 has none."""
    return torch.nn.functional.normalize(random_text(7, n_items), dim=1)


def far_texts(number, n_items):
    """A source's texts: those of items 3.. of the target, in another order, then others."""
    near = near_texts()[3:].flip(0)[number : number + 6]
    rest = random_text(50 + number, n_items - len(near))
    return torch.nn.functional.normalize(torch.cat([near, rest]), dim=1)


def input_of(seed=0, text=True, rank=RANK, **sizes):
    graph = random_graph(seed, **sizes)
    return GraphInput(graph, near_texts(graph.n_items) if text else None, spectral_rank=rank)


def matrix_of(graph):
    return torch.from_numpy(graph.user_items.toarray()).double()


def low_pass(matrix, rank):
    """The leading part of D_u^-1/2 R D_i^-1/2, back on the scale of R."""
    users, items = matrix.sum(1), matrix.sum(0)
    u, sigma, vt = torch.linalg.svd(
        power(users, -0.5)[:, None] * matrix * power(items, -0.5), full_matrices=False
    )
    low = (u[:, :rank] * sigma[:rank]) @ vt[:rank]
    return users.sqrt()[:, None] * low * items.sqrt()


def unit(rows):
    return torch.nn.functional.normalize(rows, dim=1)


def text_layers(matrix, item_text):
    """The text channel and the one two layers deeper, as cosines."""
    text = centred(item_text)
    a = power(matrix.sum(1), -0.5)[:, None] * matrix * power(matrix.sum(0), -0.5)
    first, second = a @ text, a.T @ a @ text
    deep = unit(first + 0.5 * a @ second) @ unit(text + second).T
    return unit(first) @ unit(text).T, deep


def ridge_without_self(matrix, rank):
    """EASE's ranking of other items: R S, column j over 1 - S_jj, S the ridge's hat matrix."""
    u, sigma, vt = torch.linalg.svd(matrix, full_matrices=False)
    u, sigma, vt = u[:, :rank], sigma[:rank], vt[:rank]
    squares = sigma.square()
    hat = (vt.T * (squares / (squares + 0.05 * squares.max()))) @ vt
    low = (u * sigma) @ vt
    return low @ hat / (1 - hat.diagonal()).clamp_min(0.05)


def counts_of(matrix, rank):
    """How often an item was had together with a user's items, in the leading directions."""
    u, sigma, vt = torch.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * sigma[:rank] ** 3) @ vt[:rank]


def bridged(matrix, matched):
    """A user's items, rare ones first, against the item, in the directions of each source."""
    rows = matrix * power(matrix.sum(0), -0.3)
    total = 0.0
    for part in matched:
        vectors = part.vectors.double()
        total = total + rows @ (vectors * part.response.double()) @ vectors.T
    return total


def near_texts_of(matrix, item_text):
    """A user's items, rare ones first, times exp(10 (cosine - 1)) of each one's 20 nearest."""
    cosine = item_text.double() @ item_text.double().T
    cosine.fill_diagonal_(-1.0)
    k = min(20, len(cosine) - 1)
    bar = cosine.topk(k, dim=1).values[:, -1:]
    weights = torch.exp(10 * (cosine - 1)) * (cosine >= bar) * (cosine > 0)
    return (matrix * power(matrix.sum(0), -0.5)) @ weights


def tasted(matrix, item_text):
    """Ridge of the co-occurrences on the texts, an item's own left out."""
    text = item_text.double()
    a = power(matrix.sum(1), -0.5)[:, None] * matrix * power(matrix.sum(0), -0.5)
    among = a.T @ a
    own = torch.diag(among.diagonal())
    variance = text.T @ own @ text
    ridge = 3.0 * variance.diagonal().mean() * torch.eye(text.shape[1], dtype=torch.float64)
    inverse = torch.linalg.inv(variance + ridge)
    metric = inverse @ text.T @ (among - own) @ text @ inverse
    values, vectors = torch.linalg.eigh((metric + metric.T) / 2)
    half = text @ (vectors * values.clamp_min(0.0).sqrt())
    return (matrix * power(matrix.sum(0), -0.5)) @ half @ half.T


def raw_channels(x, graph_filter, matched):
    """Name -> (n_users, n_items) float64 scores before they are put on one scale."""
    matrix = matrix_of(x.graph)
    with torch.no_grad():
        filtered = graph_filter(x).rows(0, x.graph.n_users).double()
    raw = {
        "filter": filtered - 1e-6 * torch.log1p(matrix.sum(0)),  # its bias is no channel's
        "low16": low_pass(matrix, min(16, x.spectral_rank)),
        "low64": low_pass(matrix, min(64, x.spectral_rank)),
        "ridge": ridge_without_self(matrix, x.spectral_rank),
        "counts": counts_of(matrix, x.spectral_rank),
    }
    if x.item_text is not None:
        raw["text"], raw["deep_text"] = text_layers(matrix, x.item_text)
        raw["near_text"] = near_texts_of(matrix, x.item_text)
        raw["taste"] = tasted(matrix, x.item_text)
    if matched:
        raw["bridge"] = bridged(matrix, matched)
    return raw


def standardised(raw, matrix):
    """Less the mean user, less each user's weighted mean over items, over the spread."""
    active, weights = matrix.sum(1) > 0, matrix.sum(0) / matrix.sum()
    centre = raw - raw[active].mean(0)
    centre = centre - (centre @ weights)[:, None]
    return centre / ((centre[active] ** 2 @ weights).mean().sqrt() + 1e-6)


def all_channels(x, graph_filter, matched):
    """(n_channels, n_users, n_items) float64; what is not there is zero."""
    matrix = matrix_of(x.graph)
    raw = raw_channels(x, graph_filter, matched)
    nothing = torch.zeros_like(matrix)
    return torch.stack(
        [standardised(raw[name], matrix) if name in raw else nothing for name in NAMES]
    )


def network(p, name, inputs):
    hidden = torch.tanh(inputs @ p[f"{name}.0.weight"].T + p[f"{name}.0.bias"])
    return hidden @ p[f"{name}.2.weight"].T + p[f"{name}.2.bias"]


def blended(p, channels, user_degrees, item_degrees, about, popularity):
    """(n_users, n_items) float64 scores, differentiable in the parameters `p`."""
    about, popularity = about.double(), popularity.double()
    n, of_graph = len(NAMES), about[:8]
    areas, lifts = about[8 : 8 + n], about[8 + n :]
    n_present = max(int((channels.abs().amax(dim=(1, 2)) > 0).sum()), 1)
    of_all = torch.stack([areas.sum() / n_present, lifts.sum() / n_present, lifts.max()])
    log_degree = user_degrees.double().log1p()
    log_gates, slopes = [], []
    for c in range(n):
        told = torch.cat([torch.stack([areas[c], lifts[c]]), of_graph, of_all])
        inputs = torch.cat([log_degree[:, None] / 3, told.repeat(len(log_degree), 1)], dim=1)
        moved = p["log_weight"][c] + log_degree * p["user_slope"][c]
        log_gates.append(moved + network(p, "gate_network", inputs)[:, 0])
        slopes.append(p["item_slope"][c] + 0.3 * network(p, "slope_network", told)[0])
    gates = torch.stack(log_gates, dim=1).exp() * (log_degree[:, None] > 0)
    items = (1 + item_degrees.double())[:, None] ** torch.stack(slopes)
    bias = blended_bias(p, item_degrees, about, popularity)
    return bias + torch.einsum("cui,uc,ic->ui", channels, gates, items)


def blended_bias(p, item_degrees, about, popularity):
    """(n_items,) float64: the log posterior mean of Poisson counts under Gamma priors."""
    shift = network(p, "bias_network", about.double()[:8])
    prior = torch.exp((p["bias.log_prior"] + shift[0]).clamp(-8, 6))
    source = torch.exp((p["bias.log_source"] + shift[1]).clamp(-8, 6))
    degrees, popularity = item_degrees.double(), popularity.double()
    known = [i for i in range(len(degrees)) if popularity[i] > 0]
    strange = [i for i in range(len(degrees)) if popularity[i] == 0]
    per_unit = (degrees[known].sum() + 0.5) / popularity[known].sum().clamp_min(0.5)
    rate = torch.exp(p["bias.log_scale"].clamp(-8, 6)) * per_unit
    other = (degrees[strange].sum() + 0.5) / (len(strange) + 1)
    means = [rate * popularity[i] if i in known else other for i in range(len(degrees))]
    shapes = [source if i in known else prior for i in range(len(degrees))]
    mean, shape = torch.stack(means), torch.stack(shapes)
    return torch.log((degrees + shape) / (1 + shape / mean))


def popular(matched, n_items):
    return sum((m.popularity for m in matched), torch.zeros(n_items))


def permuted(x, user_order, item_order):
    """The same graph and texts with user u renamed user_order[u], item i item_order[i]."""
    users, items = x.graph.edges()
    graph = type(x.graph)(user_order[users], item_order[items], x.graph.n_users, x.graph.n_items)
    text = None if x.item_text is None else x.item_text[np.argsort(item_order)]
    return GraphInput(graph, text, spectral_rank=x.spectral_rank)


def matched_by(model, x):
    return [bridge.match(x.item_text) for bridge in model.bridges] if x.text is not None else []
