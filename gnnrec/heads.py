"""What turns an encoder's vectors into scores on one target: the parts that are retrained first.

Every part is an inner product between something of the user and something of the item, so the
whole score is one: ranking stays a matrix product and vectors can go into an index.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from gnnrec.encoders.base import Block
from gnnrec.features import GraphInput
from gnnrec.newcomers import Rows
from gnnrec.ranks import ALONE, Ranks

_KNOTS = 9
_NULL = 1e-3


class ItemBias(nn.Module):
    """b_i = beta log(d_i + exp(c + w . text_i)): popularity with a learned prior count.

    beta = 1 and w = 0 is the maximum-likelihood popularity under a softmax, smoothed by exp(c).
    The text enters as a prior count (an empirical-Bayes view of a Poisson rate): it orders items
    with few interactions and fades where the count itself says more.
    """

    def __init__(self, text_dim: int) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(1.0))
        self.log_prior = nn.Parameter(torch.tensor(0.0))
        self.text = nn.Linear(text_dim, 1, bias=False) if text_dim else None
        if self.text is not None:
            nn.init.zeros_(self.text.weight)

    def forward(self, x: GraphInput, items: Tensor | None = None) -> Tensor:
        """Return (n_items,), or the biases of the given items."""
        degrees = picked(x.item_degrees, items)
        prior = self.log_prior.expand(len(degrees))
        if self.text is not None and x.text is not None:
            # Text rows have length one; 4 gives the weights of a 384-d vector a useful reach.
            prior = prior + 4.0 * self.text(picked(x.text, items))[:, 0]
        return self.slope * torch.log(degrees + prior.clamp(-8.0, 6.0).exp())


class ScoreCalibration(nn.Module):
    """Per-user weight of each channel: exp(a_c + b_c log(1 + d_u) + small network(context)).

    How far each channel may outweigh popularity depends on how much is known of the user and on
    the density of the graph. It starts afresh on a target: one source's does not suit a far one.
    Users without a visible interaction get zero: nothing personal is known of them.
    """

    def __init__(self, start: tuple[float, ...]) -> None:
        super().__init__()
        self.log_weight = nn.Parameter(torch.tensor([math.log(value) for value in start]))
        self.degree_slope = nn.Parameter(torch.zeros(len(start)))
        self.item_slope = nn.Parameter(torch.zeros(len(start)))
        self.context = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, len(start)))
        last = self.context[2]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, x: GraphInput, users: Tensor | None = None) -> Tensor:
        """Return (n_users, n_channels), non-negative."""
        degrees = x.user_degrees if users is None else x.user_degrees[users]
        return self.user_weight(x.context, degrees)

    def user_weight(self, graph: Tensor, degrees: Tensor) -> Tensor:
        """Return (n, n_channels) for users of some degrees, (n,); `graph` is its `context`."""
        degree = torch.log1p(degrees)[:, None]
        context = torch.cat([degree / 3.0, graph.expand(len(degree), -1)], dim=1)
        log_weight = self.log_weight + self.degree_slope * degree + self.context(context)
        weight: Tensor = log_weight.exp() * (degree > 0)
        return weight

    def item_weight(self, x: GraphInput, items: Tensor | None = None) -> Tensor:
        """Return (n_items, n_channels): (1 + d_i) to a learned power per channel.

        What a channel says of an item that many users already chose can count less, or more, than
        what it says of a rare one. With `items`, the rows of these alone.
        """
        degrees = picked(x.item_degrees, items)
        weight: Tensor = (torch.log1p(degrees)[:, None] * self.item_slope).exp()
        return weight


class SpectralChannel(nn.Module):
    """A learned low-pass filter of the interaction matrix: D_u^1/2 U h(sigma) V^T D_i^gamma.

    h is piecewise linear on [0, 1] and starts as h(sigma) = sigma, for which the product is the
    best rank-r reconstruction of the (degree-rescaled) interactions; it is the limit of LightGCN
    layers with id inputs and any layer weights (Shen et al. 2021, arXiv 2108.07567). Because the
    singular values of every normalised interaction matrix lie in [0, 1], h transfers.
    """

    def __init__(self) -> None:
        super().__init__()
        self.response = nn.Parameter(torch.linspace(0.0, 1.0, _KNOTS))
        self.item_exponent = nn.Parameter(torch.tensor(0.5))

    def forward(
        self, x: GraphInput, users: Tensor | None = None, items: Tensor | None = None
    ) -> Block:
        """See `Block`; the rows of isolated nodes are zero. None stands for all of a side."""
        s, response = x.spectrum, self.weights(x.spectrum.sigma)
        degrees = picked(x.item_degrees, items)
        scale = degrees.clamp_min(0.5) ** self.item_exponent * (degrees > 0)
        return Block(
            picked(s.user, users) * response * picked(x.user_degrees, users).sqrt()[:, None],
            picked(s.item, items) * scale[:, None],
            x.spectral_user_mean * response,
        )

    def newcomers(self, x: GraphInput) -> Rows:
        """See `Encoder.newcomers`."""
        table = x.user_map(x.adjacency) * self.weights(x.spectrum.sigma)
        return lambda new: new.sums(table, 0.0, -0.5)  # the root of the user's degree cancels

    def weights(self, sigma: Tensor) -> Tensor:
        """Return h(sigma), (r,)."""
        position = sigma * (_KNOTS - 1)
        left = position.floor().clamp(0, _KNOTS - 2).long()
        share = position - left
        response = self.response[left] * (1.0 - share) + self.response[left + 1] * share
        # Where sigma is zero the vectors are arbitrary, so no response may let them through.
        return response * (sigma > _NULL)


class TextChannel(nn.Module):
    """The texts as they are, propagated by LightGCN layers with learned weights.

    Parameter-free propagation of text is the strongest start on a new domain; what an encoder
    learns on a source stands beside it instead of replacing it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layer_weights = nn.Parameter(torch.tensor([1.0, 1.0, 0.5, 0.5]))

    def forward(
        self, x: GraphInput, users: Tensor | None = None, items: Tensor | None = None
    ) -> Block | None:
        """See `Block`; None without text. None stands for all of a side."""
        if x.text is None:
            return None
        tables = x.propagated_components(len(self.layer_weights) - 1)
        user_tables, item_tables, mean_user = tables
        user_tables = [t if t is None else picked(t, users) for t in user_tables]
        item_tables = [t if t is None else picked(t, items) for t in item_tables]
        return Block(self._sum(user_tables), self._sum(item_tables), self._sum(mean_user))

    def newcomers(self, x: GraphInput) -> Rows | None:
        """See `Encoder.newcomers`."""
        if x.text is None:
            return None
        items = x.propagated_components(len(self.layer_weights) - 1)[1]
        table = self._sum([None, *items[:-1]])
        return lambda new: new.sums(table, -0.5, -0.5)

    def _sum(self, tables: list[Tensor | None]) -> Tensor:
        pairs = zip(self.layer_weights, tables, strict=True)
        return torch.stack([weight * table for weight, table in pairs if table is not None]).sum(0)


