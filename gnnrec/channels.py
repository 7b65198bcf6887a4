"""LightGCN layers with fixed weights, each a score of its own on one scale: what is mixed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from gnnrec.alike import MAX_NEAR_ITEMS, NEAR_EXPONENT, TASTE_EXPONENT, near_items, taste
from gnnrec.bridge import Matched
from gnnrec.features import GraphInput
from gnnrec.filters import GraphFilter, unit
from gnnrec.newcomers import Arrived, Newcomers, Rows
from gnnrec.propagate import SparseOperator, to_torch_csr
from gnnrec.scores import ScoreVectors, Similarity, Walk, rows_of
from gnnrec.spectrum import Spectrum

NAMES = (
    "filter",
    "near_text",
    "low16",
    "low64",
    "ridge",
    "counts",
    "text",
    "deep_text",
    "taste",
    "bridge",
)
OF_TEXT = ("near_text", "text", "deep_text", "taste")
PROFILE_EXPONENT = 0.3
_NO_SPREAD = 1e-4
# Keeps the two centring columns out of the way of cosines between items; exact in binary.
SMALL = 2.0**-10
_RIDGE = 0.05  # of the largest squared singular value
_LEAST_LEFT = 0.05  # of an item that the others do not explain


@dataclass(frozen=True)
class Channel:
    """One channel's scores, centred and of unit spread; `scale` is on what has full rank."""

    scores: ScoreVectors
    scale: float


