"""A loaded Recommender under many readers: the same answers, and memory that stays.

    python benchmarks/reliability/load.py            # 100,000 requests; a few minutes
    python benchmarks/reliability/load.py --quick    # a hundredth of them; writes no rows

Four processes load one folder, and eight threads in each ask the Recommender: lists for known and
unknown users, with and without restrictions, for histories, and similar items. Every answer is
compared bit for bit with the one a single thread got before. Resident memory is taken after a
fifth of the requests and at the end; how much of the vectors' file is a process's own is read from
the kernel's map.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import re
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import report
from latency import served

from gnnrec.recommender import Recommender

PROCESSES, THREADS, REQUESTS = 4, 8, 100_000
N_USERS, N_ITEMS = 2_500, 5_000
DISTINCT = 400
RESULTS = Path(__file__).parent / "results"


def wishes(recommender: Recommender) -> list[tuple[list[str], list[str]]]:
    """Users and items of the distinct requests."""
    rng, log = np.random.default_rng(0), recommender.log
    return [
        (rng.choice(log.user_ids, 1).tolist(), rng.choice(log.item_ids, 20).tolist())
        for _ in range(DISTINCT)
    ]


def answer(
    recommender: Recommender, number: int, wished: list[tuple[list[str], list[str]]]
) -> bytes:
    """Digest of the answer to one of the distinct requests: ids, and the bits of the scores."""
    (users, items), kind = wished[number], number % 5
    if kind == 0:
        frame = recommender.recommend(users, 10)
    elif kind == 1:
        frame = recommender.recommend([*users, f"nobody {number}"], 10, exclude=items)
    elif kind == 2:
        frame = recommender.recommend(users, 10, allow=items, include_seen=True)
    elif kind == 3:
        frame = recommender.similar_items(items[:1], 10)
    else:
        frame = recommender.recommend_to_histories([items], 10)
    ids = "\n".join(map(str, [*frame.iloc[:, 0], *frame.iloc[:, 1]]))
    return hashlib.sha256(ids.encode() + frame["score"].to_numpy().tobytes()).digest()


def resident_kb() -> int:
    """Resident memory of this process."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[1])  # type: ignore[index]


def own_pages_kb() -> int:
    """How much of the mapped vectors is this process's own copy."""
    regions = re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text())
    mapped = [region for region in regions if "vectors.safetensors" in region]
    if not mapped:
        raise SystemExit("the vectors are not mapped from their file")
    return sum(int(re.search(r"Anonymous:\s+(\d+)", region)[1]) for region in mapped)  # type: ignore[index]


def work(folder: str, seed: int, n: int, expected: list[bytes]) -> dict[str, Any]:
    """One process: load, ask from every thread, compare."""
    torch.set_num_threads(1)
    recommender = Recommender.load(folder, "cpu")
    wished = wishes(recommender)

    def ask(numbers: np.ndarray) -> int:
        torch.set_num_threads(1)
        return sum(answer(recommender, n, wished) != expected[n] for n in numbers.tolist())

    numbers = np.random.default_rng(seed).integers(0, DISTINCT, n)
    first, rest = np.split(numbers, [n // 5])
    with ThreadPoolExecutor(THREADS) as pool:
        wrong = sum(pool.map(ask, np.array_split(first, THREADS)))
        before = resident_kb()
        wrong += sum(pool.map(ask, np.array_split(rest, THREADS)))
        after = resident_kb()
    return {"wrong": wrong, "before": before, "after": after, "own": own_pages_kb()}


def main() -> None:
    """Measure once."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a hundredth; no rows")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    arguments = parser.parse_args()
    requests = REQUESTS // 100 if arguments.quick else REQUESTS
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        alone = served(Path(temporary), "lightgcn", N_USERS, N_ITEMS)
        wished = wishes(alone)
        expected = [answer(alone, number, wished) for number in range(DISTINCT)]
        folder = str(Path(temporary) / "recommender")
        started = time.perf_counter()
        context = multiprocessing.get_context("spawn")  # no state of this process's threads
        with context.Pool(PROCESSES) as pool:
            each = [(folder, seed, requests // PROCESSES, expected) for seed in range(PROCESSES)]
            found = pool.starmap(work, each)
        seconds = time.perf_counter() - started
    growth = [100 * (one["after"] - one["before"]) / one["before"] for one in found]
    rows.append(
        {
            "encoder": "lightgcn",
            "n_users": N_USERS,
            "n_items": N_ITEMS,
            "processes": PROCESSES,
            "threads": THREADS,
            "requests": requests // PROCESSES * PROCESSES,
            "distinct_requests": DISTINCT,
            "wrong_answers": sum(one["wrong"] for one in found),
            "memory_mb": f"{max(one['before'] for one in found) / 1024:.1f}",
            "memory_growth_percent": f"{max(growth):.2f}",
            "own_pages_of_vectors_kb": max(one["own"] for one in found),
            "seconds": f"{seconds:.1f}",
        }
    )
    report(rows, "load", arguments.json, write=not arguments.quick, folder=RESULTS)


if __name__ == "__main__":
    main()
