"""One LightGCN propagation step on Gowalla, forwards and backwards, beside what others offer.

    python benchmarks/propagation.py               # widths 64, 128 and 256: minutes, 5 GB
    python benchmarks/propagation.py --widths 64
    python benchmarks/propagation.py --quick       # a small random graph; writes no rows

A step updates users and items from each other with the symmetric normalisation; its backward takes
a gradient of both tables to a gradient of both. Peers get one stacked table and the square
adjacency, made beforehand; PyG's layer normalises in each call, as it does in use. Before anything
is timed, every way's result and gradient are compared with gnnrec's.

"row gather" is the floor: for each edge in both directions the kernel reads the row that the edge
points to and adds it up, without weights and with hardly any output. `ns_per_edge` is the forward
time over twice the number of edges, `ratio` the time of forward and backward over gnnrec's.
Each time is the best of several rounds in which the ways take turns; `_median` is their median.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from common import report, timed
from torch import Tensor
from torch.nn.functional import embedding_bag
from torch_geometric.nn import LGConv

from gnnrec.datasets import load
from gnnrec.graph import BipartiteGraph
from gnnrec.propagate import SparseOperator

Pair = tuple[Any, Any]
SLOW = {"PyG LGConv": 1}
STEPS = 5  # of each other way in a round, so that it meets its own table in the cache
BAG = 512


def gowalla() -> BipartiteGraph:
    """The training part of LightGCN's split, in the codes that the package gives it."""
    log = load("gowalla").interactions
    return BipartiteGraph(log.users, log.items, log.n_users, log.n_items)


def random_graph(n_users: int = 2000, n_items: int = 3000, n_edges: int = 40_000) -> BipartiteGraph:
    """Uniform: for trying the script."""
    rng = np.random.default_rng(0)
    users, items = rng.integers(n_users, size=n_edges), rng.integers(n_items, size=n_edges)
    return BipartiteGraph(users, items, n_users, n_items)


def differentiated(product: Callable[[Tensor], Tensor], x: Tensor, grad: Tensor) -> Pair:
    """Result and gradient, by autograd."""
    x = x.detach().requires_grad_(True)
    y = product(x)
    return y.detach(), torch.autograd.grad(y, x, grad)[0]


