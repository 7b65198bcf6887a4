"""A faiss index of the items, and how much of the exact lists it finds."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from gnnrec.errors import ConfigError
from gnnrec.scores import ScoreVectors, rows_of
from gnnrec.tower import TowerScores

KINDS = ("flat", "hnsw", "ivf")
CUTOFF = 20  # of the recall
_LINKS, _BUILD, _SEARCH = 32, 200, 256  # of hnsw: neighbours, breadth of building and of searching
_PER_CELL = 39  # items that faiss wants at least to place a cell of ivf
_SHARE, _LEAST = 16, 32  # one in so many cells is looked at, and at least so many
_AT_ONCE = 128  # users searched together
_ROUNDING = 1e-5  # of a score against the largest


def check_index(kind: str | None, vectors: ScoreVectors) -> None:
    """Check that an index of a kind can be made.

    Raises:
        ConfigError: No such kind, the scores are not an inner product, or faiss is missing.
    """
    if kind is None:
        return
    if kind not in KINDS:
        raise ConfigError(f"--index {kind}: expected {', '.join(KINDS)}; or leave it out")
    reason = no_product(vectors)
    if reason is not None:
        raise ConfigError(
            f"--index {kind}: found scores that are {reason}, expected an inner product, which is "
            "all that faiss searches by; leave --index out, or transfer two-tower.text"
        )
    if importlib.util.find_spec("faiss") is None:
        raise ConfigError("--index needs faiss, which is missing: pip install 'gnnrec[export]'")


def no_product(vectors: ScoreVectors) -> str | None:
    """Return what else than an inner product the scores are, None for nothing else."""
    if vectors.walk is not None:
        return "an inner product and a walk over the graph, which no short vectors hold"
    if isinstance(vectors.part, TowerScores):
        return "made by a tower of layers for every pair"
    return None if vectors.part is None else f"of the kind {type(vectors.part).__name__}"


def levelled(items: np.ndarray) -> np.ndarray:
    """Append a number to each item that makes all of one length, (n_items, d + 1) float32.

    Queries have a zero there, so that scores stay what they are; but items that are near each other
    now score alike, which the links of hnsw and the cells of ivf live on. Without it the items of
    the largest bias draw all to themselves.

    Source: Bachrach et al. 2014, "Speeding up the Xbox recommender system".
    """
    squares = np.square(items, dtype=np.float64).sum(axis=1)
    return np.column_stack([items, np.sqrt(squares.max() - squares)]).astype(np.float32)


def queries_of(vectors: ScoreVectors) -> np.ndarray:
    """Return what an index is asked with: users' vectors, a one and a zero, (n, d + 1) float32."""
    return np.pad(vectors.users.numpy(), ((0, 0), (0, 1)))


def build_index(items: np.ndarray, kind: str) -> tuple[Any, dict[str, int]]:
    """Build an index that is searched by inner product.

    Args:
        items: (n_items, d) float32; the last column is the bias, that of a user is one.
        kind: flat (exact), hnsw (a graph of neighbours) or ivf (cells around centres).

    Returns:
        The index of `levelled` items, asked with `queries_of` users, in which an item's number is
        its row; and its settings. Cost of building: none for flat, O(n log n d) with a large factor
        for hnsw, O(n sqrt(n) d) for ivf.
    """
    import faiss

    items = levelled(items)
    n_items, dim = items.shape
    index: Any
    settings: dict[str, int] = {}
    if kind == "flat":
        index = faiss.IndexFlatIP(dim)
    elif kind == "hnsw":
        index = faiss.IndexHNSWFlat(dim, _LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction, index.hnsw.efSearch = _BUILD, _SEARCH
        settings = {"M": _LINKS, "efConstruction": _BUILD, "efSearch": _SEARCH}
    else:
        n_cells = max(1, min(int(4 * n_items**0.5), n_items // _PER_CELL))
        centres = faiss.IndexFlatIP(dim)
        index = faiss.IndexIVFFlat(centres, dim, n_cells, faiss.METRIC_INNER_PRODUCT)
        index.train(items)
        index.nprobe = min(n_cells, max(_LEAST, n_cells // _SHARE))
        settings = {"nlist": n_cells, "nprobe": index.nprobe}
    index.add(items)
    return index, settings


def write_index(index: Any, path: Path) -> None:  # noqa: ANN401 (faiss has no types)
    """Write an index; `faiss.read_index` reads it."""
    import faiss

    faiss.write_index(index, str(path))


def recall_of(
    index: Any,  # noqa: ANN401
    vectors: ScoreVectors,
    seen: sp.csr_array,
    max_users: int = 1000,
) -> dict[str, float]:
    """Compare an index with exact ranking, items that a user has left out of both.

    The index is asked for as many more items as the user has. What it finds counts where its score
    reaches that of place 20 but for rounding: of equal scores either will do.

    Args:
        index: Of the items.
        vectors: An inner product.
        seen: (n_users, n_items) CSR.
        max_users: So many are drawn where there are more.

    Returns:
        "recall@20", the mean over users of the share found, and "n_users".
    """
    n_users, n_items = seen.shape
    k = min(CUTOFF, n_items)
    users = np.arange(n_users)
    if n_users > max_users:
        users = np.random.default_rng(0).choice(n_users, max_users, replace=False)
    users = users[np.argsort(np.diff(seen.indptr)[users], kind="stable")]  # like with like
    shares = []
    for first in range(0, len(users), _AT_ONCE):
        codes = users[first : first + _AT_ONCE]
        some, own = vectors.of(codes), rows_of(seen, codes)
        exact, _ = some.top_k(k, seen=own)
        fetched = min(n_items, k + int(np.diff(own.indptr).max(initial=0)))
        scores, items = index.search(queries_of(some), fetched)
        for row in range(len(codes)):
            best = exact[row][exact[row] > -np.inf]
            if len(best):
                mine = own.indices[own.indptr[row] : own.indptr[row + 1]]
                new = (items[row] >= 0) & ~np.isin(items[row], mine)
                least = best[-1] - _ROUNDING * max(1.0, float(np.abs(best).max()))
                shares.append(int((scores[row][new][: len(best)] >= least).sum()) / len(best))
    return {"recall@20": float(np.mean(shares)) if shares else 1.0, "n_users": len(shares)}
