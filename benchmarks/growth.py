"""Whether cost grows with the edges and no faster: time and memory per edge at 1 to 64 million.

    python benchmarks/growth.py                   # 1, 4, 16, 64 million edges
    python benchmarks/growth.py --sizes 1 4
    python benchmarks/growth.py --quick           # 100 and 400 thousand; writes no rows
    python benchmarks/growth.py --huge-pages      # torch asks Linux for pages of 2 MB

Logs come from `generator.py`, with int64 codes as `Interactions` holds them. Every measure runs in
a process of its own; `bytes_per_edge` is its peak resident memory less what it held before, which
is the log and the libraries, and `peak_gb` is all of it. Measures:

    build            BipartiteGraph from a log in order of users, and its normalised matrix
    build, shuffled  the same from a log in random order, as one in order of time is
    propagation      one LightGCN layer on tables of 64 columns, both sides, forward and backward
    gather           the rows that propagation reads, in its order, read and summed, nothing else:
                     embedding_bag, which asks for rows ahead of time (index_select and a sum take
                     twice as long), in bags of 512 rows; interleaved with propagation
    episode          drawing one pretraining sub-graph, the mean of 20 (its spectrum not made)
    pretraining      64 steps of a LightGCN without text, validation included, the rest defaults
    spectrum         GraphInput.spectrum of rank 64 on the whole graph (`--spectrum`)

`time_ratio` and `bytes_ratio` divide by the values per edge at 4 million edges. `gather_ratio`
divides a propagation's time by its gather's; `gather_growth` divides that by its value at 1
million. `step_seconds` is a step's share of the run without drawing the validation episodes;
`episode_item_degree` the mean visible edges of an episode's items.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import embedding_bag

sys.path.insert(0, str(Path(__file__).parent))

from common import report, timed

from gnnrec.config import PretrainConfig
from gnnrec.device import numpy_generator, peak_memory_bytes
from gnnrec.episodes import Source, sample_episode
from gnnrec.features import GraphInput
from gnnrec.graph import BipartiteGraph
from gnnrec.pretrain import pretrain
from gnnrec.propagate import SparseOperator

MILLION = 1_000_000
DIM = 64
STEPS = 64
_SHAPE = ("edges", "users", "items", "user_exponent", "item_exponent", "closed_paths",
          "pair_overlap")  # fmt: skip
_EXTRAS = ("step_seconds", "episode_item_degree")
_HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"
_BAG = 512


def make(folder: Path, n_edges: int) -> dict[str, Any]:
    """Write a log in both orders; return its description."""
    from generator import describe, generate

    started = time.perf_counter()
    log = generate(n_edges)
    seconds = time.perf_counter() - started
    order = np.random.default_rng(1).permutation(len(log.users))
    for name, codes in (("users", log.users), ("items", log.items)):
        np.save(folder / f"{name}.npy", codes.astype(np.int64))
        np.save(folder / f"shuffled_{name}.npy", codes.astype(np.int64)[order])
    del order
    shape = {"n_users": log.n_users, "n_items": log.n_items}
    (folder / "shape.json").write_text(json.dumps(shape), encoding="utf-8")
    return {"seconds": seconds, **describe(log)}


def load(folder: Path, prefix: str = "") -> dict[str, Any]:
    """The log as the arguments of `BipartiteGraph`."""
    shape = json.loads((folder / "shape.json").read_text(encoding="utf-8"))
    codes = {
        k: np.load(folder / f"{prefix}{k}.npy", allow_pickle=False) for k in ("users", "items")
    }
    return codes | shape


def build(folder: Path, prefix: str = "") -> dict[str, Any]:
    """Time the graph and its normalisation."""
    log = load(folder, prefix)
    before = resident_bytes()
    seconds = timed({"build": lambda: BipartiteGraph(**log).normalised}, 3, warm_up=0)
    return {"seconds": seconds["build"]["min"], "before": before}


def propagation(folder: Path) -> dict[str, Any]:
    """Time a layer and the gather below it in turn, on the same tables and columns."""
    log = load(folder)
    before = resident_bytes() - log["users"].nbytes - log["items"].nbytes
    operator = SparseOperator(BipartiteGraph(**log).normalised)
    log.clear()
    n_users, n_items = operator.shape
    generator = torch.Generator().manual_seed(0)
    users, items = (torch.randn(n, DIM, generator=generator) for n in (n_users, n_items))
    by_user, by_item = (o.csr.col_indices() for o in (operator, operator.T))

    def layer() -> None:
        x_users, x_items = (table.detach().requires_grad_() for table in (users, items))
        y_users, y_items = operator(x_items), operator.T(x_users)
        # The tables stand for the gradients of the outputs: they have the right shapes.
        torch.autograd.backward([y_users, y_items], [users, items])

    def gather() -> None:
        for columns, table in ((by_user, items), (by_item, users)) * 2:
            bags = torch.arange(0, len(columns), _BAG, dtype=columns.dtype)
            embedding_bag(columns, table, bags, mode="sum")

    seconds = timed({"layer": layer, "gather": gather}, 3)
    best = {name: value["min"] for name, value in seconds.items()}
    return {"seconds": best["layer"], "gather": best["gather"], "before": before}


def source(folder: Path) -> Source:
    """The log as pretraining takes it."""
    return Source("made", item_text=None, **load(folder))


def episode(folder: Path) -> dict[str, Any]:
    """Time the drawing of sub-graphs, without what a source makes once."""
    log, config = source(folder), PretrainConfig()
    before = resident_bytes()
    sample_episode(log, config, numpy_generator(0, "first"))
    started = time.perf_counter()
    found = [sample_episode(log, config, numpy_generator(0, number)) for number in range(20)]
    seconds = (time.perf_counter() - started) / len(found)
    degree = np.mean([e.input.graph.n_edges / e.input.graph.n_items for e in found])
    return {"seconds": seconds, "before": before, "episode_item_degree": float(degree)}


def pretraining(folder: Path) -> dict[str, Any]:
    """Time a run of a fixed number of steps, its validation episodes included."""
    log, config = source(folder), PretrainConfig()
    config = config.model_copy(
        update={"train": config.train.model_copy(update={"max_steps": STEPS})}
    )
    before = resident_bytes()
    started = time.perf_counter()
    _, result = pretrain([log], config)
    assert result.steps == STEPS
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "before": before, "step_seconds": result.seconds / STEPS}


def spectrum(folder: Path) -> dict[str, Any]:
    """Time the truncated decomposition of the whole graph."""
    log = load(folder)
    before = resident_bytes() - log["users"].nbytes - log["items"].nbytes
    graph = BipartiteGraph(**log)
    log.clear()
    started = time.perf_counter()
    _ = GraphInput(graph).spectrum
    return {"seconds": time.perf_counter() - started, "before": before}


MEASURES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "build": build,
    "build, shuffled": lambda folder: build(folder, "shuffled_"),
    "propagation": propagation,
    "episode": episode,
    "pretraining": pretraining,
    "spectrum": spectrum,
}


def resident_bytes() -> int:
    """Resident memory now; where /proc does not tell, the peak so far."""
    statm = Path("/proc/self/statm")
    if statm.is_file():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return peak_memory_bytes()


def in_fresh_process(measure: str, folder: Path, n_edges: int) -> dict[str, Any]:
    """Run one measure in a process of its own; its last line of output is the answer."""
    print(f"{n_edges} edges: {measure}", file=sys.stderr, flush=True)
    command = [sys.executable, __file__, "--measure", measure, "--folder", str(folder)]
    command += ["--edges", str(n_edges)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def rows_of(n_edges: int, measures: list[str]) -> list[dict[str, Any]]:
    """Make a log of that size and measure everything on it."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        log = in_fresh_process("make", folder, n_edges)
        shape = {key: log[key] for key in _SHAPE}
        print(json.dumps(log), file=sys.stderr, flush=True)
        for measure in measures:
            found = in_fresh_process(measure, folder, n_edges)
            per_edge = max(found["peak"] - found["before"], 0) / log["edges"]
            row = {
                "measure": measure,
                "huge_pages": int(os.environ.get(_HUGE_PAGES, "0")),
                **shape,
                "seconds": found["seconds"],
                "ns_per_edge": 1e9 * found["seconds"] / log["edges"],
                "peak_gb": found["peak"] / 1e9,
                "bytes_per_edge": per_edge,
            }
            rows.append(row)
            if "gather" in found:
                seconds = found["gather"]
                same = {"seconds": seconds, "ns_per_edge": 1e9 * seconds / log["edges"]}
                none = {"peak_gb": "", "bytes_per_edge": ""}
                rows.append(row | {"measure": "gather", **same, **none})
                row["gather_ratio"] = found["seconds"] / seconds
            row |= {key: found[key] for key in _EXTRAS if key in found}
    return rows


