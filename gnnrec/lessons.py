"""Training a channel blend: whole rankings of a few users, since its channels are constants."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gnnrec.blend import ChannelBlend
from gnnrec.channels import NAMES, Channels
from gnnrec.context import silenced
from gnnrec.device import numpy_generator
from gnnrec.graph import BipartiteGraph
from gnnrec.metrics import per_user_metrics
from gnnrec.rank import top_k_from
from gnnrec.sampling import Episode

MAX_LESSON_USERS = 500
_K = 20
_WIDTH = 0.05  # of the standard deviation of a user's scores: how soft a place on the list is
_LEAST_VARIANCE = 1e-8
_FAR = 1e6
_LARGEST = 3e4  # half of what float16 holds; a spread is 1
_MAX_SCORES = 2_500_000  # users x items of one lesson, whatever the graph


@dataclass(frozen=True)
class Lesson:
    """Some users of a graph with their channels' scores, and what was hidden from them.

    Attributes:
        channels: Of the visible graph.
        context: (N_CONTEXT,) of the visible graph.
        users: (n,) int64 codes.
        scores: (n_channels, n, n_items) float16 constants.
        row, item: (m,) int64, the hidden edges by place in `users`.
        seen: (n, n_items) CSR of the visible edges.
        weight: (n,) float64 with mean one: what each user counts.
    """

    channels: Channels
    context: Tensor
    users: np.ndarray
    scores: Tensor
    row: Tensor
    item: Tensor
    seen: sp.csr_array
    weight: np.ndarray

    @property
    def n_users(self) -> int:
        """How many users."""
        return len(self.users)

    def light(self) -> Lesson:
        """Return it without the channels' own vectors, which a fit does not read."""
        return replace(self, channels=self.channels.light())

    def without(self, names: tuple[str, ...]) -> Lesson:
        """Return it as a model sees it whose graph input or own tables do not give some channels.

        As if made by such a model, to the bit.
        """
        channels = copy.copy(self.channels)
        channels.present = [
            there and name not in names for name, there in zip(NAMES, channels.present, strict=True)
        ]
        if "text" in names:
            channels.has_text = False
        if "bridge" in names:
            channels.found = torch.zeros_like(channels.found)
            channels.popularity = torch.zeros_like(channels.popularity)
        return replace(self, channels=channels, context=silenced(self.context, names))

    def scored(self, model: ChannelBlend) -> Tensor:
        """Return (n, n_items) scores, visible items at -inf; gradients reach the weights."""
        index = torch.from_numpy(self.users).to(self.context.device)
        degrees = self.channels.user_degrees[index]
        gates, items, bias = model.weights(self.channels, self.context, degrees)
        present = [place for place, there in enumerate(self.channels.present) if there]
        total: Tensor = _Sum.apply(self.scores, present, gates, items, bias)  # type: ignore[no-untyped-call]
        seen = self.seen.tocoo()
        rows, columns = (torch.from_numpy(a.astype(np.int64)) for a in (seen.row, seen.col))
        return total.index_put_(
            (rows.to(total.device), columns.to(total.device)),
            torch.tensor(-torch.inf, device=total.device),
        )


