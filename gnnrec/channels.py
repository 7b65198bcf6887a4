"""LightGCN layers with fixed weights, each a score of its own on one scale: what is mixed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from gnnrec.bridge import Matched
from gnnrec.features import GraphInput
from gnnrec.filters import GraphFilter, unit
from gnnrec.newcomers import Arrived, Newcomers, Rows
from gnnrec.propagate import SparseOperator, to_torch_csr
from gnnrec.scores import ScoreVectors, rows_of
from gnnrec.spectrum import Spectrum

NAMES = ("filter", "low16", "low64", "ridge", "text", "deep_text", "bridge")
PROFILE_EXPONENT = 0.3
_NO_SPREAD = 1e-4
# Keeps the two centring columns out of the way of cosines between items; exact in binary.
SMALL = 2.0**-10
_RIDGE = 0.05  # of the largest squared singular value
_LEAST_LEFT = 0.05  # of an item that the others do not explain


@dataclass(frozen=True)
class Channel:
    """One channel's scores, centred and of unit spread; `scale` is what a walk is divided by."""

    scores: ScoreVectors
    scale: float


class Channels:
    """The channels of one graph.

    - filter: the graph filter with full rank (`gnnrec.filters`), on interactions alone;
    - low16, low64: the low-pass part of the normalised interaction matrix (Shen et al. 2021);
    - ridge: EASE (Steck 2019) in the leading singular directions of the interactions as they are;
    - text: cosine between a user's items' texts and the item's text;
    - deep_text: cosine of sums of LightGCN layers over the texts, two deeper on both sides;
    - bridge: a user's items against the item, in a source's directions (`gnnrec.bridge`).

    Each is centred (the mean user's part is popularity by another name, the mean item's shifts a
    user's scores alike) and divided by its spread over reference users and items weighted by their
    interactions, so that a weight means the same on every graph.

    Cost: that of the parts, and 256 reference users' scores a channel.
    """

    def __init__(
        self,
        x: GraphInput,
        graph_filter: GraphFilter,
        bridges: list[Matched],
        *,
        reads_text: bool = True,
    ) -> None:
        x.compact = True  # most nodes of a small part of a log have no edge
        # Not the input itself: it keeps its channels, and a circle is freed late.
        self.graph, self.device, self.seed = x.graph, x.device, x.seed
        self.has_text = reads_text and x.text is not None
        self.bridges = bridges
        self.weights = x.item_degrees / x.item_degrees.sum().clamp_min(1e-12)
        self.found = torch.zeros_like(x.item_degrees)
        self.popularity = torch.zeros_like(x.item_degrees)
        for matched in bridges:
            self.found = torch.maximum(self.found, matched.found)
            self.popularity = self.popularity + matched.popularity
        parts = [
            graph_filter(x),
            self._low(x, 16),
            self._low(x, 64),
            self._ridge(x),
            *(self._texts(x) if self.has_text else (None, None)),
            self._bridge() if bridges else None,
        ]
        self.parts = [
            None if part is None else self._standard(part, x.reference_users) for part in parts
        ]
        self.present = [part is not None for part in parts]
        self.user_degrees, self.item_degrees = x.user_degrees, x.item_degrees

    def light(self) -> Channels:
        """Return what weights are computed from, without the graph and the channels' vectors."""
        other = copy.copy(self)
        del other.parts, other.graph, other.bridges
        return other

    @staticmethod
    def _low(x: GraphInput, rank: int) -> ScoreVectors:
        s = x.spectrum
        users = s.user[:, :rank] * s.sigma[:rank] * x.user_degrees.sqrt()[:, None]
        scale = x.item_degrees.clamp_min(0.5).sqrt() * (x.item_degrees > 0)
        return _with_bias(users, s.item[:, :rank] * scale[:, None])

    @staticmethod
    def _texts(x: GraphInput) -> list[ScoreVectors]:
        users, items, _ = x.propagated_components(3)
        first, third, start, second = users[1], users[3], items[0], items[2]
        assert first is not None and third is not None
        assert start is not None and second is not None
        return [
            _with_bias(unit(first), unit(start)),
            _with_bias(unit(first + 0.5 * third), unit(start + second)),
        ]

    @staticmethod
    def _ridge(x: GraphInput) -> ScoreVectors:
        """Score with the ridge regression of each item on all others.

        EASE forbids an item to explain itself. Of items that the user does not have, it ranks as
        the plain ridge S = V h V^T with column j divided by 1 - S_jj, which needs no items x items
        matrix.
        """
        _, spectrum, response, items = ridge(x)
        return _with_bias(spectrum.user * (spectrum.sigma * response), items)

    def _bridge(self) -> ScoreVectors:
        rows = to_torch_csr(self.graph.by_degree(0.0, -PROFILE_EXPONENT), self.device)
        users = [rows @ matched.vectors * matched.response for matched in self.bridges]
        return _with_bias(
            torch.cat(users, dim=1), torch.cat([m.vectors for m in self.bridges], dim=1)
        )

    def _standard(self, part: ScoreVectors, reference_users: Tensor) -> Channel:
        """Centre and scale: two more columns, for the mean user's scores and the users' means."""
        users, items, walk = part.users[:, :-1], part.items[:, :-1], part.walk
        reference = part.of(reference_users.cpu().numpy())
        bias = part.items[:, -1]
        rows = reference.rows(0, len(reference.users)) - bias
        mean_user = rows.mean(dim=0) if len(rows) else torch.zeros_like(bias)
        rows = rows - mean_user
        rows = rows - (rows @ self.weights)[:, None]
        spread = float((rows.square() @ self.weights).mean().sqrt()) if len(rows) else 0.0
        mean_item = users @ (items.T @ self.weights) - mean_user @ self.weights
        if walk is not None:
            arrived = walk.operator.T(walk.operator((walk.out * self.weights)[:, None]))
            mean_item = mean_item + torch.from_numpy(walk.start @ arrived.cpu().numpy()[:, 0]).to(
                mean_item
            )
        # What has no spread but rounding errors says nothing.
        largest = float(rows.abs().max()) if rows.numel() else 0.0
        scale = 1.0 / spread if spread > _NO_SPREAD * largest else 0.0
        large = scale / SMALL
        columns = [
            users * scale,
            torch.full_like(mean_item, -large)[:, None],
            (-large * mean_item)[:, None],
        ]
        others = [
            items,
            SMALL * mean_user[:, None],
            torch.full_like(mean_user, SMALL)[:, None],
        ]
        return Channel(ScoreVectors(torch.cat(columns, 1), torch.cat(others, 1), walk), scale)

    def newcomers(
        self, x: GraphInput, graph_filter: GraphFilter
    ) -> Callable[[Newcomers, Tensor], Arrived]:
        """Return what mixes the channels of users who are not in the graph.

        It takes them and their gates, (n, n_channels); see `mixed`, and `Model.newcomers`.
        """
        filtered = graph_filter.newcomers(x)
        leading = x.user_map(x.adjacency) * x.spectrum.sigma
        operator, spectrum, response, _ = ridge(x)
        explained = x.user_map(operator) * (spectrum.sigma * response)
        rows: list[Rows | None] = [
            None,
            lambda new: new.sums(leading[:, :16], 0.0, -0.5),
            lambda new: new.sums(leading[:, :64], 0.0, -0.5),
            lambda new: new.sums(explained, 0.0, 0.0),
        ]
        start = second = leading[:, :0]
        if self.has_text:
            start, _, second = x.propagated_components(3)[1][:3]  # type: ignore[assignment]
        deep = start + 0.5 * second
        rows.append(lambda new: unit(new.sums(start, -0.5, -0.5)))
        rows.append(lambda new: unit(new.sums(deep, -0.5, -0.5)))
        tables = [(m.vectors, m.response) for m in self.bridges]
        rows.append(
            lambda new: torch.cat(
                [new.sums(v, 0.0, -PROFILE_EXPONENT) * weight for v, weight in tables], dim=1
            )
        )
        about = []  # of each channel: its place and scale, and what an average item scores
        for place, channel in enumerate(self.parts):
            if channel is None:
                continue
            items, walk, arrived = channel.scores.items, channel.scores.walk, None
            if walk is not None:
                arriving = (walk.out * self.weights)[:, None]
                arrived = walk.operator.T(walk.operator(arriving)).cpu().numpy()[:, 0]
            toward = items[:, :-2].T @ self.weights
            shift = (items[:, -2] / SMALL) @ self.weights
            about.append((place, channel.scale, toward, shift, arrived))

        def mix(new: Newcomers, gates: Tensor) -> Arrived:
            parts, walk_start = [], None
            for place, scale, toward, shift, arrived in about:
                row = rows[place]
                if row is None:
                    own = filtered(new)
                    users, walk_start = own.users[:, :-1], own.start
                else:
                    users = row(new)
                mean_item = users @ toward - shift
                if walk_start is not None and arrived is not None:
                    mean_item = mean_item + torch.from_numpy(walk_start @ arrived).to(mean_item)
                    weight = sp.diags_array((scale * gates[:, place]).cpu().numpy())
                    walk_start = sp.csr_array(weight @ walk_start).astype(np.float32)
                large = scale / SMALL
                ends = torch.stack([torch.full_like(mean_item, -large), -large * mean_item], dim=1)
                parts.append(torch.cat([users * scale, ends], dim=1) * gates[:, place, None])
            parts.append(torch.ones(len(gates), 1, device=gates.device))
            return Arrived(torch.cat(parts, dim=1), walk_start)

        return mix

    def rows(self, users: np.ndarray) -> Tensor:
        """Return (n_channels, n, n_items) scores of some users; a channel that is not there is 0.

        Cost and memory: one full row of scores a user and channel.
        """
        out = torch.zeros(len(NAMES), len(users), self.graph.n_items, device=self.device)
        index = torch.from_numpy(users).to(self.device)
        for place, channel in enumerate(self.parts):
            if channel is None:
                continue
            out[place] = channel.scores.users[index] @ channel.scores.items.T
            walk = channel.scores.walk
            if walk is not None and len(users):
                start = sp.csr_array(rows_of(walk.start, users) * np.float32(channel.scale))
                out[place] += replace(walk, start=start).columns(0, len(users)).T
        return out


