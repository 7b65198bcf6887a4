"""What the scores of each kind of model are the sum of; see `gnnrec.terms` for the pieces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor, nn

from gnnrec.alike import TASTE_EXPONENT, taste
from gnnrec.blend import ChannelBlend
from gnnrec.channels import NAMES, OF_TEXT, PROFILE_EXPONENT, SMALL, counted, ridge
from gnnrec.encoders import LightGCN
from gnnrec.features import GraphInput
from gnnrec.filters import GraphFilter, unit
from gnnrec.heads import standardise
from gnnrec.model import Model, Transferable
from gnnrec.ncf import EmbeddingHeads, ItemIds, NeuMF
from gnnrec.newcomers import Newcomers
from gnnrec.scores import ScoreVectors, Similarity
from gnnrec.terms import POPULARITY, Bent, Give, Linear, Near, Part, Piece, Steps
from gnnrec.two_tower import TwoTower


@torch.no_grad()
def parts_of(model: Transferable, x: GraphInput, vectors: ScoreVectors) -> list[Part]:
    """Return the parts that a model's scores of a graph are the sum of, popularity last.

    Args:
        model: On the processor.
        x: The graph that the vectors were made of, with its features.
        vectors: The scores as they are served.

    Cost: that of the model's own scores of the graph.
    """
    if isinstance(model, ChannelBlend):
        parts = _of_blend(model, x, vectors)
    elif isinstance(model, GraphFilter):
        parts = [Part("filter", "people", _of_filter(model, x, None, 0))]
    elif isinstance(model, NeuMF):
        parts = _of_neumf(model, x)
    elif isinstance(model, TwoTower):
        parts = _of_two_tower(model, x)
    else:
        parts = _of_model(model, x)
    return [*parts, POPULARITY]


def _of_model(model: Model, x: GraphInput) -> list[Part]:
    nobody = torch.zeros(0, dtype=torch.int64)
    gates = model.calibration.item_weight(x)
    root = _power(x.item_degrees, -0.5)[:, None]
    blocks = [model.encode(x, nobody), model.spectral(x, nobody), None]
    if model.text is not None:
        blocks[2] = model.text(x, nobody)
    parts, begin = [], 0
    for place, block in enumerate(blocks):
        if block is None:
            continue
        weighted = replace(block, items=block.items * gates[:, place, None])
        take = standardise(weighted, 0, x.item_degrees)[1]
        if place == 0 and model.residual is not None:
            take = take + model.residual(x.graph.n_items)
        columns, centre = slice(begin, begin + take.shape[1]), block.mean_user
        begin = columns.stop
        if place == 1:
            each = root * x.user_map(x.adjacency) * model.spectral.weights(x.spectrum.sigma)
            parts.append(Part("spectral", "people", (Linear(columns, _table(each), take, centre),)))
        elif place == 2:
            assert model.text is not None
            tables = x.propagated_components(len(model.text.layer_weights) - 1)[1]
            each = root * _sent(list(model.text.layer_weights), tables)
            parts.append(Part("text", "text", (Linear(columns, _mean(each), take, centre),)))
        elif isinstance(model.encoder, LightGCN):
            assert model.encoder.input is not None
            tables = x.propagated_text(model.encoder.n_layers)[1]
            sent = model.encoder.input(_sent(list(model.encoder.layer_weights), tables))
            give = _mean(root * model.user_head(sent))
            parts.append(Part("encoder", "text", (Linear(columns, give, take, centre),)))
        else:
            piece = _learned(model, x, columns, take, centre)
            parts.append(Part("encoder", "learned", (piece,)))
    return parts


def _learned(model: Model, x: GraphInput, columns: slice, take: Tensor, centre: Tensor) -> Bent:
    """An encoder of which no more is known than what it makes of a user's items."""
    rows = model.encoder.newcomers(x)
    assert rows is not None  # where there are vectors of users, there is what makes them

    def values(user: ScoreVectors) -> Tensor:
        return user.items[:, columns] @ user.users[0, columns]

    def bend(own: Tensor, weights: Tensor, items: Tensor) -> Tensor:
        some, place = np.nonzero(weights.numpy())
        found = (weights.numpy()[some, place], (some, own.numpy()[place]))
        some_items = sp.csr_array(found, shape=(len(weights), x.graph.n_items))
        new = Newcomers(some_items, x.graph.item_degrees, x.device)
        scores: Tensor = (model.user_head(rows(new)) - centre) @ take[items].T
        return scores

    return Bent(values, torch.no_grad()(bend), fitted=True)