class _Sum(torch.autograd.Function):
    """bias_i + sum over channels c of gates[u, c] items[i, c] scores[c, u, i].

    Most of a fit, put together from torch's own operations: here a table of scores is read twice a
    channel, and no product is kept for the way back.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        scores: Tensor,
        present: list[int],
        gates: Tensor,
        items: Tensor,
        bias: Tensor,
    ) -> Tensor:
        total = bias.expand(scores.shape[1], -1).clone()
        for place in present:
            total.addcmul_(gates[:, place, None], scores[place] * items[:, place])
        ctx.save_for_backward(scores, gates, items)
        ctx.present = present
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        scores, gates, items = ctx.saved_tensors
        of_gates, of_items = torch.zeros_like(gates), torch.zeros_like(items)
        for place in ctx.present:
            table = scores[place] * grads[0]
            of_gates[:, place] = table @ items[:, place]
            of_items[:, place] = gates[:, place] @ table
        return None, None, of_gates, of_items, grads[0].sum(dim=0)


def lesson(
    model: ChannelBlend,
    episode: Episode,
    seed: int,
    *,
    about: Tensor | None = None,
    max_users: int = MAX_LESSON_USERS,
) -> Lesson | None:
    """Draw some of an episode's users and compute their channels; None where nothing is hidden.

    Args:
        model: Whose channels.
        episode: Visible graph and hidden edges.
        seed: Draws the users.
        about: The context, where it is that of a larger graph (folds of one log share the log's).
        max_users: How many at most.

    Memory: up to 2.5 million scores a channel, in float16.
    """
    x = episode.input
    users = np.unique(episode.users)
    if not len(users):
        return None
    n = max(1, min(max_users, _MAX_SCORES // x.graph.n_items))
    if len(users) > n:
        users = np.sort(numpy_generator(seed, "lesson").choice(users, n, replace=False))
    keep = np.isin(episode.users, users)
    channels = model.channels(x)
    if about is None:
        about = model.about(x)
    with torch.no_grad():
        scores = channels.rows(users).clamp(-_LARGEST, _LARGEST).half()
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
        torch.from_numpy(np.searchsorted(users, episode.users[keep])).to(x.device),
        torch.from_numpy(episode.items[keep]).to(x.device),
        sp.csr_array(x.graph.user_items[users]),
        weight / weight.mean(),
    )


def ndcg_loss(model: ChannelBlend, part: Lesson) -> Tensor:
    """Minus the weighted mean over users of a smoothed NDCG@20 of the hidden items.

    NDCG@20 adds 1 / log2(1 + rank) for each hidden item on the list: the sum over places k of
    (1 / log2(1 + k) - 1 / log2(2 + k)), the last one whole, times whether the item's score reaches
    the k-th highest. Here that is a logistic function of the difference, in a twentieth of the
    standard deviation of the user's scores, so that the loss does not depend on the scores' scale.
    Items that are visible are on no list.

    A likelihood does not do: it is earned on items that no list will hold, and the same weights
    fitted by it rank worse at the top.

    Cost: that of the scores, a partial sort of each user's, and 20 numbers a hidden edge.
    """
    scores = part.scored(model)
    ranked = torch.isfinite(scores)
    k = min(_K, scores.shape[1])
    bars = torch.topk(scores, k, dim=1).values
    # A user with less than k items left: the last ones are on the list whatever their score.
    bars = torch.where(torch.isfinite(bars), bars, bars[:, :1].detach() - _FAR)
    known = torch.where(ranked, scores, 0.0)
    n = ranked.sum(dim=1).clamp_min(1)
    variance = known.square().sum(dim=1) / n - (known.sum(dim=1) / n).square()
    width = _WIDTH * variance.clamp_min(_LEAST_VARIANCE).sqrt()
    own = scores[part.row, part.item]
    reached = torch.sigmoid((own[:, None] - bars[part.row]) / width[part.row, None])
    discounts = 1.0 / torch.log2(torch.arange(2, _K + 2, device=scores.device).float())
    steps = torch.cat([discounts[: k - 1] - discounts[1:k], discounts[k - 1 : k]])
    total = torch.zeros(part.n_users, device=scores.device).index_add(0, part.row, reached @ steps)
    count = torch.bincount(part.row, minlength=part.n_users).clamp(1, _K)
    ideal = discounts.cumsum(0)[count - 1]
    weight = torch.from_numpy(part.weight).to(total)
    return -(weight * total / ideal).mean()


def user_ndcg(model: ChannelBlend, parts: list[Lesson]) -> np.ndarray:
    """Return NDCG@20, full ranking, of every user of every part times its weight, (n,) float64."""
    values = []
    for part in parts:
        with torch.no_grad():
            scores = part.scored(model)
        n, n_items = scores.shape
        _, top = top_k_from(
            lambda rows, scores=scores: scores[int(rows[0]) : int(rows[-1]) + 1],  # type: ignore[misc]
            n,
            n_items,
            min(_K, n_items),
            seen=part.seen,
        )
        relevant = BipartiteGraph(
            part.row.cpu().numpy(), part.item.cpu().numpy(), n, n_items
        ).user_items
        values.append(per_user_metrics(top, relevant, (_K,))[f"ndcg@{_K}"] * part.weight)
    return np.concatenate(values)
