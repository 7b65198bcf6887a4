"""LightGCN in closed form: the layers of one-hot inputs, summed to a ridge regression."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor, nn

from gnnrec.config import ModelConfig, Retrain
from gnnrec.errors import ConfigError
from gnnrec.features import GraphInput
from gnnrec.graph import BipartiteGraph
from gnnrec.newcomers import Arrived, FoldIn, Newcomers
from gnnrec.propagate import SparseOperator, to_torch_csr
from gnnrec.scores import ScoreVectors, Walk

# Chosen on held-out training interactions of Gowalla and Yelp2018.
_START = {
    "row_exponent": 0.3,
    "user_exponent": 0.27,
    "item_exponent": 0.36,
    "output_exponent": 0.36,
    "log2_ridge": -4.25,
    "log2_tail": -0.1,
    "cosine_weight": 0.5,
}
_HEADS = ("row_exponent", "output_exponent", "cosine_weight")
_RESPONSE = ("log2_ridge", "log2_tail")
_NULL = 1e-3
_TIES = 1e-6  # weight of log popularity: it orders equal scores, and users without interactions


class Pieces(NamedTuple):
    """What a graph filter makes its scores from.

    Attributes:
        operator: A.
        sigma: (r,) its leading singular values, zero where they are rounding errors.
        directions: (n_items, r), of items.
        response: (r,), what the directions get beside the line.
        slope: Of the line.
        arriving: (n_items,), the weight of arriving at an item.
    """

    operator: SparseOperator
    sigma: Tensor
    directions: Tensor
    response: Tensor
    slope: float
    arriving: Tensor


class GraphFilter(nn.Module):
    """score(u, .) = x_u [ sum_k alpha_k (A^T A)^k ] D_i^g + cosine, A = D_u^-b R D_i^-e.

    x_u = r_u D_i^-a is the user's row of the interaction matrix. The layer weights alpha are those
    of the ridge regression G (G + lambda s_1^2)^-1 of the co-occurrences G = A^T A, s_1 its largest
    singular value: a LightGCN (He et al. 2020, equations 3 and 4) with one-hot item inputs,
    infinitely many layers and free degree exponents. The leading `spectral_rank` singular
    directions get the ridge's response exactly, all others a straight line in s^2, which is a
    two-hop walk; so the filter has full rank and never builds an items x items matrix.

    The second part is the cosine between user and item in the same leading directions: it counts
    what a rare item's few users say as much as what a popular item's many say.

    There is nothing to train by gradient. Seven numbers (four exponents, the ridge, the steepness
    of the line, the weight of the cosine) are what is learned on one graph and carried to another
    (`gnnrec.search`); singular values are measured against the largest and the cosine against the
    spread of the first part, so they mean the same on every graph.

    Sources: Shen et al. 2021 (arXiv 2108.07567) for graph filters with a linear and a low-pass
    part; Steck 2019 (arXiv 1905.03375) for the ridge; the exponents generalise RP3beta
    (Paudel et al. 2017).

    Cost: a truncated SVD, O((n_edges + (n_users + n_items) r) r), then O(n_edges + n_items r) a
    user who is ranked.
    """

    row_exponent: nn.Parameter
    cosine_weight: nn.Parameter

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        for name, value in _START.items():
            setattr(self, name, nn.Parameter(torch.tensor(value)))

    def forward(self, x: GraphInput, users: Tensor | None = None) -> ScoreVectors:
        """Return the scores of the given users (all by default); see `Model.forward`.

        The scores are constants: no gradient reaches the seven numbers.
        """
        start = x.graph.by_degree(0.0, -self.row_exponent.item())
        return self._scorer(x)(start if users is None else start[users.cpu().numpy()])

    @torch.no_grad()
    def newcomers(self, x: GraphInput) -> FoldIn:
        """See `Model.newcomers`; a user of the graph gets their own scores again."""
        score, exponent = self._scorer(x), -self.row_exponent.item()

        def fold(new: Newcomers) -> Arrived:
            scores = score(new.by_degree(0.0, exponent))
            assert scores.walk is not None
            return Arrived(scores.users, scores.walk.start)

        return fold

    def _scorer(self, x: GraphInput) -> Callable[[sp.csr_array], ScoreVectors]:
        """Return what gives users their scores by their rows of R D_i^-a."""
        operator, sigma, directions, response, slope, arriving = self.pieces(x)
        start = x.graph.by_degree(0.0, -self.row_exponent.item())
        items = torch.cat([directions * arriving[:, None], unit(directions)], dim=1)
        popularity = _TIES * torch.log1p(x.item_degrees)
        columns = torch.cat([items, popularity[:, None]], dim=1)
        device = x.device

        def scores(rows: sp.csr_array, cosine: float) -> ScoreVectors:
            coordinates = to_torch_csr(rows, device) @ directions
            length = torch.from_numpy(np.sqrt((rows * rows).sum(axis=1))).to(device)
            parts = [
                coordinates * response,
                cosine * length[:, None] * unit(coordinates * sigma.sqrt()),
                torch.ones_like(length)[:, None],
            ]
            walk = Walk(rows, operator, slope * arriving)
            return ScoreVectors(torch.cat(parts, dim=1), columns, walk)

        reference = scores(start[x.reference_users.cpu().numpy()], 0.0)
        # Cosines between random directions in k dimensions spread by k^-1/2.
        cosine = self.cosine_weight.item() * _spread(reference) * float((sigma > 0).sum()) ** 0.5
        return lambda rows: scores(rows, cosine)

    def pieces(self, x: GraphInput) -> Pieces:
        """Return what the scores of a graph are put together from."""
        n = self._numbers()
        operator, spectrum = x.filtered(n["user_exponent"], n["item_exponent"])
        # Where a singular value or a degree is zero the directions are rounding errors.
        kept = spectrum.sigma > _NULL * spectrum.sigma.max()
        connected = x.item_degrees > 0
        sigma, directions = spectrum.sigma * kept, spectrum.item * kept * connected[:, None]
        response, slope = filter_response(sigma, 2.0 ** n["log2_ridge"], 2.0 ** n["log2_tail"])
        arriving = x.item_degrees.clamp_min(1.0) ** n["output_exponent"] * connected
        return Pieces(operator, sigma, directions, response, slope, arriving)

    def walk(self, graph: BipartiteGraph, out: Tensor, users: Tensor) -> Walk:
        """Put the two-hop part of a graph's scores together again from its saved `Walk.out`.

        The user vectors, which other models need for it, say nothing here.
        """
        del users
        n = self._numbers()
        matrix = graph.by_degree(-n["user_exponent"], -n["item_exponent"])
        start = graph.by_degree(0.0, -n["row_exponent"])
        return Walk(start, SparseOperator(matrix, out.device), out)

    def _numbers(self) -> dict[str, float]:
        return {name: p.item() for name, p in self.named_parameters()}

    def trained_parameters(self, retrain: Retrain, n_layers: int = 0) -> list[str]:
        """Names of the numbers that a retraining mode chooses anew.

        heads: what stands outside the filter. final: those and the response, which stands for
        all layers' weights. full and scratch: everything, the normalisation included.

        Raises:
            ConfigError: More than one final layer.
        """
        if retrain == "final" and n_layers != 1:
            raise ConfigError(
                f"--retrain final:{n_layers}: a graph filter's layers share one response; expected "
                "final:1"
            )
        if retrain == "zero-shot":
            return []
        if retrain == "heads":
            return list(_HEADS)
        if retrain == "final":
            return [*_HEADS, *_RESPONSE]
        return [name for name, _ in self.named_parameters()]

    def load_pretrained(self, state: dict[str, Tensor]) -> None:
        """Take all numbers of a source."""
        self.load_state_dict(state)

    def count_parameters(self, trained: list[str] | None = None) -> dict[str, int]:
        """As `Model.count_parameters`; there are no id tables and no biases."""
        total = len(list(self.parameters()))
        n_trained = total if trained is None else len(trained)
        return {"total": total, "trained": n_trained, "id_tables": 0, "biases": 0}


def filter_response(sigma: Tensor, ridge: float, tail: float) -> tuple[Tensor, float]:
    """Split the response into c s^2 for all directions and what the leading ones get beside it.

    Args:
        sigma: (r,) singular values, largest first; trailing zeros pad.
        ridge: lambda of h(s) = s^2 / (s^2 + lambda s_1^2), the response of the leading ones.
        tail: Steepness of c s^2 relative to the line that meets h at the smallest leading value.

    Returns:
        ((r,) h(s) - c s^2, c). Where the spectrum is complete no direction is left to the line.
    """
    squares = sigma.square()
    positive = squares[squares > 0]
    if not len(positive):
        return torch.zeros_like(sigma), 0.0
    scale = ridge * positive[0]
    slope = tail / float(scale + positive[-1])
    return torch.where(squares > 0, squares / (squares + scale), 0.0) - slope * squares, slope


def unit(rows: Tensor) -> Tensor:
    """Scale rows to length one; zero rows stay zero."""
    return torch.nn.functional.normalize(rows, dim=1)


def _spread(reference: ScoreVectors) -> float:
    """Standard deviation of the reference users' scores, relative to the length of their rows."""
    assert reference.walk is not None
    n = len(reference.users)
    if not n or len(reference.items) < 2:
        return 0.0
    lengths = np.sqrt((reference.walk.start * reference.walk.start).sum(axis=1))
    spread = reference.rows(0, n).std(dim=1) / torch.from_numpy(lengths).to(reference.users.device)
    return float(spread.mean())