def with_ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Divide by the same measure's value at 4 million edges (gather: 1), or the smallest size."""
    sizes = sorted({row["edges"] for row in rows})

    def base(measure: str, near: int) -> dict[str, Any]:
        size = next((s for s in sizes if abs(s / near - 1) < 0.1), sizes[0])
        return next(r for r in rows if r["measure"] == measure and r["edges"] == size)

    out = []
    for row in rows:
        first = base(row["measure"], 4 * MILLION)
        more: dict[str, Any] = {"time_ratio": row["ns_per_edge"] / first["ns_per_edge"]}
        more["bytes_ratio"] = row["bytes_per_edge"] and (
            row["bytes_per_edge"] / max(first["bytes_per_edge"], 1e-9)
        )
        more["gather_ratio"] = row.get("gather_ratio", "")
        smallest = base(row["measure"], MILLION).get("gather_ratio")
        more["gather_growth"] = row["gather_ratio"] / smallest if smallest else ""
        more |= {key: row.get(key, "") for key in _EXTRAS}
        out.append({k: v for k, v in row.items() if k not in more} | more)
    return out


def main() -> None:
    """Measure the asked sizes, or one thing at one size where a parent process asks for it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=float, nargs="+", default=[1, 4, 16, 64], help="millions")
    parser.add_argument(
        "--only", nargs="+", choices=list(MEASURES), help="these measures; no rows written"
    )
    parser.add_argument("--spectrum", action="store_true", help="the spectrum of the whole graph")
    parser.add_argument("--quick", action="store_true", help="0.1 and 0.4 million; no rows written")
    parser.add_argument(
        "--huge-pages", action="store_true", help=f"set {_HUGE_PAGES}=1 for torch's allocator"
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--edges", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        if arguments.measure == "make":
            found = make(arguments.folder, arguments.edges)
        else:
            found = MEASURES[arguments.measure](arguments.folder)
        print(json.dumps(found | {"peak": peak_memory_bytes()}))
        return
    if arguments.huge_pages:
        os.environ[_HUGE_PAGES] = "1"  # the children's
    measures = arguments.only or [
        name for name in MEASURES if name != "spectrum" or arguments.spectrum
    ]
    rows = []
    for size in [0.1, 0.4] if arguments.quick else arguments.sizes:
        rows += rows_of(round(size * MILLION), measures)
    report(
        with_ratios(rows), "growth", arguments.json, write=not (arguments.quick or arguments.only)
    )


if __name__ == "__main__":
    main()
