"""What a source knows of its items, carried to the items of a target whose texts match theirs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gnnrec.features import GraphInput
from gnnrec.spectrum import principal_axes

BRIDGE_RANK = 64
# Cosine of two sentence vectors from which they are taken for one thing. Those from .85 on, mostly
# the same film with other genres, added nothing on films.
_SAME = 0.9
_CHUNK = 256
_N_LEADING = 64
_ROUNDING = 1e-3
_EXPONENTS = (0.29, 0.42)
_LOG2_RIDGE = -4.1


@dataclass(frozen=True)
class Matched:
    """A source's knowledge laid over a target's items; rows without a twin are zero.

    Attributes:
        vectors: (n_items, r) float32 directions of the source's items.
        response: (r,) float32, the weight of each direction.
        popularity: (n_items,) float32, the twin's interactions relative to the source's mean item.
        found: (n_items,) float32, one where there is a twin.
    """

    vectors: Tensor
    response: Tensor
    popularity: Tensor
    found: Tensor


def item_directions(x: GraphInput, rank: int = BRIDGE_RANK) -> tuple[Tensor, Tensor]:
    """Return (n_items, r) item directions of a graph and (r,) the ridge's response to them.

    Those of `gnnrec.filters.GraphFilter` with fixed exponents; fewer than `rank` on a small graph.
    """
    _, spectrum = x.filtered(*_EXPONENTS)
    sigma = spectrum.sigma[:rank]
    squares = (sigma / sigma.max().clamp_min(1e-12)).square()
    response = squares / (squares + 2.0**_LOG2_RIDGE)
    return spectrum.item[:, :rank] * (squares > 1e-6), response


class Bridge(nn.Module):
    """A source's item table: text vectors, directions and popularity, as constants.

    Two logs without a shared id still share things: the same film under another number. Where a
    target item's text vector is as good as equal to a source item's, the target item takes over
    what the source's users say of it: which items go together, and how popular it is. Nothing of
    the source's users is kept.

    Args:
        n_items: Source items.
        text_dim: Length of the text vectors.
    """

    text: Tensor
    vectors: Tensor
    response: Tensor
    popularity: Tensor

    def __init__(self, n_items: int, text_dim: int) -> None:
        super().__init__()
        self.register_buffer("text", torch.zeros(n_items, text_dim, dtype=torch.float16))
        self.register_buffer("vectors", torch.zeros(n_items, BRIDGE_RANK, dtype=torch.float16))
        self.register_buffer("response", torch.zeros(BRIDGE_RANK))
        self.register_buffer("popularity", torch.zeros(n_items))
        self._last: tuple[Tensor, Matched] | None = None

    @torch.no_grad()
    def take(self, x: GraphInput, chosen: Tensor) -> None:
        """Fill the table from a source graph that has texts: `chosen` (n_items,) int64 codes."""
        assert x.item_text is not None, "a bridge is made of items with text"
        vectors, response = item_directions(x)
        width = vectors.shape[1]
        self.text.copy_(x.item_text[chosen])
        # Float16 has little room below 1e-4, and the scale of a channel is taken out anyway.
        self.vectors[:, :width] = vectors[chosen] / vectors.abs().max().clamp_min(1e-12)
        self.response[:width] = response
        mean = x.item_degrees.sum() / max(int((x.item_degrees > 0).sum()), 1)
        self.popularity.copy_(x.item_degrees[chosen] / mean.clamp_min(1e-12))

    @torch.no_grad()
    def match(self, item_text: Tensor) -> Matched:
        """Find each target item's twin: (n_items, text_dim) unit rows -> `Matched`.

        Cost: O(n_items n_source_items min(64, text_dim)), a chunk of similarities in memory; the
        last table asked for is kept.
        """
        if self._last is not None and self._last[0] is item_text:
            return self._last[1]
        index, best = _nearest(item_text, self.text.to(item_text))
        found = (best > _SAME).float()
        matched = Matched(
            self.vectors.float()[index] * found[:, None],
            self.response,
            self.popularity[index] * found,
            found,
        )
        self._last = (item_text, matched)
        return matched


def _nearest(rows: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """Return the nearest row of a table by inner product, and its value, where it is above _SAME.

    (n,) int64 and (n,) float32; zeros where nothing comes near. Exact: most pairs are ruled out by
    the inner product of their leading principal coordinates and a bound on the rest (the product of
    their lengths, by Cauchy and Schwarz), which is a fraction of the work.
    """
    basis = principal_axes(table)[:, -_N_LEADING:]
    rows_short, table_short = _shortened(rows, basis), _shortened(table, basis)
    index = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
    best = torch.zeros(len(rows), device=rows.device)
    for begin in range(0, len(rows), _CHUNK):
        bound = rows_short[begin : begin + _CHUNK] @ table_short.T
        row, column = torch.nonzero(bound > _SAME - _ROUNDING, as_tuple=True)
        row = row + begin
        value = (rows[row] * table[column]).sum(dim=1)
        # By row, the largest first, of equals the first in the table (nonzero's own order).
        order = torch.argsort(value, descending=True, stable=True)
        order = order[torch.argsort(row[order], stable=True)]
        first = torch.ones_like(order, dtype=torch.bool)
        first[1:] = row[order][1:] != row[order][:-1]
        chosen = order[first]
        index[row[chosen]], best[row[chosen]] = column[chosen], value[chosen]
    return index, best


def _shortened(rows: Tensor, basis: Tensor) -> Tensor:
    """(n, width + 1): coordinates in a basis, then the length of what they leave out."""
    leading = rows @ basis
    rest = rows.square().sum(dim=1) - leading.square().sum(dim=1)
    return torch.cat([leading, rest.clamp_min(0.0).sqrt()[:, None]], dim=1)
