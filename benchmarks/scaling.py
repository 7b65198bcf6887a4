"""What large logs cost: packing them, and a training step shared by processes.

    python benchmarks/scaling.py              # the rows that docs/scaling.md computes with
    python benchmarks/scaling.py --quick      # small; writes no rows
    python benchmarks/scaling.py --table      # the table of docs/scaling.md, from the rows

pack   `gnnrec data pack` of a made log with text ids (that of `ingest.py`, Parquet): seconds and
       peak memory of a process of its own beyond its libraries, and the bytes of the folder
step   a step of a text-free GraphSAGE of 64 dimensions, two layers, on a whole made graph (that of
       `generator.py`): forward, loss of 1,024 edges, backward, gradients added up, Adam. Median of
       five after one more, by one process and by two, one thread each; `peak_bytes` is that of the
       largest process beyond its libraries and the log
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from common import RESULTS, report
from growth import make, resident_bytes
from ingest import peak, write_logs

from gnnrec.ledger import read_rows

MILLION = 1_000_000


def pack_child(log: Path, out: Path) -> None:
    """Pack, and print what it took."""
    from gnnrec.packed import pack

    before, started = peak(), time.perf_counter()
    about = pack([log], out)
    seconds = time.perf_counter() - started
    disk = sum(path.stat().st_size for path in out.iterdir())
    print(
        json.dumps(
            {
                "seconds": seconds,
                "peak_bytes": peak() - before,
                "disk_bytes": disk,
                "edges": about["n_pairs"],
                "users": about["n_users"],
                "items": about["n_items"],
            }
        )
    )


def step_child(folder: Path, result: Path) -> None:
    """One rank's steps; the first writes what the slowest took and the largest held."""
    import torch
    from growth import load

    from gnnrec.config import ModelConfig, TrainConfig
    from gnnrec.device import numpy_generator
    from gnnrec.features import GraphInput
    from gnnrec.graph import graph_of
    from gnnrec.model import build_model
    from gnnrec.ranks import together
    from gnnrec.sampling import Episode
    from gnnrec.train import batch_loss

    with together("cpu") as ranks:
        log = load(folder)
        before = resident_bytes()
        graph = graph_of(log["users"], log["items"], log["n_users"], log["n_items"], ranks)
        config = ModelConfig(encoder="graphsage", dim=64, n_layers=2, spectral_rank=1, text_dim=0)
        torch.manual_seed(0)
        model, train = build_model(config), TrainConfig(batch_size=1024)
        optimiser = torch.optim.Adam(model.parameters())
        rng = numpy_generator(0, "steps")
        some = rng.choice(len(log["users"]), 100_000)
        episode = Episode(
            GraphInput(graph, spectral_rank=1), log["users"][some], log["items"][some]
        )
        seconds = []
        for _ in range(6):
            ranks.wait()
            started = time.perf_counter()
            batch = episode.batch(1024, train.n_negatives, train.user_balance, rng)
            loss = batch_loss(model, episode, batch, train)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            ranks.add_up([p.grad for p in model.parameters() if p.grad is not None])
            optimiser.step()
            seconds.append(time.perf_counter() - started)
        held = [0.0] * ranks.size
        held[ranks.rank] = float(peak() - before)
        found = {"seconds": statistics.median(seconds[1:]), "peak_bytes": max(ranks.total(*held)),
                 "edges": len(log["users"]), "users": log["n_users"],
                 "items": log["n_items"]}  # fmt: skip
        if ranks.rank == 0:
            result.write_text(json.dumps(found), encoding="utf-8")


def child(n: int, *arguments: str) -> str:
    """Run this script in n processes of one thread."""
    start = [sys.executable]
    if n > 1:
        start += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n)]
    settings = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [*start, __file__, *arguments]
    return subprocess.run(
        command, env=settings, stdout=subprocess.PIPE, text=True, check=True
    ).stdout


def table() -> str:
    """What more edges need, by the rows of the largest measured logs, in proportion."""
    rows = read_rows(RESULTS / "scaling.csv")
    most = max(int(row["edges"]) for row in rows if row["measure"] == "step")

    def value(measure: str, processes: int, name: str) -> float:
        of_kind = [
            row for row in rows if (row["measure"], row["processes"]) == (measure, str(processes))
        ]
        return float(max(of_kind, key=lambda row: int(row["edges"]))[name])

    build = [
        float(row["bytes_per_edge"])
        for row in read_rows(RESULTS / "growth.csv")
        if row["measure"] == "build" and int(row["edges"]) > MILLION * 10
    ]
    lines = [
        "| | 1 billion edges | 10 billion | 100 billion |",
        "|---|---|---|---|",
    ]
    for name, per_edge, unit, digits in (
        ("packed log on disk, TB", value("pack", 1, "disk_bytes_per_edge"), 1e-12, 2),
        ("packing on one machine, hours", value("pack", 1, "ns_per_edge"), 1e-9 / 3600, 1),
        ("memory of packing, GB", value("pack", 1, "peak_bytes_per_edge"), 1e-9, 0),
        ("the graph as rows in memory, GB", max(build), 1e-9, 0),
        ("a whole-graph step, all processes' memory, GB",
         2 * value("step", 2, "peak_bytes") / most, 1e-9, 0),
        ("machines of 256 GB for that", 2 * value("step", 2, "peak_bytes") / most, 1e-9 / 256, 1),
        ("its computing by one process, minutes", value("step", 1, "ns_per_edge"), 1e-9 / 60, 1),
        ("by two processes, minutes", value("step", 2, "ns_per_edge"), 1e-9 / 60, 1),
    ):  # fmt: skip
        cells = [f"{per_edge * edges * unit:,.{digits}f}" for edges in (1e9, 1e10, 1e11)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, and write results/scaling.csv."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--table", action="store_true", help="print the page's table")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        kind, source, out = options.child
        (pack_child if kind == "pack" else step_child)(Path(source), Path(out))
        return
    if options.table:
        print(table())
        return
    rows: list[dict[str, Any]] = []
    empty = dict.fromkeys(("measure", "processes", "edges", "users", "items", "seconds",
                           "ns_per_edge", "peak_bytes", "peak_bytes_per_edge", "disk_bytes",
                           "disk_bytes_per_edge"), "")  # fmt: skip
    for n_rows in (200_000, 400_000) if options.quick else (10 * MILLION, 40 * MILLION):
        with tempfile.TemporaryDirectory() as name:
            write_logs(Path(name), n_rows)
            log, out = Path(name) / "log.parquet", Path(name) / "packed"
            found = json.loads(child(1, "--child", "pack", str(log), str(out)).splitlines()[-1])
            rows.append(empty | {"measure": "pack", "processes": 1} | found)
    for n_edges in (100_000, 200_000) if options.quick else (2 * MILLION, 8 * MILLION):
        with tempfile.TemporaryDirectory() as name:
            make(Path(name), n_edges)
            for n in (1, 2):
                result = Path(name) / f"{n}.json"
                child(n, "--child", "step", name, str(result))
                found = json.loads(result.read_text(encoding="utf-8"))
                rows.append(empty | {"measure": "step", "processes": n} | found)
    for row in rows:
        row["ns_per_edge"] = row["seconds"] / row["edges"] * 1e9
        for name in ("peak", "disk"):
            if row[f"{name}_bytes"] != "":
                row[f"{name}_bytes_per_edge"] = row[f"{name}_bytes"] / row["edges"]
    report(rows, "scaling", options.json, write=not options.quick)


if __name__ == "__main__":
    main()
