"""What kind of graph a blend is on, and what each channel is worth on it, in a few numbers."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from gnnrec.channels import NAMES, Channels
from gnnrec.device import numpy_generator
from gnnrec.graph import BipartiteGraph

N_GRAPH = 6
N_CONTEXT = N_GRAPH + 2 + 2 * len(NAMES)
_HAS_TEXT = N_GRAPH - 1
_FOUND = N_GRAPH - 2
_TWINS = N_GRAPH
_AREAS = N_GRAPH + 2
_LIFTS = _AREAS + len(NAMES)
_INNER_SHARE = 0.2  # of a graph's edges, hidden to see what each channel is worth on it
_INNER_USERS = 150
_DOUBT = 60.0  # hidden edges at which an area counts half
_EQUAL = 1e-4  # of a channel's spread: equal scores may differ by rounding, as machines round
_AT_ONCE = 64  # hidden edges whose items are compared with all others
_TOP = 0.02  # of the interactions: the items that hold them are a channel's top


def context(
    channels: Channels, inner: Channels | None, hidden: tuple[np.ndarray, np.ndarray]
) -> Tensor:
    """Return (N_CONTEXT,) float32: what kind of graph this is, and what each channel says on it.

    - six numbers of the graph: mean degrees, counts, the share of interactions on items with a
      twin in a source, whether there is text;
    - the area under the ROC curve of hidden edges for the twins' popularity and the items' own,
      against items drawn uniformly;
    - the same area for each channel, against items drawn by popularity;
    - each channel's lift: the log of how many more hidden edges than by chance lie among the
      items that the channel puts first for the user and that hold a fiftieth of all interactions.
      A channel can be silent on most items and right where it speaks, which an area does not show.

    Areas are drawn towards 1/2, lifts towards 0 where few edges could be hidden.

    Args:
        channels: Of the whole graph.
        inner: Of the graph without the hidden edges; None where there is nothing to hide.
        hidden: (n,) int64 users and items of the hidden edges.
    """
    graph = channels.graph
    active_users = max(int((graph.user_degrees > 0).sum()), 1)
    active_items = max(int((graph.item_degrees > 0).sum()), 1)
    values = [
        math.log1p(graph.n_edges / active_users) / 3,
        math.log1p(graph.n_edges / active_items) / 3,
        math.log(max(graph.n_items, 1)) / 10,
        math.log1p(graph.n_edges) / 12,
        float(channels.found @ channels.weights),
        float(channels.has_text),
    ]
    told = [0.0] * (N_CONTEXT - N_GRAPH)
    if inner is not None:
        told = _told(inner, *hidden, channels.seed)
    return torch.tensor(values + told, dtype=torch.float32, device=channels.device)


def hide(graph: BipartiteGraph, seed: int) -> tuple[BipartiteGraph, np.ndarray, np.ndarray] | None:
    """Hide a fifth of a graph's edges: (the rest, hidden users, hidden items); None if too few."""
    edges = graph.user_items.tocoo()
    users, items = edges.row.astype(np.int64), edges.col.astype(np.int64)
    hidden = numpy_generator(seed, "inner").random(len(users)) < _INNER_SHARE
    if not hidden.any() or hidden.all():
        return None
    rest = BipartiteGraph(users[~hidden], items[~hidden], graph.n_users, graph.n_items)
    return rest, users[hidden], items[hidden]


def silenced(about: Tensor, names: tuple[str, ...]) -> Tensor:
    """Return a context as it is where some channels are not there."""
    about = about.clone()
    for name in names:
        place = NAMES.index(name)
        about[[_AREAS + place, _LIFTS + place]] = 0.0
    if "text" in names:
        about[_HAS_TEXT] = 0.0
    if "bridge" in names:
        about[[_FOUND, _TWINS]] = 0.0
    return about


def graph_part(about: Tensor) -> Tensor:
    """Return (N_GRAPH + 2,): all but what is told of the channels."""
    return about[:_AREAS]


def channel_part(about: Tensor) -> Tensor:
    """Return (n_channels, 2): each channel's area and lift."""
    return torch.stack([about[_AREAS:_LIFTS], about[_LIFTS:]], dim=1)


def _told(inner: Channels, users: np.ndarray, items: np.ndarray, seed: int) -> list[float]:
    trust = len(users) / (len(users) + _DOUBT)
    rng = numpy_generator(seed, "context")
    asked = np.unique(users)
    if len(asked) > _INNER_USERS:
        asked = np.sort(rng.choice(asked, _INNER_USERS, replace=False))
        keep = np.isin(users, asked)
        users, items = users[keep], items[keep]
    row = np.searchsorted(asked, users)
    degrees = inner.item_degrees.cpu().numpy().astype(np.float64)
    popular = rng.choice(len(degrees), len(items), p=(degrees + 0.1) / (degrees + 0.1).sum())
    uniform = rng.integers(0, len(degrees), len(items))
    scores = inner.rows(asked).cpu().numpy()
    areas = [
        _area(values[items], values[uniform])
        for values in (inner.popularity.cpu().numpy(), degrees)
    ]
    areas += [_area(z[row, items], z[row, popular]) for z in scores]
    n = len(items)
    lifts = [
        math.log((n * _share_on_top(z, row, items, degrees) + 1.0) / (n * _TOP + 1.0)) / 2
        for z in scores
    ]
    return [4 * trust * (area - 0.5) for area in areas] + lifts


def _area(positive: np.ndarray, negative: np.ndarray) -> float:
    gap = positive - negative
    return float(np.mean((gap > _EQUAL) + 0.5 * (np.abs(gap) <= _EQUAL)))


def _share_on_top(z: np.ndarray, row: np.ndarray, items: np.ndarray, degrees: np.ndarray) -> float:
    """Share of the hidden edges that lie on a user's top; chance where all scores are equal.

    Before an item come those with a higher score, and half of the others with the same one.
    """
    degrees = degrees.astype(np.float32)
    on_top = np.empty(len(row))
    for begin in range(0, len(row), _AT_ONCE):
        users, asked = row[begin : begin + _AT_ONCE], items[begin : begin + _AT_ONCE]
        gap = z[users] - z[users, asked][:, None]
        higher = (gap > _EQUAL).astype(np.float32) @ degrees
        not_lower = (gap >= -_EQUAL).astype(np.float32) @ degrees
        before = (higher + not_lower - degrees[asked]) / 2
        flat = gap.max(axis=1) - gap.min(axis=1) <= _EQUAL
        on_top[begin : begin + _AT_ONCE] = np.where(flat, _TOP, before < _TOP * degrees.sum())
    return float(np.mean(on_top))
