"""GraphSAGE: one training step on sampled neighbours beside one on the whole graph.

    python benchmarks/sampling.py                # a million and four million edges
    python benchmarks/sampling.py --quick        # a hundred thousand; writes no rows

A step draws 512 edges and 1000 items, computes their vectors forwards and backwards, and with
sampling draws the neighbours too. Each way's memory is measured in a process of its own, on Linux
with glibc. The draw alone is compared with a loop over the nodes and, where pyg-lib or
torch-sparse is installed, with PyG's NeighborLoader, which like NeighbourSampler also renumbers
what it drew.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from common import report, timed
from generator import generate
from torch import Tensor

from gnnrec.config import ModelConfig
from gnnrec.encoders import GraphSAGE
from gnnrec.features import GraphInput
from gnnrec.graph import BipartiteGraph
from gnnrec.losses import softmax_loss
from gnnrec.neighbours import Blocks, NeighbourSampler, sample_neighbours

FAN_OUTS = ((15, 10), (10, 5))
FULL = "full propagation"
OWN, OWN_BLOCKS = "gnnrec sample_neighbours", "gnnrec NeighbourSampler"
LOOP, PYG = "loop over the nodes", "PyG NeighborLoader"
N_USERS, N_NEGATIVES, TEXT_DIM = 512, 1000, 384
DRAW_SEEDS, DRAW_FAN_OUT = 20_000, 15


class Step:
    """One graph, one encoder, and what a training step on them costs."""

    def __init__(self, n_edges: int) -> None:
        log = generate(n_edges)
        self.graph = BipartiteGraph(log.users, log.items, log.n_users, log.n_items)
        text = np.random.default_rng(1).standard_normal((log.n_items, TEXT_DIM), np.float32)
        self.x = GraphInput(self.graph, torch.from_numpy(text))
        torch.manual_seed(0)
        self.encoder = GraphSAGE(ModelConfig(encoder="graphsage", text_dim=TEXT_DIM))
        self.rng = np.random.default_rng(2)
        self.blocks: Blocks | None = None

    def __call__(self, fan_out: tuple[int | None, ...] | None) -> float:
        """Make one step and return its loss."""
        edge = self.rng.integers(0, self.graph.n_edges, N_USERS)
        users = np.searchsorted(self.graph.user_items.indptr, edge, side="right") - 1
        items = self.rng.choice(self.graph.n_items, N_NEGATIVES, replace=False)
        items = np.concatenate([self.graph.user_items.indices[edge], items])
        self.encoder.zero_grad(set_to_none=True)
        loss = self.loss(users, items, fan_out)
        loss.backward()
        return loss.item()

    def loss(
        self, users: np.ndarray, items: np.ndarray, fan_out: tuple[int | None, ...] | None
    ) -> Tensor:
        """Sampled softmax of some edges among shared negatives, on the encoder's vectors alone."""
        if fan_out is None:
            block = self.encoder(self.x, torch.from_numpy(users))
            chosen = block.items.index_select(0, torch.from_numpy(items))
        else:
            self.blocks = self.x.sample(users, items, fan_out, self.rng)
            block = self.encoder(self.x, blocks=self.blocks)
            chosen = block.items[: len(items)]
        rows = block.users[:N_USERS] - block.mean_user
        positives, negatives = chosen[:N_USERS], chosen[N_USERS:]
        scores = 10.0 * rows @ negatives.T
        nothing_known = torch.zeros(scores.shape, dtype=torch.bool)
        positive = 10.0 * (rows * positives).sum(dim=1)
        return softmax_loss(positive, scores, nothing_known, self.graph.n_items)

    def check(self) -> None:
        """Full fan-out and full propagation must have one loss."""
        users, items = np.arange(N_USERS), np.arange(N_USERS + N_NEGATIVES)
        with torch.no_grad():
            # Over all users, where the sample has its reference users: only the mean may differ.
            every = self.graph.user_degrees > 0
            self.x.__dict__["reference_users"] = torch.from_numpy(np.flatnonzero(every))
            losses = [float(self.loss(users, items, way)) for way in (None, (None, None))]
            del self.x.__dict__["reference_users"]
        assert abs(losses[0] - losses[1]) < 1e-4 * losses[0], losses
        print(f"loss: {losses[0]:.6f} in full, {losses[1]:.6f} with full fan-out", file=sys.stderr)


def name_of(fan_out: tuple[int, ...] | None) -> str:
    """The way as the rows call it."""
    return FULL if fan_out is None else f"fan-out {fan_out[0]}, {fan_out[1]}"


