"""Baselines that give users and items vectors: iALS, a graph filter, and texts as they are."""

from __future__ import annotations

import importlib.util

import scipy.sparse as sp
import torch

from gnnrec.baselines.base import check_count, check_number, with_popularity
from gnnrec.device import numpy_generator
from gnnrec.errors import ConfigError
from gnnrec.features import GraphInput
from gnnrec.scores import ScoreVectors, Walk


def ials(
    x: GraphInput,
    *,
    factors: int = 64,
    regularisation: float = 30.0,
    alpha: float = 10.0,
    iterations: int = 15,
) -> ScoreVectors:
    """Weighted matrix factorisation by alternating least squares, through the implicit library.

    Minimises `sum of c_ui (r_ui - p_u q_i)^2 + regularisation (|p|^2 + |q|^2)`, c_ui = alpha for
    an interaction and 1 otherwise. Sources: Hu, Koren and Volinsky 2008 (equation 3), solved by
    conjugate gradients as in Takacs, Pilaszy and Tikk 2011. Starts from `x.seed`, in one thread.

    Args:
        x: The graph.
        factors: Length of a vector.
        regularisation: L2 weight.
        alpha: Weight of an interaction against that of a missing one.
        iterations: Passes over both sides.

    Raises:
        ConfigError: A setting is out of range, or the `[baselines]` extra is missing.

    Cost: O((n_edges factors + (n_users + n_items) factors^2) iterations).
    """
    check_count("ials: factors", factors)
    check_number("ials: regularisation", regularisation)
    check_number("ials: alpha", alpha, above=True)
    check_count("ials: iterations", iterations)
    require_baselines_extra()
    from implicit.cpu.als import AlternatingLeastSquares
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, "blas"):  # its own threads would fight with those of BLAS
        model = AlternatingLeastSquares(
            factors=factors,
            regularization=regularisation,
            alpha=alpha,
            iterations=iterations,
            num_threads=1,
            random_state=numpy_generator(x.seed, "ials"),
        )
        model.fit(sp.csr_matrix(x.graph.user_items), show_progress=False)
    users, items = (
        torch.from_numpy(table).to(x.device) for table in (model.user_factors, model.item_factors)
    )
    return with_popularity(x, users, items)


def gf_cf(x: GraphInput, *, rank: int = 64, weight: float = 0.3) -> ScoreVectors:
    """score(u, .) = r_u (A^T A + weight D_i^-1/2 V V^T D_i^1/2), A = D_u^-1/2 R D_i^-1/2.

    V holds the leading `rank` right singular vectors of A: a linear filter and an ideal low-pass.
    `gnnrec.filters.GraphFilter` is a generalisation. Source: Shen et al. 2021 (arXiv 2108.07567).

    Args:
        x: The graph; its spectrum is taken where it holds enough triplets.
        rank: Width of the low-pass.
        weight: Of the low-pass against the linear filter.

    Raises:
        ConfigError: A setting is out of range.

    Cost: as `gnnrec.filters.GraphFilter`.
    """
    check_count("gf-cf: rank", rank)
    check_number("gf-cf: weight", weight)
    if rank > x.spectral_rank:
        x = GraphInput(x.graph, spectral_rank=rank, device=x.device, seed=x.seed)
    low = x.spectrum
    # r_u D_i^-1/2 V = D_u^1/2 A V = D_u^1/2 U diag(sigma), and U is at hand.
    users = x.user_degrees.sqrt()[:, None] * (low.user * (weight * low.sigma))[:, :rank]
    items = x.item_degrees.sqrt()[:, None] * low.item[:, :rank]
    walk = Walk(x.graph.user_items, x.adjacency, torch.ones(x.graph.n_items, device=x.device))
    return with_popularity(x, users, items, walk=walk)


def raw_text(x: GraphInput, *, n_layers: int = 2, weight: float = 2.0) -> ScoreVectors:
    """Cosine of propagated texts plus log popularity; nothing is learned.

    Without layers a user is the mean of the texts of the user's items and an item its own text.
    With layers both are the sums of LightGCN's tables 0..n_layers over the texts (He et al. 2020,
    equation 3), users starting at zero.

    Args:
        x: A graph with item text.
        n_layers: Propagation layers.
        weight: Of log popularity; see `gnnrec.baselines.base.with_popularity`.

    Raises:
        ConfigError: A setting is out of range, or the graph has no item text.

    Cost: O(n_layers n_edges text_dim), once for a graph.
    """
    check_count("raw-text: n_layers", n_layers, low=0)
    check_number("raw-text: weight", weight)
    if x.text is None:
        raise ConfigError(
            "raw-text: found no item text, expected a text for each item; give --items, or leave "
            "this baseline out"
        )
    if n_layers:
        user_tables, item_tables, _ = x.propagated_text(n_layers)
        users, items = (
            torch.stack([table for table in tables if table is not None]).sum(dim=0)
            for tables in (user_tables, item_tables)
        )
    else:
        users, items = x.user_mean(x.text), x.text
        users = users if x.mean_written is None else users + x.mean_written
    users, items = (torch.nn.functional.normalize(table, dim=1) for table in (users, items))
    return with_popularity(x, users, items, weight=weight)


def require_baselines_extra() -> None:
    """Raise a ConfigError with the pip command where the `[baselines]` extra is missing."""
    if importlib.util.find_spec("implicit") is None:
        raise ConfigError("ials needs an extra: pip install 'gnnrec[baselines]'")