def _of_filter(
    model: GraphFilter, x: GraphInput, gate: Tensor | None, begin: int
) -> tuple[Piece, ...]:
    """The filter's columns from `begin` on, and its walk; `gate` (n_items,) is on the items."""
    p = model.pieces(x)
    given = _power(x.item_degrees, -model.row_exponent.item())[:, None] * p.directions
    middle = begin + given.shape[1]
    gates = torch.ones_like(p.arriving) if gate is None else gate
    return (
        Linear(
            slice(begin, middle),
            _table(given * p.response),
            p.directions * (p.arriving * gates)[:, None],
        ),
        Linear(
            slice(middle, middle + given.shape[1]),
            _table(given * p.sigma.sqrt()),
            unit(p.directions) * gates[:, None],
        ),
        Steps(),
    )


def _of_blend(model: ChannelBlend, x: GraphInput, vectors: ScoreVectors) -> list[Part]:
    x.compact = True  # as the channels were made
    tables = _channel_tables(model, x)
    parts, begin = [], 0
    for name in NAMES:
        if name == "filter":
            width = 2 * x.spectral_rank
        elif name == "near_text" and isinstance(vectors.part, Similarity):
            width = 0
        elif name in tables:
            width = tables[name][1].shape[1]
        else:
            continue
        offset = slice(begin + width, begin + width + 2)
        gate = vectors.items[:, offset.stop - 1] / SMALL
        if name == "filter":
            pieces = _of_filter(model.filter, x, gate, begin)
        elif name == "near_text":
            pieces = (Near(),)
        else:
            give, take = tables[name]
            columns = slice(begin, begin + width)
            pieces = (Linear(columns, _table(give), take * gate[:, None]),)
        kind = "text" if name in OF_TEXT else "source" if name == "bridge" else "people"
        parts.append(Part(name, kind, pieces, offset))
        begin = offset.stop
    assert begin == vectors.items.shape[1] - 1, "the channels do not fill the vectors"
    return parts


def _channel_tables(model: ChannelBlend, x: GraphInput) -> dict[str, tuple[Tensor, Tensor]]:
    """Channel -> what an item gives a user who has it, and what it takes as a candidate."""
    degrees, s = x.item_degrees, x.spectrum
    root = _power(degrees, -0.5)[:, None]
    scale = (degrees.clamp_min(0.5).sqrt() * (degrees > 0))[:, None]
    operator, spectrum, response, items = ridge(x)
    given = root * x.user_map(x.adjacency) * s.sigma
    tables = {f"low{rank}": (given[:, :rank], s.item[:, :rank] * scale) for rank in (16, 64)}
    given = x.user_map(operator) * spectrum.sigma
    tables["ridge"] = (given * response, items)
    tables["counts"] = (given * counted(spectrum), spectrum.item)
    if model.config.text_dim and x.text is not None:
        components = x.propagated_components(3)[1]
        start, second = components[0], components[2]
        assert start is not None and second is not None
        tables["text"] = (root * start, unit(start))
        tables["deep_text"] = (root * (start + 0.5 * second), unit(start + second))
        if x.item_text is not None:
            items = taste(x)
            tables["taste"] = (_power(degrees, -TASTE_EXPONENT)[:, None] * items, items)
    matched = model.matched(x)
    if matched:
        each = torch.cat([m.vectors * m.response for m in matched], dim=1)
        rows = _power(degrees, -PROFILE_EXPONENT)[:, None]
        tables["bridge"] = (rows * each, torch.cat([m.vectors for m in matched], dim=1))
    return tables


