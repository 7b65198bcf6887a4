"""The 20 best unseen items of every user of Gowalla: `gnnrec.rank.top_k` beside `implicit`.

    python benchmarks/ranking.py                # 29,858 users over 40,981 items, 64 factors
    python benchmarks/ranking.py --quick        # a small made-up log; writes no rows

All ways get the same factors, a truncated SVD of the normalised interactions, so that scores are
spread as a recommender's are. `implicit` is measured as it comes, with all cores, and with BLAS
held to one thread, as its authors advise. The lists must agree: where two ways show different items
at a place, these items' scores, computed in float64, differ by less than 1e-5.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from common import report, timed

from gnnrec.datasets import load
from gnnrec.rank import top_k

Lists = tuple[np.ndarray, np.ndarray]  # scores and items, both (n_users, k)
TOLERANCE = 1e-5
CHUNK = 512  # users whose scores numpy holds at a time


def gowalla() -> sp.csr_array:
    """The training part of LightGCN's split."""
    log = load("gowalla").interactions
    ones = np.ones(log.n_interactions, dtype=np.float32)
    return sp.csr_array((ones, (log.users, log.items)), shape=(log.n_users, log.n_items))


def made_up(n_users: int = 2000, n_items: int = 20_000, n_edges: int = 400_000) -> sp.csr_array:
    """For trying the script: items of a power law."""
    rng = np.random.default_rng(0)
    items = (rng.random(n_edges) ** 2 * n_items).astype(np.int64)
    pairs = np.unique(rng.integers(n_users, size=n_edges) * n_items + items)
    ones = np.ones(len(pairs), dtype=np.float32)
    return sp.csr_array((ones, (pairs // n_items, pairs % n_items)), shape=(n_users, n_items))


def factors(seen: sp.csr_array, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """(n_users, dim) and (n_items, dim) float32: whose products are a smoothed D^-1/2 A D^-1/2."""
    user_scale = np.maximum(np.diff(seen.indptr), 1) ** -0.5
    item_scale = np.maximum(np.bincount(seen.indices, minlength=seen.shape[1]), 1) ** -0.5
    scaled = (sp.diags_array(user_scale) @ seen @ sp.diags_array(item_scale)).tocoo()
    where = torch.from_numpy(np.stack([scaled.row, scaled.col]).astype(np.int64))
    values = torch.from_numpy(scaled.data.astype(np.float32))
    matrix = torch.sparse_coo_tensor(where, values, seen.shape, check_invariants=False)
    torch.manual_seed(0)
    left, singular, right = torch.svd_lowrank(matrix.coalesce(), dim, niter=3)
    return (left * singular).contiguous().numpy(), right.contiguous().numpy()


def by_numpy(users: np.ndarray, items: np.ndarray, seen: sp.csr_array, k: int) -> Lists:
    """The plain way: a product, `argpartition` over all items, a sort of what it leaves."""
    values, found = np.empty((len(users), k), np.float32), np.empty((len(users), k), np.int64)
    for start in range(0, len(users), CHUNK):
        scores = users[start : start + CHUNK] @ items.T
        stop = start + len(scores)
        ends = seen.indptr[start : stop + 1]
        rows = np.repeat(np.arange(len(scores)), np.diff(ends))
        scores[rows, seen.indices[ends[0] : ends[-1]]] = -np.inf
        best = np.argpartition(scores, -k, axis=1)[:, -k:]
        top = np.take_along_axis(scores, best, 1)
        order = np.argsort(-top, axis=1)
        values[start:stop] = np.take_along_axis(top, order, 1)
        found[start:stop] = np.take_along_axis(best, order, 1)
    return values, found


def by_implicit(
    users: np.ndarray, items: np.ndarray, seen: sp.csr_array, k: int
) -> dict[str, Callable[[], Lists]]:
    """`implicit` with these factors, where it is installed."""
    try:
        from implicit.cpu.als import AlternatingLeastSquares
        from threadpoolctl import threadpool_limits
    except ImportError:
        print("implicit is not there, left out: pip install implicit threadpoolctl",
              file=sys.stderr)  # fmt: skip
        return {}
    model = AlternatingLeastSquares(factors=users.shape[1], num_threads=0)
    model.user_factors, model.item_factors = users, items
    codes, liked = np.arange(len(users)), sp.csr_matrix(seen)

    def recommend() -> Lists:
        found, scores = model.recommend(codes, liked, N=k, filter_already_liked_items=True)
        return scores, found

    def one_blas_thread() -> Lists:
        with threadpool_limits(1, user_api="blas"):
            return recommend()

    return {"implicit": recommend, "implicit, BLAS at one thread": one_blas_thread}


def check(
    name: str, lists: Lists, ours: Lists, users: np.ndarray, items: np.ndarray, seen: sp.csr_array
) -> float:
    """Compare a way's lists with ours, and return the share of places with the same item.

    Raises:
        ValueError: They differ by more than rounding, or show something seen.
    """
    found, expected = lists[1], ours[1]
    rows, places = np.nonzero(found != expected)
    left, right = (
        np.einsum("nd,nd->n", users[rows].astype(np.float64), items[x[rows, places]])
        for x in (found, expected)
    )
    worst = np.abs(left - right).max(initial=np.abs(lists[0] - ours[0]).max())
    n_items = seen.shape[1]
    pairs = np.arange(len(users))[:, None] * n_items + found
    known = np.repeat(np.arange(len(users)), np.diff(seen.indptr)) * n_items + seen.indices
    if worst > TOLERANCE or np.isin(pairs, known).any():
        raise ValueError(f"{name} disagrees: scores differ by {worst}, or seen items are shown")
    return 1 - len(rows) / found.size


def growth(way: Callable[[], Lists]) -> tuple[Lists, str]:
    """Run a way; return its lists and the MB by which it raised the resident memory, on Linux."""

    def status(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(field))

    if sys.platform != "linux":
        return way(), ""
    ctypes.CDLL(None).malloc_trim(0)  # what others freed is not this way's to use
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
    before = status("VmRSS")
    return way(), f"{(status('VmHWM') - before) / 1024:.0f}"


def measure(
    seen: sp.csr_array, data: str, n_users: int | None, dim: int, k: int, repeats: int
) -> list[dict[str, Any]]:
    """One row per way; factors of the whole log, lists for its first users."""
    users, items = factors(seen, dim)
    users, seen = users[:n_users], sp.csr_array(seen[:n_users])
    user_vectors, item_vectors = torch.from_numpy(users), torch.from_numpy(items)
    ways: dict[str, Callable[[], Lists]] = {
        "gnnrec": lambda: top_k(user_vectors, item_vectors, k, seen=seen),
        **by_implicit(users, items, seen, k),
        "numpy": lambda: by_numpy(users, items, seen, k),
    }
    agreement, memory = {}, {}
    ours, _ = growth(ways["gnnrec"])  # also starts the thread pools
    for name, way in ways.items():
        lists, memory[name] = growth(way)
        agreement[name] = check(name, lists, ours, users, items, seen)
    print(f"{data}: all ways agree", file=sys.stderr)
    times = timed(ways, repeats, warm_up=0)
    return [
        {
            "data": data,
            "n_users": len(users),
            "n_items": len(items),
            "dim": dim,
            "k": k,
            "way": name,
            "seconds": f"{times[name]['min']:.3f}",
            "median": f"{times[name]['median']:.3f}",
            "ratio": f"{times[name]['min'] / times['gnnrec']['min']:.2f}",
            "ratio_median": f"{times[name]['median'] / times['gnnrec']['median']:.2f}",
            "peak_mb": memory[name],
            "same_items": f"{agreement[name]:.5f}",
        }
        for name in ways
    ]


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-k", type=int, default=20)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--users", type=int, help="only the first so many; writes no rows")
    parser.add_argument("--quick", action="store_true", help="a small made-up log; writes no rows")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    arguments = parser.parse_args()
    seen = made_up() if arguments.quick else gowalla()
    rows = measure(
        seen,
        "made-up" if arguments.quick else "gowalla",
        arguments.users,
        arguments.dim,
        arguments.k,
        arguments.repeats,
    )
    full_size = not arguments.quick and arguments.users is None
    report(rows, "ranking", arguments.json, write=full_size)


if __name__ == "__main__":
    main()