class IdTables(nn.Module):
    """Tables with a row per item of one target; after `share`, a rank keeps some of the rows.

    Args:
        tables: Names and whole tables, (n_items, dim) each.
    """

    def __init__(self, **tables: Tensor) -> None:
        super().__init__()
        self.ranks = ALONE
        self.names, self.n_items = tuple(tables), len(next(iter(tables.values())))
        for name, table in tables.items():
            self.register_parameter(name, nn.Parameter(table))

    def whole(self, name: str, n_items: int) -> Tensor:
        """Return (n_items, dim); items beyond the table, which arrived later, are zero."""
        table = self.ranks.gathered(self.get_parameter(name), self.n_items)
        return nn.functional.pad(table, (0, 0, 0, n_items - self.n_items))

    def share(self, ranks: Ranks) -> None:
        """Keep this rank's rows alone; with `ALONE`, get all of them again."""
        with torch.no_grad():
            for table in map(self.get_parameter, self.names):
                whole = self.ranks.gathered(table.detach(), self.n_items)
                table.data = whole[ranks.block(self.n_items)].clone()
                table.grad = None
        self.ranks = ranks


class ResidualIds(IdTables):
    """A free vector per target item, g r_i, added to what the channels say of it.

    The vectors start at zero, so transfer starts as the pretrained model alone; the gate g starts
    at one, since with both at zero neither would ever get a gradient. Users have no table: their
    vectors come through the graph, also those of users who arrive later.
    """

    items: nn.Parameter

    def __init__(self, n_items: int, dim: int) -> None:
        super().__init__(items=torch.zeros(n_items, dim))
        self.gate = nn.Parameter(torch.tensor(1.0))

    def forward(self, n_items: int, items: Tensor | None = None) -> Tensor:
        """Return (n_items, dim), or the given items' rows."""
        return self.gate * picked(self.whole("items", n_items), items)


def picked(table: Tensor, rows: Tensor | None) -> Tensor:
    """Return the given rows; None stands for all."""
    return table if rows is None else table.index_select(0, rows)


def standardise(
    block: Block, n_reference: int, item_weights: Tensor, ranks: Ranks = ALONE
) -> tuple[Tensor, Tensor]:
    """Scale a channel so that its scores have unit spread over users and popular items.

    The spread of user u's scores p_u . q_i under the item distribution w is p_u^T C p_u with C the
    w-weighted covariance of the items: exact, without a users x items table. It is averaged over
    reference users. A calibration weight then means the same on every graph: standard deviations,
    in popularity's logits. Users keep their sizes relative to each other, which tell how much
    their interactions say.

    Args:
        block: Its last n_reference users are the reference. The mean user is subtracted first: its
            part of a score is the same for all users, so it is popularity by another name, and
            popularity belongs to `ItemBias`.
        n_reference: How many.
        item_weights: (n_items,) non-negative, any scale; zero where an item is not to count.
        ranks: Who has the other reference users.

    Returns:
        The scaled users without the reference, and the items less their weighted mean, which
        shifts all of a user's scores alike. Cost: O((n_users + n_items) dim^2).
    """
    users = block.users - block.mean_user
    wanted = len(users) - n_reference
    scale, items = spread_scale(users[wanted:], block.items, item_weights, ranks)
    return users[:wanted] * scale, items


def spread_scale(
    reference: Tensor, items: Tensor, item_weights: Tensor, ranks: Ranks = ALONE
) -> tuple[Tensor, Tensor]:
    """Return what `standardise` multiplies users by, (), and the centred items.

    Args:
        reference: (m, dim) reference users less the mean user.
        items: (n_items, dim).
        item_weights: As in `standardise`.
        ranks: The same.
    """
    weights = item_weights / item_weights.sum().clamp_min(1e-12)
    items = items - weights @ items
    covariance = (items * weights[:, None]).T @ items
    spread = ((reference @ covariance) * reference).sum()
    # Both in one message: this is asked in every step.
    spread, n_reference = ranks.sum(torch.stack([spread, spread.new_tensor(len(reference))]))
    spread = spread / n_reference.clamp_min(1.0)
    return (spread + 1e-8).rsqrt(), items