def ridge(x: GraphInput) -> tuple[SparseOperator, Spectrum, Tensor, Tensor]:
    """Return the interactions, their spectrum, the ridge's response (r,) and (n_items, r) columns.

    The interactions are as they are: no degree weighs them.
    """
    # Not by `x.filtered`, which keeps the last one asked for: the filter's.
    operator = SparseOperator(x.graph.by_degree(0.0, 0.0), x.device)
    spectrum = x.decompose(operator)
    squares = spectrum.sigma.square()
    response = squares / (squares + _RIDGE * squares.max().clamp_min(1e-12))
    own = spectrum.item.square() @ response
    items = spectrum.item / (1.0 - own).clamp_min(_LEAST_LEFT)[:, None]
    return operator, spectrum, response, items


def mixed(channels: Channels, users: Tensor, gates: Tensor, items: Tensor) -> ScoreVectors:
    """Add the channels up: score(u, i) = sum_c gates[u, c] items[i, c] z_c(u, i).

    Args:
        channels: Of the graph.
        users: (n,) int64 codes.
        gates: (n, n_channels) float32.
        items: (n_items, n_channels) float32.

    Returns:
        Vectors whose last columns are one and zero: the caller's item bias goes there.
    """
    user_parts, item_parts, walk = [], [], None
    for place, channel in enumerate(channels.parts):
        if channel is None:
            continue
        user_parts.append(channel.scores.users[users] * gates[:, place, None])
        item_parts.append(channel.scores.items * items[:, place, None])
        if channel.scores.walk is not None:
            walk = channel.scores.walk
            weight = sp.diags_array((channel.scale * gates[:, place]).cpu().numpy())
            start = sp.csr_array(weight @ rows_of(walk.start, users.cpu().numpy()))
            walk = replace(walk, start=start.astype(np.float32), out=walk.out * items[:, place])
    user_parts.append(torch.ones(len(users), 1, device=gates.device))
    item_parts.append(torch.zeros(len(items), 1, device=gates.device))
    return ScoreVectors(torch.cat(user_parts, 1), torch.cat(item_parts, 1), walk)


def _with_bias(users: Tensor, items: Tensor) -> ScoreVectors:
    pad = (0, 1)
    return ScoreVectors(
        torch.nn.functional.pad(users, pad, value=1.0), torch.nn.functional.pad(items, pad)
    )
