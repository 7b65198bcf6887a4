"""A made-up log of any number of interactions, its degrees and clustering fitted to Gowalla's.

    python benchmarks/generator.py                         # Gowalla beside a graph of its size
    python benchmarks/generator.py --edges 810128 4000000
    python benchmarks/generator.py --fit                   # the search behind the constants

Degrees: Gowalla's degree at a few survival probabilities, log-log interpolated, with a power law
beyond the last. Clustering: users and items are dealt into blocks of a fixed size; a share INSIDE
of the edges stays within a block, and items are chosen by popularity there and outside.

A larger graph has the same mean degrees and more blocks of the same size. Its hubs grow with the
power law, and their partners are in many blocks: the share of closed paths, in which hubs count
most, falls somewhat with size, while the overlap of pairs stays.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from scipy.optimize import minimize_scalar
from scipy.special import zeta

from gnnrec.console import text_table
from gnnrec.graph import BipartiteGraph, gini

# The share of nodes that have at least the degree below it.
SURVIVAL = (1.0, 0.9, 0.75, 0.5, 0.35, 0.25, 0.15, 0.1, 0.05, 0.025, 0.01, 0.005, 0.001, 0.0003)
# Chosen by `--fit` on the two clustering measures.
INSIDE = 0.85
BLOCK_USERS = 1000
# A node's edges within a block reach at most this share of the block's other side; the rest go
# outside. Without it hubs would run out of partners.
MOST_OF_BLOCK = 0.5
_CHUNK = 2_000_000  # edges drawn at once
_ROUNDS = 20
# From twice the ten interactions below which Gowalla's nodes were cut.
_X_MIN_LIMITS = (20, 100)


@dataclass(frozen=True)
class Side:
    """Degrees of one side: mean, the degree at each of SURVIVAL, exponent beyond, x_min."""

    mean: float
    degrees: tuple[float, ...]
    tail: float
    x_min: int

    def draw(self, n: int, most: float, rng: np.random.Generator) -> np.ndarray:
        """Return (n,) float64 expected degrees in random order, none above `most`."""
        survival = np.arange(1, n + 1) / n  # evenly: no luck in who is the largest
        grid = np.log(SURVIVAL[::-1])
        drawn = np.exp(np.interp(np.log(survival), grid, np.log(self.degrees[::-1])))
        beyond = survival < SURVIVAL[-1]
        drawn[beyond] *= (survival[beyond] / SURVIVAL[-1]) ** (-1.0 / (self.tail - 1.0))
        drawn *= self.mean / drawn.mean()
        rng.shuffle(drawn)
        return np.minimum(drawn, most)


USERS = Side(27.1327, (8, 8, 11, 16, 22, 29, 41, 53, 81, 119, 181, 246, 433, 544), 5.48, 40)
ITEMS = Side(19.7684, (5, 8, 9, 12, 15, 19, 26, 34, 53, 81, 139, 195, 407, 691), 3.42, 20)


@dataclass(frozen=True)
class Log:
    """Edges as codes, sorted by user; node numbers carry no information."""

    users: np.ndarray
    items: np.ndarray
    n_users: int
    n_items: int


def generate(
    n_edges: int, seed: int = 0, inside: float = INSIDE, block_users: int = BLOCK_USERS
) -> Log:
    """Make a log of about n_edges distinct pairs, int32. O(n_edges) time, 8 bytes an edge.

    Repeated pairs are drawn again, up to 20 times, then dropped, so the count that comes out is
    off n_edges a little.
    """
    rng = np.random.default_rng(seed)
    n_users, n_items = (max(2, round(n_edges / side.mean)) for side in (USERS, ITEMS))
    degrees = USERS.draw(n_users, n_items / 2, rng)
    degrees = np.floor(degrees + rng.random(n_users)).astype(np.int64)
    weights = ITEMS.draw(n_items, n_users / 2, rng)

    n_blocks = max(1, round(n_users / block_users))
    near = np.minimum(inside * weights, MOST_OF_BLOCK * n_users / n_blocks)
    near_sum, far_sum = (np.concatenate([[0.0], np.cumsum(w)]) for w in (near, weights - near))
    share = near.sum() / weights.sum()  # as much as the items leave
    user_share = np.minimum(share, MOST_OF_BLOCK * n_items / n_blocks / np.maximum(degrees, 1))
    block = rng.permutation(n_users) * n_blocks // n_users
    bounds = near_sum[np.arange(n_blocks + 1) * n_items // n_blocks]
    item_code = rng.permutation(n_items)

    def draw(users: np.ndarray) -> np.ndarray:
        stays = rng.random(len(users)) < user_share[users]
        at = rng.random(len(users))
        place = np.empty(len(users), dtype=np.int64)
        low, high = (bounds[block[users[stays]] + end] for end in (0, 1))
        place[stays] = np.searchsorted(near_sum, low + at[stays] * (high - low), side="right")
        place[~stays] = np.searchsorted(far_sum, at[~stays] * far_sum[-1], side="right")
        return item_code[np.minimum(place - 1, n_items - 1)]

    ends = np.cumsum(degrees)
    total = int(ends[-1])
    users_out, items_out = (np.empty(total, dtype=np.int32) for _ in range(2))
    cuts = np.unique(np.r_[0, np.searchsorted(ends, np.arange(_CHUNK, total, _CHUNK)), n_users])
    done = 0
    for first, last in zip(cuts[:-1], cuts[1:], strict=True):
        missing = wanted = degrees[first:last]
        keys = np.empty(0, dtype=np.int64)
        for again in range(_ROUNDS):
            users = np.repeat(np.arange(first, last), missing)
            keys = np.concatenate([keys, users * n_items + draw(users)])
            keys.sort(kind="stable" if again else None)  # then most of them are in order
            keys = keys[np.append(True, keys[1:] != keys[:-1])]  # np.unique hashes, 30x slower
            missing = wanted - np.bincount(keys // n_items - first, minlength=len(wanted))
            if not missing.any():
                break
        part = slice(done, done + len(keys))
        users_out[part], items_out[part] = np.divmod(keys, n_items)
        done += len(keys)
    return Log(users_out[:done], items_out[:done], n_users, n_items)


def tail_exponent(degrees: np.ndarray, x_min: int) -> float:
    """Exponent of a discrete power law fitted to the degrees of at least x_min.

    Maximum likelihood, Clauset, Shalizi and Newman 2009, equation 3.5: the exponent a that
    minimises n log zeta(a, x_min) + a sum(log x).
    """
    tail = degrees[degrees >= x_min]
    if not len(tail):
        return float("nan")
    logs = np.log(tail).sum()
    found = minimize_scalar(
        lambda a: len(tail) * np.log(zeta(a, x_min)) + a * logs,
        bounds=(1.01, 8.0),
        method="bounded",
    )
    return float(found.x)


def choose_x_min(degrees: np.ndarray) -> int:
    """The x_min in [20, 100) whose fit is nearest the data by Kolmogorov-Smirnov distance.

    Clauset, Shalizi and Newman 2009, section 3.3.
    """

    def distance(x_min: int) -> float:
        values, counts = np.unique(degrees[degrees >= x_min], return_counts=True)
        fitted = 1.0 - zeta(tail_exponent(degrees, x_min), values + 1) / zeta(
            tail_exponent(degrees, x_min), x_min
        )
        return float(np.abs(np.cumsum(counts) / counts.sum() - fitted).max())

    return min(range(*_X_MIN_LIMITS), key=distance)


def closed_paths(
    by_user: sp.csr_array, by_item: sp.csr_array, n: int, rng: np.random.Generator
) -> float:
    """Share of three-edge paths that lie on a four-cycle, from n random paths.

    The bipartite clustering coefficient of Robins and Alexander 2004: 4 x four-cycles over
    three-paths. A middle edge (u, i) is drawn with weight (d_u - 1)(d_i - 1), then another item of
    u and another user of i; the path is closed where those two are an edge. The standard error is
    below 0.5 / sqrt(n).
    """
    user_degrees, item_degrees = (np.diff(m.indptr).astype(np.int64) for m in (by_user, by_item))
    weights = (item_degrees - 1.0)[by_user.indices]
    weights *= np.repeat(user_degrees - 1.0, user_degrees)
    np.cumsum(weights, out=weights)
    middle = np.searchsorted(weights, rng.random(n) * weights[-1], side="right")
    users = np.searchsorted(by_user.indptr, middle, side="right") - 1
    items = by_user.indices[middle]
    other_items = _another(by_user, users, items, rng)
    other_users = _another(by_item, items, users, rng)
    return float((np.asarray(by_user[other_users, other_items]).ravel() > 0).mean())


def pair_overlap(
    by_user: sp.csr_array, by_item: sp.csr_array, n: int, rng: np.random.Generator
) -> float:
    """Mean overlap of the users of two items that share one, from n random pairs.

    |N(i) & N(j)| / |N(i) | N(j)|, the pairwise clustering of Latapy, Magnien and Del Vecchio 2008,
    section 3.2, averaged over pairs. Pairs are drawn through a shared user, so each counts with
    weight 1 / |N(i) & N(j)|.
    """
    degrees = np.diff(by_user.indptr).astype(np.float64)
    through = np.cumsum(degrees * (degrees - 1.0))
    users = np.searchsorted(through, rng.random(n) * through[-1], side="right")
    first = _any(by_user, users, rng)
    second = _another(by_user, users, first, rng)
    shared = np.asarray(by_item[first].multiply(by_item[second]).sum(axis=1)).ravel()
    sizes = np.diff(by_item.indptr)
    union = sizes[first] + sizes[second] - shared
    return float((1.0 / union).sum() / (1.0 / shared).sum())


def _any(matrix: sp.csr_array, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    lengths = np.diff(matrix.indptr)[rows]
    drawn = (rng.random(len(rows)) * lengths).astype(np.int64)
    return np.asarray(matrix.indices[matrix.indptr[rows] + drawn])


def _another(
    matrix: sp.csr_array, rows: np.ndarray, not_this: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Draw a column of each row that is not the given one of its columns."""
    ends = matrix.indptr[rows + 1]
    drawn = (rng.random(len(rows)) * (ends - matrix.indptr[rows] - 1)).astype(np.int64)
    chosen = matrix.indices[matrix.indptr[rows] + drawn]
    # One place is spared: the last stands in where the draw met the column to avoid.
    return np.where(chosen == not_this, matrix.indices[ends - 1], chosen)