class Channels:
    """The channels of one graph.

    - filter: the graph filter with full rank (`gnnrec.filters`), on interactions alone;
    - near_text: a user's items, rare ones first, and the 20 nearest texts of each
      (`gnnrec.alike.near_items`); not there on catalogues of more than 60,000 items;
    - low16, low64: low-pass parts of the normalised interaction matrix (Shen et al. 2021);
    - ridge: EASE (Steck 2019) in the leading singular directions of the interactions as they are;
    - counts: how often an item was had together with a user's items, in the same directions: the
      ridge where it is so strong that it weighs no direction down, which EASE chooses on logs of
      much noise;
    - text: cosine between a user's items' texts and the item's text;
    - deep_text: cosine of sums of LightGCN layers over the texts, two deeper on both sides;
    - taste: texts in the directions in which they are chosen together (`gnnrec.alike.taste`);
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
        texts = self._texts(x) if self.has_text else (None, None)
        own = x.item_text if self.has_text else None
        parts = [
            graph_filter(x),
            None if own is None or len(own) > MAX_NEAR_ITEMS else self._near(x, own),
            self._low(x, 16),
            self._low(x, 64),
            *self._ridge(x),
            *texts,
            None if own is None else self._taste(x),
            self._bridge() if bridges else None,
        ]
        self.parts = [
            None if part is None else self._standard(part, x.reference_users) for part in parts
        ]
        self.present = [part is not None for part in parts]
        self.user_degrees, self.item_degrees = x.user_degrees, x.item_degrees

    def means(self) -> tuple[Tensor, Tensor]:
        """Return what items have by unit of their twins' popularity, and what others have.

        Half an interaction more than there are, and one item: nothing is zero.
        """
        twin = self.popularity > 0
        of_twins = self.item_degrees[twin].sum() + 0.5
        others = self.item_degrees[~twin]
        return of_twins / self.popularity.sum().clamp_min(0.5), (others.sum() + 0.5) / (
            len(others) + 1
        )

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
    def _near(x: GraphInput, text: Tensor) -> ScoreVectors:
        nothing = [torch.zeros(n, 0, device=x.device) for n in (x.graph.n_users, x.graph.n_items)]
        part = Similarity(
            x.graph.by_degree(0.0, -NEAR_EXPONENT), near_items(text, x.graph.item_degrees > 0)
        )
        return replace(_with_bias(nothing[0], nothing[1]), part=part)

    @staticmethod
    def _taste(x: GraphInput) -> ScoreVectors:
        items = taste(x)
        rows = to_torch_csr(x.graph.by_degree(0.0, -TASTE_EXPONENT), x.device)
        return _with_bias(rows @ items, items)

    @staticmethod
    def _ridge(x: GraphInput) -> list[ScoreVectors]:
        """Score with the ridge regression of each item on all others, and with R R^T R.

        EASE forbids an item to explain itself. Of items that the user does not have, it ranks as
        the plain ridge S = V h V^T with column j divided by 1 - S_jj, which needs no items x items
        matrix.
        """
        _, spectrum, response, items = ridge(x)
        return [
            _with_bias(spectrum.user * (spectrum.sigma * response), items),
            _with_bias(spectrum.user * (spectrum.sigma * counted(spectrum)), spectrum.item),
        ]

    def _bridge(self) -> ScoreVectors:
        rows = to_torch_csr(self.graph.by_degree(0.0, -PROFILE_EXPONENT), self.device)
        users = [rows @ matched.vectors * matched.response for matched in self.bridges]
        return _with_bias(
            torch.cat(users, dim=1), torch.cat([m.vectors for m in self.bridges], dim=1)
        )

    def _standard(self, part: ScoreVectors, reference_users: Tensor) -> Channel:
        """Centre and scale: two more columns, for the mean user's scores and the users' means."""
        users, items = part.users[:, :-1], part.items[:, :-1]
        reference = part.of(reference_users.cpu().numpy())
        bias = part.items[:, -1]
        rows = reference.rows(0, len(reference.users)) - bias
        mean_user = rows.mean(dim=0) if len(rows) else torch.zeros_like(bias)
        rows = rows - mean_user
        rows = rows - (rows @ self.weights)[:, None]
        spread = float((rows.square() @ self.weights).mean().sqrt()) if len(rows) else 0.0
        mean_item = users @ (items.T @ self.weights) - mean_user @ self.weights
        start, arrived = self._full_rank(part)
        if start is not None:
            mean_item = mean_item + torch.from_numpy(start @ arrived).to(mean_item)
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
        vectors = torch.cat(columns, 1), torch.cat(others, 1)
        return Channel(replace(part, users=vectors[0], items=vectors[1]), scale)

    def _full_rank(self, part: ScoreVectors) -> tuple[sp.csr_array | None, np.ndarray]:
        """Where a part of full rank starts, (n_users, n_items), and what it brings the mean item.

        The latter is (n_items,), for each item that it starts at.
        """
        walk, near = part.walk, part.part
        if walk is not None:
            arriving = (walk.out * self.weights)[:, None]
            return walk.start, walk.operator.T(walk.operator(arriving)).cpu().numpy()[:, 0]
        if isinstance(near, Similarity):
            return near.start, near.weights @ self.weights.cpu().numpy()
        return None, np.zeros(0, dtype=np.float32)

    def newcomers(
        self, x: GraphInput, graph_filter: GraphFilter
    ) -> Callable[[Newcomers, Tensor], Arrived]:
        """Return what mixes the channels of users who are not in the graph.

        It takes them and their gates, (n, n_channels); see `mixed`, and `Model.newcomers`.
        """
        filtered = graph_filter.newcomers(x)
        leading = x.user_map(x.adjacency) * x.spectrum.sigma
        operator, spectrum, response, _ = ridge(x)
        each = x.user_map(operator) * spectrum.sigma
        explained, together = each * response, each * counted(spectrum)
        start = second = leading[:, :0]
        if self.has_text:
            start, _, second = x.propagated_components(3)[1][:3]  # type: ignore[assignment]
        deep = start + 0.5 * second
        tables = [(m.vectors, m.response) for m in self.bridges]
        tasted = self.parts[NAMES.index("taste")]
        liked = leading if tasted is None else tasted.scores.items[:, :-2]
        rows: dict[str, Rows] = {
            "low16": lambda new: new.sums(leading[:, :16], 0.0, -0.5),
            "low64": lambda new: new.sums(leading[:, :64], 0.0, -0.5),
            "ridge": lambda new: new.sums(explained, 0.0, 0.0),
            "counts": lambda new: new.sums(together, 0.0, 0.0),
            "text": lambda new: unit(new.sums(start, -0.5, -0.5)),
            "deep_text": lambda new: unit(new.sums(deep, -0.5, -0.5)),
            "taste": lambda new: new.sums(liked, 0.0, -TASTE_EXPONENT),
            "bridge": lambda new: torch.cat(
                [new.sums(v, 0.0, -PROFILE_EXPONENT) * weight for v, weight in tables], dim=1
            ),
        }
        about = []  # of each channel: its place and scale, and what an average item scores
        for place, channel in enumerate(self.parts):
            if channel is None:
                continue
            items = channel.scores.items
            toward = items[:, :-2].T @ self.weights
            shift = (items[:, -2] / SMALL) @ self.weights
            about.append((place, channel.scale, toward, shift, self._full_rank(channel.scores)[1]))

        def mix(new: Newcomers, gates: Tensor) -> Arrived:
            parts, starts = [], {}
            for place, scale, toward, shift, arrived in about:
                name, start = NAMES[place], None
                if name == "filter":
                    own = filtered(new)
                    users, start = own.users[:, :-1], own.start
                elif name == "near_text":
                    users = torch.zeros(len(gates), 0, device=gates.device)
                    start = new.by_degree(0.0, -NEAR_EXPONENT)
                else:
                    users = rows[name](new)
                mean_item = users @ toward - shift
                if start is not None:
                    mean_item = mean_item + torch.from_numpy(start @ arrived).to(mean_item)
                    starts[name] = _weighted(start, scale * gates[:, place])
                large = scale / SMALL
                ends = torch.stack([torch.full_like(mean_item, -large), -large * mean_item], dim=1)
                parts.append(torch.cat([users * scale, ends], dim=1) * gates[:, place, None])
            parts.append(torch.ones(len(gates), 1, device=gates.device))
            users = torch.cat(parts, dim=1)
            return Arrived(users, starts.get("filter"), near=starts.get("near_text"))

        return mix

    def rows(self, users: np.ndarray) -> Tensor:
        """Return (n_channels, n, n_items) scores of some users; a channel that is not there is 0.

        Cost and memory: one full row of scores a user and channel.
        """
        out = torch.empty(len(NAMES), len(users), self.graph.n_items, device=self.device)
        index = torch.from_numpy(users).to(self.device)
        for place, channel in enumerate(self.parts):
            if channel is None:
                out[place] = 0.0
                continue
            torch.matmul(channel.scores.users[index], channel.scores.items.T, out=out[place])
            for part in channel.scores.full_rank():
                if isinstance(part, (Walk, Similarity)) and len(users):
                    start = sp.csr_array(rows_of(part.start, users) * np.float32(channel.scale))
                    out[place] += replace(part, start=start).columns(0, len(users)).T.to(out)
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


def counted(spectrum: Spectrum) -> Tensor:
    """Return the response (r,) of co-occurrences: squared singular values, the largest one."""
    squares = spectrum.sigma.square()
    return squares / squares.max().clamp_min(1e-12)


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
    user_parts, item_parts, walk, near = [], [], None, None
    codes = users.cpu().numpy()
    for place, channel in enumerate(channels.parts):
        if channel is None:
            continue
        scores, weight = channel.scores, channel.scale * gates[:, place]
        user_parts.append(scores.users[users] * gates[:, place, None])
        item_parts.append(scores.items * items[:, place, None])
        if scores.walk is not None:
            start = _weighted(rows_of(scores.walk.start, codes), weight)
            walk = replace(scores.walk, start=start, out=scores.walk.out * items[:, place])
        if isinstance(scores.part, Similarity):
            start = _weighted(rows_of(scores.part.start, codes), weight)
            arriving = sp.diags_array(items[:, place].detach().cpu().numpy())
            near = Similarity(start, sp.csr_array(scores.part.weights @ arriving))
    user_parts.append(torch.ones(len(users), 1, device=gates.device))
    item_parts.append(torch.zeros(len(items), 1, device=gates.device))
    return ScoreVectors(torch.cat(user_parts, 1), torch.cat(item_parts, 1), walk, near)


def _weighted(rows: sp.csr_array, weight: Tensor) -> sp.csr_array:
    """Rows of a matrix, each times its own weight (n,)."""
    scaled = sp.diags_array(weight.detach().cpu().numpy()) @ rows
    return sp.csr_array(scaled).astype(np.float32)


def _with_bias(users: Tensor, items: Tensor) -> ScoreVectors:
    pad = (0, 1)
    return ScoreVectors(
        torch.nn.functional.pad(users, pad, value=1.0), torch.nn.functional.pad(items, pad)
    )
