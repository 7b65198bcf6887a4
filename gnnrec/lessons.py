"""Training a channel blend: whole rankings of a few users, since its channels are constants."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from gnnrec.blend import ChannelBlend
from gnnrec.channels import Channels
from gnnrec.device import numpy_generator
from gnnrec.graph import BipartiteGraph
from gnnrec.metrics import per_user_metrics
from gnnrec.rank import top_k_from
from gnnrec.sampling import Episode

MAX_LESSON_USERS = 120
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

    def scored(self, model: ChannelBlend) -> Tensor:
        """Return (n, n_items) scores, visible items at -inf; gradients reach the weights."""
        index = torch.from_numpy(self.users).to(self.context.device)
        degrees = self.channels.user_degrees[index]
        gates, items, bias = model.weights(self.channels, self.context, degrees)
        total = bias.expand(len(index), -1)
        for place, scores in enumerate(self.scores):
            if self.channels.present[place]:
                total = total + gates[:, place, None] * scores.float() * items[:, place]
        seen = self.seen.tocoo()
        rows, columns = (torch.from_numpy(a.astype(np.int64)) for a in (seen.row, seen.col))
        return total.index_put(
            (rows.to(total.device), columns.to(total.device)),
            torch.tensor(-torch.inf, device=total.device),
        )


def lesson(
    model: ChannelBlend,
    episode: Episode,
    seed: int,
    *,
    about: Tensor | None = None,
) -> Lesson | None:
    """Draw some of an episode's users and compute their channels; None where nothing is hidden.

    Args:
        model: Whose channels.
        episode: Visible graph and hidden edges.
        seed: Draws the users.
        about: The context, where it is that of a larger graph (folds of one log share the log's).

    Memory: up to 2.5 million scores a channel, in float16.
    """
    x = episode.input
    users = np.unique(episode.users)
    if not len(users):
        return None
    n = max(1, min(MAX_LESSON_USERS, _MAX_SCORES // x.graph.n_items))
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


def hit_loss(model: ChannelBlend, part: Lesson) -> Tensor:
    """Weighted mean over users of -log sum_i p(i|u) over the hidden items i.

    p is a softmax over all items that are not visible.

    The chance that one draw is a hit. The usual mean of -log p(i|u) spends the model on the many
    items that no list of twenty will ever hold and on the users with most of them; fitted by it
    the same weights rank worse at the top than where they started.
    """
    log_p = torch.log_softmax(part.scored(model), dim=1)[part.row, part.item]
    total = torch.zeros(part.n_users, device=log_p.device).index_add(0, part.row, log_p.exp())
    weight = torch.from_numpy(part.weight).to(total)
    return -(weight * torch.log(total + 1e-9)).mean()


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
            min(20, n_items),
            seen=part.seen,
        )
        relevant = BipartiteGraph(
            part.row.cpu().numpy(), part.item.cpu().numpy(), n, n_items
        ).user_items
        values.append(per_user_metrics(top, relevant, (20,))["ndcg@20"] * part.weight)
    return np.concatenate(values)
