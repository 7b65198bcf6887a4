"""What an index of `gnnrec export` costs and finds, beside gnnrec's own exact ranking.

    python benchmarks/export.py                # 40,000 and 1,000,000 items
    python benchmarks/export.py --quick        # 4,000 and 20,000; writes no rows

Made vectors: items lie around centres of uneven size, their bias is the logarithm of a power law,
and a user is the mean of some items of two centres. Users have 10 to 30 items, which are left out:
faiss is asked for as many more. `one_ms` is the median of single users, `together_ms` what a user
costs where 1,000 are asked for at once. The exact ranking of gnnrec is the row `gnnrec`, for which
there is nothing to build.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from common import report

from gnnrec.export.index import CUTOFF, KINDS, build_index, queries_of, recall_of
from gnnrec.machine import peak_memory_mb, reset_peak_memory
from gnnrec.scores import ScoreVectors, rows_of

N_USERS = 1_000
DIM = 64
WARM_UP = 20


def made_vectors(n_items: int, seed: int = 0) -> tuple[ScoreVectors, sp.csr_array]:
    """Vectors of 64 numbers and a bias, and what each user has."""
    rng = np.random.default_rng(seed)
    n_centres = max(20, n_items // 200)
    centres = rng.standard_normal((n_centres, DIM)).astype(np.float32)
    of_item = (rng.random(n_items) ** 2 * n_centres).astype(np.int64)
    noise = rng.standard_normal((n_items, DIM)).astype(np.float32)
    items = (centres[of_item] + 0.7 * noise) / DIM**0.5
    ranks = rng.permutation(n_items) + 1
    bias = 0.3 * np.log(n_items / ranks).astype(np.float32)
    by_centre = np.argsort(of_item, kind="stable")
    starts = np.searchsorted(of_item[by_centre], np.arange(n_centres + 1))
    filled = np.flatnonzero(np.diff(starts))
    rows, columns, users = [], [], np.ones((N_USERS, DIM + 1), dtype=np.float32)
    for user in range(N_USERS):
        members = [
            by_centre[starts[c] : starts[c + 1]] for c in rng.choice(filled, 2, replace=False)
        ]
        own = np.unique(rng.choice(np.concatenate(members), rng.integers(10, 31)))
        users[user, :DIM] = 4.0 * items[own].mean(axis=0)
        rows += [user] * len(own)
        columns += own.tolist()
    ones = np.ones(len(rows), dtype=np.float32)
    seen = sp.csr_array((ones, (rows, columns)), shape=(N_USERS, n_items))
    table = np.concatenate([items, bias[:, None]], axis=1).astype(np.float32)
    return ScoreVectors(torch.from_numpy(users), torch.from_numpy(table)), seen


def waits(ask: Callable[[np.ndarray], object], calls: int) -> dict[str, str]:
    """Milliseconds a user, one by one and together."""
    seconds = []
    for number in range(WARM_UP + calls):
        started = time.perf_counter()
        ask(np.array([number % N_USERS]))
        seconds.append(time.perf_counter() - started)
    started = time.perf_counter()
    ask(np.arange(N_USERS))
    together = time.perf_counter() - started
    return {
        "one_ms": f"{1e3 * statistics.median(seconds[WARM_UP:]):.3f}",
        "together_ms": f"{1e3 * together / N_USERS:.3f}",
    }


def rows_for(n_items: int, calls: int) -> list[dict[str, Any]]:
    """Measure every way on a catalogue of a size."""
    vectors, seen = made_vectors(n_items)
    queries, n_own = queries_of(vectors), np.diff(seen.indptr)
    base = {"n_items": n_items, "dim": DIM, "n_users": N_USERS, "k": CUTOFF, "calls": calls}

    def exact(users: np.ndarray) -> object:
        return vectors.of(users).top_k(CUTOFF, seen=rows_of(seen, users))

    print(f"{n_items} items: gnnrec", file=sys.stderr)
    rows = [base | {"way": "gnnrec", "settings": "", "build_seconds": "0.00", "build_mb": "0"}]
    rows[0] |= {"recall@20": "1.0000", **waits(exact, calls)}
    for kind in KINDS:
        print(f"{n_items} items: {kind}", file=sys.stderr)
        reset_peak_memory()
        before, started = peak_memory_mb(), time.perf_counter()
        index, settings = build_index(vectors.items.numpy(), kind)
        seconds = time.perf_counter() - started
        row = base | {
            "way": kind,
            "settings": " ".join(f"{name}={value}" for name, value in settings.items()),
            "build_seconds": f"{seconds:.2f}",
            "build_mb": f"{peak_memory_mb() - before:.0f}",
            "recall@20": f"{recall_of(index, vectors, seen)['recall@20']:.4f}",
        }

        def found(users: np.ndarray, index: Any = index) -> object:  # noqa: ANN401
            return index.search(queries[users], CUTOFF + int(n_own[users].max()))

        rows.append(row | waits(found, calls))
    return rows


def main() -> None:
    """Measure all sizes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, help="single users timed; default: 500")
    parser.add_argument("--quick", action="store_true", help="small sizes; no rows")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    arguments = parser.parse_args()
    sizes = (4_000, 20_000) if arguments.quick else (40_000, 1_000_000)
    calls = arguments.calls or (100 if arguments.quick else 500)
    rows = [row for size in sizes for row in rows_for(size, calls)]
    report(rows, "export", arguments.json, write=not arguments.quick)


if __name__ == "__main__":
    main()