def memory_growth(n_edges: int, fan_out: tuple[int, ...] | None) -> int:
    """Bytes by which three steps raise the resident memory above graph, texts and weights."""
    step = Step(n_edges)
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # free memory still held would hide what steps take
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
    before = _status("VmRSS")
    for _ in range(3):
        step(fan_out)
    return _status("VmHWM") - before


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def memory_in_a_process(n_edges: int, way: int) -> int | str:
    """Measure in a fresh process, whose memory nothing else has used; "" where that fails."""
    command = [sys.executable, __file__, "--edges", str(n_edges), "--memory-of", str(way)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        return ""
    return int(json.loads(done.stdout))


def steps(n_edges: int, repeats: int) -> list[dict[str, Any]]:
    """Rows of the training step."""
    step = Step(n_edges)
    graph = step.graph
    step.check()
    ways: tuple[tuple[int, ...] | None, ...] = (None, *FAN_OUTS)
    seconds = timed({name_of(way): lambda way=way: step(way) for way in ways}, repeats)  # type: ignore[misc]
    rows = []
    for number, way in enumerate(ways):
        nodes, edges = graph.n_users + graph.n_items, 2 * len(FAN_OUTS[0]) * graph.n_edges
        if way is not None:
            step(way)
            assert step.blocks is not None
            nodes = len(step.blocks.users) + len(step.blocks.items)
            edges = sum(layer.n_edges for layer in step.blocks.layers)
        found, growth = seconds[name_of(way)], memory_in_a_process(n_edges, number)
        rows.append(
            {
                "measure": "training step",
                "edges": graph.n_edges,
                "nodes": graph.n_users + graph.n_items,
                "way": name_of(way),
                "seconds_min": round(found["min"], 5),
                "seconds_median": round(found["median"], 5),
                "times_faster": round(seconds[FULL]["median"] / found["median"], 2),
                "memory_growth_mb": "" if growth == "" else round(int(growth) / 2**20, 1),
                "nodes_read": nodes,
                "edges_summed": edges,
                "seeds_per_second": "",
            }
        )
        print(rows[-1], file=sys.stderr)
    return rows


def draws(n_edges: int, repeats: int) -> list[dict[str, Any]]:
    """Rows of the draw alone: users of items, which have the hubs."""
    log = generate(n_edges)
    graph = BipartiteGraph(log.users, log.items, log.n_users, log.n_items)
    csr = sp.csr_array(graph.user_items.T.tocsr())
    rng = np.random.default_rng(0)
    seeds = rng.choice(graph.n_items, min(DRAW_SEEDS, graph.n_items), replace=False)
    counts = np.minimum(graph.item_degrees[seeds], DRAW_FAN_OUT)

    def loop() -> list[np.ndarray]:
        found = []
        for seed in seeds.tolist():
            row = csr.indices[csr.indptr[seed] : csr.indptr[seed + 1]]
            few = len(row) <= DRAW_FAN_OUT
            found.append(row if few else rng.choice(row, DRAW_FAN_OUT, replace=False))
        return found

    def own() -> tuple[np.ndarray, np.ndarray]:
        return sample_neighbours(csr.indptr, csr.indices, seeds, DRAW_FAN_OUT, rng)

    starts, drawn = own()
    for k, theirs in enumerate(loop()):
        seed, mine = seeds[k], drawn[starts[k] : starts[k + 1]]
        row = csr.indices[csr.indptr[seed] : csr.indptr[seed + 1]]
        assert len(set(mine)) == len(set(theirs)) == counts[k] and np.isin(mine, row).all()
    sampler, nothing = NeighbourSampler(graph.user_items, csr), np.zeros(0, dtype=np.int64)

    def own_blocks() -> Blocks:
        return sampler.draw(nothing, seeds, (DRAW_FAN_OUT,), rng)

    assert own_blocks().layers[0].n_edges == counts.sum()
    ways: dict[str, Callable[[], object]] = {OWN: own, OWN_BLOCKS: own_blocks, LOOP: loop}
    loader = neighbour_loader(graph, seeds)
    if loader is not None:
        ways[PYG] = loader
        assert int(loader()) == counts.sum()
    seconds = timed(ways, repeats)
    return [
        {
            "measure": f"draw of {DRAW_FAN_OUT}",
            "edges": graph.n_edges,
            "nodes": graph.n_users + graph.n_items,
            "way": name,
            "seconds_min": round(found["min"], 5),
            "seconds_median": round(found["median"], 5),
            "times_faster": round(seconds[LOOP]["median"] / found["median"], 2),
            "memory_growth_mb": "",
            "nodes_read": len(seeds),
            "edges_summed": int(counts.sum()),
            "seeds_per_second": round(len(seeds) / found["median"]),
        }
        for name, found in seconds.items()
    ]


def neighbour_loader(graph: BipartiteGraph, seeds: np.ndarray) -> Callable[[], int] | None:
    """PyG's draw of the same, or None: it needs one of two compiled libraries."""
    from torch_geometric.typing import WITH_PYG_LIB, WITH_TORCH_SPARSE

    if not (WITH_PYG_LIB or WITH_TORCH_SPARSE):
        print("PyG's NeighborLoader needs pyg-lib or torch-sparse: left out", file=sys.stderr)
        return None
    from torch_geometric.loader import NeighborLoader

    edge_type = ("user", "interacts", "item")
    loader = NeighborLoader(
        graph.to_pyg(),
        num_neighbors={edge_type: [DRAW_FAN_OUT], ("item", "rev_interacts", "user"): [0]},
        input_nodes=("item", torch.from_numpy(seeds)),
        batch_size=len(seeds),
    )
    return lambda: sum(batch[edge_type].edge_index.shape[1] for batch in loader)


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--edges", type=int, action="append", help="default: 1 and 4 million")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="100,000 edges; writes no rows")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sizes = arguments.edges or ([100_000] if arguments.quick else [1_000_000, 4_000_000])
    if arguments.memory_of is not None:
        print(memory_growth(sizes[0], (None, *FAN_OUTS)[arguments.memory_of]))
        return
    rows = []
    for size in sizes:
        rows += steps(size, arguments.repeats)
        rows += draws(size, arguments.repeats)
    report(rows, "sampling", arguments.json, write=not arguments.quick)


if __name__ == "__main__":
    main()
