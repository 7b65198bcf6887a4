"""Training a channel blend: whole rankings of a few users, since its channels are constants."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from gnnrec.blend import START, ChannelBlend, shrunk_counts
from gnnrec.channels import NAMES, Channels
from gnnrec.context import silenced
from gnnrec.device import numpy_generator
from gnnrec.graph import BipartiteGraph
from gnnrec.metrics import per_user_metrics
from gnnrec.rank import top_k_from
from gnnrec.sampling import Episode

MAX_LESSON_USERS = 500
_K = 20
_WIDTH = 0.05  # of the spread of popularity: how soft a place on the list is
_LEAST_VARIANCE = 1e-8
_FAR = 1e6
_LARGEST = 3e4  # half of what float16 holds; a spread is 1
_MAX_SCORES = 2_500_000  # users x items of one lesson, whatever the graph
_MAX_LESSONS = 6  # of one episode: a large log says enough, and takes its time
_LEADING = 192  # candidates by all channels with the weights that a fresh model has
_BY_ONE = 16  # and by each channel alone
_AT_ONCE = 64  # users whose whole rankings are in memory at a time: more leave the cache


@dataclass(frozen=True)
class Lesson:
    """Some users of a graph with their channels' scores of candidates, and what was hidden.

    Candidates of a user are all items that are not visible, or where there are many those that
    could be on a list: the first of a fresh model's weights, the first of each channel, and what
    is hidden. They are the same for every model of the same channels.

    Attributes:
        channels: Of the visible graph.
        context: (N_CONTEXT,) of the visible graph.
        users: (n,) int64 codes.
        scores: (n_channels, n, m) float16 constants.
        degrees: (n, m) float32, the candidates' visible degrees; (1, m) where all users have the
            same candidates.
        popularity: The same of their twins' popularity in sources.
        valid: (n, m) bool; other places hold nothing, or a visible item.
        row, column: (e,) int64, the hidden edges by place in `users` and among the candidates.
        weight: (n,) float64 with mean one: what each user counts.
    """

    channels: Channels
    context: Tensor
    users: np.ndarray
    scores: Tensor
    degrees: Tensor
    popularity: Tensor
    valid: Tensor
    row: Tensor
    column: Tensor
    weight: np.ndarray

    @property
    def n_users(self) -> int:
        """How many users."""
        return len(self.users)

    @property
    def n_told(self) -> int:
        """How many of them have a visible interaction: the others say nothing of the channels."""
        return int((self.channels.user_degrees[torch.from_numpy(self.users)] > 0).sum())

    def light(self) -> Lesson:
        """Return it without the channels' own vectors, which a fit does not read."""
        return replace(self, channels=self.channels.light())

    def without(self, names: tuple[str, ...]) -> Lesson:
        """Return it as a model sees it whose graph input or own tables do not give some channels.

        As if made by such a model, to the bit, but for what these channels made a candidate.
        """
        channels = copy.copy(self.channels)
        channels.present = [
            there and name not in names for name, there in zip(NAMES, channels.present, strict=True)
        ]
        popularity = self.popularity
        if "text" in names:
            channels.has_text = False
        if "bridge" in names:
            channels.found = torch.zeros_like(channels.found)
            channels.popularity = torch.zeros_like(channels.popularity)
            popularity = torch.zeros_like(popularity)
        context = silenced(self.context, names)
        return replace(self, channels=channels, context=context, popularity=popularity)

    def scored(self, model: ChannelBlend) -> Tensor:
        """Return (n, m) scores, -inf where nothing is; gradients reach the weights."""
        personal, bias = self.summands(model)
        return (personal + bias).masked_fill(~self.valid, -torch.inf)

    def summands(self, model: ChannelBlend) -> tuple[Tensor, Tensor]:
        """Return what `scored` adds up: the channels' sum (n, m) and the bias (1 or n, m)."""
        index = torch.from_numpy(self.users).to(self.context.device)
        degrees = self.channels.user_degrees[index]
        gates, slopes = model.gates_and_slopes(self.channels, self.context, degrees)
        bias = model.item_bias(self.channels, self.context, (self.degrees, self.popularity))
        present = [place for place, there in enumerate(self.channels.present) if there]
        logs = torch.log1p(self.degrees)
        total: Tensor = _Sum.apply(self.scores, present, gates, slopes, logs)  # type: ignore[no-untyped-call]
        return total, bias


