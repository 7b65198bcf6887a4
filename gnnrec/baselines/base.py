"""Popularity, and what the personal baselines share: its place in their scores, their settings."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from gnnrec.errors import ConfigError
from gnnrec.features import GraphInput
from gnnrec.scores import FullRank, ScoreVectors, Walk

_TIES = 1e-6  # weight of log popularity where none is asked for: it orders equal scores


class Popularity(nn.Module):
    """score(u, i) = log(1 + d_i) for every user: the bar that personal models must clear."""

    def forward(self, x: GraphInput, users: Tensor | None = None) -> ScoreVectors:
        """Return (n_users, 1) ones and (n_items, 1) log counts."""
        n_users = x.graph.n_users if users is None else len(users)
        return ScoreVectors(
            torch.ones(n_users, 1, device=x.device), torch.log1p(x.item_degrees)[:, None]
        )


def popularity(x: GraphInput) -> ScoreVectors:
    """Rank by the number of users; see `Popularity`."""
    scores: ScoreVectors = Popularity()(x)
    return scores


def with_popularity(
    x: GraphInput,
    users: Tensor | None = None,
    items: Tensor | None = None,
    *,
    walk: Walk | None = None,
    part: FullRank | None = None,
    weight: float = 0.0,
) -> ScoreVectors:
    """Add log popularity to personal scores, as the item bias.

    The bias is weight * s * log(1 + d_i), where s makes it spread over the items as far as the
    personal scores of an average user do: a weight means the same on every graph. A millionth is
    always added, so that equal scores, and users without interactions, are ordered by popularity.

    Args:
        x: The graph.
        users: (n_users, d) personal vectors; none by default.
        items: (n_items, d), with `users`.
        walk: Goes into the scores as it is.
        part: Goes into the scores as it is.
        weight: Spread of the bias over that of the personal scores.

    Cost: the scores of up to 256 users.
    """
    n_users, n_items = x.graph.n_users, x.graph.n_items
    if users is None or items is None:
        users = torch.zeros(n_users, 0, device=x.device)
        items = torch.zeros(n_items, 0, device=x.device)
    log_counts = torch.log1p(x.item_degrees)
    users = torch.nn.functional.pad(users, (0, 1), value=1.0)
    items = torch.nn.functional.pad(items, (0, 1))
    scores = ScoreVectors(users, items, walk, part)
    reference = scores.of(x.reference_users.cpu().numpy()).rows(0, len(x.reference_users))
    spread = float(reference.std(dim=1, correction=0).mean()) if len(reference) else 0.0
    scale = spread / max(float(log_counts.std(correction=0)), 1e-12) if spread > 0 else 1.0
    items[:, -1] = (weight + _TIES) * scale * log_counts
    return scores


def check_count(name: str, value: int, low: int = 1) -> None:
    """Check a whole number.

    Raises:
        ConfigError: `value` is no int or below `low`.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise ConfigError(f"{name} is {value!r}; expected a whole number of at least {low}")


def check_number(name: str, value: float, low: float = 0.0, *, above: bool = False) -> None:
    """Check a finite number.

    Raises:
        ConfigError: `value` is below `low`, or, with `above`, equal to it.
    """
    fits = isinstance(value, (int, float)) and math.isfinite(value)
    if not fits or value < low or (above and value == low):
        kind = "above" if above else "of at least"
        raise ConfigError(f"{name} is {value!r}; expected a number {kind} {low:g}")
