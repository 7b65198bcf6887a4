"""From a log file with text ids to a graph: `gnnrec` beside the usual few lines of pandas.

    python benchmarks/ingest.py                 # 20 million rows, Parquet and CSV
    python benchmarks/ingest.py --quick         # 500,000 rows; writes no rows

The log is made up: a user for every 20 rows, an item for every 100, both drawn by a power law, ids
such as user_0012345 and B00K3VQ8ZD, two columns. Each way runs in a process of its own, in turn.
Seconds count from the file to the graph, imports excluded; memory is the peak of the resident set
less that after the imports, so it holds the vocabularies too. The graphs must agree in their
numbers of users, items and edges and in all degrees, in order of first appearance.

pandas: read the two columns, `factorize` each, `csr_array` of ones.
gnnrec: `stream_log`, `BipartiteGraph`. gnnrec.read_interactions: the same by way of
`read_interactions`, which also finds the repeated pairs and keeps the order of the rows.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pa_parquet

COLUMNS = ["user_id", "item_id"]
FORMATS = ("parquet", "csv")
CHUNK = 2**20
LETTERS = np.frombuffer(b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ", dtype="S1")


# The log.


def user_names(count: int) -> pa.Array:
    """user_0000000, user_0000001, ..."""
    return pa.array([f"user_{number:07d}" for number in range(count)])


def item_names(count: int) -> pa.Array:
    """B00 and seven letters or digits, scattered: a product with a prime, in base 36."""
    rest = np.arange(count) * 2_654_435_761 % 36**7
    letters = [np.full(count, letter, dtype="S1") for letter in (b"B", b"0", b"0")]
    for _ in range(7):
        letters.append(LETTERS[rest % 36])
        rest //= 36
    return pa.array(np.stack(letters, axis=1).view("S10").ravel().astype(str).tolist())


def popularity(count: int, exponent: float, rng: np.random.Generator) -> tuple[np.ndarray, Any]:
    """Cumulative shares of a power law with a blunt head, and which name has which rank."""
    shares = np.cumsum((np.arange(count) + count / 500) ** -exponent)
    return shares / shares[-1], rng.permutation(count)


def write_logs(folder: Path, n_rows: int) -> None:
    """Write log.parquet and log.csv, a chunk at a time."""
    rng = np.random.default_rng(0)
    sides = [
        (names, *popularity(len(names), exponent, rng))
        for names, exponent in (
            (user_names(max(2, n_rows // 20)), 0.7),
            (item_names(max(2, n_rows // 100)), 0.9),
        )
    ]
    schema = pa.schema([(name, pa.string()) for name in COLUMNS])
    plain = pa_csv.WriteOptions(include_header=False, quoting_style="none")
    with (
        pa_parquet.ParquetWriter(folder / "log.parquet", schema) as parquet,
        (folder / "log.csv").open("wb") as text,
    ):
        text.write((",".join(COLUMNS) + "\n").encode())
        for start in range(0, n_rows, CHUNK):
            size = min(CHUNK, n_rows - start)
            columns = [
                names.take(pa.array(which[np.searchsorted(shares, rng.random(size))]))
                for names, shares, which in sides
            ]
            table = pa.table(columns, schema=schema)
            parquet.write_table(table)
            pa_csv.write_csv(table, text, plain)


# The ways. Each returns what reads the file and makes the graph; imports come before.


def pandas_way() -> Callable[[str], tuple[Any, int, int]]:
    """Read two columns, factorize, csr_array."""
    import pandas as pd
    import scipy.sparse as sp

    def run(path: str) -> tuple[Any, int, int]:
        if path.endswith(".parquet"):
            frame = pd.read_parquet(path, columns=COLUMNS)
        else:
            frame = pd.read_csv(path, usecols=COLUMNS)
        users, user_ids = pd.factorize(frame["user_id"])
        items, item_ids = pd.factorize(frame["item_id"])
        return sp.csr_array((np.ones(len(users)), (users, items))), len(user_ids), len(item_ids)

    return run


def stream_way() -> Callable[[str], tuple[Any, int, int]]:
    """`stream_log`, `BipartiteGraph`."""
    from gnnrec.graph import BipartiteGraph
    from gnnrec.ingest import stream_log

    def run(path: str) -> tuple[Any, int, int]:
        log = stream_log(path, *COLUMNS)
        assert log is not None, "the log is plain"
        n_users, n_items = len(log.user_ids), len(log.item_ids)
        return BipartiteGraph(log.users, log.items, n_users, n_items).user_items, n_users, n_items

    return run


def interactions_way() -> Callable[[str], tuple[Any, int, int]]:
    """`read_interactions`, `BipartiteGraph`."""
    from gnnrec.graph import BipartiteGraph
    from gnnrec.interactions import read_interactions

    def run(path: str) -> tuple[Any, int, int]:
        log = read_interactions(path)
        graph = BipartiteGraph(log.users, log.items, log.n_users, log.n_items)
        return graph.user_items, log.n_users, log.n_items

    return run


WAYS = {
    "pandas": pandas_way,
    "gnnrec": stream_way,
    "gnnrec.read_interactions": interactions_way,
}


def peak() -> int:
    """Bytes of the largest resident set so far, of this process alone.

    `getrusage` is for where there is no /proc: on Linux its peak includes that of the parents.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def child(way: str, path: str) -> None:
    """Run one way once, and print what it took as JSON."""
    run = WAYS[way]()
    before, started, used = peak(), time.perf_counter(), time.process_time()
    matrix, n_users, n_items = run(path)
    seconds, cpu = time.perf_counter() - started, time.process_time() - used
    grown = peak() - before
    degrees = hashlib.sha256(np.diff(matrix.indptr).astype(np.int64).tobytes())
    degrees.update(np.bincount(matrix.indices, minlength=n_items).astype(np.int64).tobytes())
    shape = [n_users, n_items, int(matrix.nnz), degrees.hexdigest()]
    print(json.dumps({"seconds": seconds, "cpu": cpu, "peak": grown, "graph": shape}))