class Ways:
    """Every way of taking a step, at one width: name -> forward, name -> forward and backward.

    Args:
        graph: The graph.
        width: Of the tables.
    """

    def __init__(self, graph: BipartiteGraph, width: int) -> None:
        torch.manual_seed(0)
        n = graph.n_users + graph.n_items
        self.x, self.grad = torch.randn(n, width), torch.randn(n, width)
        self.sizes = [graph.n_users, graph.n_items]
        r = graph.normalised
        square = sp.csr_array(sp.block_array([[None, r], [r.T, None]], format="csr"))
        indptr, indices = (torch.from_numpy(a.astype(np.int64)) for a in _arrays(square))
        values = torch.from_numpy(square.data)
        csr = torch.sparse_csr_tensor(
            indptr, indices, values, size=square.shape, check_invariants=False
        )
        coo = csr.to_sparse_coo().coalesce()
        layer, edge_index = LGConv(), coo.indices().clone()
        peers: dict[str, Callable[[Tensor], Tensor]] = {
            "PyG LGConv": lambda x: layer(x, edge_index),
            "torch COO": lambda x: torch.sparse.mm(coo, x),
            "torch CSR int64": lambda x: csr @ x,
        }
        self.forward: dict[str, Callable[[], Any]] = {}
        self.step: dict[str, Callable[[], Pair]] = {}
        for name, product in peers.items():
            self._add(name, product)
        self._add_scipy(square)
        self._add_gnnrec(SparseOperator(r))
        self.check()
        self._add_floor(r)

    def _add(self, name: str, product: Callable[[Tensor], Tensor]) -> None:
        self.forward[name] = lambda: product(self.x)
        self.step[name] = lambda: differentiated(product, self.x, self.grad)

    def _add_scipy(self, square: sp.csr_array) -> None:
        transposed = sp.csr_array(square.T.tocsr())
        x, grad = self.x.numpy(), self.grad.numpy()
        self.forward["scipy CSR"] = lambda: square @ x
        self.step["scipy CSR"] = lambda: (square @ x, transposed @ grad)

    def _add_gnnrec(self, operator: SparseOperator) -> None:
        user_x, item_x = self.x.split(self.sizes)
        grads = self.grad.split(self.sizes)

        def step() -> Pair:
            users, items = (t.detach().requires_grad_(True) for t in (user_x, item_x))
            out = operator(items), operator.T(users)
            return tuple(t.detach() for t in out), torch.autograd.grad(out, (users, items), grads)

        self.forward["gnnrec"] = lambda: (operator(item_x), operator.T(user_x))
        self.step["gnnrec"] = step

    def _add_floor(self, r: sp.csr_array) -> None:
        """Read a row per edge in the order of the edges; the same twice is the whole step."""
        starts = torch.arange(0, r.nnz + BAG, BAG, dtype=torch.int32).clamp_(max=r.nnz)
        columns = [torch.from_numpy(_arrays(m)[1].astype(np.int32)) for m in (r, r.T.tocsr())]
        tables = [t.clone() for t in reversed(self.x.split(self.sizes))]

        def gather() -> list[Tensor]:
            return [
                embedding_bag(index, table, starts, mode="sum", include_last_offset=True)
                for index, table in zip(columns, tables, strict=True)
            ]

        self.forward["row gather"] = gather
        self.step["row gather"] = lambda: (gather(), gather())

    def check(self) -> None:
        """Every way's result and gradient are those of gnnrec."""
        expected = [torch.cat(pair) for pair in self.step["gnnrec"]()]
        for name, step in self.step.items():
            if name != "gnnrec":
                for found, right in zip(step(), expected, strict=True):
                    torch.testing.assert_close(torch.as_tensor(found), right, rtol=1e-4, atol=1e-5)


def _arrays(matrix: sp.csr_array) -> tuple[np.ndarray, np.ndarray]:
    return matrix.indptr, matrix.indices


def seconds(ways: dict[str, Callable[[], Any]], repeats: int) -> dict[str, dict[str, float]]:
    """Per step: a way that is not slow takes several steps whenever its turn comes."""
    steps = {name: SLOW.get(name, STEPS) for name in ways}

    def several(name: str) -> Callable[[], None]:
        def run() -> None:
            for _ in range(steps[name]):
                ways[name]()

        return run

    times = timed({name: several(name) for name in ways}, repeats)
    return {k: {kind: v / steps[k] for kind, v in t.items()} for k, t in times.items()}


def measure(graph: BipartiteGraph, data: str, width: int, repeats: int) -> list[dict[str, Any]]:
    """The rows of one width."""
    ways = Ways(graph, width)
    print(f"{data}, width {width}: all ways agree", file=sys.stderr)
    with torch.no_grad():
        forward = seconds(ways.forward, repeats)
    step = seconds(ways.step, repeats)
    return [
        {
            "data": data,
            "width": width,
            "way": name,
            "forward_seconds": f"{forward[name]['min']:.5f}",
            "forward_median": f"{forward[name]['median']:.5f}",
            "both_seconds": f"{step[name]['min']:.5f}",
            "both_median": f"{step[name]['median']:.5f}",
            "ns_per_edge": f"{forward[name]['min'] / (2 * graph.n_edges) * 1e9:.2f}",
            "ratio": f"{step[name]['min'] / step['gnnrec']['min']:.2f}",
            "ratio_median": f"{step[name]['median'] / step['gnnrec']['median']:.2f}",
        }
        for name in forward
    ]


def main() -> None:
    """Measure all widths; see the top of the file."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a small random graph, no rows")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    args = parser.parse_args()
    graph, data = (random_graph(), "random") if args.quick else (gowalla(), "gowalla")
    rows = [row for width in args.widths for row in measure(graph, data, width, args.repeats)]
    report(rows, "propagation", args.json, write=not args.quick)


if __name__ == "__main__":
    main()