class _Sum(torch.autograd.Function):
    """The sum over channels c of gates[u, c] (1 + d_i)^slopes[c] scores[c, u, i].

    Most of a fit, put together from torch's own operations: here a table of scores is read twice a
    channel, and no product is kept for the way back.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        scores: Tensor,
        present: list[int],
        gates: Tensor,
        slopes: Tensor,
        logs: Tensor,
    ) -> Tensor:
        total = torch.zeros(scores.shape[1:], device=scores.device)
        for place in present:
            items = (slopes[place] * logs).exp_()
            total.addcmul_(gates[:, place, None], scores[place] * items)
        ctx.save_for_backward(scores, gates, slopes, logs)
        ctx.present = present
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        scores, gates, slopes, logs = ctx.saved_tensors
        of_gates, of_slopes = torch.zeros_like(gates), torch.zeros_like(slopes)
        for place in ctx.present:
            table = scores[place] * grads[0] * (slopes[place] * logs).exp_()
            of_gates[:, place] = table.sum(dim=1)
            of_slopes[place] = gates[:, place] @ (table * logs).sum(dim=1)
        return None, None, of_gates, of_slopes, None


def lessons_of(
    model: ChannelBlend,
    episode: Episode,
    seed: int,
    *,
    about: Tensor | None = None,
    max_users: int = MAX_LESSON_USERS,
) -> Iterator[Lesson]:
    """Draw users of an episode and compute their channels, so many users a lesson.

    Args:
        model: Whose channels.
        episode: Visible graph and hidden edges.
        seed: Draws the users.
        about: The context, where it is that of a larger graph (folds of one log share the log's).
        max_users: How many at most in one lesson.

    Yields:
        Up to six lessons that share no user, each made when it is asked for; none where nothing is
        hidden.

    Memory: whole rankings of 64 users, or of all where items are few, while a lesson is made, then
    the scores of the candidates, in float16.
    """
    x = episode.input
    users = np.unique(episode.users)
    if not len(users):
        return
    n = max(1, min(max_users, _MAX_SCORES // x.graph.n_items))
    users = numpy_generator(seed, "lesson").permutation(users)[: n * _MAX_LESSONS]
    channels = model.channels(x)
    if about is None:
        about = model.about(x)
    for part in np.array_split(users, -(-len(users) // n)):
        yield _lesson(channels, about, episode, np.sort(part))


@torch.no_grad()
def _lesson(channels: Channels, about: Tensor, episode: Episode, users: np.ndarray) -> Lesson:
    """The lesson of some users, in order."""
    x = episode.input
    n, n_items = len(users), x.graph.n_items
    keep = np.isin(episode.users, users)
    row = np.searchsorted(users, episode.users[keep])
    hidden = BipartiteGraph(row, episode.items[keep], n, n_items).user_items
    table = {"degrees": channels.item_degrees[None], "popularity": channels.popularity[None]}
    if n_items > 2 * _LEADING:
        parts = [
            _candidates(channels, users[part], hidden[part])
            for part in np.array_split(np.arange(n), -(-n // _AT_ONCE))
        ]
        width = max(codes.shape[1] for codes, _, _, _ in parts)
        codes, valid, scores = (
            torch.cat([pad(t, (0, width - t.shape[-1])) for t in tables], dim=-2)
            for tables in list(zip(*parts, strict=True))[:3]
        )
        column = torch.cat([part[3] for part in parts])
        table = {name: values[0][codes] for name, values in table.items()}
    else:
        scores = _stored(channels.rows(users))
        valid = unseen(sp.csr_array(x.graph.user_items[users]), x.device)
        column = torch.from_numpy(hidden.indices.astype(np.int64)).to(x.device)
    # Hiding edges at random picks active users, but a test scores all users alike: a user counts
    # by the inverse of the chance that any of its edges is hidden.
    share = len(episode.users) / max(len(episode.users) + x.graph.n_edges, 1)
    degrees = x.graph.user_degrees[users] + np.bincount(episode.users)[users]
    weight = 1.0 / (1.0 - (1.0 - share) ** degrees)
    return Lesson(
        channels,
        about,
        users,
        scores,
        valid=valid,
        row=torch.from_numpy(np.repeat(np.arange(n), np.diff(hidden.indptr))).to(x.device),
        column=column,
        weight=weight / weight.mean(),
        **table,
    )


def _stored(scores: Tensor) -> Tensor:
    return scores.clamp_(-_LARGEST, _LARGEST).half()


def unseen(seen: sp.csr_array, device: torch.device) -> Tensor:
    """Return (n, n_items) bool: whether an item may be on a user's list."""
    valid = torch.ones(seen.shape, dtype=torch.bool, device=device)
    entries = seen.tocoo()
    rows, columns = (torch.from_numpy(a.astype(np.int64)) for a in (entries.row, entries.col))
    valid[rows.to(device), columns.to(device)] = False
    return valid


def _candidates(
    channels: Channels, users: np.ndarray, hidden: sp.csr_array
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The items that could be among some users' first, whatever the weights.

    Returns:
        (n, m) int64 item codes in order, (n, m) bool whether a place holds one,
        (n_channels, n, m) float16 scores, and the places among them of the hidden edges, (e,).
    """
    scores = channels.rows(users)
    device = scores.device
    valid = unseen(sp.csr_array(channels.graph.user_items[users]), device)
    total = torch.zeros_like(scores[0])
    for name, values in zip(NAMES, scores, strict=True):
        total.add_(values, alpha=math.exp(START[name]))
    degrees, popularity = channels.item_degrees, channels.popularity
    asked = [(total + torch.log1p(degrees), _LEADING)]
    if popularity.any():
        fresh = shrunk_counts(degrees, popularity, channels.means(), (1.0, 1.0, 1.0))
        asked.append((total + fresh, _LEADING))
    present = zip(scores, channels.present, strict=True)
    asked += [(values, _BY_ONE) for values, there in present if there]
    found = torch.zeros_like(valid)
    for values, k in asked:
        first = torch.topk(values.masked_fill(~valid, -torch.inf), k, dim=1).indices
        found.scatter_(1, first, True)
    found &= valid
    edges = hidden.tocoo()
    row, item = (torch.from_numpy(a.astype(np.int64)).to(device) for a in (edges.row, edges.col))
    found[row, item] = True
    count = found.sum(dim=1)
    places = torch.arange(int(count.max()), device=device).expand(len(users), -1)
    filled = places < count[:, None]
    codes = torch.zeros_like(places)
    codes[filled] = torch.nonzero(found)[:, 1]
    scores = _stored(scores.gather(2, codes.expand(len(NAMES), -1, -1)))
    column = found.cumsum(dim=1)[row, item] - 1
    return codes, valid.gather(1, codes) & filled, scores, column


def ndcg_loss(model: ChannelBlend, part: Lesson) -> Tensor:
    """Minus the weighted mean over users of a smoothed NDCG@20 of the hidden items.

    NDCG@20 adds 1 / log2(1 + rank) for each hidden item on the list: the sum over places k of
    (1 / log2(1 + k) - 1 / log2(2 + k)), the last one whole, times whether the item's score reaches
    the k-th highest. Here that is a logistic function of the difference, in a twentieth of the
    spread of log popularity over interactions. Popularity is the measure that the other channels
    are weighed against: if the width followed the spread of all scores, they would be stretched
    far down the list; if it followed nothing, all scores would shrink, so that every item nearly
    reaches every place. Items that are visible are on no list.

    A likelihood does not do: it is earned on items that no list will hold, and the same weights
    fitted by it rank worse at the top.

    Cost: that of the scores, a partial sort of each user's, and 20 numbers a hidden edge.
    """
    scores = part.scored(model)
    k = min(_K, scores.shape[1])
    bars = torch.topk(scores, k, dim=1).values
    # A user with less than k items left: the last ones are on the list whatever their score.
    bars = torch.where(torch.isfinite(bars), bars, bars[:, :1].detach() - _FAR)
    channels = part.channels
    bias = model.item_bias(channels, part.context)
    variance = channels.weights @ (bias - channels.weights @ bias).square()
    width = _WIDTH * variance.clamp_min(_LEAST_VARIANCE).sqrt()
    own = scores[part.row, part.column]
    reached = torch.sigmoid((own[:, None] - bars[part.row]) / width)
    discounts = 1.0 / torch.log2(torch.arange(2, _K + 2, device=scores.device).float())
    steps = torch.cat([discounts[: k - 1] - discounts[1:k], discounts[k - 1 : k]])
    total = torch.zeros(part.n_users, device=scores.device).index_add(0, part.row, reached @ steps)
    count = torch.bincount(part.row, minlength=part.n_users).clamp(1, _K)
    ideal = discounts.cumsum(0)[count - 1]
    weight = torch.from_numpy(part.weight).to(total)
    return -(weight * total / ideal).mean()


def user_ndcg(model: ChannelBlend, parts: list[Lesson]) -> np.ndarray:
    """Return NDCG@20 of every user of every part times its weight, (n,) float64.

    The ranking is full where the candidates are all items, and else as good as full.
    """
    values = []
    for part in parts:
        with torch.no_grad():
            values.append(ranked_ndcg(part.scored(model), part) * part.weight)
    return np.concatenate(values)


def ranked_ndcg(scores: Tensor, part: Lesson) -> np.ndarray:
    """Return NDCG@20 of every user of a lesson by its (n, m) scores, (n,) float64, unweighted."""
    n, m = scores.shape
    _, top = top_k_from(
        lambda rows: scores[int(rows[0]) : int(rows[-1]) + 1],
        n,
        m,
        min(_K, m),
    )
    relevant = BipartiteGraph(part.row.cpu().numpy(), part.column.cpu().numpy(), n, m).user_items
    return per_user_metrics(top, relevant, (_K,))[f"ndcg@{_K}"]