def describe(log: Log, n_samples: int = 400_000) -> dict[str, Any]:
    """Counts, degree exponents, concentration and clustering, the same way for every graph."""
    by_user = BipartiteGraph(log.users, log.items, log.n_users, log.n_items).user_items
    by_item = sp.csr_array(by_user.T.tocsr())
    rng = np.random.default_rng(0)
    row: dict[str, Any] = {"edges": by_user.nnz}
    for name, matrix, side in (("user", by_user, USERS), ("item", by_item, ITEMS)):
        degrees = np.diff(matrix.indptr).astype(np.int64)
        row |= {
            f"{name}s": len(degrees),
            f"{name}_mean_degree": float(degrees.mean()),
            f"{name}_exponent": tail_exponent(degrees, side.x_min),
            f"{name}_gini": gini(degrees),
            f"{name}_median_degree": float(np.median(degrees)),
            f"{name}_max_degree": int(degrees.max()),
            f"{name}_max_share": float(degrees.max() / by_user.nnz),
            f"{name}_isolated": int((degrees == 0).sum()),
        }
    row["closed_paths"] = closed_paths(by_user, by_item, n_samples, rng)
    row["pair_overlap"] = pair_overlap(by_user, by_item, n_samples // 10, rng)
    return row


def gowalla() -> Log:
    """The training part of LightGCN's Gowalla."""
    from gnnrec.sources import open_log

    log = open_log("gowalla").interactions
    return Log(log.users, log.items, log.n_users, log.n_items)


def fit() -> None:
    """Print what the constants above were read from."""
    target = gowalla()
    by_user = BipartiteGraph(target.users, target.items, target.n_users, target.n_items)
    for name, degrees in (("users", by_user.user_degrees), ("items", by_user.item_degrees)):
        at = [int(np.quantile(degrees, 1.0 - s)) for s in SURVIVAL]
        print(name, f"mean {degrees.mean():.4f}, degrees {at},", end=" ")
        print(f"tail {tail_exponent(degrees, 400):.2f}, x_min {choose_x_min(degrees)}")
    rows = [{"inside": "Gowalla", "block": "", **describe(target, 100_000)}]
    for block in (500, 1000, 2000):
        for inside in (0.8, 0.85, 0.9):
            log = generate(len(target.users), inside=inside, block_users=block)
            rows.append({"inside": inside, "block": block, **describe(log, 100_000)})
    keep = ("inside", "block", "closed_paths", "pair_overlap", "user_gini", "item_gini")
    print(text_table([{key: row[key] for key in keep} for row in rows]))


def main() -> None:
    """Show Gowalla beside graphs of the asked sizes."""
    from common import report

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--edges", type=int, nargs="+", help="default: as many as Gowalla has")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fit", action="store_true", help="print the search for the constants")
    parser.add_argument("--quick", action="store_true", help="write no rows")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.fit:
        fit()
        return
    target = gowalla()
    columns = {"Gowalla": describe(target)}
    for n_edges in arguments.edges or [len(target.users)]:
        started = time.perf_counter()
        log = generate(n_edges, arguments.seed)
        seconds = time.perf_counter() - started
        print(f"{len(log.users)} edges made in {seconds:.1f} s", file=sys.stderr)
        columns[f"made, {n_edges}"] = describe(log)
    rows = [
        {"measure": key} | {name: column[key] for name, column in columns.items()}
        for key in columns["Gowalla"]
    ]
    report(rows, "generator", arguments.json, write=not arguments.quick)


if __name__ == "__main__":
    main()