def _of_neumf(model: NeuMF, x: GraphInput) -> list[Part]:
    nobody = torch.zeros(0, dtype=torch.int64)
    texts = model.texts(x, nobody)
    root = _power(x.item_degrees, -0.5)[:, None]
    parts: list[Part] = []
    for name, heads in model.heads.items():
        assert isinstance(heads, EmbeddingHeads)
        _, q = heads(texts, model.ids(x, name, nobody))
        table = None
        if texts is not None and heads.user is not None:
            components = x.propagated_text(3)[1]
            table = root * _sent([0.0, 1.0, 0.0, 1.0], components)
        ids = None
        if model.residual is not None:
            table_of_ids = model.residual[name]
            assert isinstance(table_of_ids, ItemIds)
            of_users = table_of_ids.of_users
            ids = nn.functional.pad(of_users, (0, 0, 0, x.graph.n_items - len(of_users)))
        give = _embedding(table, heads.user, ids, q.shape[1])
        if name == "gmf":
            piece: Piece = Linear(slice(0, q.shape[1]), give, q * model.fusion[name])
            parts.append(Part("product", "learned", (piece,)))
        else:
            parts.append(Part("tower", "learned", (_tower(model, give, q),)))
    return parts


def _embedding(
    table: Tensor | None, head: nn.Module | None, ids: Tensor | None, width: int
) -> Give:
    """What each of a user's items adds to the user's embedding: its text's part and its own id's.

    The length to which the texts are scaled is held fixed.
    """

    def give(own: Tensor) -> Tensor:
        out = torch.zeros(len(own), width)
        if table is not None and head is not None:
            mine = table[own]
            out = out + head(mine / mine.sum(dim=0).norm().clamp_min(1e-12))
        return out if ids is None else out + ids[own] * max(len(own), 1) ** -0.5

    return torch.no_grad()(give)


def _tower(model: NeuMF, give: Give, q: Tensor) -> Bent:
    tower = model.tower
    assert tower is not None
    of_items = tower.item(q)

    def values(user: ScoreVectors) -> Tensor:
        assert user.part is not None
        return user.part.columns(0, 1)[:, 0]

    def bend(own: Tensor, weights: Tensor, items: Tensor) -> Tensor:
        mine = weights @ tower.user(give(own))
        known = torch.ones(len(mine), 1)
        scores = model.tower_scores(torch.cat([mine, known], dim=1), of_items)
        return scores.table(items)

    return Bent(values, torch.no_grad()(bend))


def _of_two_tower(model: TwoTower, x: GraphInput) -> list[Part]:
    if x.text is None:
        return []
    take = unit(model.item(x.text))
    each = _power(x.item_degrees, -0.5)[:, None] * model.user(x.text)
    return [Part("text", "text", (Linear(slice(0, take.shape[1]), _table(each), take),))]


def _sent(weights: Sequence[Tensor | float], tables: list[Tensor | None]) -> Tensor:
    """What LightGCN layers bring from an item to its users: odd layers read the even ones below."""
    sent = [
        weight * table
        for weight, table in zip(weights[1:], tables, strict=False)
        if table is not None
    ]
    return torch.stack(sent).sum(dim=0)


def _table(table: Tensor) -> Give:
    return lambda own: table[own]


def _mean(table: Tensor) -> Give:
    return lambda own: table[own] * max(len(own), 1) ** -0.5


def _power(degrees: Tensor, exponent: float) -> Tensor:
    return torch.where(degrees > 0, degrees.clamp_min(1.0) ** exponent, 0.0)
