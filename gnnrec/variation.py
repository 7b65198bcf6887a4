"""What a source might have had: bridges, texts and variants of items, as pretraining makes them up.

A handful of sources has a handful of ways in which texts and twins matter. Varied at random, a
blend learns how to trust a channel by what it shows instead of by its name.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from gnnrec.bridge import BRIDGE_RANK, Matched, item_directions
from gnnrec.episodes import Source
from gnnrec.features import GraphInput
from gnnrec.graph import BipartiteGraph
from gnnrec.sampling import Episode

_OTHERS = (500, 8000)  # users whose interactions make an episode's bridge or text
_DRAWN = (0.7, 0.6, 0.6)  # how often a made text holds the real one, directions, and noise
_MOST_USERS, _MOST_EDGES = 10_000, 400_000  # of a source whose items come in variants
_MOST_VARIANTS = 12


def made_bridge(source: Source, episode: Episode, rng: np.random.Generator) -> Matched:
    """What other users of the source say of an episode's items."""
    x = episode.input
    far, vectors, response = _others(source, episode, rng)
    codes = torch.from_numpy(episode.item_codes).to(x.device)
    n_items = len(codes)
    found = torch.from_numpy(rng.random(n_items) < rng.uniform(0.1, 1.0)).to(x.device)
    found = (found & (far.item_degrees[codes] > 0)).float()
    drift = torch.from_numpy(np.exp(rng.normal(0.0, rng.uniform(0.0, 1.2), n_items)))
    # What is rare in the episode because it was made rare is rare where it resembles it.
    popularity = far.item_degrees[codes] * _tensor(episode.item_shares, x)
    mean = popularity.sum() / max(int((popularity > 0).sum()), 1)
    popularity = popularity / mean.clamp_min(1e-12) * drift.to(popularity) * found
    return Matched(vectors[codes] * found[:, None], response, popularity, found)


def made_text(source: Source, episode: Episode, rng: np.random.Generator) -> Tensor:
    """Return (n_items, text_dim) unit rows: the real texts, what others' choices say, and noise.

    Each in a random amount, or not at all. So texts range from useless to as good as a history,
    as they do between catalogues.
    """
    x = episode.input
    assert x.item_text is not None, "texts are made of texts"
    _, vectors, response = _others(source, episode, rng)
    codes = torch.from_numpy(episode.item_codes).to(x.device)
    directions = torch.nn.functional.normalize((vectors * response.sqrt())[codes], dim=1)
    width = x.item_text.shape[1]
    amounts = [math.exp(rng.normal()) * (rng.random() < often) for often in _DRAWN]
    turn = np.linalg.qr(rng.normal(size=(max(width, directions.shape[1]), directions.shape[1])))[0]
    noise = torch.nn.functional.normalize(_tensor(rng.normal(size=x.item_text.shape), x), dim=1)
    parts = (x.item_text, directions @ _tensor(turn[:width].T, x), noise)
    mixed = torch.stack([amount * part for amount, part in zip(amounts, parts, strict=True)])
    return torch.nn.functional.normalize(mixed.sum(dim=0), dim=1)


def with_variants(source: Source, rng: np.random.Generator) -> Source:
    """Return some users of a source as if its items came in variants, as colours and sizes do.

    A random share of the items is split into two to twelve whose texts are close to each other;
    who chose the item chose one of them, an uneven draw, and perhaps others. Near texts are worth
    much here, and popular items have them too, which books and films alone would not teach.

    Cost: O(edges of 10,000 users), however large the source is.
    """
    chosen = rng.choice(
        source.n_users, min(_MOST_USERS, source.n_users), replace=False, shuffle=False
    )
    edges = source.graph.user_items[np.sort(chosen)].tocoo()
    users, items = edges.row.astype(np.int64), edges.col.astype(np.int64)
    if len(users) > _MOST_EDGES:
        kept = np.sort(rng.choice(len(users), _MOST_EDGES, replace=False))
        users, items = users[kept], items[kept]
    codes, items = np.unique(items, return_inverse=True)
    split = rng.random(len(codes)) < rng.uniform(0.3, 1.0)
    drawn = np.minimum(rng.geometric(rng.uniform(0.2, 0.7), len(codes)), _MOST_VARIANTS - 1)
    count = 1 + split * drawn
    first = np.cumsum(count) - count
    place = (count[items] * rng.random(len(items)) ** rng.uniform(1.0, 3.0)).astype(np.int64)
    parts = [(users, first[items] + place)]
    often = rng.uniform(0.03, 0.5)
    for step in range(1, int(count.max())):
        also = (count[items] > step) & (rng.random(len(items)) < often)
        code = items[also]
        parts.append((users[also], first[code] + (place[also] + step) % count[code]))
    text = None
    if source.item_text is not None:
        text = source.item_text[codes].repeat(count, axis=0)
        noise = rng.normal(size=text.shape) / math.sqrt(text.shape[1])
        known = np.linalg.norm(text, axis=1, keepdims=True) > 0
        text = text + known * noise * math.sqrt(1.0 / rng.uniform(0.6, 0.95) - 1.0)
        text /= np.linalg.norm(text, axis=1, keepdims=True) + ~known
        text = text.astype(np.float32)
    renamed = rng.permutation(int(count.sum()))  # codes of variants are no neighbours
    users, items = (np.concatenate(values) for values in zip(*parts, strict=True))
    if text is not None:
        text = text[np.argsort(renamed)]
    name = f"{source.name}, in variants"
    return Source(name, users, renamed[items], len(chosen), len(renamed), text)


def _others(
    source: Source, episode: Episode, rng: np.random.Generator
) -> tuple[GraphInput, Tensor, Tensor]:
    """The graph of random users who are not in an episode, its item directions and response."""
    others = np.setdiff1d(np.arange(source.n_users), episode.user_codes)
    low, high = (min(bound, len(others)) for bound in _OTHERS)
    n = round(math.exp(rng.uniform(math.log(max(low, 1)), math.log(max(high, 1)))))
    rows = source.graph.user_items[np.sort(rng.permutation(others)[:n])].tocoo()
    graph = BipartiteGraph(
        rows.row.astype(np.int64), rows.col.astype(np.int64), max(n, 1), source.n_items
    )
    x = episode.input
    far = GraphInput(graph, spectral_rank=BRIDGE_RANK, device=x.device, seed=x.seed)
    return far, *item_directions(far)


def _tensor(values: np.ndarray, x: GraphInput) -> Tensor:
    return torch.from_numpy(values).float().to(x.device)