def measure(path: Path, repeats: int) -> dict[str, list[dict[str, Any]]]:
    """Run every way `repeats` times, in turn, each time in a new process."""
    runs: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for turn in range(repeats):
        for way in WAYS:
            command = [sys.executable, __file__, "--child", way, str(path)]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
            runs[way].append(json.loads(done.stdout))
            print(f"{path.suffix} {turn} {way}: {runs[way][-1]}", file=sys.stderr)
    graphs = {json.dumps(run["graph"]) for of_way in runs.values() for run in of_way}
    assert len(graphs) == 1, f"the graphs differ: {graphs}"
    return runs


def rows_of(runs: dict[str, list[dict[str, Any]]], kind: str, n_rows: int) -> list[dict[str, Any]]:
    """One row a way: seconds, ratios to pandas, bytes a row."""
    rows: list[dict[str, Any]] = []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    usual = statistics.median(run["seconds"] for run in runs["pandas"])
    usual_cpu = statistics.median(run["cpu"] for run in runs["pandas"])
    for way, of_way in runs.items():
        median = statistics.median(run["seconds"] for run in of_way)
        cpu = statistics.median(run["cpu"] for run in of_way)
        n_users, n_items, n_edges, _ = of_way[0]["graph"]
        rows.append(
            {
                "way": way,
                "format": kind,
                "n_rows": n_rows,
                "n_users": n_users,
                "n_items": n_items,
                "n_edges": n_edges,
                "cores": cores,
                "seconds_min": round(min(run["seconds"] for run in of_way), 3),
                "seconds_median": round(median, 3),
                "pandas_over_this": round(usual / median, 2),
                "cpu_seconds_median": round(cpu, 3),
                "pandas_cpu_over_this": round(usual_cpu / cpu, 2),
                "peak_bytes_per_row": round(max(run["peak"] for run in of_way) / n_rows, 1),
            }
        )
    return rows


def main() -> None:
    """Make the logs, measure, report."""
    from common import report

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--quick", action="store_true", help="500,000 rows; writes no results")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    n_rows = 500_000 if arguments.quick else arguments.rows
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        write_logs(Path(folder), n_rows)
        for kind in arguments.formats:
            runs = measure(Path(folder) / f"log.{kind}", arguments.repeats)
            rows += rows_of(runs, kind, n_rows)
    report(rows, "ingest", arguments.json, write=not arguments.quick)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
    else:
        main()
